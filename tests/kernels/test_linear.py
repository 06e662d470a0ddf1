import pytest
import torch

from infer_core.kernels import linear as linear_file
from infer_core.kernels.linear import (
    LinearTile,
    activation_tile,
    fit_tile,
    launch_linear,
    linear,
    linear_activation,
    linear_activation_ref,
    linear_parts,
    linear_parts_ref,
    linear_ref,
    linear_tile,
    parts_tile,
    whole_row_tiles,
)

SHAPES = [
    # num_tokens, width, num_rows
    pytest.param(1, 64, 32, id="one-token"),
    pytest.param(70, 200, 130, id="nothing-a-multiple-of-a-tile"),
    pytest.param(130, 128, 96, id="several-tiles-of-tokens"),
    pytest.param(3, 8, 8, id="smaller-than-any-tile"),
]
TILES = [
    pytest.param(LinearTile(64, 32, 64, 4, 3), id="whole"),
    pytest.param(LinearTile(16, 16, 32, 4, 3, parts=3), id="three-parts"),
    pytest.param(LinearTile(64, 32, 32, 4, 3, parts=64), id="more-parts-than-steps"),
]


def operands(num_tokens, width, num_rows, dtype, device):
    x = torch.randn(num_tokens, width, device=device).to(dtype)
    weight = (torch.randn(num_rows, width, device=device) * width**-0.5).to(dtype)
    return x, weight, torch.randn(num_rows, device=device).to(dtype)


def sum_allowance(x, weight, bias):
    """What `width` float32 additions one after another may cost, which eager torch adds in a tree.

    Errors of n roundings add up like a random walk: sqrt(n) units of the sum of absolute values
    (Higham and Mary, 2019).
    """
    total = linear_ref(x.double().abs(), weight.double().abs(), bias.double().abs())
    return 2**-24 * x.shape[1] ** 0.5 * float(total.max())


@pytest.mark.parametrize("has_bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("num_tokens", "width", "num_rows"), SHAPES)
def test_parts_add_up_as_accurately_as_eager_torch(
    num_tokens, width, num_rows, tile, has_bias, dtype, device, assert_as_accurate_as_eager
):
    if width * torch.finfo(dtype).bits // 8 % 16:
        pytest.skip("a tensor descriptor takes rows of 16 bytes")
    x, weight, bias = operands(num_tokens, width, num_rows, dtype, device)
    allowance = sum_allowance(x, weight, bias)
    bias = bias if has_bias else None

    parts = launch_linear(x, weight, bias, tile)

    wide = None if bias is None else bias.double()
    truth = linear_ref(x.double(), weight.double(), wide)
    y = parts.double().sum(0).to(dtype)
    assert_as_accurate_as_eager(y, linear_ref(x, weight, bias), truth, allowance)
    assert parts.dtype == (dtype if len(parts) == 1 else torch.float32)
    assert len(parts) <= tile.parts


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "not-gated"])
@pytest.mark.parametrize("act", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize(("num_tokens", "width", "num_rows"), SHAPES)
def test_an_activation_in_the_epilogue_is_as_accurate_as_eager_torch(
    num_tokens, width, num_rows, act, gated, dtype, device, assert_as_accurate_as_eager
):
    x, weight, bias = operands(num_tokens, width, num_rows, dtype, device)
    how = {"activation": act, "gated": gated}

    y = launch_linear(x, weight, bias, LinearTile(64, 32, 64, 4, 3), **how)[0]

    truth = linear_activation_ref(x.double(), weight.double(), bias.double(), **how)
    # an activation's slope is at most 1.13, and the other factor of a gate is of its size
    size = float(linear_ref(x.double(), weight.double(), bias.double()).abs().max()) if gated else 1
    allowance = 2.26 * size * sum_allowance(x, weight, bias)
    eager = linear_activation_ref(x, weight, bias, **how)
    assert_as_accurate_as_eager(y, eager, truth, allowance)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "not-gated"])
