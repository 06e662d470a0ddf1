import pytest
import torch

from infer_core.kernels.gated_activation import (
    activation,
    activation_ref,
    gated_activation,
    gated_activation_ref,
)

ACTIVATIONS = ["silu", "gelu_tanh", "gelu"]
SHAPES = [
    pytest.param(1, 1536, id="decode-one-row-two-blocks"),
    pytest.param(5, 100, id="not-a-power-of-two"),
    pytest.param(3, 1, id="one-column"),
]


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(("num_tokens", "width"), SHAPES)
def test_gated_activation_is_as_accurate_as_eager_torch(
    num_tokens, width, act, dtype, device, assert_as_accurate_as_eager
):
    gate_up = 3 * torch.randn(num_tokens, 2 * width, device=device)
    gate_up = gate_up.to(dtype)

    y = gated_activation(gate_up, act)

    eager = gated_activation_ref(gate_up, act)
    assert_as_accurate_as_eager(y, eager, gated_activation_ref(gate_up.double(), act))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(("num_tokens", "width"), SHAPES)
def test_activation_is_as_accurate_as_eager_torch(
    num_tokens, width, act, dtype, device, assert_as_accurate_as_eager
):
    x = (3 * torch.randn(num_tokens, width, device=device)).to(dtype)

    y = activation(x, act)

    assert_as_accurate_as_eager(y, activation_ref(x, act), activation_ref(x.double(), act))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_large_inputs_saturate_instead_of_overflowing(act, device):
    x = torch.tensor([[-3e4, -100.0, 0.0, 100.0, 3e4]], device=device)

    y = activation(x, act)

    assert torch.equal(y, x.clamp_min(0))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_one_rounding_errs_less_than_rounding_the_activation_too(act):
    # why the reference and the kernel keep act(gate) in float32
    gate_up = torch.randn(64, 256).bfloat16()
    gate, up = gate_up.chunk(2, dim=-1)
    truth = gated_activation_ref(gate_up.double(), act)

    once = gated_activation_ref(gate_up, act)
    twice = activation_ref(gate, act) * up

    assert (once - truth).square().mean() < 0.75 * (twice - truth).square().mean()


def test_strided_rows_give_the_same_as_contiguous_ones(device):
    gate_up = torch.randn(4, 96, device=device)[:, 8:88]

    y = gated_activation(gate_up, "silu")

    assert torch.equal(y, gated_activation(gate_up.contiguous(), "silu"))


def test_an_odd_width_has_no_two_halves():
    with pytest.raises(ValueError, match="two halves, but its width is 7"):
        gated_activation(torch.zeros(2, 7), "silu")


@pytest.mark.parametrize("launch", [gated_activation, activation])
def test_an_unknown_activation_is_refused_by_name(launch):
    with pytest.raises(ValueError, match="activation 'relu' is none of"):
        launch(torch.zeros(2, 8), "relu")


@pytest.mark.parametrize("launch", [gated_activation, activation])
def test_strided_columns_are_refused(launch):
    with pytest.raises(ValueError, match="last stride 1"):
        launch(torch.zeros(8, 2).T, "silu")
