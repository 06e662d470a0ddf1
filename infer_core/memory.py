"""How much memory a model needs, from its spec alone: no weights, no GPU."""

from dataclasses import dataclass

from infer_core.kv_cache import kv_bytes
from infer_core.parameters import model_parameters
from infer_core.specs import DType, ModelSpec

ITEM_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of one model at one context length and dtype.

    `workspace_bytes` estimates the largest set of activations alive at once, in the prefill of a
    prompt that fills the context, and the RoPE tables; the libraries' own (CUDA, cuBLAS) comes
    on top.
    """

    num_parameters: int
    weight_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_cache_bytes + self.workspace_bytes


def memory_need(spec: ModelSpec, *, context: int, dtype: DType, prefill_chunk: int) -> MemoryNeed:
    """Add up weights, the KV cache of `context` tokens, and the workspace."""
    itemsize = ITEM_BYTES[dtype]
    sizes = [
        parameter.shape[0] * (parameter.shape[1] if len(parameter.shape) > 1 else 1)
        for parameter in model_parameters(spec).values()
    ]
    return MemoryNeed(
        num_parameters=sum(sizes),
        weight_bytes=sum(sizes) * itemsize,
        kv_cache_bytes=kv_bytes(spec, context=context, itemsize=itemsize),
        workspace_bytes=_workspace(spec, context, itemsize, prefill_chunk),
    )


def _workspace(spec: ModelSpec, context: int, itemsize: int, prefill_chunk: int) -> int:
    shape = spec.shape
    rows = min(context, prefill_chunk)
    # beside the residual and the normed input: either qkv and the attention output, or the wide
    # and the activated MLP
    attention = max(
        (2 * layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim for layer in spec.attention
    )
    mlp = (3 if spec.block.gated else 2) * shape.intermediate_size
    activations = rows * (2 * shape.hidden_size + max(attention, mlp)) * itemsize
    tables = {(layer.rope, layer.rotary_dim) for layer in spec.attention}
    rope = sum(2 * (context + prefill_chunk) * dim // 2 * 4 for _, dim in tables)
    logits = 2 * shape.vocab_size * 4
    return activations + rope + logits
