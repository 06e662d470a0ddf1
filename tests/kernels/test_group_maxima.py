import pytest
import torch
from sampling_cases import LOGITS, normal

from infer_core.kernels.group_maxima import group_maxima, group_maxima_ref, num_groups
from infer_core.sampling import penalise_repetition


def maxima(logits, **options):
    """The kernel's maxima, as pairs of the largest and its token."""
    size = num_groups(len(logits))
    value = torch.full((size,), float("nan"), device=logits.device)
    index = torch.full((size,), -1, dtype=torch.int32, device=logits.device)
    group_maxima(logits, value, index, **options)
    return list(zip(value.tolist(), index.tolist(), strict=True))


def expected(logits):
    value, index = group_maxima_ref(logits)
    return list(zip(value.tolist(), index.tolist(), strict=True))


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS.keys())
def test_every_group_leaves_its_largest_logit_and_its_first_token(logits, device):
    logits = logits.to(device)

    found = maxima(logits)

    assert found == expected(logits)
    assert max(value for value, _ in found) == float(logits.max())
    largest = [token for value, token in found if value == float(logits.max())]
    assert min(largest) == int(logits.argmax())


@pytest.mark.parametrize("penalty", [0.3, 1.1, 1e6])
@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS.keys())
def test_the_penalty_is_that_of_the_reference(logits, penalty, device):
    logits = logits.to(device)
    seen = torch.arange(len(logits), device=device) % 3 == 0
    penalised = torch.full_like(logits, float("nan"))
    value = torch.tensor([penalty], dtype=torch.float64, device=device)

    found = maxima(logits, penalised=penalised, seen=seen.view(torch.uint8), penalty=value)

    wanted = penalise_repetition(logits, seen, value[0])
    torch.testing.assert_close(penalised, wanted, rtol=0, atol=0)
    assert found == expected(wanted)


def test_a_nan_is_never_the_largest(device):
    logits = normal(700).to(device)
    logits[::2] = float("nan")

    assert maxima(logits) == expected(logits)
    assert maxima(torch.full((300,), float("nan"), device=device)) == [
        (-float("inf"), 0),
        (-float("inf"), 8),
    ]


def test_a_penalty_needs_the_tokens_seen(device):
    logits = normal(5).to(device)
    with pytest.raises(ValueError, match="penalised, seen and penalty go together"):
        maxima(logits, penalised=torch.zeros_like(logits))
