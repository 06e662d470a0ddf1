"""Device functions that the kernels of the decode chain share: rows in, dot products, norms.

A vector or matrix row whose width is no power of two is held as two tensors: the largest power of
two that fits (MAIN) and the masked rest (REST, 0 when there is none), so 1152 is 1024 + 128 and not
2048 with 44 % of the lanes idle.
"""

import triton
import triton.language as tl


def split_width(width: int) -> tuple[int, int]:
    """Return (MAIN, REST): the largest power of two in `width`, and a power of two over the rest."""
    main = 1 << (width.bit_length() - 1)
    rest = width - main
    return main, triton.next_power_of_2(rest) if rest else 0


@triton.jit
def load_vector(ptr, WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    """Load a vector of WIDTH elements as (main, rest) in its own dtype; the padding is zero."""
    main = tl.load(ptr + tl.arange(0, MAIN))
    if REST > 0:
        cols = MAIN + tl.arange(0, REST)
        rest = tl.load(ptr + cols, mask=cols < WIDTH, other=0.0)
    else:
        rest = main
    return main, rest


@triton.jit
def store_vector(ptr, main, rest, WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    """Store what `load_vector` loads."""
    tl.store(ptr + tl.arange(0, MAIN), main)
    if REST > 0:
        cols = MAIN + tl.arange(0, REST)
        tl.store(ptr + cols, rest, mask=cols < WIDTH)


@triton.jit
def load_rows(ptr, rows, num_rows, WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    """Load rows of a matrix [num_rows, WIDTH] as (main, rest); rows past the end are zero."""
    # int64: row * WIDTH overflows int32 in a large LM head
    starts = rows.to(tl.int64)[:, None] * WIDTH
    inside = rows[:, None] < num_rows
    cols = tl.arange(0, MAIN)
    main = tl.load(ptr + starts + cols[None, :], mask=inside, other=0.0)
    if REST > 0:
        rest_cols = MAIN + tl.arange(0, REST)
        mask = inside & (rest_cols[None, :] < WIDTH)
        rest = tl.load(ptr + starts + rest_cols[None, :], mask=mask, other=0.0)
    else:
        rest = main
    return main, rest


@triton.jit
def dot_rows(main, rest, x_main, x_rest, REST: tl.constexpr):
    """Return the products of a tile of rows with a float32 vector, float32 [ROWS]."""
    acc = tl.sum(main.to(tl.float32) * x_main[None, :], axis=1)
    if REST > 0:
        acc += tl.sum(rest.to(tl.float32) * x_rest[None, :], axis=1)
    return acc


@triton.jit
def rms_norm_vector(
    main,
    rest,
    weight_main,
    weight_rest,
    WIDTH: tl.constexpr,
    REST: tl.constexpr,
    EPS: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
):
    """RMS-normalise a vector held in two parts; returns parts of the weight's dtype."""
    x_main = main.to(tl.float32)
    x_rest = rest.to(tl.float32)
    total = tl.sum(x_main * x_main, axis=0)
    if REST > 0:
        total += tl.sum(x_rest * x_rest, axis=0)
    rstd = 1.0 / tl.sqrt(total / WIDTH + EPS)
    return (
        scale_normed(x_main * rstd, weight_main, WEIGHT_OFFSET, WEIGHT_IN_FP32),
        scale_normed(x_rest * rstd, weight_rest, WEIGHT_OFFSET, WEIGHT_IN_FP32),
    )


@triton.jit
def scale_normed(normed, weight, WEIGHT_OFFSET: tl.constexpr, WEIGHT_IN_FP32: tl.constexpr):
    """Multiply a normalised float32 value by the norm's weight, before or after rounding."""
    if WEIGHT_IN_FP32:
        y = normed * (weight.to(tl.float32) + WEIGHT_OFFSET)
    else:
        scale = (weight.to(tl.float32) + WEIGHT_OFFSET).to(weight.dtype).to(tl.float32)
        y = normed.to(weight.dtype).to(tl.float32) * scale
    return y.to(weight.dtype)


@triton.jit
def norm_input(
    x_ptr,
    delta_ptr,
    x_out_ptr,
    weight_main,
    weight_rest,
    post_main,
    post_rest,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    EPS: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    ADD_NORMED: tl.constexpr,
):
    """Load the residual stream, add the normed `delta` if asked, normalise; float32 parts.

    With ADD_NORMED every program computes the new residual stream for itself and the first one
    writes it to `x_out`, which is another buffer than `x`: the other programs still read that.
    """
    main, rest = load_vector(x_ptr, WIDTH, MAIN, REST)
    if ADD_NORMED:
        delta_main, delta_rest = load_vector(delta_ptr, WIDTH, MAIN, REST)
        delta_main, delta_rest = rms_norm_vector(
            delta_main, delta_rest, post_main, post_rest,
            WIDTH, REST, EPS, WEIGHT_OFFSET, WEIGHT_IN_FP32,
        )  # fmt: skip
        main = (main.to(tl.float32) + delta_main.to(tl.float32)).to(main.dtype)
        rest = (rest.to(tl.float32) + delta_rest.to(tl.float32)).to(rest.dtype)
        if tl.program_id(0) == 0:
            store_vector(x_out_ptr, main, rest, WIDTH, MAIN, REST)
    main, rest = rms_norm_vector(
        main, rest, weight_main, weight_rest, WIDTH, REST, EPS, WEIGHT_OFFSET, WEIGHT_IN_FP32
    )
    return main.to(tl.float32), rest.to(tl.float32)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Apply 'silu', 'gelu_tanh' or 'gelu' to float32 values."""
    tl.static_assert(ACTIVATION == "silu" or ACTIVATION == "gelu_tanh" or ACTIVATION == "gelu")
    if ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu_tanh":
        # 0.5 * (1 + tanh(z)) == sigmoid(2 * z)
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return y


@triton.jit
def soft_cap(x, CAP: tl.constexpr):
    """Return CAP * tanh(x / CAP), float32."""
    return CAP * (2.0 * tl.sigmoid(2.0 * x / CAP) - 1.0)
