"""Gate, up, activation and down projection of many tokens in one kernel, for Hopper GPUs.

    parts, whose sum is  (act(gate) * up) @ mlp_out.T,  [gate, up] = x @ gate_up.T

Shapes  x [num_tokens, hidden_size]; gate_up [2 * inner_size, hidden_size], gate rows first; mlp_out
        [hidden_size, inner_size]; flags [blocks of tokens, blocks of columns], int32, zero; parts
        [num_parts, num_tokens, hidden_size], rows of a larger tensor.
Dtypes  x, gate_up and mlp_out share one of float16, bfloat16, to which act(gate) * up is rounded;
        sums, activation and parts are float32.
Bound   compute, 6 * num_tokens * hidden_size * inner_size FLOPs.

One program a multiprocessor stays from start to end and works through its list of tiles (see
`mlp_schedule`). In it one warp copies operands to shared memory, two groups of four warps
multiply them, 64 rows of the tile each, and one warp writes what they made and raises the tile's
flag: copies for the next tile thus run beside the end of this one. Programs wait for each other's
flags, so all must run at once: the launch is a cooperative one, which fails where they cannot.

Written in Gluon, as Triton has no words for who does what.
"""

from functools import cache

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from infer_core.kernels import mlp_schedule as sizes
from infer_core.kernels._gluon import barrier, load_tile, reinterpret, store_tile
from infer_core.kernels.mlp_schedule import Schedule, Work

# Constants of the kernels. An ITEM is a tile in the table of work: six numbers, and two that keep
# it in one sector of memory.
STAGES = gl.constexpr(4)
ITEM = gl.constexpr(8)
BLOCK = gl.constexpr(sizes.BLOCK)
WIDTH = gl.constexpr(sizes.BLOCK_WIDTH)
UP = gl.constexpr(sizes.UP)
DOWN = gl.constexpr(sizes.DOWN)
ACROSS = gl.constexpr(sizes.ACROSS)
PIECE = gl.constexpr(32)  # columns of a tile of the result that are written at a time


