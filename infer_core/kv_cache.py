"""Keys and values of the tokens so far, one buffer a layer, sized by the layer's policy."""

import torch

from infer_core.specs import ModelSpec


class KVCache:
    """K and V of one sequence.

    Shapes: keys[layer], values[layer] [num_kv_heads, capacity, head_dim]. The token at position
        p lies in slot p % capacity; a layer that keeps everything has capacity = context, a
        ring has its window, so one formula serves both.
    """

    def __init__(
        self, spec: ModelSpec, *, context: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        def buffer(layer: int) -> torch.Tensor:
            attention = spec.attention[layer]
            capacity = spec.kv_cache[layer].capacity(context)
            return torch.zeros(
                attention.num_kv_heads, capacity, attention.head_dim, device=device, dtype=dtype
            )

        layers = range(spec.shape.num_layers)
        self.context = context
        self.keys = [buffer(layer) for layer in layers]
        self.values = [buffer(layer) for layer in layers]

    def take_over(self, other: "KVCache", num_tokens: int) -> None:
        """Copy the keys and values that `other` holds of the first `num_tokens` positions."""
        for mine, theirs in zip(
            (*self.keys, *self.values), (*other.keys, *other.values), strict=True
        ):
            held = min(mine.shape[1], theirs.shape[1])
            positions = torch.arange(max(0, num_tokens - held), num_tokens, device=mine.device)
            mine[:, positions % mine.shape[1]] = theirs[:, positions % theirs.shape[1]]

    @property
    def num_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(buffer.nbytes for buffer in (*self.keys, *self.values))


def kv_bytes(spec: ModelSpec, *, context: int, itemsize: int) -> int:
    """Bytes of K and V that `context` tokens fill: what a decode step at that context reads."""
    return sum(
        2 * policy.capacity(context) * attention.num_kv_heads * attention.head_dim * itemsize
        for attention, policy in zip(spec.attention, spec.kv_cache, strict=True)
    )
