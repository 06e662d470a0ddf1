"""Look for races between kernels: the same results with and without early launches (PDL).

For every installed reference model, dummy weights: prompts of several lengths, again and again, and
decode steps, greedy and sampled; with programmatic dependent launch, twice, the second time while
another process keeps the GPU busy, and once without it. Every logit of the prompts and every id
must agree. A kernel that reads too early shows up as a result that depends on timing.

    python bench/gpu/check_pdl.py [--model NAME ...] [--steps 5000] [--prefills 200]

Needs an NVIDIA GPU of compute capability >= 9.0. Prints one line a model and prompt length or kind,
exits 1 on a difference.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch

from infer_core import Engine
from infer_core.plugins import load_registry
from infer_core.sampling_params import SamplingParams

KINDS = {
    "greedy": SamplingParams(),
    "full-pipe": SamplingParams(temperature=0.8, top_k=50, top_p=0.9, repetition_penalty=1.1),
    "top-p only": SamplingParams(temperature=0.8, top_p=0.9),
}
PROMPTS = (5, 64, 128, 256, 512, 1024)
LOAD = """
import torch
a = torch.randn(6144, 6144, device="cuda", dtype=torch.bfloat16)
while True:
    for _ in range(50):
        a @ a
    torch.cuda.synchronize()
    print(flush=True)
"""


@contextmanager
def busy() -> Iterator[None]:
    """Keep the GPU busy from another process."""
    load = subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE)
    assert load.stdout is not None
    load.stdout.readline()  # it is at work
    try:
        yield
    finally:
        load.kill()
        load.wait()


@contextmanager
def in_order() -> Iterator[None]:
    """Start a kernel only when the one before has ended."""
    with (
        mock.patch("infer_core.decode_chain.has_pdl", return_value=False),
        mock.patch("infer_core.kernels._common.has_pdl", return_value=False),
    ):
        yield


@torch.inference_mode()
def prefill(engine: Engine, num_tokens: int, repeats: int) -> torch.Tensor:
    """Capture the prefill of a prompt anew; the logits [repeats, vocab_size] of its replays."""
    engine.release()
    engine.generate(prompt(engine, num_tokens), max_new_tokens=1, ignore_eos=True)
    graphs = engine._latest._graphs
    graph, logits = next(kept for key, kept in graphs.items() if key.rows)
    runs = []
    for _ in range(repeats):
        graph.replay()
        runs.append(logits[0].clone())
    return torch.stack(runs)


def decode(engine: Engine, sampling: SamplingParams, steps: int, _: int) -> torch.Tensor:
    """Capture a step anew; the tokens [1, steps + 1] of one request, EOS ignored."""
    engine.release()
    result = engine.generate(
        prompt(engine, 64), max_new_tokens=steps + 1, sampling=sampling, ignore_eos=True
    )
    return torch.tensor([result.tokens])


def prompt(engine: Engine, num_tokens: int) -> list[int]:
    """A prompt of chance, the same every time."""
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randint(engine.spec.shape.vocab_size, (num_tokens,), generator=generator).tolist()


def check(name: str, steps: int, prefills: int) -> bool:
    """Compare the runs of one model: in order, early, and early beside a busy process."""
    engine = Engine.load(name, device="cuda", weights="dummy")
    cases = {f"{n} tokens of prompt": partial(prefill, engine, n) for n in PROMPTS}
    for kind, sampling in KINDS.items():
        cases[f"{steps} steps, {kind}"] = partial(decode, engine, sampling, steps)
    with in_order():
        ordered = {case: run(1) for case, run in cases.items()}
    early = {case: run(prefills) for case, run in cases.items()}
    same = True
    with busy():
        for case, run in cases.items():
            runs = torch.cat([early.pop(case), run(prefills)])
            differs = runs != ordered[case]
            wrong = int(differs.any(dim=1).sum())
            same &= not wrong
            first = int(differs.any(dim=0).nonzero()[0]) if wrong else 0
            print(
                f"{'FAIL' if wrong else 'ok  '} {name}: {case}, {len(runs)} times, "
                f"{len(ordered[case].unique())} distinct values"
                + (f", {wrong} times different, first at {first}" if wrong else ""),
                flush=True,
            )
    return same


def main() -> int:
    """Check the models asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--prefills", type=int, default=200)
    arguments = parser.parse_args()
    names = arguments.model or [m.name for _, m in load_registry().reference_models()]
    return int(not all(check(name, arguments.steps, arguments.prefills) for name in names))


if __name__ == "__main__":
    sys.exit(main())
