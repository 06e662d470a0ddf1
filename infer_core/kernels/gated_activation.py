"""Activation of the MLP, gated (act(gate) * up) or not; one program takes a block of one row.

    gated_activation:  y = act(gate) * up        activation:  y = act(x)
    silu(x) = x * sigmoid(x)                     gelu(x) = x * (1 + erf(x / sqrt(2))) / 2
    gelu_tanh(x) = x * (1 + tanh(u)) / 2 = x * sigmoid(2 u),  u = sqrt(2 / pi) * (x + 0.044715 x^3)

Shapes  gate_up [num_tokens, 2 * intermediate_size], gate first; x, y [num_tokens,
        intermediate_size].
Dtypes  input and y share one of float32, float16, bfloat16. All of it is computed in float32 and
        rounded once: eager torch also rounds act(gate) to the dtype before the product, which
        only adds error.
Bound   memory: moves gate_up.nbytes + y.nbytes.
Source  arXiv:2002.05202 (gated units), arXiv:1606.08415 (GELU and its tanh form).
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from infer_core.kernels._common import at_least_fp32, check_rows

_TORCH_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def gated_activation_ref(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """Define the gated kernel in plain torch."""
    gate, up = at_least_fp32(gate_up).chunk(2, dim=-1)
    return (_TORCH_ACTIVATIONS[activation](gate) * up).to(gate_up.dtype)


def activation_ref(x: torch.Tensor, act: str) -> torch.Tensor:
    """Define the ungated kernel in plain torch."""
    return _TORCH_ACTIVATIONS[act](at_least_fp32(x)).to(x.dtype)


@triton.jit
def _activation_kernel(
    x_ptr,
    y_ptr,
    stride_x_row,
    width,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = cols < width

    x = tl.load(x_ptr + row * stride_x_row + cols, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu_tanh":
        # as a sigmoid it has no cancellation at the negative end, which 1 + tanh has
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if GATED:
        y *= tl.load(x_ptr + row * stride_x_row + width + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * width + cols, y.to(y_ptr.dtype.element_ty), mask=mask)


def gated_activation(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """Launch the kernel; same contract as `gated_activation_ref`.

    Raises:
        ValueError: `gate_up` is not float rows of even width, or `activation` is unknown.
    """
    check_rows("gated_activation", "gate_up", gate_up)
    if gate_up.shape[1] % 2:
        raise ValueError(
            f"gated_activation: gate_up holds two halves, but its width is {gate_up.shape[1]}"
        )
    return _launch("gated_activation", gate_up, activation, gated=True)


def activation(x: torch.Tensor, act: str) -> torch.Tensor:
    """Launch the kernel without a gate; same contract as `activation_ref`.

    Raises:
        ValueError: `x` is not float rows, or `act` is unknown.
    """
    check_rows("activation", "x", x)
    return _launch("activation", x, act, gated=False)


def _launch(kernel: str, x: torch.Tensor, act: str, *, gated: bool) -> torch.Tensor:
    if act not in _TORCH_ACTIVATIONS:
        raise ValueError(f"{kernel}: activation {act!r} is none of {sorted(_TORCH_ACTIVATIONS)}")
    width = x.shape[1] // 2 if gated else x.shape[1]
    y = torch.empty((x.shape[0], width), dtype=x.dtype, device=x.device)
    block_size = min(1024, triton.next_power_of_2(width))
    _activation_kernel[(x.shape[0], triton.cdiv(width, block_size))](
        x,
        y,
        x.stride(0),
        width,
        ACTIVATION=act,
        GATED=gated,
        BLOCK_SIZE=block_size,
    )
    return y