@pytest.mark.parametrize("num_rows", [320, 310], ids=["whole-tiles", "ragged"])
def test_tiles_cut_in_two_change_nothing(num_rows, gated, dtype, device, monkeypatch):
    monkeypatch.setattr(linear_file, "num_multiprocessors", lambda device: 8)
    x, weight, bias = operands(20, 64, num_rows, dtype, device)
    how = {"activation": "silu", "gated": gated}
    columns = num_rows // (2 if gated else 1)
    row_tiles = -(-columns // 32)
    assert whole_row_tiles(2, row_tiles, 8) < row_tiles

    cut = launch_linear(x, weight, bias, LinearTile(16, 32, 32, 4, 3, halves=True), **how)

    whole = launch_linear(x, weight, bias, LinearTile(16, 32, 32, 4, 3), **how)
    torch.testing.assert_close(cut, whole)


@pytest.mark.parametrize(
    ("token_tiles", "row_tiles", "whole"),
    [
        pytest.param(8, 54, 49, id="a-quarter-of-a-round-is-left"),
        pytest.param(8, 64, 64, id="a-round-nearly-full"),
        pytest.param(2, 54, 54, id="less-than-a-round"),
        pytest.param(4, 66, 66, id="two-rounds-exactly"),
    ],
)
def test_tiles_are_cut_where_a_last_round_is_mostly_idle(token_tiles, row_tiles, whole):
    assert whole_row_tiles(token_tiles, row_tiles, 132) == whole


@pytest.mark.parametrize("num_tokens", [1, 64, 65, 200, 300])
def test_the_tiles_used_in_earnest_agree_too(num_tokens, device):
    """In fp16: float32 goes to cuBLAS."""
    x, weight, bias = operands(num_tokens, 256, 160, torch.float16, device)
    x, weight, bias = x.double(), weight.double(), bias.double()
    half = x.half(), weight.half(), bias.half()
    how = {"activation": "silu", "gated": True}

    whole, parts = linear(*half), linear_parts(*half)
    inner = linear_activation(*half, **how)

    # one rounding to fp16, and products of fp16 numbers summed in float32
    bound = {"rtol": 2**-11, "atol": 1e-5}
    torch.testing.assert_close(whole.double(), linear_ref(x, weight, bias), **bound)
    total = parts.double().sum(0)
    torch.testing.assert_close(total, linear_parts_ref(x, weight, bias)[0], **bound)
    expected = linear_activation_ref(x, weight, bias, **how)
    torch.testing.assert_close(inner.double(), expected, **bound)


def test_what_descriptors_cannot_take_runs_all_the_same(device, monkeypatch):
    monkeypatch.setattr(linear_file, "launch_linear", None)
    x, weight, bias = operands(4, 9, 6, torch.float16, device)  # rows of 18 bytes
    how = {"activation": "silu", "gated": True}

    assert torch.equal(linear(x, weight, bias), linear_ref(x, weight, bias))
    assert torch.equal(linear_parts(x, weight, bias), linear_ref(x, weight, bias)[None])
    y, expected = (f(x, weight, bias, **how) for f in (linear_activation, linear_activation_ref))
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("limit", [227, 163, 99], ids=["h100", "a100", "consumer"])
@pytest.mark.parametrize("width", [512, 1152, 8192])
@pytest.mark.parametrize("num_rows", [1152, 2048, 8192])
@pytest.mark.parametrize("num_tokens", [1, 64, 65, 256, 1024, 2048])
def test_tiles_fit_the_shared_memory_of_a_gpu(num_tokens, num_rows, width, limit):
    tiles = [
        (linear_tile(num_tokens, num_rows, 132), 1),
        (parts_tile(num_tokens, num_rows, width, 132), 1),
        (activation_tile(num_tokens), 2),
    ]
    for tile, num_weights in tiles:
        if tile is not None:
            fitting = fit_tile(tile, num_weights, 2, limit * 1024)
            elements = (tile.tokens + num_weights * tile.rows) * fitting.width
            assert 2 * fitting.stages * elements <= limit * 1024
            assert fitting.stages >= 2
            assert fitting.width >= 32
            assert fitting == tile or limit < 227


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"x": torch.zeros(2, 9)}, r"weight must be \[num_rows, 9\]", id="width"),
        pytest.param({"x": torch.zeros(8)}, r"x must be \[num_rows, width\]", id="vector"),
        pytest.param({"weight": torch.zeros(4, 8).half()}, "must be torch.float32", id="dtype"),
        pytest.param(
            {"bias": torch.zeros(5)}, r"bias has shape \(5,\), expected \(4,\)", id="bias"
        ),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    good = {"x": torch.zeros(2, 8), "weight": torch.zeros(4, 8), "bias": torch.zeros(4)}
    for function in (linear, linear_parts):
        with pytest.raises(ValueError, match=message):
            function(**{**good, **wrong})


def test_a_gated_weight_with_an_odd_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="two halves, but has 5 rows"):
        linear_activation(torch.zeros(2, 8), torch.zeros(5, 8), activation="silu", gated=True)
