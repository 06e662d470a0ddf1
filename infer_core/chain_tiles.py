"""Tiles of the decode chain: defaults computed from shapes and the number of multiprocessors.

A program holds the tile it multiplies and the next one in registers. Two things pull at its size:
enough bytes must be on the way to cover the latency of memory (32 KB a multiprocessor on an H200),
and the kernels before and after must find room beside it, or they cannot start early.
"""

from dataclasses import dataclass

import triton

from infer_core.kernels.chain_types import AttentionTile, Tile
from infer_core.specs import AttentionLayout, ModelSpec

MAX_PARTS = 16  # pieces of the past: every program of the out projection merges them all


@dataclass(frozen=True, slots=True)
class ChainTiles:
    """One tile for each kind of kernel of a step."""

    qkv: Tile
    attn_out: Tile
    gate_up: Tile
    mlp_out: Tile
    lm_head: Tile
    attention: AttentionTile


@dataclass(frozen=True, slots=True)
class AttentionSplit:
    """Cache slots a program covers, slots it takes at a time, warps it has."""

    split: int
    block: int
    warps: int


def default_tiles(spec: ModelSpec, num_sms: int) -> ChainTiles:
    """Return tiles within a few percent of tuned ones.

    Tried on an H200, whole steps of models of width 1152 and 2048, about 40 tiles a kind. What the
    best have in common: at most 8 rows, 10 to 40 KB a tile, as many warps as let a thread load 16
    bytes of every row, and 8 to 32 warps a multiprocessor, most for the largest layer.
    """
    hidden, inter = spec.shape.hidden_size, spec.shape.intermediate_size
    first = spec.attention[0]
    width = first.num_heads * first.head_dim
    qkv_rows = (first.num_heads + 2 * first.num_kv_heads) * first.head_dim
    up_width = 2 * hidden if spec.block.gated else hidden
    warps = 8 if hidden >= 2048 else 4
    return ChainTiles(
        qkv=_tile(qkv_rows, hidden, num_sms, elements=16384, warps=4, per_sm=2),
        attn_out=_tile(hidden, width, num_sms, elements=16384, warps=8, per_sm=2),
        gate_up=_tile(inter, up_width, num_sms, elements=10240, warps=warps, per_sm=4),
        mlp_out=_tile(
            hidden, inter, num_sms, elements=2304 * warps, warps=warps, per_sm=16 // warps
        ),
        lm_head=_tile(spec.shape.vocab_size, hidden, num_sms, elements=18432, warps=4, per_sm=4),
        attention=AttentionTile(16384, 8 if first.head_dim > 128 else 4),
    )


def _tile(
    num_rows: int, width: int, num_sms: int, *, elements: int, warps: int, per_sm: int
) -> Tile:
    """As many rows, a power of two, as make a tile of `elements`, and every SM has a tile."""
    rows = max(1, min(8, elements // width, num_rows // num_sms))
    return Tile(1 << (rows.bit_length() - 1), warps, per_sm)


def attention_split(attention: AttentionLayout, slots: int, tile: AttentionTile) -> AttentionSplit:
    """Cut a cache of `slots` into parts of one block, or into MAX_PARTS parts of several."""
    width = triton.next_power_of_2(attention.head_dim)
    block = min(max(16, tile.elements // width), max(16, triton.next_power_of_2(slots)))
    split = max(block, triton.next_power_of_2(-(-slots // MAX_PARTS)))
    return AttentionSplit(split, block, tile.warps)