@gluon.jit
def _every_lane(INSTRUCTION: gl.constexpr):
    # inline assembly needs a value to be about
    lanes = gl.arange(0, 32, layout=gl.BlockedLayout([1], [32], [1], [0]))
    gl.inline_asm_elementwise(
        INSTRUCTION + " mov.u32 $0, $1;", "=r,r", [lanes], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _ready_until(flags_ptr, column, end):
    """Wait for the tile of `column`; say up to which column, `end` at most, all are done."""
    lanes = gl.arange(0, 32, layout=gl.BlockedLayout([1], [32], [1], [0]))
    columns = column + lanes
    until = column
    while until == column:
        done = gl.load(flags_ptr + columns, mask=columns < end, other=0, volatile=True)
        until = column + gl.min(gl.where(done == 0, lanes, 32), 0)
    # what was written before the flags is seen by every lane, and by the copies it asks for
    _every_lane("fence.acq_rel.gpu; fence.proxy.async;")
    barrier()
    return until


@gluon.jit
def _load(
    x_desc, gate_up_desc, y_desc, out_desc, work_ptr, flags_ptr, left, right, full, empty,
    most, inner_size, num_columns, token_blocks, ITEM_BYTES: gl.constexpr,
):  # fmt: skip
    """Copy the operands of every step, STAGES ahead of those who multiply."""
    STEP_BYTES: gl.constexpr = 3 * BLOCK * WIDTH * ITEM_BYTES
    step = 0
    for item in range(most):
        kind = gl.load(work_ptr + item * ITEM)
        tokens = gl.load(work_ptr + item * ITEM + 1)
        block = gl.load(work_ptr + item * ITEM + 2)
        first = gl.load(work_ptr + item * ITEM + 3)
        steps = gl.load(work_ptr + item * ITEM + 4)
        flags = flags_ptr + tokens * num_columns
        ready = 0
        for index in range(first, first + steps):
            s = step % STAGES
            col = index * WIDTH
            if (kind != UP) & (col // BLOCK >= ready):
                ready = _ready_until(flags, col // BLOCK, num_columns)
                if (kind == ACROSS) & (tokens + 1 < token_blocks):
                    also = _ready_until(flags + num_columns, col // BLOCK, num_columns)
                    ready = gl.minimum(ready, also)
            mbarrier.wait(empty.index(s), (step // STAGES + 1) & 1)
            mbarrier.expect(full.index(s), STEP_BYTES)
            one = left.index(s)
            two = right.index(s).slice(0, BLOCK)
            three = right.index(s).slice(BLOCK, BLOCK)
            if kind == UP:
                load_tile(x_desc, [tokens * BLOCK, col], full.index(s), one)
                load_tile(gate_up_desc, [block * BLOCK, col], full.index(s), two)
                up = inner_size + block * BLOCK
                load_tile(gate_up_desc, [up, col], full.index(s), three)
            elif kind == DOWN:
                load_tile(y_desc, [tokens * BLOCK, col], full.index(s), one)
                load_tile(out_desc, [block * BLOCK, col], full.index(s), two)
                load_tile(out_desc, [block * BLOCK + BLOCK, col], full.index(s), three)
            else:
                load_tile(out_desc, [block * BLOCK, col], full.index(s), one)
                load_tile(y_desc, [tokens * BLOCK, col], full.index(s), two)
                load_tile(y_desc, [tokens * BLOCK + BLOCK, col], full.index(s), three)
            step += 1


@gluon.jit
def _multiply(
    part_desc, across_desc, left, right, full, empty, out, made, written, work_ptr, most,
    rows_of_part, GROUP: gl.constexpr, ACTIVATION: gl.constexpr,
):  # fmt: skip
    """Multiply rows 64 * GROUP to 64 * GROUP + 63 of every tile, and end it."""
    wgmma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * BLOCK, 16])
    step = 0
    ups = 0
    for item in range(most):
        kind = gl.load(work_ptr + item * ITEM)
        tokens = gl.load(work_ptr + item * ITEM + 1) * BLOCK
        block = gl.load(work_ptr + item * ITEM + 2) * BLOCK
        steps = gl.load(work_ptr + item * ITEM + 4)
        row = gl.load(work_ptr + item * ITEM + 5) * rows_of_part + tokens
        if steps > 0:
            acc = gl.zeros([64, 2 * BLOCK], gl.float32, layout=wgmma)
            for index in range(steps):
                s = step % STAGES
                mbarrier.wait(full.index(s), (step // STAGES) & 1)
                x = left.index(s).slice(64 * GROUP, 64)
                acc = warpgroup_mma(x, right.index(s).permute([1, 0]), acc, is_async=True)
                # the step before is done with, this one runs
                acc = warpgroup_mma_wait(1, deps=[acc])
                mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), count=1, pred=index > 0)
                step += 1
            acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), count=1)
            first, second = _halves(acc, BLOCK)
            mbarrier.wait(written, (ups + 1) & 1)  # what was in `out`
            if kind == UP:  # which no program does after another kind, of which pieces may be left
                out.store(_activate(first, second, ACTIVATION).to(out.dtype))
                fence_async_shared()
                mbarrier.arrive(made, count=1)
                ups += 1
            elif kind == DOWN:
                row += 64 * GROUP
                _write_part(first, out, part_desc, row, block, False)
                _write_part(second, out, part_desc, row, block + BLOCK, False)
            else:
                block += 64 * GROUP
                _write_part(first, out, across_desc, row, block, True)
                _write_part(second, out, across_desc, row + BLOCK, block, True)
    tma.store_wait(0)  # nobody may have `out` before it is read


@gluon.jit
def _halves(x, SIZE: gl.constexpr):
    """Split [64, 2 * SIZE] into its left and right columns."""
    return gl.split(gl.permute(gl.reshape(x, [64, 2, SIZE]), [0, 2, 1]))


@gluon.jit
def _activate(gate, up, ACTIVATION: gl.constexpr):
    """act(gate) * up; a sigmoid takes one power of two and one reciprocal.

    `chain_parts.activate` divides, which cost 1.4 us a layer of 76 (Gemma3, 1,024 tokens, H200).
    """
    LOG2E: gl.constexpr = 1.4426950408889634
    if ACTIVATION == "gelu":
        gated = 0.5 * gate * (1.0 + gl.erf(gate * 0.7071067811865476))
    else:
        if ACTIVATION == "silu":
            scaled = gate * -LOG2E
        else:
            scaled = gate * ((gate * gate * 0.044715 + 1.0) * (-1.5957691216057308 * LOG2E))
        gated = gate * gl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + gl.exp2(scaled)],
            dtype=gl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    return gated * up


@gluon.jit
def _write_part(acc, out, desc, row, col, TURNED: gl.constexpr):
    """Write [64, BLOCK] of a part in four pieces, through `out` as two buffers of a piece."""
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 32, 2)
    if TURNED:
        buffers = reinterpret(out, gl.float32, [2, PIECE, 64], swizzled)
    else:
        buffers = reinterpret(out, gl.float32, [2, 64, PIECE], swizzled)
    one, two = _halves(acc, 2 * PIECE)
    for half in gl.static_range(2):
        pieces = _halves(one if half == 0 else two, PIECE)
        for index in gl.static_range(2):
            at = (2 * half + index) * PIECE
            tma.store_wait(1)  # the piece before last has left its buffer
            barrier()
            buffer = buffers.index(index)
            if TURNED:
                buffer.permute([1, 0]).store(pieces[index])
            else:
                buffer.store(pieces[index])
            fence_async_shared()
            barrier()
            if TURNED:
                store_tile(desc, [row + at, col], buffer)
            else:
                store_tile(desc, [row, col + at], buffer)


