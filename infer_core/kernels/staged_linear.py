"""A linear layer whose weights wait in shared memory before its input exists, for one token.

The same functions as `norm_linear` (with a norm) and `linear_residual` (without), on tensor cores:

    tile    ROWS real rows of the weight, each cut into SLICES pieces along its width
    A       the pieces, [SLICES * ROWS, WIDTH / SLICES], streamed through STAGES chunks of CHUNK
    B       the input, column n = its piece n, [WIDTH / SLICES, 8]
    y[r]    = sum over n of (A @ B)[piece n of row r, n]

A warp multiplies 16 rows of A, and only the diagonal blocks of A @ B are used: the tensor cores
would idle anyway. What counts is that a chunk in shared memory is consumed much faster than the bus
can fill one (an fp32 multiply-add per weight on the CUDA cores is not), so that the chunks loaded
before the wait shorten the kernel by the whole time they took.

Shapes  x, delta [width]; weight [num_rows, width] (gated: gate rows, then up rows); y [num_rows] or
        half of it; residual [num_rows].
Dtypes  float16 or bfloat16, sums float32; rounded where the unfused model rounds.
Bound   memory: moves weight.nbytes.
"""

import torch
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from infer_core.kernels.chain_types import Norm, StagedTile, check_vectors


@gluon.jit
def _gdc_wait():
    gl.inline_asm_elementwise(
        "griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _gdc_launch_dependents():
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _scale_normed(normed, weight, OFFSET: gl.constexpr, WEIGHT_IN_FP32: gl.constexpr):
    if WEIGHT_IN_FP32:
        y = normed * (weight.to(gl.float32) + OFFSET)
    else:
        scale = (weight.to(gl.float32) + OFFSET).to(weight.dtype).to(gl.float32)
        y = normed.to(weight.dtype).to(gl.float32) * scale
    return y.to(weight.dtype)


@gluon.jit
def _rms_norm(
    x, weight, WIDTH: gl.constexpr, EPS: gl.constexpr, OFFSET: gl.constexpr, FP32: gl.constexpr
):
    wide = x.to(gl.float32)
    total = gl.sum(gl.sum(wide * wide, axis=1), axis=0)
    return _scale_normed(wide * (1.0 / gl.sqrt(total / WIDTH + EPS)), weight, OFFSET, FP32)


@gluon.jit
def _activate(x, ACTIVATION: gl.constexpr):
    if ACTIVATION == "silu":
        y = x / (1.0 + gl.exp(-x))
    elif ACTIVATION == "gelu_tanh":
        y = x / (1.0 + gl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    else:
        y = 0.5 * x * (1.0 + gl.erf(x * 0.7071067811865476))
    return y


@gluon.jit
def _issue(
    i,
    weight_ptr,
    offsets,
    cols,
    row,
    count,
    stages,
    WIDTH: gl.constexpr,
    PER_TILE: gl.constexpr,
    CHUNKS: gl.constexpr,
    CHUNK: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Start loading chunk number `i` of this program; chunks past the end load nothing."""
    tile = i // CHUNKS
    chunk = i % CHUNKS
    inside = row + tile * PER_TILE < count
    start = tile.to(gl.int64) * (PER_TILE * WIDTH) + chunk * CHUNK
    pointers = weight_ptr + start + offsets[:, None] + cols[None, :]
    async_copy.async_copy_global_to_shared(stages.index(i % STAGES), pointers, inside[:, None])
    async_copy.commit_group()


@gluon.jit
def _staged_linear_kernel(
    x_ptr,
    delta_ptr,
    x_out_ptr,
    post_weight_ptr,
    norm_weight_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    num_rows,
    WIDTH: gl.constexpr,
    SLICES: gl.constexpr,
    SLICE_PAD: gl.constexpr,
    CHUNK: gl.constexpr,
    STAGES: gl.constexpr,
    AHEAD: gl.constexpr,
    HAS_NORM: gl.constexpr,
    EPS: gl.constexpr,
    WEIGHT_OFFSET: gl.constexpr,
    WEIGHT_IN_FP32: gl.constexpr,
    ADD_NORMED: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr,
    ACTIVATION: gl.constexpr,
    GATED: gl.constexpr,
    PDL: gl.constexpr,
    num_warps: gl.constexpr,
):
    if PDL:
        _gdc_launch_dependents()
    dtype: gl.constexpr = y_ptr.dtype.element_ty
    M: gl.constexpr = 16 * num_warps
    ROWS: gl.constexpr = M // SLICES
    PER_TILE: gl.constexpr = ROWS // 2 if GATED else ROWS
    SLICE: gl.constexpr = WIDTH // SLICES
    CHUNKS: gl.constexpr = SLICE // CHUNK
    pid = gl.program_id(0)
    first = (pid.to(gl.int64) * num_rows // gl.num_programs(0)).to(gl.int32)
    last = ((pid + 1).to(gl.int64) * num_rows // gl.num_programs(0)).to(gl.int32)
    count = last - first

    copy_layout: gl.constexpr = gl.BlockedLayout(
        [1, 8], [256 // CHUNK, CHUNK // 8], [num_warps, 1], [1, 0]
    )
    stages = gl.allocate_shared_memory(
        dtype, [STAGES, M, CHUNK], gl.SwizzledSharedLayout(8, 1, min(8, CHUNK // 8), [1, 0])
    )
    pieces = gl.arange(0, M, gl.SliceLayout(1, copy_layout))
    cols = gl.arange(0, CHUNK, gl.SliceLayout(0, copy_layout))
    row = pieces % ROWS % PER_TILE
    matrix = pieces % ROWS // PER_TILE
    offsets = (first + row + matrix * num_rows).to(gl.int64) * WIDTH + pieces // ROWS * SLICE
    for i in gl.static_range(STAGES - 1):
        _issue(
            gl.to_tensor(i), weight_ptr, offsets, cols, row, count, stages,
            WIDTH, PER_TILE, CHUNKS, CHUNK, STAGES,
        )  # fmt: skip
        if AHEAD < STAGES - 1:
            # a longer queue of loads would hold up what the kernels before this one wait for
            async_copy.wait_group(AHEAD - 1)

    # the input, cut into rows of a slice each, as B wants its columns
    x_layout: gl.constexpr = gl.BlockedLayout(
        [1, 8], [1, 32], [min(SLICES, num_warps), max(1, num_warps // SLICES)], [1, 0]
    )
    n = gl.arange(0, SLICES, gl.SliceLayout(1, x_layout))
    k = gl.arange(0, SLICE_PAD, gl.SliceLayout(0, x_layout))
    x_mask = (n < SLICES)[:, None] & (k < SLICE)[None, :]
    x_offsets = n[:, None] * SLICE + k[None, :]
    if HAS_NORM:
        norm_weight = gl.load(norm_weight_ptr + x_offsets, mask=x_mask, other=0.0)
        if ADD_NORMED:
            post_weight = gl.load(post_weight_ptr + x_offsets, mask=x_mask, other=0.0)

    if PDL:
        _gdc_wait()  # above: only what no kernel of the chain writes
    flat: gl.constexpr = gl.BlockedLayout([1], [32], [num_warps], [0])
    out = gl.arange(0, PER_TILE, flat)
    if HAS_RESIDUAL:
        residual = gl.load(residual_ptr + first + out, mask=out < count, other=0.0)
    x = gl.load(x_ptr + x_offsets, mask=x_mask, other=0.0)
    if HAS_NORM:
        if ADD_NORMED:
            delta = gl.load(delta_ptr + x_offsets, mask=x_mask, other=0.0)
            delta = _rms_norm(delta, post_weight, WIDTH, EPS, WEIGHT_OFFSET, WEIGHT_IN_FP32)
            x = (x.to(gl.float32) + delta.to(gl.float32)).to(dtype)
            if pid == 0:
                gl.store(x_out_ptr + x_offsets, x, mask=x_mask)
        x = _rms_norm(x, norm_weight, WIDTH, EPS, WEIGHT_OFFSET, WEIGHT_IN_FP32)
    x_shared_layout: gl.constexpr = gl.SwizzledSharedLayout(8, 1, min(8, CHUNK // 8), [1, 0])
    x_shared = gl.allocate_shared_memory(dtype, [8, SLICE_PAD], x_shared_layout)
    # columns of B past SLICES stay as they are: nothing of theirs is on the diagonal
    x_shared._reinterpret(dtype, [SLICES, SLICE_PAD], x_shared_layout).store(x)

    mma: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [num_warps, 1], [16, 8])
    dot_a: gl.constexpr = gl.DotOperandLayout(0, mma, 2)
    dot_b: gl.constexpr = gl.DotOperandLayout(1, mma, 2)
    piece = gl.arange(0, M, gl.SliceLayout(1, mma)) // ROWS
    column = gl.arange(0, 8, gl.SliceLayout(0, mma))
    diagonal = piece[:, None] == column[None, :]

    i = 0
    for tile in range(0, gl.cdiv(count, PER_TILE)):
        acc = gl.zeros([M, 8], gl.float32, mma)
        for chunk in gl.static_range(CHUNKS):
            async_copy.wait_group(STAGES - 2)
            a = stages.index(i % STAGES).load(dot_a)
            b = x_shared.slice(chunk * CHUNK, CHUNK, 1).permute((1, 0)).load(dot_b)
            _issue(
                i + STAGES - 1, weight_ptr, offsets, cols, row, count, stages,
                WIDTH, PER_TILE, CHUNKS, CHUNK, STAGES,
            )  # fmt: skip
            acc = mma_v2(a, b, acc)
            i += 1
        sums = gl.sum(gl.where(diagonal, acc, 0.0), axis=1)
        if SLICES > 1:
            sums = gl.sum(gl.reshape(sums, [SLICES, ROWS]), axis=0)
        if GATED:
            pair = gl.reshape(sums, [2, PER_TILE])
            which = gl.arange(0, 2, gl.SliceLayout(1, pair.type.layout))[:, None]
            up = gl.convert_layout(gl.sum(gl.where(which == 1, pair, 0.0), axis=0), flat)
            sums = gl.sum(gl.where(which == 0, pair, 0.0), axis=0)
        acc_row = gl.convert_layout(sums, flat)
        inside = out < count
        if HAS_BIAS:
            acc_row += gl.load(bias_ptr + first + out, mask=inside, other=0.0).to(gl.float32)
        y = acc_row.to(dtype)
        if ACTIVATION is not None:
            y = _activate(y.to(gl.float32), ACTIVATION).to(dtype)
        if GATED:
            if HAS_BIAS:
                bias = gl.load(bias_ptr + num_rows + first + out, mask=inside, other=0.0)
                up += bias.to(gl.float32)
            y = (y.to(gl.float32) * up.to(dtype).to(gl.float32)).to(dtype)
        if HAS_RESIDUAL:
            y = (residual.to(gl.float32) + y.to(gl.float32)).to(dtype)
        gl.store(y_ptr + first + out, y, mask=inside)
        out += PER_TILE
        if HAS_RESIDUAL:
            residual = gl.load(residual_ptr + first + out, mask=out < count, other=0.0)


def staged_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    *,
    tile: StagedTile,
    programs: int,
    norm: Norm | None = None,
    norm_weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    delta: torch.Tensor | None = None,
    post_weight: torch.Tensor | None = None,
    x_out: torch.Tensor | None = None,
    activation: str | None = None,
    gated: bool = False,
    pdl: bool = False,
) -> None:
    """Launch the kernel into `y`; as `norm_linear_ref` with a norm, else `linear_residual_ref`.

    Raises:
        ValueError: a shape, dtype or stride differs from the docstring of this file.
    """
    width = weight.shape[1]
    num_rows = weight.shape[0] // 2 if gated else weight.shape[0]
    check_vectors("staged_linear", weight.dtype, width, x=x, norm_weight=norm_weight, delta=delta,
                  post_weight=post_weight, x_out=x_out)  # fmt: skip
    check_vectors("staged_linear", weight.dtype, num_rows, y=y, residual=residual)
    check_vectors("staged_linear", weight.dtype, weight.shape[0], bias=bias)
    if weight.dtype not in (torch.float16, torch.bfloat16) or not weight.is_contiguous():
        raise ValueError(
            f"staged_linear: weight must be contiguous, float16 or bfloat16; got {weight.dtype}, "
            f"strides {weight.stride()}"
        )
    if width % (tile.slices * tile.chunk):
        raise ValueError(
            f"staged_linear: width {width} is no multiple of slices * chunk "
            f"({tile.slices} * {tile.chunk})"
        )
    slice_pad = 1 << (width // tile.slices - 1).bit_length()
    _staged_linear_kernel[(min(programs, num_rows),)](
        x,
        x if delta is None else delta,
        x if x_out is None else x_out,
        x if post_weight is None else post_weight,
        x if norm_weight is None else norm_weight,
        weight,
        weight if bias is None else bias,
        x if residual is None else residual,
        y,
        num_rows,
        WIDTH=width,
        SLICES=tile.slices,
        SLICE_PAD=max(256, slice_pad),
        CHUNK=tile.chunk,
        STAGES=tile.stages,
        AHEAD=tile.ahead,
        HAS_NORM=norm is not None,
        EPS=norm.eps if norm is not None else 0.0,
        WEIGHT_OFFSET=norm.weight_offset if norm is not None else 0.0,
        WEIGHT_IN_FP32=norm.weight_in_fp32 if norm is not None else False,
        ADD_NORMED=delta is not None,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        ACTIVATION=activation,
        GATED=gated,
        PDL=pdl,
        num_warps=tile.warps,
        maxnreg=tile.registers,
        launch_pdl=pdl,
    )
