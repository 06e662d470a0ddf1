import pytest
import torch
from infer_bench.parity import TOLERANCE, judge

from infer_core import InferError


def logits_with(gap_in_deviations, *, vocab=5000):
    """Three positions of normal logits; the best token leads the second by a known gap."""
    torch.manual_seed(0)
    logits = torch.randn(3, vocab)
    for row in logits:
        best, second = row.topk(2).indices.tolist()
        row[best] = row[second] + gap_in_deviations * row.std()
    return logits, logits.topk(2).indices


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_swap_that_rounding_explains_agrees_and_a_larger_one_does_not(dtype):
    for factor, agrees in ((0.8, True), (1.2, False)):
        logits, ranked = logits_with(factor * TOLERANCE[dtype])
        tokens = [int(ranked[0, 0]), int(ranked[1, 1]), int(ranked[2, 0])]

        parity = judge(logits, tokens, path="plain", dtype=dtype)

        assert (parity.agrees, parity.num_equal, parity.num_tokens) == (agrees, 2, 3)
        assert parity.largest_gap == pytest.approx(factor * TOLERANCE[dtype], rel=0.02)


def test_a_token_drawn_at_random_never_agrees():
    torch.manual_seed(1)
    logits = torch.randn(32, 5000)

    parity = judge(logits, torch.randint(5000, [32]).tolist(), path="plain", dtype="bfloat16")

    assert not parity.agrees
    assert parity.largest_gap > 3


def test_logits_that_are_no_numbers_are_said_to_be_so():
    logits = torch.randn(2, 100)
    logits[1, 7] = float("nan")

    with pytest.raises(InferError, match=r"the plain path \(eager\) hold NaN"):
        judge(logits, [1, 2], path="eager", dtype="float32")


def test_a_dtype_without_a_known_rounding_is_refused():
    with pytest.raises(InferError, match="computes in 'int8'; expected one of bfloat16"):
        judge(torch.randn(2, 100), [1, 2], path="plain", dtype="int8")


def test_tokens_the_plain_path_ranks_first_are_equal():
    logits = torch.randn(4, 100)

    parity = judge(logits, logits.argmax(-1).tolist(), path="plain", dtype="float32")

    assert (parity.agrees, parity.num_equal, parity.largest_gap) == (True, 4, 0.0)
