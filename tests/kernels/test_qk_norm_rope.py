import pytest
import torch

from infer_core.kernels.qk_norm_rope import qk_norm_rope, qk_norm_rope_ref

CONTEXT = 64
# Fits every case below: 3 query heads over 1 kv head do not fill a block of heads.
HEADS = {"num_heads": 3, "num_kv_heads": 1}


def tables(half, device):
    angles = torch.arange(CONTEXT)[:, None] * 100.0 ** -(torch.arange(half) / half)
    return angles.cos().to(device), angles.sin().to(device)


def position(value, device):
    return torch.tensor([value], dtype=torch.int32, device=device)


def wide(arguments):
    """The same call in float64; cos and sin keep their float32 values."""
    return {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(None, id="no-norm"),
        pytest.param({}, id="weight-after-rounding"),
        pytest.param({"weight_offset": 1.0, "weight_in_fp32": True}, id="one-plus-weight-in-fp32"),
    ],
)
@pytest.mark.parametrize(
    ("num_tokens", "start", "num_heads", "num_kv_heads", "head_dim", "half"),
    [
        pytest.param(1, 0, 4, 2, 64, 32, id="decode-first-token"),
        pytest.param(1, 63, 1, 1, 64, 32, id="last-row-of-the-table"),
        pytest.param(5, 7, 3, 1, 80, 40, id="head-dim-not-a-power-of-two"),
        pytest.param(3, 2, 16, 8, 32, 16, id="several-blocks-of-heads"),
        pytest.param(4, 3, 2, 2, 40, 10, id="partial-rotary"),
        pytest.param(2, 9, 4, 1, 256, 128, id="head-dim-256"),
    ],
)
def test_rotated_heads_are_as_accurate_as_eager_torch(
    num_tokens,
    start,
    num_heads,
    num_kv_heads,
    head_dim,
    half,
    norm,
    dtype,
    device,
    assert_as_accurate_as_eager,
):
    cos, sin = tables(half, device)
    arguments = {
        "qkv": torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, device=device),
        "k_cache": torch.zeros(num_kv_heads, CONTEXT, head_dim, device=device),
        "v_cache": torch.zeros(num_kv_heads, CONTEXT, head_dim, device=device),
    }
    if norm is not None:
        arguments["q_weight"], arguments["k_weight"] = torch.randn(2, head_dim, device=device)
    arguments = {name: tensor.to(dtype) for name, tensor in arguments.items()}
    fixed = {"cos": cos, "sin": sin, "start": position(start, device)}
    fixed |= {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    fixed |= {"eps": 1e-6, **(norm or {})}
    eager = {name: tensor.clone() for name, tensor in arguments.items()}
    truth = wide(arguments)

    qk_norm_rope(**arguments, **fixed)

    qk_norm_rope_ref(**eager, **fixed)
    qk_norm_rope_ref(**truth, **fixed)
    for name in ("qkv", "k_cache", "v_cache"):
        assert_as_accurate_as_eager(arguments[name], eager[name], truth[name])


def test_halves_of_a_head_rotate_into_each_other(device):
    # a quarter turn takes (1, 2, 3, 4) with pairs (1, 3), (2, 4) to (-3, -4, 1, 2)
    qkv = torch.tensor([[1.0, 2.0, 3.0, 4.0]], device=device).repeat(1, 3)
    cos, sin = torch.zeros(1, 2, device=device), torch.ones(1, 2, device=device)

    qk_norm_rope(qkv, cos, sin, position(0, device), num_heads=1, num_kv_heads=1, head_dim=4)

    turned = [-3.0, -4.0, 1.0, 2.0]
    assert qkv.tolist() == [[*turned, *turned, 1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("num_tokens", "start", "capacity", "padding"),
    [
        pytest.param(1, 13, 8, None, id="decode-in-a-ring"),
        pytest.param(5, 6, 8, None, id="chunk-wraps"),
        pytest.param(19, 3, 8, None, id="chunk-longer-than-the-ring"),
        pytest.param(5, 0, 16, None, id="full-cache-not-full-yet"),
        pytest.param(19, 3, 8, 6, id="padding-after-a-chunk-longer-than-the-ring"),
        pytest.param(4, 0, 16, 9, id="padding-in-a-full-cache"),
        pytest.param(4, 2, 16, 0, id="a-count-without-padding"),
    ],
)
def test_the_cache_holds_the_rotated_keys_and_the_values_of_the_last_tokens(
    num_tokens, start, capacity, padding, device
):
    head_dim = 12
    cos, sin = tables(4, device)  # 8 of 12 elements rotate
    qkv = torch.randn(num_tokens + (padding or 0), 5 * head_dim, device=device)
    k_cache, v_cache = torch.full((2, 1, capacity, head_dim), 7.0, device=device)
    count = None if padding is None else position(num_tokens, device)

    qk_norm_rope(
        qkv, cos, sin, position(start, device), **HEADS, head_dim=head_dim,
        k_cache=k_cache, v_cache=v_cache, count=count,
    )  # fmt: skip

    k, v = qkv[:, 3 * head_dim :].split(head_dim, dim=1)
    for slot in range(capacity):
        writers = [i for i in range(num_tokens) if (start + i) % capacity == slot]
        expected_k = k[writers[-1]] if writers else torch.full((head_dim,), 7.0, device=device)
        expected_v = v[writers[-1]] if writers else torch.full((head_dim,), 7.0, device=device)
        assert torch.equal(k_cache[0, slot], expected_k)
        assert torch.equal(v_cache[0, slot], expected_v)


def test_strided_rows_change_in_place_and_their_gaps_stay(device):
    head_dim = 8
    cos, sin = tables(4, device)
    buffer = torch.randn(3, 60, device=device)
    before = buffer.clone()
    contiguous = buffer[:, 10:50].contiguous()

    for qkv in (buffer[:, 10:50], contiguous):
        qk_norm_rope(qkv, cos, sin, position(5, device), **HEADS, head_dim=head_dim)

    assert torch.equal(buffer[:, 10:50], contiguous)
    assert torch.equal(buffer[:, :10], before[:, :10])
    assert torch.equal(buffer[:, 50:], before[:, 50:])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"qkv": torch.zeros(2, 39)}, r"qkv must be \[num_rows, 40\]", id="qkv-width"),
        pytest.param({"num_heads": 3, "num_kv_heads": 2}, "not a positive multiple", id="heads"),
        pytest.param(
            {"start": torch.zeros(1, dtype=torch.int64)}, "start is torch.int64", id="start-dtype"
        ),
        pytest.param(
            {"start": torch.zeros((), dtype=torch.int32)}, r"start has shape \(\)", id="start-shape"
        ),
        pytest.param({"cos": torch.zeros(4, 5)}, r"2 \* half in 2\.\.8", id="rotary-too-wide"),
        pytest.param({"cos": torch.zeros(4, 4).half()}, "cos is torch.float16", id="half-table"),
        pytest.param({"sin": torch.zeros(4, 3)}, r"sin has shape \(4, 3\)", id="sin-unlike-cos"),
        pytest.param({"q_weight": torch.zeros(8)}, "both q_weight and k_weight", id="one-weight"),
        pytest.param({"k_cache": torch.zeros(1, 4, 8)}, "both k_cache and v_cache", id="one-cache"),
        pytest.param(
            {"k_cache": torch.zeros(2, 4, 8), "v_cache": torch.zeros(2, 4, 8)},
            r"k_cache has shape \(2, 4, 8\), expected \(1, 4, 8\)",
            id="cache-heads",
        ),
        pytest.param(
            {"k_cache": torch.zeros(1, 4, 8).half(), "v_cache": torch.zeros(1, 4, 8)},
            "k_cache is torch.float16",
            id="cache-dtype",
        ),
        pytest.param(
            {"k_cache": torch.zeros(1, 8, 4).mT, "v_cache": torch.zeros(1, 4, 8)},
            "k_cache must be contiguous",
            id="cache-strides",
        ),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    good = {
        "qkv": torch.zeros(2, 40),
        "cos": torch.zeros(4, 4),
        "sin": torch.zeros(4, 4),
        "start": torch.zeros(1, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=message):
        qk_norm_rope(**{**good, **HEADS, "head_dim": 8, **wrong})
