"""The kernels' share of norm placement 'post', the residual scale and q/k norm per projection."""

import pytest
import torch

from infer_core.kernels.add_rms_norm import add_rms_norm, add_rms_norm_ref
from infer_core.kernels.rms_norm import rms_norm, rms_norm_ref


@pytest.mark.parametrize("pre", [True, False], ids=["normed-input", "plain-input"])
@pytest.mark.parametrize("post", [True, False], ids=["normed-output", "plain-output"])
@pytest.mark.parametrize("residual_scale", [1.0, 0.22])
@pytest.mark.parametrize(
    ("num_tokens", "hidden_size"),
    [pytest.param(1, 64, id="decode-one-row"), pytest.param(5, 72, id="not-a-power-of-two")],
)
def test_every_placement_and_scale_is_as_accurate_as_eager_torch(
    num_tokens, hidden_size, residual_scale, post, pre, dtype, device, assert_as_accurate_as_eager
):
    x, residual = torch.randn(2, num_tokens, hidden_size, device=device).to(dtype)
    weight, post_weight = torch.randn(2, hidden_size, device=device).to(dtype)

    def run(function, wide):
        return function(
            wide(x),
            wide(residual),
            wide(weight) if pre else None,
            1e-6,
            post_weight=wide(post_weight) if post else None,
            residual_scale=residual_scale,
        )

    kernel = run(add_rms_norm, lambda t: t)

    eager, truth = run(add_rms_norm_ref, lambda t: t), run(add_rms_norm_ref, torch.Tensor.double)
    for results in zip(kernel, eager, truth, strict=True):
        assert_as_accurate_as_eager(*results)


def test_the_scaled_output_is_rounded_before_it_is_added(device):
    # 1025 * 1.5 = 1537.5 is 1538 in fp16, + 1 = 1539; unrounded, 1538.5 would become 1538
    x = torch.full((1, 1), 1025.0, device=device).half()
    residual = torch.ones(1, 1, device=device).half()

    for function in (add_rms_norm, add_rms_norm_ref):
        _, total = function(x, residual, None, 1e-6, residual_scale=1.5)
        assert total.item() == 1539.0


@pytest.mark.parametrize("function", [rms_norm, rms_norm_ref])
def test_in_place_normalises_some_columns_and_leaves_the_others(function, dtype, device):
    qkv = torch.randn(3, 40, device=device).to(dtype)
    weight = torch.randn(24, device=device).to(dtype)
    before = qkv.clone()

    function(qkv[:, 8:32], weight, 1e-6, weight_in_fp32=True, in_place=True)

    expected = function(before[:, 8:32], weight, 1e-6, weight_in_fp32=True)
    assert torch.equal(qkv[:, 8:32], expected)
    assert torch.equal(qkv[:, :8], before[:, :8])
    assert torch.equal(qkv[:, 32:], before[:, 32:])
