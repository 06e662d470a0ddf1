"""Device functions that the kernels of the decode chain share: rows in, dot products, norms.

A vector or matrix row whose width is no power of two is held as two tensors: the largest power of
two that fits (MAIN) and the masked rest (REST, 0 when there is none), so 1152 is 1024 + 128 and not
2048 with 44 % of the lanes idle.
"""

import triton
import triton.language as tl

from infer_core.kernels._common import tanh


def split_width(width: int) -> tuple[int, int]:
    """Return (MAIN, REST): the largest power of two in `width`, and one that holds the rest."""
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
    """Return the products of a tile of rows with a float32 vector, float32 [ROWS].

    The two parts meet before threads exchange anything: each exchange costs two barriers.
    """
    acc = main.to(tl.float32) * x_main[None, :]
    if REST > 0:
        MAIN: tl.constexpr = main.shape[1]
        if MAIN > REST:
            acc = tl.sum(tl.reshape(acc, (main.shape[0], REST, MAIN // REST)), axis=2)
        acc += rest.to(tl.float32) * x_rest[None, :]
    return tl.sum(acc, axis=1)


@triton.jit
def inverse_rms(x, WIDTH: tl.constexpr, EPS: tl.constexpr):
    """Return 1 / sqrt(mean(x ** 2) + EPS) of a vector padded with zeros, float32."""
    wide = x.to(tl.float32)
    return 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / WIDTH + EPS)


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
    post_all,
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
    Sums of squares are taken over the padded vector (`_all`): one exchange instead of one a part.
    """
    main, rest = load_vector(x_ptr, WIDTH, MAIN, REST)
    x_all = main
    if REST > 0:
        x_all = load_all(x_ptr, WIDTH, 2 * MAIN)
    if ADD_NORMED:
        delta_main, delta_rest = load_vector(delta_ptr, WIDTH, MAIN, REST)
        delta_all = delta_main
        if REST > 0:
            delta_all = load_all(delta_ptr, WIDTH, 2 * MAIN)
        rstd = inverse_rms(delta_all, WIDTH, EPS)
        main = add_normed(main, delta_main, rstd, post_main, WEIGHT_OFFSET, WEIGHT_IN_FP32)
        if REST > 0:
            rest = add_normed(rest, delta_rest, rstd, post_rest, WEIGHT_OFFSET, WEIGHT_IN_FP32)
            x_all = add_normed(x_all, delta_all, rstd, post_all, WEIGHT_OFFSET, WEIGHT_IN_FP32)
        else:
            x_all = main
        if tl.program_id(0) == 0:
            store_vector(x_out_ptr, main, rest, WIDTH, MAIN, REST)
    rstd = inverse_rms(x_all, WIDTH, EPS)
    main = scale_normed(main.to(tl.float32) * rstd, weight_main, WEIGHT_OFFSET, WEIGHT_IN_FP32)
    rest = scale_normed(rest.to(tl.float32) * rstd, weight_rest, WEIGHT_OFFSET, WEIGHT_IN_FP32)
    return main.to(tl.float32), rest.to(tl.float32)


@triton.jit
def load_all(ptr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Load a vector padded with zeros to a power of two."""
    cols = tl.arange(0, PADDED)
    return tl.load(ptr + cols, mask=cols < WIDTH, other=0.0)


@triton.jit
def add_normed(x, delta, rstd, weight, WEIGHT_OFFSET: tl.constexpr, WEIGHT_IN_FP32: tl.constexpr):
    """Return x + the normed delta, each rounded to the dtype of x."""
    normed = scale_normed(delta.to(tl.float32) * rstd, weight, WEIGHT_OFFSET, WEIGHT_IN_FP32)
    return (x.to(tl.float32) + normed.to(tl.float32)).to(x.dtype)


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
    return CAP * tanh(x / CAP)
