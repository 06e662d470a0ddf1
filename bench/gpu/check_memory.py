"""Compare predicted memory with the measured peak, and run a prompt of 32k tokens.

For every installed reference model, dummy weights: a request that fills each context, and a
sampled one, against `infer_core.memory.memory_need`, as `infer inspect` and the check before a
request use it. Then, where the model's context allows it, 32768 tokens of prompt and 16 new ones:
the scores of all these tokens against all of them would take 2 GB a head.

    python bench/gpu/check_memory.py [--model NAME ...] [--tolerance 0.05]

Prints MB a line: the predicted parts and total, the peak that torch had allocated, what it held
from the driver at most (graphs' memory and rounding too), and how far the total is off that peak.
Exits 1 when that is more than the tolerance. Needs an NVIDIA GPU.
"""

import argparse
import gc
import sys

import torch

from infer_core import Engine, Generation, SamplingParams
from infer_core.engine import PREFILL_CHUNK
from infer_core.memory import MemoryNeed, memory_need
from infer_core.plugins import load_registry

CONTEXTS = (128, 512, 2048, 8192)
NEW_TOKENS = 16
LONG_PROMPT = 32768
GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, repetition_penalty=1.1, seed=42)
COLUMNS = ("weights", "cache", "workspace", "total", "measured", "held")


def run(engine: Engine, prompt: int, sampling: SamplingParams) -> tuple[int, int, Generation]:
    """Run a request cold and warm: the peak allocated, the most held, what the warm one gave."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(engine.spec.shape.vocab_size, (prompt,), generator=generator).tolist()
    # each request stands for itself: no caches, graphs or workspaces of the one before
    engine.release()
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        done = engine.generate(ids, max_new_tokens=NEW_TOKENS, sampling=sampling, ignore_eos=True)
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), done


def line(name: str, what: str, need: MemoryNeed, peak: int, held: int, tolerance: float) -> bool:
    """Print one comparison; say whether it holds."""
    parts = (need.weight_bytes, need.kv_cache_bytes, need.workspace_bytes, need.total_bytes)
    numbers = "".join(f"{size / 1e6:10.1f}" for size in (*parts, peak, held))
    difference = need.total_bytes / peak - 1
    good = abs(difference) <= tolerance
    print(
        f"{'ok  ' if good else 'FAIL'} {name:14} {what:14}{numbers} {difference:+8.2%}", flush=True
    )
    return good


def check(name: str, tolerance: float) -> bool:
    """Compare every request of one model."""
    engine = Engine.load(name, device="cuda", weights="dummy")
    limit = engine.max_context
    cases = [(f"{context}", context, GREEDY) for context in CONTEXTS if context <= limit]
    cases.append(("512 sampled", 512, SAMPLED))
    if limit >= LONG_PROMPT + NEW_TOKENS:
        cases.append(("32k prompt", LONG_PROMPT + NEW_TOKENS, GREEDY))
    good = True
    for what, context, sampling in cases:
        prompt = context - NEW_TOKENS
        need = memory_need(
            engine.spec,
            context=context,
            prompt=prompt,
            dtype="bfloat16",
            prefill_chunk=PREFILL_CHUNK,
            device="cuda",
        )
        peak, held, done = run(engine, prompt, sampling)
        good &= line(name, what, need, peak, held, tolerance)
        if prompt == LONG_PROMPT:
            took = f"TTFT {done.ttft_ms:.0f} ms, {done.e2e_s:.2f} s in all"
            print(f"     {name:14} {prompt} + {NEW_TOKENS} tokens: {took}", flush=True)
    return good


def main() -> int:
    """Check the models asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*")
    parser.add_argument("--tolerance", type=float, default=0.05)
    arguments = parser.parse_args()
    names = arguments.model or [m.name for _, m in load_registry().reference_models()]
    print(f"{'':34}" + "".join(f"{column:>10}" for column in COLUMNS) + f"{'off':>9}")
    results = []
    for name in names:
        results.append(check(name, arguments.tolerance))
        gc.collect()
        torch.cuda.empty_cache()
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
