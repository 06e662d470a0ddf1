"""How many Triton kernels a process compiled: whether its start was a cold or a warm one."""

from typing import Any


class Compilations:
    """Counts from now on, in `num`; a kernel found in Triton's cache on disk does not count."""

    def __init__(self) -> None:
        from triton import knobs

        self.num = 0
        knobs.compilation.listener = self._hear

    def _hear(self, *, cache_hit: bool, **facts: Any) -> None:
        self.num += not cache_hit
