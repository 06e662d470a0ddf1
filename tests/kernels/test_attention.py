import itertools

import pytest
import torch

from infer_core.kernels import attention
from infer_core.kernels.attention import (
    AttentionTile,
    attention_tile,
    prefill_attention,
    prefill_attention_ref,
)
from infer_core.kernels.write_kv import write_kv


@pytest.fixture(params=["whole-rows", "shared-rows"])
def small_tiles(request, monkeypatch):
    """Tiles of 16, so that a few tokens take several of them and some lie outside the window.

    Once with a program for all value columns, once with several and tensor descriptors.
    """
    shared = request.param == "shared-rows"
    tile = AttentionTile(16, 16, 4, 1, value_parts=2 if shared else 1)
    monkeypatch.setattr(attention, "attention_tile", lambda *sizes: tile)
    monkeypatch.setattr(attention, "has_descriptors", lambda qkv: shared)


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
    # num_tokens, start, heads, kv heads, head_dim, window, capacity, soft cap
    pytest.param(1, 0, 4, 2, 32, None, 8, None, id="one-token-no-past"),
    pytest.param(20, 0, 2, 2, 32, None, 64, None, id="group-of-1"),
    pytest.param(33, 0, 4, 2, 32, None, 64, None, id="group-of-2"),
    pytest.param(11, 0, 3, 1, 32, None, 64, None, id="group-of-3-cuts-tokens-across-tiles"),
    pytest.param(9, 17, 8, 1, 32, None, 64, None, id="group-of-8-with-past"),
    pytest.param(7, 40, 4, 1, 32, None, 64, None, id="long-past-short-chunk"),
    pytest.param(5, 6, 2, 1, 80, None, 16, None, id="head-dim-not-a-power-of-two"),
    pytest.param(5, 6, 2, 1, 4, None, 16, None, id="head-dim-below-the-dot-minimum"),
    pytest.param(6, 3, 4, 1, 256, None, 16, None, id="head-dim-256"),
    pytest.param(20, 7, 4, 2, 32, None, 32, 5.0, id="soft-cap"),
    pytest.param(40, 0, 2, 1, 32, 7, 64, None, id="window-smaller-than-prompt"),
    pytest.param(20, 0, 2, 1, 32, 20, 32, None, id="window-equal-to-prompt"),
    pytest.param(20, 0, 2, 1, 32, 30, 32, None, id="window-larger-than-prompt"),
    pytest.param(20, 5, 2, 1, 32, 1, 32, None, id="window-of-one-sees-itself"),
    pytest.param(70, 0, 2, 1, 32, 45, 80, None, id="window-with-whole-tiles-inside"),
    pytest.param(20, 75, 2, 1, 32, 60, 60, None, id="ring-with-whole-tiles-inside"),
    pytest.param(20, 50, 2, 1, 32, None, 80, 5.0, id="past-with-whole-tiles-soft-cap"),
    pytest.param(18, 21, 4, 1, 32, 8, 8, None, id="ring-wrapped"),
    pytest.param(18, 5, 4, 1, 32, 8, 8, None, id="ring-not-full-yet"),
    pytest.param(9, 37, 4, 1, 32, 20, 20, 5.0, id="ring-wrapped-chunk-inside-window-soft-cap"),
]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    (
        "num_tokens",
        "start",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "window",
        "capacity",
        "softcap",
    ),
    CASES,
)
def test_prefill_attention_is_as_accurate_as_eager_torch(
    num_tokens,
    start,
    num_heads,
    num_kv_heads,
    head_dim,
    window,
    capacity,
    softcap,
    dtype,
    device,
    assert_as_accurate_as_eager,
    softmax_allowance,
    order_allowance,
):
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    tokens = random_chunk(start + num_tokens, heads, device).to(dtype)
    chunk = tokens[start:]
    caches = cache_holding(tokens[:start], capacity, heads)
    # 2 / sqrt(head_dim): scores of a few units, so that tokens weigh unequally
    layout = {"softmax_scale": 2 * head_dim**-0.5, "window": window, "logit_softcap": softcap}

    y = prefill_attention(chunk, *caches, at(start, device), **heads, **layout)

    def reference(wide):
        return prefill_attention_ref(
            wide(chunk), *wide(caches.nan_to_num()), at(start, device), **heads, **layout
        )

    truth = reference(torch.Tensor.double)
    eager = reference(lambda tensor: tensor)
    k_cache, v_cache = caches.nan_to_num().double()
    of_abs = prefill_attention_ref(
        with_abs_values(chunk.double(), heads), k_cache, v_cache.abs(), at(start, device),
        **heads, **layout,
    )  # fmt: skip
    allowance = softmax_allowance(truth, of_abs)
    allowance += order_allowance(tokens, heads, layout["softmax_scale"], truth, of_abs)
    assert_as_accurate_as_eager(y, eager, truth, allowance)


