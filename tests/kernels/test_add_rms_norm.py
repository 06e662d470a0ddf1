import pytest
import torch

from infer_core.kernels.add_rms_norm import add_rms_norm, add_rms_norm_ref


@pytest.mark.parametrize("sandwich", [False, True], ids=["pre-norm", "sandwich"])
@pytest.mark.parametrize(
    "flavour",
    [
        pytest.param({}, id="weight-after-rounding"),
        pytest.param({"weight_offset": 1.0, "weight_in_fp32": True}, id="one-plus-weight-in-fp32"),
    ],
)
@pytest.mark.parametrize(
    ("num_tokens", "hidden_size"),
    [
        pytest.param(1, 2048, id="decode-one-row"),
        pytest.param(5, 1152, id="not-a-power-of-two"),
        pytest.param(3, 1, id="one-column"),
    ],
)
def test_both_results_are_as_accurate_as_eager_torch(
    num_tokens, hidden_size, flavour, sandwich, dtype, device, assert_as_accurate_as_eager
):
    x, residual = torch.randn(2, num_tokens, hidden_size, device=device).to(dtype)
    weight, post = torch.randn(2, hidden_size, device=device).to(dtype)
    before = x.clone(), residual.clone()

    def run(function, wide):
        return function(
            wide(x),
            wide(residual),
            wide(weight),
            1e-6,
            post_weight=wide(post) if sandwich else None,
            **flavour,
        )

    kernel = run(add_rms_norm, lambda t: t)

    eager, truth = run(add_rms_norm_ref, lambda t: t), run(add_rms_norm_ref, torch.Tensor.double)
    for results in zip(kernel, eager, truth, strict=True):
        assert_as_accurate_as_eager(*results)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


@pytest.mark.parametrize("parts_in_fp32", [True, False], ids=["fp32", "own-dtype"])
@pytest.mark.parametrize("num_parts", [1, 3])
def test_parts_are_summed_and_rounded_once(num_parts, parts_in_fp32, dtype, device):
    parts = torch.randn(num_parts, 4, 96, device=device)
    parts = parts if parts_in_fp32 else parts.to(dtype)
    residual, weight = torch.randn(4, 96, device=device).to(dtype), torch.ones(96, device=device)
    total = parts.float()[0]
    for part in parts.float()[1:]:
        total = total + part
    total = total.to(dtype)

    results = add_rms_norm(parts, residual, weight.to(dtype), 1e-6)

    expected = add_rms_norm(total, residual, weight.to(dtype), 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_the_residual_is_rounded_before_it_is_normalised(device):
    # 2048 + 1 is 2048 in fp16, so all elements are equal and the norm leaves the weight; from
    # 2049 the first would be 1.0004 times the weight, which rounds to the next number
    x = torch.tensor([[1.0] + 7 * [0.0]], device=device).half()
    residual = torch.full((1, 8), 2048.0, device=device).half()
    weight = torch.full((8,), 2 - 2**-10, device=device).half()

    normed, new_residual = add_rms_norm(x, residual, weight, 0.0, weight_in_fp32=True)

    assert torch.equal(new_residual, residual)
    assert torch.equal(normed[0], weight)


def test_strided_inputs_give_the_same_as_contiguous_ones(device):
    x = torch.randn(3, 64, device=device)[:, :40]
    residual = torch.randn(3, 50, device=device)[:, 5:45]
    weight = torch.randn(40, device=device)

    strided = add_rms_norm(x, residual, weight, 1e-6)
    contiguous = add_rms_norm(x.contiguous(), residual.contiguous(), weight, 1e-6)

    assert all(torch.equal(a, b) for a, b in zip(strided, contiguous, strict=True))


def test_parts_that_are_rows_of_a_larger_tensor_give_the_same(device):
    parts = torch.randn(3, 8, 40, device=device)[:, :5]
    residual, weight = torch.randn(5, 40, device=device), torch.randn(40, device=device)

    rows = add_rms_norm(parts, residual, weight, 1e-6)
    contiguous = add_rms_norm(parts.contiguous(), residual, weight, 1e-6)

    assert all(torch.equal(a, b) for a, b in zip(rows, contiguous, strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param(
            {"residual": torch.zeros(3, 8)},
            r"residual is torch.float32 \(3, 8\), expected x's torch.float32 \(2, 8\)",
            id="rows-of-the-residual",
        ),
        pytest.param({"residual": torch.zeros(2, 8).half()}, "residual is", id="residual-dtype"),
        pytest.param(
            {"residual": torch.zeros(2, 9)}, r"residual must be \[num_rows, 8\]", id="width"
        ),
        pytest.param(
            {"x": torch.zeros(3, 2, 9)}, r"parts must be \[num_parts", id="width-of-parts"
        ),
        pytest.param({"x": torch.zeros(3, 2, 8).half()}, "parts are", id="dtype-of-parts"),
        pytest.param({"weight": torch.zeros(9)}, r"weight has shape \(9,\)", id="weight"),
        pytest.param(
            {"post_weight": torch.zeros(9)}, r"post_weight has shape \(9,\)", id="post-weight"
        ),
    ],
)
def test_what_does_not_fit_x_is_refused(wrong, message):
    good = {"x": torch.zeros(2, 8), "residual": torch.zeros(2, 8), "weight": torch.zeros(8)}
    with pytest.raises(ValueError, match=message):
        add_rms_norm(**{**good, **wrong}, eps=1e-6)
