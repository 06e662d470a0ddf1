"""Look for races in the decode chain: the same tokens with and without early launches (PDL).

For every installed reference model, dummy weights, greedy and sampled: steps with programmatic
dependent launch, twice, the second time while another process keeps the GPU busy, and once without
it. Every id must agree. A kernel that reads too early shows up as a token that depends on timing.

    python bench/gpu/check_pdl.py [--model NAME ...] [--steps 5000]

Needs an NVIDIA GPU of compute capability >= 9.0. Prints one line a model and kind, exits 1 on a
difference.
"""

import argparse
import subprocess
import sys
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
LOAD = """
import torch
a = torch.randn(6144, 6144, device="cuda", dtype=torch.bfloat16)
while True:
    for _ in range(50):
        a @ a
    torch.cuda.synchronize()
"""


def generate(engine: Engine, prompt: list[int], steps: int, sampling: SamplingParams) -> list[int]:
    """Tokens of one request, EOS ignored."""
    return engine.generate(
        prompt, max_new_tokens=steps + 1, sampling=sampling, ignore_eos=True
    ).tokens


def check(name: str, steps: int) -> bool:
    """Compare the runs of one model, kind by kind."""
    engine = Engine.load(name, device="cuda", weights="dummy")
    same = [check_kind(engine, name, kind, steps) for kind in KINDS]
    return all(same)


def check_kind(engine: Engine, name: str, kind: str, steps: int) -> bool:
    """Compare three runs."""
    sampling = KINDS[kind]
    engine.release()
    vocab = engine.spec.shape.vocab_size
    prompt = torch.randint(vocab, (64,), generator=torch.Generator().manual_seed(2)).tolist()
    early = generate(engine, prompt, steps, sampling)
    load = subprocess.Popen([sys.executable, "-c", LOAD])
    try:
        loaded = generate(engine, prompt, steps, sampling)
    finally:
        load.kill()
        load.wait()
    with mock.patch("infer_core.decode_chain.has_pdl", return_value=False):
        engine.release()
        ordered = generate(engine, prompt, steps, sampling)
    same = early == loaded == ordered
    first = next(
        (i for i, ids in enumerate(zip(early, loaded, ordered, strict=True)) if len(set(ids)) > 1),
        None,
    )
    where = "" if same else f", first difference at {first}"
    distinct = len(set(early))
    verdict = "ok  " if same else "FAIL"
    print(f"{verdict} {name} {kind}: {steps} steps, {distinct} distinct ids{where}")
    return same


def main() -> int:
    """Check the models asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*")
    parser.add_argument("--steps", type=int, default=5000)
    arguments = parser.parse_args()
    names = arguments.model or [m.name for _, m in load_registry().reference_models()]
    return int(not all(check(name, arguments.steps) for name in names))


if __name__ == "__main__":
    sys.exit(main())