@pytest.mark.parametrize("head_dim", [64, 256])
def test_the_tiles_used_in_earnest_agree_too(
    head_dim, dtype, device, assert_as_accurate_as_eager, softmax_allowance
):
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": head_dim}
    tokens = random_chunk(110, heads, device).to(dtype)
    chunk, caches = tokens[70:], cache_holding(tokens[:70], 70, heads)
    layout = {"softmax_scale": head_dim**-0.5, "window": 70}

    y = prefill_attention(chunk, *caches, at(70, device), **heads, **layout)

    eager = prefill_attention_ref(chunk, *caches, at(70, device), **heads, **layout)
    wide = chunk.double(), *caches.double()
    truth = prefill_attention_ref(*wide, at(70, device), **heads, **layout)
    k_cache, v_cache = caches.double()
    wide = with_abs_values(chunk.double(), heads), k_cache, v_cache.abs()
    of_abs = prefill_attention_ref(*wide, at(70, device), **heads, **layout)
    assert_as_accurate_as_eager(y, eager, truth, softmax_allowance(truth, of_abs))


@pytest.mark.parametrize("limit", [227, 163, 99], ids=["h100", "a100", "consumer"])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("num_rows", [16, 300, 4096])
def test_tiles_fit_the_shared_memory_of_a_gpu(num_rows, head_dim, limit):
    tile = attention_tile(num_rows, 2, head_dim, torch.bfloat16, 132, limit * 1024)

    columns = 256 if head_dim == 256 else 128 if head_dim > 64 else 64
    key_columns = columns + columns // tile.value_parts
    elements = columns * tile.rows + key_columns * tile.stages * tile.keys
    assert 2 * elements <= limit * 1024
    assert tile.stages >= 1


HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32}


def fp32_bound(truth):
    """Two float32 results of sums of a few dozen terms, differently ordered."""
    return 16 * torch.finfo(torch.float32).eps * truth.abs().max()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "window", [pytest.param(None, id="full"), pytest.param(10, id="ring-of-10")]
)
@pytest.mark.parametrize("piece", [1, 7, 16, 23])
def test_prefill_in_pieces_equals_prefill_at_once(piece, window, device):
    tokens = random_chunk(36, HEADS, device)
    layout = {"softmax_scale": 32**-0.5, "window": window}
    caches = cache_holding(tokens[:0], window or 36, HEADS)
    at_once = prefill_attention(tokens, *caches, at(0, device), **HEADS, **layout)

    pieces = []
    # single tokens after a first piece: what they read is then a cache more or less filled
    starts = [*range(0, 36, piece)] if piece > 1 else [0, *range(24, 36)]
    for start, end in itertools.pairwise([*starts, 36]):
        chunk = tokens[start:end]
        pieces.append(prefill_attention(chunk, *caches, at(start, device), **HEADS, **layout))
        write_kv(chunk, at(start, device), *caches, **HEADS)

    assert (torch.cat(pieces) - at_once).abs().max() <= fp32_bound(at_once)


@pytest.mark.usefixtures("small_tiles")
def test_a_fresh_prompt_reads_nothing_of_the_cache(device):
    tokens = random_chunk(20, HEADS, device)
    empty = cache_holding(tokens[:0], 8, HEADS)
    layout = {"softmax_scale": 32**-0.5, "window": 7}
    expected = prefill_attention(tokens, *empty, at(0, device), **HEADS, **layout)

    # a start that is not 0 shows that nobody looks at it
    y = prefill_attention(tokens, *empty, at(5, device), **HEADS, **layout, is_fresh=True)

    assert torch.equal(y, expected)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("window", [19, 20, 21])
