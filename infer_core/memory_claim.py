"""What is about to be allocated on a GPU: checked against what is free, and how a lack is told."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from infer_core.device import free_bytes
from infer_core.errors import OutOfMemory
from infer_core.memory import format_bytes, memory_need
from infer_core.specs import DType, ModelSpec


@dataclass(frozen=True, slots=True)
class MemoryClaim:
    """The bytes of each part of `what`; `mend` says how to need fewer."""

    what: str
    parts: Mapping[str, int]
    device: torch.device
    mend: str

    @property
    def num_bytes(self) -> int:
        return sum(self.parts.values())

    def lacking(self) -> bool:
        """Whether the GPU has too little for it; on a CPU never."""
        free = free_bytes(self.device)
        return free is not None and free < self.num_bytes

    def check(self) -> None:
        """Make sure that it fits.

        Raises:
            OutOfMemory: needed, free, the parts and what to do.
        """
        if self.lacking():
            raise OutOfMemory(self._message())

    def explain(self, error: torch.OutOfMemoryError) -> OutOfMemory:
        """Tell of torch's own error, met in spite of `check`, as `check` would."""
        said = ". ".join(str(error).split(". ")[:2])  # the rest is advice on torch's allocator
        message = f"GPU memory ran out ({said}): {self._message()}"
        # they hold what was allocated before it failed, and the caller may hold the error
        traceback.clear_frames(error.__traceback__)
        return OutOfMemory(message)

    def _message(self) -> str:
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.parts.items())
        return (
            f"{self.what} needs {format_bytes(self.num_bytes)} of GPU memory ({parts}), "
            f"{format_bytes(free_bytes(self.device) or 0)} are free on {self.device}. {self.mend}, "
            "or close other processes on the GPU (nvidia-smi lists them)"
        )


def claim_of_model(
    spec: ModelSpec, dtype: DType, device: torch.device, *, context: int, prefill_chunk: int
) -> MemoryClaim:
    """What a model takes that is still to be loaded, with one context."""
    need = memory_need(
        spec, context=context, dtype=dtype, prefill_chunk=prefill_chunk, device=device
    )
    parts = {
        "weights": need.weight_bytes,
        "KV cache": need.kv_cache_bytes,
        "workspace": need.workspace_bytes,
    }
    return MemoryClaim(
        f"{spec.architecture} in {dtype}, with a context of {need.context} tokens,",
        parts,
        device,
        mend="Load a smaller model" + or_in_bfloat16(dtype),
    )


def or_in_bfloat16(dtype: DType) -> str:
    """Advice where a smaller number format helps."""
    return ", load in bfloat16" if dtype == "float32" else ""
