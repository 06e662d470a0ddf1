import pytest
import torch

from infer_core.kernels.embedding import embed, embed_ref


@pytest.mark.parametrize("token_dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "hidden_size"),
    [
        pytest.param(1, 2048, id="decode-one-row-two-blocks"),
        pytest.param(5, 1152, id="not-a-power-of-two"),
        pytest.param(3, 1, id="one-column"),
    ],
)
@pytest.mark.parametrize(
    "scale", [pytest.param(1.0, id="no-scale"), pytest.param(1152**0.5, id="scale-is-rounded")]
)
def test_embed_equals_eager_torch_bit_for_bit(
    num_tokens, hidden_size, scale, token_dtype, dtype, device
):
    weight = torch.randn(11, hidden_size, device=device).to(dtype)
    tokens = torch.randint(11, (num_tokens,), device=device, dtype=token_dtype)

    y = embed(tokens, weight, scale)

    assert torch.equal(y, embed_ref(tokens, weight, scale))


def test_the_scale_is_rounded_to_the_weights_dtype_first(device):
    # sqrt(1152) = 33.9411 is 33.9375 in fp16; unrounded, the product would be 112.0625
    weight = torch.full((1, 1), 3.3, device=device).half()

    y = embed(torch.zeros(1, dtype=torch.int64, device=device), weight, 1152**0.5)

    assert y.item() == 112.0


def test_a_strided_table_is_read_row_by_row(device):
    weight = torch.randn(6, 40, device=device)[:, :24]
    tokens = torch.tensor([5, 0, 5], device=device)

    assert torch.equal(embed(tokens, weight), weight[tokens])


@pytest.mark.parametrize("token", [-1, 4], ids=["negative", "past-the-end"])
def test_an_unknown_token_gives_nan_instead_of_foreign_memory(token, device):
    tokens = torch.tensor([1, token], device=device)

    y = embed(tokens, torch.ones(4, 8, device=device))

    assert torch.equal(y[0], torch.ones(8, device=device))
    assert y[1].isnan().all()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        pytest.param(torch.zeros(2, 2, dtype=torch.int64), r"got shape \(2, 2\)", id="matrix"),
        pytest.param(torch.zeros(2), "got shape .* torch.float32", id="floats"),
        pytest.param(torch.zeros(4, dtype=torch.int64)[::2], "must be contiguous", id="strided"),
    ],
)
def test_tokens_of_another_form_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        embed(tokens, torch.zeros(4, 8))


def test_a_table_of_integers_is_refused():
    with pytest.raises(ValueError, match=r"weight is torch\.int64"):
        embed(torch.zeros(1, dtype=torch.int64), torch.zeros(4, 8, dtype=torch.int64))
