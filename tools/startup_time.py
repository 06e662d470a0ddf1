"""Print how long the light commands take to start: median of 5, against a budget of 0.5 s.

Not a test, because a busy machine would fail it; that these commands import neither torch nor
triton is a test. Run with the environment's Python: `python tools/startup_time.py`. Exit
code 1 when a median is over the budget.
"""

import statistics
import subprocess
import sys
import time

BUDGET_S = 0.5
RUNS = 5
COMMANDS = [
    ("infer_core.cli", "--help"),
    ("infer_core.cli", "plugins", "list"),
    ("infer_bench.cli", "--help"),
]


def start_s(module: str, *arguments: str) -> float:
    """Seconds from process start to exit of one command, in a fresh interpreter."""
    program = f"import sys; from {module} import main; sys.exit(main())"
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - begin


def main() -> int:
    """Measure every command; 1 when one is over the budget."""
    slow = 0
    for module, *arguments in COMMANDS:
        times = [start_s(module, *arguments) for _ in range(RUNS)]
        median = statistics.median(times)
        slow += median > BUDGET_S
        print(
            f"{module} {' '.join(arguments):<14} median {median:.3f} s of {RUNS} "
            f"(min {min(times):.3f}, max {max(times):.3f}; budget {BUDGET_S} s)"
        )
    return int(slow > 0)


if __name__ == "__main__":
    raise SystemExit(main())
