"""Default tiles of the decode chain, computed from shapes and the number of multiprocessors.

A program holds the tile it multiplies and the next one in registers, so a tile is as many rows as
fit REGISTER_BYTES a thread. Enough bytes must be on the way to cover the latency of memory: at
least about 32 KB a multiprocessor (latency about 0.8 us, 40 GB/s a multiprocessor on an H200).
"""

from dataclasses import dataclass

import triton

from infer_core.kernels.chain_types import Tile
from infer_core.specs import AttentionLayout, ModelSpec


@dataclass(frozen=True, slots=True)
class ChainTiles:
    """One tile for each linear layer of a step."""

    qkv: Tile
    attn_out: Tile
    gate_up: Tile
    mlp_out: Tile
    lm_head: Tile


@dataclass(frozen=True, slots=True)
class AttentionSplit:
    """Cache slots a program covers, slots it takes at a time, warps it has."""

    split: int
    block: int
    warps: int


def default_tiles(spec: ModelSpec, num_sms: int) -> ChainTiles:
    """Return tiles within a few percent of tuned ones."""
    hidden, inter = spec.shape.hidden_size, spec.shape.intermediate_size
    first = spec.attention[0]
    width = first.num_heads * first.head_dim
    qkv_rows = (first.num_heads + 2 * first.num_kv_heads) * first.head_dim
    return ChainTiles(
        qkv=linear_tile(qkv_rows, hidden, num_sms),
        attn_out=linear_tile(hidden, width, num_sms),
        gate_up=linear_tile(inter, hidden, num_sms, matrices=2 if spec.block.gated else 1),
        mlp_out=linear_tile(hidden, inter, num_sms),
        lm_head=linear_tile(spec.shape.vocab_size, hidden, num_sms),
    )


def linear_tile(num_rows: int, width: int, num_sms: int, *, matrices: int = 1) -> Tile:
    """Return the tile of a linear layer [matrices * num_rows, width]."""
    warps = 8 if width >= 2048 else 4
    rows = 8
    while rows > 1 and matrices * rows * triton.next_power_of_2(width) > 64 * 32 * warps:
        rows //= 2
    tiles = -(-num_rows // rows)
    per_sm = max(1, min(4 if warps == 4 else 2, tiles // num_sms))
    return Tile(rows, warps, per_sm)


def attention_split(attention: AttentionLayout, slots: int, num_sms: int) -> AttentionSplit:
    """Cut a cache of `slots` so that the splits fill the GPU and few have to be merged."""
    wanted = 16 if attention.num_kv_heads * 32 > num_sms else 32
    wanted = max(wanted, min(64, slots // 512))
    split = max(16, triton.next_power_of_2(-(-slots // wanted)))
    width = triton.next_power_of_2(attention.head_dim)
    block = min(split, max(16, 16384 // width))
    return AttentionSplit(split, block, warps=8 if block * width > 8192 else 4)
