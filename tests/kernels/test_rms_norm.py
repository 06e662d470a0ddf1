import pytest
import torch

from infer_core.kernels.rms_norm import rms_norm, rms_norm_ref

FLAVOURS = [
    pytest.param({}, id="weight-after-rounding"),
    pytest.param({"weight_offset": 1.0, "weight_in_fp32": True}, id="one-plus-weight-in-fp32"),
    pytest.param({"weight_offset": 1.0}, id="one-plus-weight-after-rounding"),
]


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    ("num_tokens", "hidden_size"),
    [
        pytest.param(1, 2048, id="decode-one-row"),
        pytest.param(7, 1152, id="not-a-power-of-two"),
        pytest.param(3, 1, id="one-column"),
    ],
)
def test_rms_norm_is_as_accurate_as_eager_torch(
    num_tokens, hidden_size, flavour, dtype, device, assert_as_accurate_as_eager
):
    x = torch.randn(num_tokens, hidden_size, device=device).to(dtype)
    weight = torch.randn(hidden_size, device=device).to(dtype)

    y = rms_norm(x, weight, 1e-6, **flavour)

    truth = rms_norm_ref(x.double(), weight.double(), 1e-6, **flavour)
    assert_as_accurate_as_eager(y, rms_norm_ref(x, weight, 1e-6, **flavour), truth)


def test_rms_norm_rounds_before_the_weight_unless_told_otherwise(device):
    x = torch.tensor([[1.0, 1.0, 5.0, 3.0]], device=device).half()  # mean of squares: 9
    weight = torch.full((4,), 5.0, device=device).half()

    rounded_before = rms_norm(x, weight, 0.0)[0, 0].item()
    rounded_after = rms_norm(x, weight, 0.0, weight_in_fp32=True)[0, 0].item()

    # fp16 holds 1/3 as 341.25 / 1024, five times that lies nearest 1706 / 1024; 5/3 does not
    assert rounded_before == 1706 / 1024
    assert rounded_after == 1707 / 1024


def test_rms_norm_survives_a_row_of_zeros(device):
    x = torch.zeros(2, 8, device=device)

    y = rms_norm(x, torch.ones(8, device=device), 1e-6)

    assert torch.equal(y, x)


def test_rms_norm_handles_strided_rows(device):
    x = torch.randn(4, 256, device=device)[:, :100]
    weight = torch.randn(100, device=device)

    y = rms_norm(x, weight, 1e-6)

    assert torch.equal(y, rms_norm(x.contiguous(), weight, 1e-6))


def test_rms_norm_rejects_a_weight_of_the_wrong_width(device):
    with pytest.raises(ValueError, match=r"weight has shape \(64,\), expected \(128,\)"):
        rms_norm(torch.zeros(2, 128, device=device), torch.zeros(64, device=device), 1e-6)


def test_rms_norm_rejects_a_weight_of_another_dtype(device):
    with pytest.raises(ValueError, match=r"weight is torch.float16, expected torch.float32"):
        rms_norm(torch.zeros(2, 8, device=device), torch.zeros(8, device=device).half(), 1e-6)


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(torch.zeros(8), id="one-dimension"),
        pytest.param(torch.zeros(8, 2).T, id="strided-columns"),
    ],
)
def test_rms_norm_rejects_what_is_no_row_matrix(x):
    with pytest.raises(ValueError, match=r"x must be \[num_rows, width\], last stride 1; got"):
        rms_norm(x, torch.zeros(8), 1e-6)


def test_rms_norm_rejects_integers(device):
    x = torch.zeros(2, 8, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"x is torch\.int32, expected one of"):
        rms_norm(x, torch.zeros(8, device=device), 1e-6)
