"""Default tiles of the decode chain, computed from shapes and the number of multiprocessors.

A program holds the tile it multiplies and the next one in registers, so a tile is as many rows as
fit REGISTER_BYTES a thread. Enough bytes must be on the way to cover the latency of memory: at
least about 32 KB a multiprocessor (latency about 0.8 us, 40 GB/s a multiprocessor on an H200).
"""

from dataclasses import dataclass

import triton

from infer_core.kernels.chain_types import StagedTile, Tile
from infer_core.specs import AttentionLayout, ModelSpec


@dataclass(frozen=True, slots=True)
class ChainTiles:
    """One tile for each linear layer of a step."""

    qkv: Tile | StagedTile
    attn_out: Tile | StagedTile
    gate_up: Tile | StagedTile
    mlp_out: Tile | StagedTile
    lm_head: Tile
    attention: "AttentionTile"


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """Elements of K a program takes at a time, and its warps."""

    elements: int
    warps: int


@dataclass(frozen=True, slots=True)
class AttentionSplit:
    """Cache slots a program covers, slots it takes at a time, warps it has."""

    split: int
    block: int
    warps: int


def default_tiles(spec: ModelSpec, num_sms: int) -> ChainTiles:
    """Return tiles within a few percent of tuned ones.

    Tried on an H200, whole steps of a 1B, a 1.7B and a 1B sandwich-norm model: 60 tiles each.
    """
    hidden, inter = spec.shape.hidden_size, spec.shape.intermediate_size
    first = spec.attention[0]
    width = first.num_heads * first.head_dim
    qkv_rows = (first.num_heads + 2 * first.num_kv_heads) * first.head_dim
    up_width = 2 * hidden if spec.block.gated else hidden
    return ChainTiles(
        qkv=_tile(qkv_rows, hidden, num_sms, per_thread=64, warps=4, per_sm=4),
        attn_out=_tile(hidden, width, num_sms, per_thread=32, warps=8, per_sm=2),
        gate_up=_tile(inter, up_width, num_sms, per_thread=96, warps=4, per_sm=4),
        mlp_out=_tile(hidden, inter, num_sms, per_thread=64, warps=8, per_sm=2),
        lm_head=_tile(spec.shape.vocab_size, hidden, num_sms, per_thread=128, warps=4, per_sm=4),
        attention=AttentionTile(8192, 4),
    )


def _tile(
    num_rows: int, width: int, num_sms: int, *, per_thread: int, warps: int, per_sm: int
) -> Tile:
    """As many rows, a power of two, as give each thread `per_thread` elements of the tile."""
    fit = per_thread * 32 * warps // max(width, 1)
    wanted = max(1, min(fit, num_rows // num_sms))
    return Tile(1 << (wanted.bit_length() - 1), warps, per_sm)


def attention_split(
    attention: AttentionLayout, slots: int, tile: AttentionTile
) -> AttentionSplit:
    """Cut a cache of `slots` into splits of one block, or into 32 splits of several."""
    width = triton.next_power_of_2(attention.head_dim)
    block = min(max(16, tile.elements // width), max(16, triton.next_power_of_2(slots)))
    split = max(block, triton.next_power_of_2(-(-slots // 32)))
    return AttentionSplit(split, block, tile.warps)