@gluon.jit
def _write(y_desc, work_ptr, most, flags_ptr, out0, out1, made, written, num_columns):
    """Write each tile of the hidden activation, then raise its flag."""
    ups = 0
    for item in range(most):
        if gl.load(work_ptr + item * ITEM) == UP:
            block = gl.load(work_ptr + item * ITEM + 1)
            column = gl.load(work_ptr + item * ITEM + 2)
            mbarrier.wait(made, ups & 1)
            store_tile(y_desc, [block * BLOCK, column * BLOCK], out0)
            store_tile(y_desc, [block * BLOCK + 64, column * BLOCK], out1)
            # store_wait would wait until it is read only, not until it is written
            _every_lane("cp.async.bulk.wait_group 0; fence.proxy.async;")
            barrier()  # whichever lane asked for it
            mbarrier.arrive(written, count=1)
            flag = flags_ptr + block * num_columns + column
            gl.atomic_add(flag, 1, sem="release", scope="gpu")
            ups += 1


# These change with every prompt, and flags begin anywhere: specialising on them would recompile in
# a request.
@gluon.jit(do_not_specialize=["flags_ptr", "most", "rows_of_part", "token_blocks"])
def _fused_mlp_kernel(
    x_desc,
    gate_up_desc,
    y_desc,
    y_half_desc,
    out_desc,
    part_desc,
    across_desc,
    work_ptr,
    most,
    flags_ptr,
    rows_of_part,
    inner_size,
    num_columns,
    token_blocks,
    ACTIVATION: gl.constexpr,
):
    dtype: gl.constexpr = x_desc.dtype
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    left = gl.allocate_shared_memory(dtype, [STAGES, BLOCK, WIDTH], swizzled)
    right = gl.allocate_shared_memory(dtype, [STAGES, 2 * BLOCK, WIDTH], swizzled)
    out0 = gl.allocate_shared_memory(dtype, [64, BLOCK], swizzled)
    out1 = gl.allocate_shared_memory(dtype, [64, BLOCK], swizzled)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    made = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    written = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=1)
        mbarrier.init(empty.index(s), count=2)  # both groups
    mbarrier.init(made, count=2)
    mbarrier.init(written, count=1)
    fence_async_shared()
    work = work_ptr + gl.program_id(0) * most * ITEM
    gl.warp_specialize(
        [
            (_multiply, (part_desc, across_desc, left, right, full, empty, out0, made, written,
                         work, most, rows_of_part, 0, ACTIVATION)),
            (_multiply, (part_desc, across_desc, left, right, full, empty, out1, made, written,
                         work, most, rows_of_part, 1, ACTIVATION)),
            (_load, (x_desc, gate_up_desc, y_desc, out_desc, work, flags_ptr, left, right, full,
                     empty, most, inner_size, num_columns, token_blocks,
                     dtype.primitive_bitwidth // 8)),
            (_write, (y_half_desc, work, most, flags_ptr, out0, out1, made, written, num_columns)),
        ],
        [4, 1, 1],
        [232, 24, 24],  # registers of a thread
    )  # fmt: skip


def launch_fused_mlp(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    mlp_out: torch.Tensor,
    flags: torch.Tensor,
    schedule: Schedule,
    *,
    activation: str,
) -> torch.Tensor:
    """Launch the kernel; returns the parts."""
    num_tokens, (hidden_size, inner_size) = x.shape[0], mlp_out.shape
    rows_of_part = sizes.part_rows(num_tokens)
    parts = torch.empty(
        (schedule.parts, rows_of_part, hidden_size), dtype=torch.float32, device=x.device
    )
    y = torch.empty((num_tokens, inner_size), dtype=x.dtype, device=x.device)
    table = _table(schedule, x.device)
    half = gl.NVMMASharedLayout(128, 16, 2)
    single = gl.NVMMASharedLayout(128, 32, 2)
    block = [sizes.BLOCK, sizes.BLOCK_WIDTH]
    rows = parts.view(-1, hidden_size)
    _fused_mlp_kernel[(len(schedule.programs),)](
        TensorDescriptor.from_tensor(x, block, half),
        TensorDescriptor.from_tensor(gate_up, block, half),
        TensorDescriptor.from_tensor(y, block, half),
        TensorDescriptor.from_tensor(y, [64, sizes.BLOCK], half),
        TensorDescriptor.from_tensor(mlp_out, block, half),
        TensorDescriptor.from_tensor(rows, [64, PIECE.value], single),
        TensorDescriptor.from_tensor(rows, [PIECE.value, 64], single),
        table,
        table.shape[1],
        flags,
        rows_of_part,
        inner_size,
        flags.shape[1],
        flags.shape[0],
        ACTIVATION=activation,
        num_warps=4,
        launch_cooperative_grid=True,
    )
    return parts[:, :num_tokens]


@cache
def _table(schedule: Schedule, device: torch.device) -> torch.Tensor:
    """The work of every program as numbers on the device: [programs, most, ITEM], int32."""
    most = max(map(len, schedule.programs))
    nothing = Work(sizes.NOTHING, 0, 0, 0, 0, 0)
    rows = [
        [_numbers(work) for work in (*works, *[nothing] * (most - len(works)))]
        for works in schedule.programs
    ]
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _numbers(work: Work) -> list[int]:
    numbers = [work.kind, work.tokens, work.columns, work.first, work.steps, work.part]
    return numbers + [0] * (ITEM.value - len(numbers))
