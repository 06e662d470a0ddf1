"""How much GPU memory a model needs, from its spec alone: no weights, no GPU.

The terms follow the places that allocate, which each names; what torch's allocator rounds up (to
512 bytes, and a large tensor by up to 1 MiB) is left out.
"""

from dataclasses import dataclass
from math import prod

import torch

from infer_core.chain_tiles import attention_split, default_tiles
from infer_core.decode_chain import supports
from infer_core.device import cublas_workspace_bytes
from infer_core.kernels._common import has_tma, has_wgmma, num_multiprocessors
from infer_core.kernels.linear import parts_tile
from infer_core.kernels.mlp import FUSED_FROM, fused_schedule
from infer_core.kernels.mlp_schedule import flags_shape, part_rows
from infer_core.kv_cache import kv_bytes
from infer_core.parameters import Parameter, model_parameters
from infer_core.session import PREFILL_ROWS, bucket, context_bucket
from infer_core.specs import DType, ModelSpec

ITEM_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of one model that holds `context` tokens: what torch has allocated at the peak.

    `context` is the size of the bucket that serves the tokens asked for. `session_bytes` stay as
    long as the cache does, `pass_bytes` are taken while a prompt runs. What CUDA keeps for itself
    (its context, kernels' code) comes on top.
    """

    num_parameters: int
    context: int
    weight_bytes: int
    kv_cache_bytes: int
    session_bytes: int
    pass_bytes: int

    @property
    def workspace_bytes(self) -> int:
        return self.session_bytes + self.pass_bytes

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_cache_bytes + self.workspace_bytes


def memory_need(
    spec: ModelSpec,
    *,
    context: int,
    dtype: DType,
    prefill_chunk: int,
    prompt: int | None = None,
    max_context: int | None = None,
    batch: int = 1,
    kv_cache: bool = True,
    device: torch.device | str = "cuda",
) -> MemoryNeed:
    """Add up weights, the KV caches of `batch` sequences of `context` tokens, and the workspace.

    `prompt` tokens of the context are the prompt, without it all of them may be; prompts run one
    after another. `max_context` is the engine's, by default the model's.
    """
    itemsize = ITEM_BYTES[dtype]
    size = context_bucket(context, max_context or spec.shape.max_context)
    num_parameters = sum(map(_elements, model_parameters(spec).values()))
    # without a cache every pass runs the whole sequence
    whole = (prompt or context) if kv_cache else context
    rows = min(bucket(whole, smallest=PREFILL_ROWS), prefill_chunk) if kv_cache else whole
    # one a stream: graphs run on one, the pieces of a long prompt on another
    cublas = (2 if rows < whole else 1) * cublas_workspace_bytes(device)
    state = _session_state(spec, size, itemsize)
    return MemoryNeed(
        num_parameters=num_parameters,
        context=size,
        weight_bytes=num_parameters * itemsize,
        kv_cache_bytes=batch * kv_bytes(spec, context=size, itemsize=itemsize) if kv_cache else 0,
        session_bytes=_rope_tables(spec, size + prefill_chunk) + batch * state,
        pass_bytes=cublas
        + _prefill(spec, rows, itemsize, _product_sms(device, itemsize), _fuses_mlp(device)),
    )


def format_bytes(num_bytes: int) -> str:
    """Say a size in GB or MB, powers of ten."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _rope_tables(spec: ModelSpec, positions: int) -> int:
    """`Decoder.__init__`: cos and sin of each distinct table, float32."""
    tables = {(layer.rope, layer.rotary_dim) for layer in spec.attention}
    return sum(2 * positions * (rotary_dim // 2) * 4 for _, rotary_dim in tables)


def _session_state(spec: ModelSpec, context: int, itemsize: int) -> int:
    """`Session` and its `Sampler`: sequence, random draws, seen tokens; and the chain's buffers."""
    state = context * (8 + 4) + spec.shape.vocab_size
    return state + (_chain(spec, context, itemsize) if supports(spec) else 0)


def _chain(spec: ModelSpec, context: int, itemsize: int) -> int:
    """`DecodeChain`: vectors and logits, and of every layer q, k, v and the attention's parts.

    Sampling keeps penalised logits (4 bytes a token) and a list of the likeliest (16).
    """
    # the number of multiprocessors does not decide the attention's tile
    tile = default_tiles(spec, num_sms=1).attention
    shape = spec.shape
    vectors = (3 * shape.hidden_size + shape.intermediate_size) * itemsize
    total = vectors + shape.vocab_size * (4 + 4 + 16)
    for attention, policy in zip(spec.attention, spec.kv_cache, strict=True):
        slots = policy.capacity(context)
        num_parts = 1 + -(-slots // attention_split(attention, slots, tile).split)
        width = attention.num_heads * attention.head_dim
        qkv_rows = width + 2 * attention.num_kv_heads * attention.head_dim
        total += (qkv_rows + num_parts * width) * itemsize + num_parts * attention.num_heads * 4
    return total


def _product_sms(device: torch.device | str, itemsize: int) -> int | None:
    """Multiprocessors that share the products of a prompt; None where cuBLAS makes them.

    Without a GPU to ask, those of an H100 or H200.
    """
    if itemsize == 4:
        return None
    gpu = torch.device(device)
    if gpu.type != "cuda" or not torch.cuda.is_available():
        return 132
    return num_multiprocessors(gpu) if has_tma(gpu) else None


def _fuses_mlp(device: torch.device | str) -> bool:
    """Whether the GPU, without one to ask an H100 or H200, can run the MLP as one kernel."""
    gpu = torch.device(device)
    return gpu.type != "cuda" or not torch.cuda.is_available() or has_wgmma(gpu)


def _prefill(
    spec: ModelSpec, rows: int, itemsize: int, num_sms: int | None, fuses_mlp: bool
) -> int:
    """`Decoder.hidden` over `rows` tokens: what is alive at once.

    `num_sms` and `fuses_mlp` are what `_product_sms` and `_fuses_mlp` say.
    """
    hidden, inter = spec.shape.hidden_size * itemsize, spec.shape.intermediate_size * itemsize
    qkv = max((a.num_heads + 2 * a.num_kv_heads) * a.head_dim for a in spec.attention) * itemsize
    width = max(a.num_heads * a.head_dim for a in spec.attention)
    attended = width * itemsize
    # beside the activated MLP, what it is computed from, where no kernel does both
    wide = (2 * inter if spec.block.gated else inter) if num_sms is None else 0
    out = _parts_bytes(spec, rows, width, itemsize, num_sms)
    narrow = _parts_bytes(spec, rows, spec.shape.intermediate_size, itemsize, num_sms)
    flags = 0
    if fuses_mlp and num_sms is not None and rows >= FUSED_FROM:
        flags = _mlp_flags(spec, rows)
        if spec.block.gated and not spec.block.mlp_bias:
            narrow = _fused_mlp_parts(spec, rows, num_sms)
    # the residual and the normed input (which is the residual, unless a block's input has a norm)
    # are there all the time; beside them the largest of these moments
    stream = (2 if spec.norm.before else 1) * hidden
    widest = stream + max(
        qkv + attended,
        attended + out,
        wide + inter,
        inter + narrow,
        max(out, narrow) + stream,  # as long as the norm before is needed, it is there twice
    )
    logits = 0
    if not supports(spec):  # of this pass, rounded up to float32, and of the pass before
        logits = spec.shape.vocab_size * (itemsize + 4 + 4)
    return max(rows * widest + flags, rows * hidden + logits)


def _parts_bytes(spec: ModelSpec, rows: int, width: int, itemsize: int, num_sms: int | None) -> int:
    """`linear_parts`: bytes of its result a token."""
    hidden = spec.shape.hidden_size
    tile = parts_tile(rows, hidden, width, num_sms) if num_sms else None
    return hidden * (itemsize if tile is None or tile.parts == 1 else 4 * tile.parts)


def _fused_mlp_parts(spec: ModelSpec, rows: int, num_sms: int) -> int:
    """`launch_fused_mlp`: bytes of its result a token, rounded up."""
    hidden, inner = spec.shape.hidden_size, spec.shape.intermediate_size
    parts = fused_schedule(rows, hidden, inner, num_sms).parts
    return -(-4 * parts * hidden * part_rows(rows) // rows)


def _mlp_flags(spec: ModelSpec, rows: int) -> int:
    """`mlp_flags`: bytes of all layers."""
    return 4 * spec.shape.num_layers * prod(flags_shape(rows, spec.shape.intermediate_size))


def _elements(parameter: Parameter) -> int:
    rows, *columns = parameter.shape
    return rows * (columns[0] if columns else 1)
