"""Where the time of a prefill goes: kernels by total time, graph replay, request to first token.

    python bench/gpu/profile_prefill.py [--model NAME ...] [--prompt-tokens 64 256 1024]

Dummy weights, published shapes, greedy. Needs an NVIDIA GPU.
"""

import argparse
import itertools
import statistics
import time
from collections import Counter

import torch

from infer_core import Engine, SamplingParams
from infer_core.plugins import load_registry
from infer_core.session import pack_tokens


def median_ms(run, repeats: int = 30) -> float:
    """Device time of one call, median."""
    run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))


@torch.inference_mode()
def profile(name: str, num_tokens: int, engine: Engine) -> None:
    """Print one block for one prompt length."""
    prompt = torch.randint(engine.spec.shape.vocab_size, (num_tokens,)).tolist()
    ttft = []
    for _ in range(30):
        torch.cuda.synchronize()
        began = time.perf_counter()
        result = engine.generate(prompt, max_new_tokens=1, ignore_eos=True)
        ttft.append(1e3 * (time.perf_counter() - began))
    session = engine._latest
    graph = next(graph for key, (graph, _) in session._graphs.items() if key.rows)
    replay = median_ms(graph.replay)
    session.begin(SamplingParams(), num_tokens)
    session.prefill(pack_tokens(prompt), 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(5):
            graph.replay()
        torch.cuda.synchronize()
    total: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type == torch.profiler.DeviceType.CUDA:
            total[event.name] += event.device_time_total / 5
            count[event.name] += 1
    print(
        f"{name} {num_tokens}: TTFT {statistics.median(ttft):.3f} ms (engine says "
        f"{result.ttft_ms:.3f}), graph {replay:.3f} ms, kernels {sum(total.values()) / 1e3:.3f} ms "
        f"in {sum(count.values()) // 5} launches"
    )
    for kernel, microseconds in total.most_common(14):
        per_call = microseconds / (count[kernel] / 5)
        print(f"  {microseconds:8.1f} us {count[kernel] // 5:4d} x {per_call:7.2f}  {kernel[:80]}")


def main() -> None:
    """Profile every model asked for at every length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*")
    parser.add_argument("--prompt-tokens", nargs="*", type=int, default=[64, 256, 1024])
    arguments = parser.parse_args()
    for name in arguments.model or [m.name for _, m in load_registry().reference_models()]:
        engine = Engine.load(name, device="cuda", weights="dummy")
        for num_tokens in arguments.prompt_tokens:
            profile(name, num_tokens, engine)
            engine.release()
        del engine


if __name__ == "__main__":
    main()
