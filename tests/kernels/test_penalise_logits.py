import pytest
import torch
from sampling_cases import LOGITS, normal

from infer_core.kernels.penalise_logits import group_maxima_ref, num_groups, penalise_logits
from infer_core.sampling import penalise_repetition


def run(logits, seen, penalty):
    """The penalised logits, and the kernel's maxima as pairs of the largest and its token."""
    size = num_groups(len(logits))
    value = torch.full((size,), float("nan"), device=logits.device)
    index = torch.full((size,), -1, dtype=torch.int32, device=logits.device)
    penalised = torch.full_like(logits, float("nan"))
    penalise_logits(
        logits,
        penalised,
        value,
        index,
        seen=seen.view(torch.uint8),
        penalty=torch.tensor([penalty], dtype=torch.float64, device=logits.device),
    )
    return penalised, list(zip(value.tolist(), index.tolist(), strict=True))


def maxima(logits):
    """The maxima of logits that no penalty changes."""
    return run(logits, torch.zeros_like(logits, dtype=torch.bool), 1.1)[1]


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

    penalised, found = run(logits, seen, penalty)

    # on the device, as in use: by a number of the host torch multiplies with its reciprocal
    factor = torch.tensor(penalty, dtype=torch.float64, device=device)
    wanted = penalise_repetition(logits, seen, factor)
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


def test_what_does_not_fit_is_refused(device):
    logits = normal(5).to(device)
    with pytest.raises(ValueError, match=r"penalise_logits: seen must be contiguous \[5\]"):
        run(logits, torch.zeros(4, dtype=torch.bool, device=device), 1.1)
