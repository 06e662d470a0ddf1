import pytest
import torch

from infer_core.kernels.write_kv import write_kv, write_kv_ref

HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 12}
WIDTH = 8 * 12


@pytest.mark.parametrize(
    ("num_tokens", "start", "capacity"),
    [
        pytest.param(1, 0, 1, id="one-token-one-slot"),
        pytest.param(1, 13, 8, id="one-token-in-a-ring"),
        pytest.param(5, 6, 8, id="chunk-wraps"),
        pytest.param(8, 5, 8, id="chunk-as-long-as-the-ring"),
        pytest.param(21, 3, 8, id="chunk-longer-than-the-ring"),
        pytest.param(5, 4, 16, id="full-cache"),
    ],
)
def test_write_kv_equals_the_reference_and_leaves_other_slots(
    num_tokens, start, capacity, dtype, device
):
    qkv = torch.randn(num_tokens, WIDTH, device=device).to(dtype)
    position = torch.tensor([start], dtype=torch.int32, device=device)
    caches = torch.randn(2, 2, capacity, 12, device=device).to(dtype)
    expected = caches.clone()

    write_kv(qkv, position, caches[0], caches[1], **HEADS)

    write_kv_ref(qkv, position, expected[0], expected[1], **HEADS)
    assert torch.equal(caches, expected)


def test_each_slot_gets_the_latest_token_that_maps_to_it(device):
    # every element of token i holds i, so the cache shows who wrote it
    qkv = torch.arange(10.0, device=device)[:, None].expand(10, WIDTH).contiguous()
    position = torch.tensor([1], dtype=torch.int32, device=device)
    k_cache, v_cache = torch.zeros(2, 2, 4, 12, device=device)

    write_kv(qkv, position, k_cache, v_cache, **HEADS)

    # positions 7..10 are tokens 6..9; position 8 lies in slot 0
    assert k_cache[0, :, 0].tolist() == [7.0, 8.0, 9.0, 6.0]
    assert torch.equal(k_cache, v_cache)


@pytest.mark.parametrize("count", [1, 3, 8, 9, 20])
@pytest.mark.parametrize("capacity", [8, 64])
def test_padding_rows_are_not_written(count, capacity, dtype, device):
    qkv = torch.randn(21, WIDTH, device=device).to(dtype)
    position = torch.tensor([30], dtype=torch.int32, device=device)
    caches = torch.randn(2, 2, capacity, 12, device=device).to(dtype)
    expected = caches.clone()
    real = torch.tensor([count], dtype=torch.int32, device=device)

    write_kv(qkv, position, caches[0], caches[1], **HEADS, count=real)

    write_kv(qkv[:count], position, expected[0], expected[1], **HEADS)
    assert torch.equal(caches, expected)
    reference = torch.zeros_like(caches)
    write_kv_ref(qkv, position, reference[0], reference[1], **HEADS, count=real)
    assert (reference.abs().amax(dim=(0, 1, 3)) > 0).sum() == min(count, capacity)


def test_strided_rows_are_read_row_by_row(device):
    qkv = torch.randn(3, 200, device=device)[:, 50 : 50 + WIDTH]
    position = torch.zeros(1, dtype=torch.int32, device=device)
    caches = torch.zeros(2, 2, 4, 12, device=device)
    expected = torch.zeros(2, 2, 4, 12, device=device)

    write_kv(qkv, position, caches[0], caches[1], **HEADS)
    write_kv(qkv.contiguous(), position, expected[0], expected[1], **HEADS)

    assert torch.equal(caches, expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"qkv": torch.zeros(2, WIDTH + 1)}, "qkv must be", id="qkv-width"),
        pytest.param({"k_cache": torch.zeros(2, 0, 12)}, "capacity >= 1", id="no-slots"),
        pytest.param({"v_cache": torch.zeros(2, 5, 12)}, "v_cache has shape", id="unequal-caches"),
        pytest.param({"start": torch.zeros(2, dtype=torch.int32)}, "start has shape", id="start"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    good = {
        "qkv": torch.zeros(2, WIDTH),
        "start": torch.zeros(1, dtype=torch.int32),
        "k_cache": torch.zeros(2, 4, 12),
        "v_cache": torch.zeros(2, 4, 12),
    }
    with pytest.raises(ValueError, match=message):
        write_kv(**{**good, **wrong}, **HEADS)
