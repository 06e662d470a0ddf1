import pytest
import torch

from infer_core.kernels.pick_embed import NextInput, embed_token_ref, pick_embed, pick_ref

NOTHING = 2147483647  # the index a program leaves that found no number


def state(device, dtype=torch.float32, *, vocab=9, hidden=20):
    """Token, position, sequence, embedding table and output of a step at position 4."""
    return NextInput(
        token=torch.tensor([3], device=device),
        position=torch.tensor([4], dtype=torch.int32, device=device),
        sequence=torch.arange(100, 108, device=device),
        embed=torch.randn(vocab, hidden, device=device).to(dtype),
        x=torch.full((hidden,), float("nan"), dtype=dtype, device=device),
    )


@pytest.mark.parametrize(
    ("values", "indices", "picked"),
    [
        pytest.param([1.0, 5.0, 2.0], [0, 4, 8], 4, id="largest"),
        pytest.param([5.0, 1.0, 5.0], [7, 4, 2], 2, id="smallest-index-among-equals"),
        pytest.param([-3.0], [6], 6, id="one-program"),
        pytest.param([float("-inf")] * 3, [NOTHING, NOTHING, NOTHING], 0, id="logits-all-nan"),
        pytest.param([float("nan")] * 2, [NOTHING, NOTHING], 0, id="values-all-nan"),
    ],
)
def test_the_largest_candidate_is_picked_embedded_and_appended(values, indices, picked, device):
    candidates = (
        torch.tensor(values, device=device),
        torch.tensor(indices, dtype=torch.int32, device=device),
    )
    step = state(device)

    pick_embed(step._replace(scale=2.0), candidates=candidates)

    assert int(step.token) == picked
    assert int(step.position) == 5
    assert step.sequence.tolist() == [100, 101, 102, 103, 104, picked, 106, 107]
    assert torch.equal(step.x, embed_token_ref(step.embed, picked, 2.0))
    if indices[0] != NOTHING:
        assert pick_ref(*candidates) == picked


@pytest.mark.parametrize("advance", [True, False])
def test_a_sampled_token_is_embedded_and_only_an_advance_moves_on(advance, dtype, device):
    step = state(device, dtype)
    scale = 33.94112549695428  # no number of half precision: the model rounds it first

    pick_embed(step._replace(scale=scale), advance=advance)

    assert torch.equal(step.x, embed_token_ref(step.embed, 3, scale))
    assert int(step.token) == 3
    assert int(step.position) == (5 if advance else 4)
    assert int(step.sequence[5]) == (3 if advance else 105)


def test_the_token_is_marked_as_seen(device):
    candidates = (
        torch.tensor([1.0, 2.0], device=device),
        torch.tensor([0, 6], dtype=torch.int32, device=device),
    )
    seen = torch.zeros(9, dtype=torch.uint8, device=device)

    pick_embed(state(device), candidates=candidates, seen=seen)

    assert seen.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0]


def test_a_table_of_another_width_is_refused(device):
    step = state(device)
    step = step._replace(x=torch.zeros(8, device=device))
    with pytest.raises(ValueError, match=r"embed must be contiguous \[vocab_size, 8\]"):
        pick_embed(step)
