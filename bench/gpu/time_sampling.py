"""Time decode steps of every kind of sampling on this GPU, and check the tokens they pick.

    python bench/gpu/time_sampling.py [--model NAME ...] [--steps 200]

For every installed reference model, dummy weights of the published shape, one captured graph a
kind: microseconds a step (median of 5 runs of 24 steps), and what that is of greedy's tokens a
second. Then `--steps` steps, twice: the same seed must give the same tokens, and the plain-torch
sampler the same tokens for the same logits. Needs an NVIDIA GPU; exits 1 if a check fails.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from infer_core.decode_chain import DecodeChain
from infer_core.dummy_weights import dummy_weights
from infer_core.kv_cache import KVCache
from infer_core.plugins import load_registry
from infer_core.rope import rope_tables
from infer_core.sampling import Sampler, kind_of
from infer_core.sampling_params import SamplingParams

CONTEXT, POSITION = 1024, 384
RUNS, STEPS = 5, 24
PROMPT = [1, 2, 3]
FULL_PIPE = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}
KINDS = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=0.8, top_k=50, top_p=0.9),
    "full-pipe": SamplingParams(**FULL_PIPE),
    "top-p only": SamplingParams(temperature=0.8, top_p=0.9),
    "temperature only": SamplingParams(temperature=0.8),
    "min-p only": SamplingParams(temperature=0.8, min_p=0.05),
    "large top-k and p": SamplingParams(temperature=0.8, top_k=1000, top_p=0.9),
    "greedy, penalty": SamplingParams(repetition_penalty=1.1),
}


class Steps:
    """Decode steps of one model, captured one graph a kind."""

    def __init__(self, name: str, device: torch.device) -> None:
        registry = load_registry()
        spec = registry.resolve(registry.reference_model(name).config)
        self.vocab_size, self.device = spec.shape.vocab_size, device
        cache = KVCache(spec, context=CONTEXT, device=device, dtype=torch.bfloat16)
        self.sampler = self.new_sampler()
        self.chain = DecodeChain(
            spec,
            dummy_weights(spec, device=device, dtype=torch.bfloat16),
            [rope_tables(a.rope, a.rotary_dim, CONTEXT, device) for a in spec.attention],
            list(zip(cache.keys, cache.values, strict=True)),
            max_context=CONTEXT,
            sampler=self.sampler.state,
        )

    def new_sampler(self) -> Sampler:
        """A sampler as an engine of this context has it."""
        return Sampler(self.vocab_size, max_new_tokens=CONTEXT, device=self.device)

    def begin(self, sampler: Sampler, params: SamplingParams, steps: int) -> None:
        """Start a request; waits, as reading a token does, until the one before is done."""
        torch.cuda.synchronize()
        prompt = torch.tensor(PROMPT, device=self.device)
        sampler.begin(params, prompt, max_new_tokens=steps)
        self.chain.begin(5, POSITION)

    def captured(self, params: SamplingParams, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Capture a step."""
        self.begin(self.sampler, params, 2)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            body()  # compiles; capture must not
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
        return graph

    def time_us(self, params: SamplingParams, graph: torch.cuda.CUDAGraph) -> float:
        """Median time of a step."""
        times = []
        for _ in range(RUNS + 1):
            self.begin(self.sampler, params, STEPS)
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(STEPS):
                graph.replay()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / STEPS * 1e3)
        return median(times[1:])  # the first run warms up

    def check(self, params: SamplingParams, graph: torch.cuda.CUDAGraph, steps: int) -> str:
        """Say what is wrong with the tokens of `steps` steps, or ''."""
        runs, reference = [], self.new_sampler()
        for run in range(2):
            self.begin(self.sampler, params, steps)
            if run == 1:
                reference.begin(
                    params, torch.tensor(PROMPT, device=self.device), max_new_tokens=steps
                )
            expected = []
            for _ in range(steps):
                graph.replay()
                if run == 1:
                    expected.append(reference.pick(self.chain.logits))
            first = POSITION + 1
            runs.append(self.chain.sequence[first : first + steps].tolist())
        for what, other in (
            ("the same seed", runs[0]),
            ("plain torch", torch.cat(expected).tolist()),
        ):
            pairs = zip(runs[1], other, strict=True)
            different = [step for step, (ours, theirs) in enumerate(pairs) if ours != theirs]
            if different:
                step = different[0]
                return (
                    f"{what} differs at step {step}: {runs[1][step]} != {other[step]} "
                    f"({len(different)} of {steps} steps differ)"
                )
        return ""


@torch.inference_mode()
def measure(name: str, num_steps: int, device: torch.device) -> int:
    """Time and check every kind on one model; count what failed."""
    steps = Steps(name, device)
    greedy_us, failed = 0.0, 0
    for label, params in KINDS.items():
        kind = kind_of(params)
        step = steps.captured(params, partial(steps.chain.step, kind))
        step_us = steps.time_us(params, step)
        greedy_us = greedy_us or step_us
        wrong = steps.check(params, step, num_steps)
        failed += bool(wrong)
        print(
            f"{name:14} {label:18} {step_us:7.1f} us a step, {step_us - greedy_us:+6.1f}, "
            f"{greedy_us / step_us:6.1%} of greedy; "
            f"{num_steps} steps {f'FAIL {wrong}' if wrong else 'ok'}",
            flush=True,
        )
    return failed


def main() -> int:
    """Measure the models asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.steps > CONTEXT - POSITION:
        parser.error(f"--steps: at most {CONTEXT - POSITION} fit behind position {POSITION}")
    device = torch.device("cuda", torch.cuda.current_device())
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, bf16, dummy weights")
    failed = 0
    for name in arguments.model or [m.name for _, m in load_registry().reference_models()]:
        failed += measure(name, arguments.steps, device)
        torch.cuda.empty_cache()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
