import pytest
import torch

from infer_core.kernels.chain_types import Norm, Tile
from infer_core.kernels.linear_residual import linear_residual, linear_residual_ref
from infer_core.kernels.lm_head import lm_head, lm_head_ref
from infer_core.kernels.norm_linear import norm_linear, norm_linear_ref

PLAIN = Norm(1e-5)
OFFSET = Norm(1e-6, weight_offset=1.0, weight_in_fp32=True)
TILE = Tile(4, 2, 1)


def draw(*shape, dtype, device, scale=1.0):
    return (torch.randn(*shape) * scale).to(device=device, dtype=dtype)


def wide(tensors):
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in tensors.items()}


@pytest.mark.parametrize("norm", [PLAIN, OFFSET], ids=["weight-after", "weight-before-rounding"])
@pytest.mark.parametrize(
    ("num_rows", "hidden", "options"),
    [
        pytest.param(24, 64, {}, id="plain"),
        pytest.param(21, 72, {"bias": True}, id="bias-and-rest-of-8"),
        pytest.param(18, 1152, {"sandwich": True}, id="sandwich-1024-and-128"),
        pytest.param(22, 40, {"activation": "silu", "gated": True}, id="gated-silu"),
        pytest.param(
            22,
            48,
            {"activation": "gelu_tanh", "gated": True, "bias": True, "sandwich": True},
            id="gated-gelu-bias-sandwich",
        ),
        pytest.param(9, 64, {"activation": "gelu"}, id="ungated-gelu-one-tile-short"),
    ],
)
def test_norm_linear_is_as_accurate_as_eager_torch(
    num_rows, hidden, options, norm, dtype, device, assert_as_accurate_as_eager
):
    options = dict(options)
    arguments = {
        "x": draw(hidden, dtype=dtype, device=device),
        "norm_weight": draw(hidden, dtype=dtype, device=device),
        "weight": draw(num_rows, hidden, dtype=dtype, device=device, scale=hidden**-0.5),
    }
    if options.pop("bias", False):
        arguments["bias"] = draw(num_rows, dtype=dtype, device=device)
    sandwich = options.pop("sandwich", False)
    if sandwich:
        arguments["delta"] = draw(hidden, dtype=dtype, device=device)
        arguments["post_weight"] = draw(hidden, dtype=dtype, device=device)
    gated = options.get("gated", False)
    y = torch.empty(num_rows // 2 if gated else num_rows, dtype=dtype, device=device)
    x_out = torch.empty(hidden, dtype=dtype, device=device) if sandwich else None

    norm_linear(y=y, x_out=x_out, norm=norm, tile=TILE, programs=3, **arguments, **options)

    eager, eager_x = norm_linear_ref(norm=norm, **arguments, **options)
    truth, truth_x = norm_linear_ref(norm=norm, **wide(arguments), **options)
    assert_as_accurate_as_eager(y, eager, truth)
    if sandwich:
        assert_as_accurate_as_eager(x_out, eager_x, truth_x)


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(("num_rows", "width"), [(17, 64), (8, 6912), (3, 40)])
def test_linear_residual_is_as_accurate_as_eager_torch(
    num_rows, width, bias, residual, dtype, device, assert_as_accurate_as_eager
):
    x = draw(width, dtype=dtype, device=device)
    weight = draw(num_rows, width, dtype=dtype, device=device, scale=width**-0.5)
    extra = {
        "bias": draw(num_rows, dtype=dtype, device=device) if bias else None,
        "residual": draw(num_rows, dtype=dtype, device=device) if residual else None,
    }
    y = torch.empty(num_rows, dtype=dtype, device=device)

    linear_residual(x, weight, y, tile=Tile(2, 2, 1), programs=3, **extra)

    truth = linear_residual_ref(x.double(), weight.double(), **wide(extra))
    assert_as_accurate_as_eager(y, linear_residual_ref(x, weight, **extra), truth)


@pytest.mark.parametrize(
    ("position", "used"),
    [(0, 1), (1, 2), (16, 2), (17, 3), (79, 6), (400, 7)],
    ids=lambda v: str(v),
)
@pytest.mark.parametrize(("num_heads", "head_dim"), [(4, 16), (3, 40)])
def test_linear_residual_merges_the_parts_in_use_only(
    num_heads, head_dim, position, used, dtype, device, assert_as_accurate_as_eager
):
    width = num_heads * head_dim
    partial = torch.full((7, width), float("nan"), dtype=dtype, device=device)
    lse = torch.full((7, num_heads), float("nan"), device=device)
    partial[:used] = draw(used, width, dtype=dtype, device=device)
    lse[:used] = 3 * torch.randn(used, num_heads)
    weight = draw(5, width, dtype=dtype, device=device, scale=width**-0.5)
    y = torch.empty(5, dtype=dtype, device=device)

    linear_residual(
        partial, weight, y, lse=lse, capacity=90, split=16,
        position=torch.tensor([position], dtype=torch.int32, device=device),
        tile=Tile(2, 1, 1), programs=2,
    )  # fmt: skip

    truth = linear_residual_ref(partial.double(), weight.double(), lse=lse.double())
    assert_as_accurate_as_eager(y, linear_residual_ref(partial, weight, lse=lse), truth)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("sandwich", [False, True], ids=["pre", "sandwich"])
@pytest.mark.parametrize(("vocab_size", "hidden"), [(101, 64), (33, 72)])
def test_lm_head_gives_logits_and_candidates_of_their_argmax(
    vocab_size, hidden, sandwich, softcap, dtype, device, assert_as_accurate_as_eager
):
    arguments = {
        "x": draw(hidden, dtype=dtype, device=device),
        "norm_weight": draw(hidden, dtype=dtype, device=device),
        "weight": draw(vocab_size, hidden, dtype=dtype, device=device, scale=hidden**-0.5),
    }
    x_out = None
    if sandwich:
        arguments["delta"] = draw(hidden, dtype=dtype, device=device)
        arguments["post_weight"] = draw(hidden, dtype=dtype, device=device)
        x_out = torch.empty(hidden, dtype=dtype, device=device)
    logits = torch.empty(vocab_size, device=device)
    value = torch.empty(3, device=device)
    index = torch.empty(3, dtype=torch.int32, device=device)

    lm_head(
        logits=logits, best_value=value, best_index=index, norm=OFFSET, tile=TILE,
        x_out=x_out, softcap=softcap, **arguments,
    )  # fmt: skip

    truth = lm_head_ref(norm=OFFSET, softcap=softcap, **wide(arguments))
    eager = lm_head_ref(norm=OFFSET, softcap=softcap, **arguments)
    # the kernel does not round to the model's dtype, and may not err where rounding alone does
    assert_as_accurate_as_eager(logits.to(dtype), eager, truth)
    assert int(index[value.argmax()]) == int(logits.argmax())
    assert float(value.max()) == float(logits.max())


def test_equal_logits_give_the_smallest_index_of_each_program(device):
    logits, value = torch.empty(24, device=device), torch.empty(3, device=device)
    index = torch.empty(3, dtype=torch.int32, device=device)

    lm_head(
        torch.ones(16, device=device), torch.ones(16, device=device),
        torch.ones(24, 16, device=device), logits, value, index, PLAIN, tile=TILE,
    )  # fmt: skip

    assert index.tolist() == [0, 4, 8]


def test_norm_linear_refuses_a_weight_of_another_width(device):
    x = torch.zeros(8, device=device)
    with pytest.raises(ValueError, match=r"contiguous \[num_rows, 8\] torch.float32; got \(4, 16"):
        norm_linear(x, x, torch.zeros(4, 16, device=device), torch.zeros(4, device=device), PLAIN,
                    tile=TILE, programs=1)  # fmt: skip


def test_norm_linear_refuses_a_delta_without_its_norm(device):
    x = torch.zeros(8, device=device)
    with pytest.raises(ValueError, match="delta, post_weight and x_out go together"):
        norm_linear(x, x, torch.zeros(4, 8, device=device), torch.zeros(4, device=device), PLAIN,
                    tile=TILE, programs=1, delta=x)  # fmt: skip


def test_linear_residual_refuses_parts_that_do_not_cover_the_cache(device):
    with pytest.raises(ValueError, match=r"\(num_parts - 1\) \* 16 >= 90"):
        linear_residual(
            torch.zeros(2, 8, device=device), torch.zeros(4, 8, device=device),
            torch.zeros(4, device=device), lse=torch.zeros(2, 2, device=device), split=16,
            capacity=90, position=torch.zeros(1, dtype=torch.int32, device=device),
            tile=TILE, programs=1,
        )  # fmt: skip
