"""A time limit around code that may hang: a stranger's plugin."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise TimeoutError in the body when it takes longer, and again after as long once more.

    So every one of several plugins that hang is interrupted. Works for Python code in the main
    thread of a Unix process; elsewhere the body runs without a limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"timeout: {what} took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
