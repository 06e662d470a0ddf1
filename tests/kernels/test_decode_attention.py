import pytest
import torch

from infer_core.kernels import decode_attention as module
from infer_core.kernels.attention import prefill_attention
from infer_core.kernels.decode_attention import (
    decode_attention,
    decode_attention_ref,
    split_count,
)
from infer_core.kernels.write_kv import write_kv


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 16 keys, so that a few tokens make several splits."""
    monkeypatch.setattr(module, "tile_keys", lambda head_dim, dtype: 16)


def at(value, device):
    return torch.tensor([value], dtype=torch.int32, device=device)


def random_chunk(num_tokens, heads, device):
    columns = (heads["num_heads"] + 2 * heads["num_kv_heads"]) * heads["head_dim"]
    return torch.randn(num_tokens, columns, device=device)


def cache_holding(past, capacity, heads):
    """A cache after `past` tokens; slots never written hold NaN, which must not be read."""
    shape = (2, heads["num_kv_heads"], capacity, heads["head_dim"])
    caches = torch.full(shape, float("nan"), dtype=past.dtype, device=past.device)
    if len(past):
        write_kv(past, at(0, past.device), caches[0], caches[1], **heads)
    return caches


def with_abs_values(qkv, heads):
    """The same chunk with |v| for v."""
    width = heads["num_kv_heads"] * heads["head_dim"]
    return torch.cat([qkv[:, :-width], qkv[:, -width:].abs()], dim=1)


CASES = [
    # position, heads, kv heads, head_dim, window, capacity, soft cap, max_context
    pytest.param(0, 4, 2, 32, None, 64, None, 64, id="empty-past-every-split-but-one-empty"),
    pytest.param(0, 4, 2, 32, None, 1, None, 1, id="context-of-one"),
    pytest.param(1, 4, 2, 32, None, 64, None, 64, id="one-past-token"),
    pytest.param(40, 2, 2, 32, None, 64, None, 64, id="group-of-1"),
    pytest.param(63, 6, 3, 32, None, 64, None, 64, id="group-of-2-last-position"),
    pytest.param(33, 3, 1, 32, None, 64, None, 64, id="group-of-3"),
    pytest.param(48, 8, 1, 32, None, 64, None, 64, id="group-of-8-whole-tiles"),
    pytest.param(37, 18, 1, 32, None, 64, None, 64, id="group-wider-than-the-dot-minimum"),
    pytest.param(21, 2, 1, 80, None, 32, None, 32, id="head-dim-not-a-power-of-two"),
    pytest.param(21, 2, 1, 4, None, 32, None, 32, id="head-dim-below-the-dot-minimum"),
    pytest.param(37, 4, 1, 256, None, 64, None, 64, id="head-dim-256"),
    pytest.param(37, 4, 2, 32, None, 64, 5.0, 64, id="soft-cap"),
    pytest.param(37, 4, 2, 32, 10, 64, None, 64, id="window-smaller-than-past"),
    pytest.param(37, 4, 2, 32, 38, 64, None, 64, id="window-just-sees-all"),
    pytest.param(37, 4, 2, 32, 1, 64, None, 64, id="window-of-one-sees-itself"),
    pytest.param(53, 4, 2, 32, 20, 20, None, 64, id="ring-wrapped"),
    pytest.param(12, 4, 2, 32, 20, 20, None, 64, id="ring-not-full-yet"),
    pytest.param(50, 4, 2, 32, None, 64, None, 20, id="past-the-bound-still-right"),
]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    (
        "position",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "window",
        "capacity",
        "softcap",
        "max_context",
    ),
    CASES,
)
def test_decode_attention_is_as_accurate_as_eager_torch(
    position,
    num_heads,
    num_kv_heads,
    head_dim,
    window,
    capacity,
    softcap,
    max_context,
    dtype,
    device,
    assert_as_accurate_as_eager,
    softmax_allowance,
    order_allowance,
):
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    tokens = random_chunk(position + 1, heads, device).to(dtype)
    token = tokens[position:]
    caches = cache_holding(tokens[:position], capacity, heads)
    layout = {"softmax_scale": 2 * head_dim**-0.5, "window": window, "logit_softcap": softcap}
    layout["max_context"] = max_context

    y = decode_attention(token, *caches, at(position, device), **heads, **layout)

    def reference(wide):
        return decode_attention_ref(
            wide(token), *wide(caches.nan_to_num()), at(position, device), **heads, **layout
        )

    truth = reference(torch.Tensor.double)
    eager = reference(lambda tensor: tensor)
    k_cache, v_cache = caches.nan_to_num().double()
    of_abs = decode_attention_ref(
        with_abs_values(token.double(), heads), k_cache, v_cache.abs(), at(position, device),
        **heads, **layout,
    )  # fmt: skip
    allowance = softmax_allowance(truth, of_abs)
    allowance += order_allowance(tokens, heads, layout["softmax_scale"], truth, of_abs)
    assert_as_accurate_as_eager(y, eager, truth, allowance)


HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("softcap", [None, 5.0], ids=["plain", "soft-cap"])
@pytest.mark.parametrize(
    ("window", "capacity"),
    [pytest.param(None, 40, id="full"), pytest.param(12, 12, id="ring-of-12")],
)
def test_decode_equals_the_last_row_of_prefill(window, capacity, softcap, device):
    tokens = random_chunk(40, HEADS, device)
    layout = {"softmax_scale": 32**-0.5, "window": window, "logit_softcap": softcap}
    empty = cache_holding(tokens[:0], capacity, HEADS)
    last_row = prefill_attention(tokens, *empty, at(0, device), **HEADS, **layout)[-1:]

    caches = cache_holding(tokens[:39], capacity, HEADS)
    y = decode_attention(tokens[39:], *caches, at(39, device), **HEADS, **layout, max_context=40)

    # two float32 results of sums of a few dozen terms, differently ordered
    bound = 16 * torch.finfo(torch.float32).eps * last_row.abs().max()
    assert (y - last_row).abs().max() <= bound


@pytest.mark.usefixtures("small_tiles")
def test_scores_beyond_the_range_of_exp_give_the_mean_of_equal_keys(device):
    tokens = random_chunk(30, HEADS, device)
    tokens[:, : 6 * 32] = 4.0  # q and k: every score is 512, exactly
    caches = cache_holding(tokens[:29], 40, HEADS)

    y = decode_attention(
        tokens[29:], *caches, at(29, device), **HEADS, softmax_scale=1.0, max_context=40
    )[0]

    mean = tokens[:, 6 * 32 :].view(30, 2, 32).mean(0).repeat_interleave(2, 0).flatten()
    bound = 16 * torch.finfo(torch.float32).eps * mean.abs().max()
    assert (y - mean).abs().max() <= bound


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("position", [3, 11, 12, 30])
def test_a_ring_equals_a_full_cache_with_a_window(position, device):
    tokens = random_chunk(position + 1, HEADS, device)

    ring, full = (
        decode_attention(
            tokens[position:],
            *cache_holding(tokens[:position], capacity, HEADS),
            at(position, device),
            **HEADS,
            softmax_scale=0.2,
            window=12,
            max_context=64,
        )
        for capacity in (12, 64)
    )

    assert torch.equal(ring, full)


@pytest.mark.usefixtures("small_tiles")
def test_writing_the_own_slot_first_changes_nothing(device):
    tokens = random_chunk(31, HEADS, device)
    caches = cache_holding(tokens[:30], 12, HEADS)
    arguments = {"softmax_scale": 0.2, "window": 12, "max_context": 64, **HEADS}
    before = decode_attention(tokens[30:], *caches, at(30, device), **arguments)

    write_kv(tokens[30:], at(30, device), *caches, **HEADS)

    after = decode_attention(tokens[30:], *caches, at(30, device), **arguments)
    assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("visible", "num_kv_heads", "splits"),
    [
        pytest.param(1, 8, 1, id="one-token"),
        pytest.param(512, 1, 8, id="one-split-a-tile"),
        pytest.param(32768, 8, 16, id="gpu-full"),
        pytest.param(32768, 1, 64, id="merge-bounded"),
        pytest.param(32768, 256, 1, id="more-heads-than-programs"),
    ],
)
def test_splits_fill_the_gpu_and_no_more(visible, num_kv_heads, splits):
    assert split_count(visible, num_kv_heads, 64) == splits


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"qkv": torch.zeros(2, 256)}, "one token, got 2", id="two-tokens"),
        pytest.param({"max_context": 0}, r"max_context \(0\)", id="no-context"),
        pytest.param({"window": 0}, r"window \(0\)", id="window-of-zero"),
        pytest.param(
            {"position": torch.zeros(1, dtype=torch.int64)}, "position is torch.int64", id="dtype"
        ),
        pytest.param({"k_cache": torch.zeros(2, 4, 16)}, "k_cache has shape", id="cache-shape"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    good = {
        "qkv": torch.zeros(1, 256),
        "k_cache": torch.zeros(2, 4, 32),
        "v_cache": torch.zeros(2, 4, 32),
        "position": torch.zeros(1, dtype=torch.int32),
        "max_context": 8,
        "softmax_scale": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        decode_attention(**{**good, **HEADS, **wrong})
