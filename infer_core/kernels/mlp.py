"""The MLP of a block over many tokens, its output left in parts for `add_rms_norm` to add up.

    parts, whose sum is  y @ mlp_out.T + out_bias
    y = act(g) * u, [g, u] = x @ gate_up.T + gate_up_bias     gated
    y = act(x @ gate_up.T + gate_up_bias)                     not gated

Shapes  x [num_tokens, hidden_size]; gate_up [2 * inner_size, hidden_size] (gated: gate rows, then
        up rows) or [inner_size, hidden_size]; mlp_out [hidden_size, inner_size]; biases
        [rows of their weight]; parts [num_parts, num_tokens, hidden_size].
Dtypes  as in `linear`: x, weights and biases share one of float32, float16, bfloat16, to which y is
        rounded; several parts are float32.
Bound   compute for many tokens, 6 * num_tokens * hidden_size * inner_size FLOPs (gated).

Two kernels, `linear_activation` and `linear_parts`; on a Hopper GPU one, from `FUSED_FROM` tokens
on, where there is no bias (see `fused_mlp`).
"""

from math import ceil

import torch

from infer_core.kernels._common import has_descriptors, has_wgmma, num_multiprocessors
from infer_core.kernels.linear import (
    check_linear,
    linear_activation,
    linear_activation_ref,
    linear_parts,
    linear_parts_ref,
)
from infer_core.kernels.mlp_schedule import BLOCK, Schedule, flags_shape, schedule_mlp

FUSED_FROM = 257


def mlp_parts_ref(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    mlp_out: torch.Tensor,
    gate_up_bias: torch.Tensor | None = None,
    out_bias: torch.Tensor | None = None,
    *,
    activation: str,
    gated: bool,
    flags: torch.Tensor | None = None,
) -> torch.Tensor:
    """Define `mlp_parts` in plain torch: in one part. `flags` are not used."""
    y = linear_activation_ref(x, gate_up, gate_up_bias, activation=activation, gated=gated)
    return linear_parts_ref(y, mlp_out, out_bias)


def mlp_parts(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    mlp_out: torch.Tensor,
    gate_up_bias: torch.Tensor | None = None,
    out_bias: torch.Tensor | None = None,
    *,
    activation: str,
    gated: bool,
    flags: torch.Tensor | None = None,
) -> torch.Tensor:
    """Launch one kernel or two; parts that add up to `mlp_parts_ref`.

    `flags`: those of one layer of `mlp_flags`, which the one kernel needs and leaves raised.

    Raises:
        ValueError: a shape, dtype or stride is not as the file's docstring says.
    """
    plain = gated and gate_up_bias is None and out_bias is None
    if flags is None or not plain or not has_descriptors(x, gate_up, mlp_out):
        y = linear_activation(x, gate_up, gate_up_bias, activation=activation, gated=gated)
        return linear_parts(y, mlp_out, out_bias)
    check_linear("mlp_parts", x, gate_up, None)
    hidden_size, inner_size = mlp_out.shape
    if mlp_out.dtype != x.dtype or gate_up.shape[0] != 2 * inner_size:
        raise ValueError(
            f"mlp_parts: gate_up {tuple(gate_up.shape)} and mlp_out {tuple(mlp_out.shape)} "
            f"{mlp_out.dtype} do not belong to one MLP of {x.dtype}"
        )
    from infer_core.kernels.fused_mlp import launch_fused_mlp  # 40 ms that short prompts do without

    num_sms = num_multiprocessors(x.device)
    schedule = fused_schedule(x.shape[0], hidden_size, inner_size, num_sms)
    return launch_fused_mlp(x, gate_up, mlp_out, flags, schedule, activation=activation)


def mlp_flags_ref(x: torch.Tensor, inner_size: int, num_layers: int) -> torch.Tensor | None:
    """Plain torch needs none."""
    return None


def mlp_flags(x: torch.Tensor, inner_size: int, num_layers: int) -> torch.Tensor | None:
    """Flags for the MLPs of `num_layers` layers over the tokens of x; None where two kernels run.

    Shapes: [num_layers, blocks of tokens, blocks of columns], int32, zero.
    """
    if x.shape[0] < FUSED_FROM or x.dtype == torch.float32 or not has_wgmma(x.device):
        return None
    shape = flags_shape(x.shape[0], inner_size)
    return torch.zeros((num_layers, *shape), dtype=torch.int32, device=x.device)


def fused_schedule(num_tokens: int, hidden_size: int, inner_size: int, num_sms: int) -> Schedule:
    """The schedule of the one kernel."""
    return schedule_mlp(ceil(num_tokens / BLOCK), hidden_size, inner_size, num_sms)
