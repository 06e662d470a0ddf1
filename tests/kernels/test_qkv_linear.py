import pytest
import torch

from infer_core.kernels import qkv_linear as qkv_linear_file
from infer_core.kernels.linear import LinearTile
from infer_core.kernels.qkv_linear import heads_tile, qkv_linear, qkv_linear_ref

CASES = [
    # num_tokens, start, count, heads, kv heads, head_dim, capacity
    pytest.param(5, 3, None, 4, 2, 32, 64, id="several-heads-a-tile"),
    pytest.param(20, 0, 13, 2, 1, 64, 64, id="padded"),
    pytest.param(18, 9, None, 3, 1, 32, 8, id="ring-shorter-than-the-piece"),
    pytest.param(3, 0, None, 1, 1, 32, 4, id="fewer-heads-than-a-tile-holds"),
]
NORMS = {
    "no-norm": None,
    "weight-after-rounding": {"eps": 1e-6},
    "one-plus-weight-in-fp32": {"eps": 1e-6, "weight_offset": 1.0, "weight_in_fp32": True},
}


def make(
    num_tokens, start, count, num_heads, num_kv_heads, head_dim, norm, has_bias, dtype, device
):
    width, rows = 48, (num_heads + 2 * num_kv_heads) * head_dim
    half = head_dim // 2
    angles = torch.rand(start + num_tokens + 1, half, device=device) * 6

    def at(value):
        return torch.tensor([value], dtype=torch.int32, device=device)

    operands = {
        "x": torch.randn(num_tokens, width, device=device).to(dtype),
        "weight": (torch.randn(rows, width, device=device) * width**-0.5).to(dtype),
        "bias": torch.randn(rows, device=device).to(dtype) if has_bias else None,
        "cos": angles.cos(),
        "sin": angles.sin(),
        "start": at(start),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "count": None if count is None else at(count),
        **(norm or {}),
    }
    if norm is not None:
        operands["q_weight"], operands["k_weight"] = torch.randn(2, head_dim, device=device).to(
            dtype
        )
    return operands


def run(function, operands, capacity, *, wide=False):
    """(qkv, k_cache, v_cache); slots that nobody wrote hold 7."""
    shape = (operands["num_kv_heads"], capacity, operands["head_dim"])
    dtype = torch.float64 if wide else operands["x"].dtype
    caches = torch.full((2, *shape), 7.0, dtype=dtype, device=operands["x"].device)
    if wide:
        operands = {
            name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in operands.items()
        }
    qkv = function(**operands, k_cache=caches[0], v_cache=caches[1])
    return qkv, caches[0], caches[1]


@pytest.fixture
def small_tile(monkeypatch):
    """A tile that takes several programs in both directions, on any size."""
    tile = LinearTile(16, 64, 16, 4, 2)
    monkeypatch.setattr(qkv_linear_file, "heads_tile", lambda *sizes: tile)
    monkeypatch.setattr(qkv_linear_file, "has_descriptors", lambda *operands: True)


@pytest.mark.usefixtures("small_tile")
@pytest.mark.parametrize("has_bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
@pytest.mark.parametrize(
    ("num_tokens", "start", "count", "num_heads", "num_kv_heads", "head_dim", "capacity"), CASES
)
def test_qkv_and_caches_are_as_accurate_as_eager_torch(
    num_tokens, start, count, num_heads, num_kv_heads, head_dim, capacity, norm, has_bias,
    dtype, device, assert_as_accurate_as_eager,
):  # fmt: skip
    operands = make(
        num_tokens, start, count, num_heads, num_kv_heads, head_dim, norm, has_bias, dtype, device
    )

    kernel = run(qkv_linear, operands, capacity)

    eager = run(qkv_linear_ref, operands, capacity)
    truth = run(qkv_linear_ref, operands, capacity, wide=True)
    for results in zip(kernel, eager, truth, strict=True):
        assert_as_accurate_as_eager(*results)
    for ours, theirs in zip(kernel[1:], eager[1:], strict=True):
        assert torch.equal(ours == 7.0, theirs == 7.0)


@pytest.mark.usefixtures("small_tile")
def test_without_caches_only_qkv_is_written(device):
    operands = make(5, 0, None, 2, 1, 32, None, False, torch.float32, device)

    qkv = qkv_linear(**operands)

    torch.testing.assert_close(qkv, qkv_linear_ref(**operands))


@pytest.mark.parametrize("num_tokens", [3, 70, 300])
def test_the_tiles_used_in_earnest_agree_too(num_tokens, device):
    operands = make(num_tokens, 2, None, 6, 1, 64, {"eps": 1e-6}, True, torch.float16, device)

    kernel = run(qkv_linear, operands, 512)

    # two float16 roundings of numbers of the size of the norm's weight
    truth = run(qkv_linear_ref, operands, 512, wide=True)
    for ours, expected in zip(kernel, truth, strict=True):
        bound = 2**-9 * float(expected.abs().max())
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=bound)


def test_heads_that_fit_no_tile_go_the_long_way():
    assert heads_tile(256, 4096, 128, 64, 132) is None  # half of a head turns
    assert heads_tile(256, 4096, 80, 80, 132) is None
    assert heads_tile(256, 1536, 256, 256, 132) is None
    assert heads_tile(64, 4096, 128, 128, 132) is None  # too few programs
    assert heads_tile(256, 4096, 128, 128, 132) is not None
    assert heads_tile(1024, 3072, 64, 64, 132) is None  # cuBLAS is faster
    assert heads_tile(200, 3072, 64, 64, 132) is not None


def test_one_norm_weight_without_the_other_is_refused(device):
    operands = make(70, 0, None, 2, 1, 64, {"eps": 1e-6}, False, torch.float16, device)
    for tokens in (slice(None), slice(2)):  # both ways
        changed = {**operands, "x": operands["x"][tokens], "k_weight": None}
        with pytest.raises(ValueError, match="both q_weight and k_weight"):
            qkv_linear(**changed)