def test_a_fresh_prompt_within_the_window_is_as_without_one(window, device):
    tokens = random_chunk(20, HEADS, device)
    empty = cache_holding(tokens[:0], 8, HEADS)
    layout = {"softmax_scale": 32**-0.5, "is_fresh": True}

    y = prefill_attention(tokens, *empty, at(0, device), **HEADS, **layout, window=window)

    without = prefill_attention(tokens, *empty, at(0, device), **HEADS, **layout)
    assert torch.equal(y, without) == (window >= 20)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("start", [0, 6, 9, 25])
def test_a_ring_equals_a_full_cache_with_a_window(start, device):
    tokens = random_chunk(start + 13, HEADS, device)
    layout = {"softmax_scale": 32**-0.5, "window": 9}

    ring, full = (
        prefill_attention(
            tokens[start:],
            *cache_holding(tokens[:start], capacity, HEADS),
            at(start, device),
            **HEADS,
            **layout,
        )
        for capacity in (9, 64)
    )

    assert torch.equal(ring, full)


@pytest.mark.usefixtures("small_tiles")
def test_scores_beyond_the_range_of_exp_give_the_mean_of_equal_keys(device):
    tokens = random_chunk(30, HEADS, device)
    tokens[:, : 6 * 32] = 4.0  # q and k: every score is 512, exactly
    caches = cache_holding(tokens[:20], 40, HEADS)

    y = prefill_attention(tokens[20:], *caches, at(20, device), **HEADS, softmax_scale=1.0)[-1]

    mean = tokens[:, 6 * 32 :].view(30, 2, 32).mean(0).repeat_interleave(2, 0).flatten()
    assert (y - mean).abs().max() <= fp32_bound(mean)


@pytest.mark.usefixtures("small_tiles")
def test_a_token_outside_the_window_changes_nothing(device):
    tokens = random_chunk(30, HEADS, device)
    caches = cache_holding(tokens[:0], 30, HEADS)
    layout = {"softmax_scale": 32**-0.5, "window": 5}
    before = prefill_attention(tokens, *caches, at(0, device), **HEADS, **layout)

    tokens[10] += 1.0
    changed = prefill_attention(tokens, *caches, at(0, device), **HEADS, **layout)

    differs = (changed != before).any(dim=1).nonzero().flatten().tolist()
    assert differs == [10, 11, 12, 13, 14]


@pytest.mark.usefixtures("small_tiles")
def test_the_reference_attends_as_torch_does(device):
    tokens = random_chunk(12, HEADS, device).double()
    q, k, v = tokens.unflatten(1, (-1, 32)).transpose(0, 1).split([4, 2, 2])

    y = prefill_attention_ref(
        tokens, *cache_holding(tokens[:0], 1, HEADS), at(0, device), **HEADS, softmax_scale=0.3
    )

    theirs = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0), is_causal=True, scale=0.3
    )
    torch.testing.assert_close(y, theirs.transpose(0, 1).flatten(1))


@pytest.mark.usefixtures("small_tiles")
def test_strided_rows_give_the_same_as_contiguous_ones(device):
    strided = torch.randn(9, 300, device=device)[:, 20 : 20 + 256]
    caches = cache_holding(strided[:0], 4, HEADS)

    y, expected = (
        prefill_attention(qkv, *caches, at(0, device), **HEADS, softmax_scale=0.2)
        for qkv in (strided, strided.contiguous())
    )

    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"qkv": torch.zeros(2, 255)}, r"qkv must be \[num_rows, 256\]", id="width"),
        pytest.param({"qkv": torch.zeros(256, 2).T}, "last stride 1", id="strided-columns"),
        pytest.param({"window": 0}, "window is 0", id="window-of-zero"),
        pytest.param({"start": torch.zeros(1)}, "start is torch.float32", id="start-dtype"),
        pytest.param({"v_cache": torch.zeros(2, 4, 16)}, "v_cache has shape", id="cache-shape"),
        pytest.param({"k_cache": torch.zeros(4, 32)}, "k_cache must be", id="cache-dimensions"),
        pytest.param({"num_kv_heads": 3}, "not a positive multiple", id="heads"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    good = {
        "qkv": torch.zeros(2, 256),
        "k_cache": torch.zeros(2, 4, 32),
        "v_cache": torch.zeros(2, 4, 32),
        "start": torch.zeros(1, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=message):
        prefill_attention(**{**good, **HEADS, "softmax_scale": 1.0, **wrong})
