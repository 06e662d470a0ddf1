"""Where the time to a first token goes on the host, after short answers and after long ones.

    python bench/gpu/time_first_token.py [--model gemma3-1b] [--prompt-tokens 64 1024]

The host is slower after a long answer: what it needs has left its caches by then. Printed per
prompt length and length of the answer before: the time to first token, and the us spent in each
method on the way to it and between them, medians. `read_first` waits for the GPU. Dummy weights,
published shapes, greedy. Needs an NVIDIA GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from infer_core import Engine
from infer_core.session import Session

METHODS = {
    Engine: ("_checked", "_open"),
    Session: ("begin", "prepare", "_post", "_replay", "read_first"),
}
REQUESTS = 8


def record(marks: list[tuple[str, float]]) -> None:
    """Let every method note when it begins and ends."""

    def noting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            marks.append(("", time.perf_counter()))
            result = method(*args, **kwargs)
            marks.append((name, time.perf_counter()))
            return result

        return noted

    for owner, names in METHODS.items():
        for name in names:
            setattr(owner, name, noting(name, getattr(owner, name)))


def measure(engine: Engine, marks: list[tuple[str, float]], num_prompt: int, num_new: int) -> None:
    """Print one line for requests of `num_prompt` tokens with answers of `num_new`."""
    prompt = torch.randint(engine.spec.shape.vocab_size, (num_prompt,)).tolist()
    engine.generate(prompt, max_new_tokens=num_new, ignore_eos=True)
    first_token: list[float] = []
    spent: dict[str, list[float]] = {}
    for _ in range(REQUESTS):
        marks.clear()
        before = time.perf_counter()
        result = engine.generate(prompt, max_new_tokens=num_new, ignore_eos=True)
        first_token.append(result.ttft_ms)
        between = 0.0
        for name, at in marks:
            if name:
                spent.setdefault(name, []).append(1e6 * (at - before))
            else:
                between += 1e6 * (at - before)
            before = at
            if name == "read_first":
                break
        spent.setdefault("between", []).append(between)
    parts = ", ".join(f"{name} {statistics.median(us):.0f}" for name, us in spent.items())
    print(
        f"{num_prompt} + {num_new} tokens: first token {statistics.median(first_token):.3f} ms "
        f"({min(first_token):.3f} to {max(first_token):.3f}); us: {parts}",
        flush=True,
    )


def main() -> None:
    """Measure every prompt length after answers of one token and of 1,024."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="gemma3-1b")
    parser.add_argument("--prompt-tokens", nargs="*", type=int, default=[64, 1024])
    arguments = parser.parse_args()
    engine = Engine.load(arguments.model, device="cuda", weights="dummy")
    marks: list[tuple[str, float]] = []
    record(marks)
    print(f"{arguments.model}, {torch.cuda.get_device_name()}")
    for num_prompt in arguments.prompt_tokens:
        for num_new in (1, 1024):
            measure(engine, marks, num_prompt, num_new)


if __name__ == "__main__":
    main()
