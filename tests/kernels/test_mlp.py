"""The one kernel is no Triton that the interpreter could run: here it is compiled, on a GPU run."""

import pytest
import torch

from infer_core.kernels import mlp as mlp_file
from infer_core.kernels.linear import linear_activation, linear_parts
from infer_core.kernels.mlp import mlp_flags, mlp_parts, mlp_parts_ref


def operands(num_tokens, hidden, inner, dtype, device, *, gated=True):
    x = torch.randn(num_tokens, hidden, device=device)
    gate_up = torch.randn((2 if gated else 1) * inner, hidden, device=device) * hidden**-0.5
    mlp_out = torch.randn(hidden, inner, device=device) * inner**-0.5
    return x.to(dtype), gate_up.to(dtype), mlp_out.to(dtype)


def flags_for(x, inner):
    shape = (-(-len(x) // 128), -(-inner // 128))
    return torch.zeros(shape, dtype=torch.int32, device=x.device)


@pytest.mark.parametrize("gated", [True, False])
def test_without_flags_it_is_two_kernels(gated, device):
    x, gate_up, mlp_out = operands(20, 64, 96, torch.float16, device, gated=gated)
    biases = torch.randn(len(gate_up), device=device).half(), torch.randn(64, device=device).half()
    how = {"activation": "silu", "gated": gated}

    parts = mlp_parts(x, gate_up, mlp_out, *biases, **how)

    y = linear_activation(x, gate_up, biases[0], **how)
    assert torch.equal(parts, linear_parts(y, mlp_out, biases[1]))
    truth = mlp_parts_ref(*(t.double() for t in (x, gate_up, mlp_out, *biases)), **how)
    torch.testing.assert_close(
        parts.double().sum(0, keepdim=True), truth, rtol=2**-10, atol=2**-9 * truth.abs().max()
    )


@pytest.mark.parametrize(
    ("num_tokens", "dtype"), [(mlp_file.FUSED_FROM - 1, torch.float16), (2048, torch.float32)]
)
def test_short_prompts_and_full_precision_raise_no_flags(num_tokens, dtype, device):
    assert mlp_flags(torch.zeros(num_tokens, 8, dtype=dtype, device=device), 256, 3) is None


def test_a_gpu_of_another_kind_raises_no_flags(monkeypatch):
    monkeypatch.setattr(mlp_file, "has_wgmma", lambda device: False)
    x = torch.zeros(2048, 8, dtype=torch.float16)
    assert mlp_flags(x, 256, 3) is None

    monkeypatch.setattr(mlp_file, "has_wgmma", lambda device: True)
    assert mlp_flags(x, 300, 3).tolist() == torch.zeros(3, 16, 3).tolist()


def test_weights_of_two_models_are_refused(device):
    x, gate_up, mlp_out = operands(20, 64, 96, torch.float16, device)
    with pytest.raises(ValueError, match="do not belong to one MLP"):
        mlp_parts(
            x, gate_up, mlp_out[:, :64], activation="silu", gated=True, flags=flags_for(x, 96)
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(
    ("num_tokens", "hidden", "inner"),
    [
        pytest.param(1024, 1152, 6912, id="half-a-tile-at-the-end"),
        pytest.param(1000, 2048, 8192, id="ragged-tokens"),
        pytest.param(2048, 2048, 6144, id="many-tokens"),
        pytest.param(130, 200, 328, id="no-size-a-multiple"),
        pytest.param(1, 64, 8, id="least"),
    ],
)
def test_the_one_kernel_is_as_exact_as_two(num_tokens, hidden, inner, activation, dtype):
    if not mlp_file.has_wgmma(torch.device("cuda")):
        pytest.skip("needs a Hopper GPU")
    x, gate_up, mlp_out = operands(num_tokens, hidden, inner, dtype, "cuda")
    how = {"activation": activation, "gated": True}
    flags = flags_for(x, inner)

    parts = mlp_parts(x, gate_up, mlp_out, **how, flags=flags)

    assert (flags == 1).all()
    truth = mlp_parts_ref(x.double(), gate_up.double(), mlp_out.double(), **how)[0]
    error = (parts.double().sum(0) - truth).abs().max()
    two_kernels = mlp_parts(x, gate_up, mlp_out, **how).double().sum(0)
    assert error <= 1.1 * (two_kernels - truth).abs().max() + 1e-6
    for _ in range(10):
        again = mlp_parts(x, gate_up, mlp_out, **how, flags=flags_for(x, inner))
        assert torch.equal(again, parts)


LAUNCH = """
from infer_core.kernels.fused_mlp import launch_fused_mlp
from infer_core.kernels.mlp import fused_schedule
launch_fused_mlp(
    empty(1024, 1152), empty(13824, 1152), empty(1152, 6912),
    empty(8, 54, dtype=torch.int32), fused_schedule(1024, 1152, 6912, 132),
    activation="gelu_tanh",
)
"""


def test_the_one_kernel_compiles_for_hopper_and_keeps_to_registers(compile_for_hopper):
    assert compile_for_hopper(LAUNCH) == [("_fused_mlp_kernel", 0, True)]
