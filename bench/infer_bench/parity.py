"""Hold the tokens of the timed path against what the engine's plainest path would have picked."""

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from infer_bench.metrics import tokens_sha256
from infer_bench.report import Parity
from infer_core import InferError

if TYPE_CHECKING:
    import torch

NUM_TOKENS = 32
# A gap between the best token and the one picked that rounding explains, in standard deviations of
# the logits. In bf16 two paths each err by about 0.02 of one (dummy weights of 16 to 28 layers; see
# infer_core.dummy_weights), so the difference of two logits differs between them by 0.04 (four
# errors in quadrature): six times that will not happen by chance in a run's thousand tokens, while
# a token drawn at random lies 3 to 5 deviations below the best. float16 keeps three more bits; in
# float32 only the order of sums differs.
TOLERANCE = {"bfloat16": 0.25, "float16": 0.03, "float32": 1e-3}


def judge(logits: "torch.Tensor", tokens: Sequence[int], *, path: str, dtype: str) -> Parity:
    """Compare greedy `tokens` with the logits that decide each of them.

    Shape: logits [len(tokens), vocab_size].

    Raises:
        InferError: the plain path computed no numbers, or in a dtype without a known rounding.
    """
    if dtype not in TOLERANCE:
        raise InferError(
            f"the engine says it computes in {dtype!r}; expected one of {', '.join(TOLERANCE)}, "
            "the dtype of its activations"
        )
    logits = logits.float()
    best = logits.max(dim=-1).values
    picked = logits[range(len(tokens)), list(tokens)]
    gaps = ((best - picked) / logits.std(dim=-1)).tolist()
    if not all(map(isfinite, gaps)):
        raise InferError(f"the logits of the plain path ({path}) hold NaN, or are all equal")
    tolerance = TOLERANCE[dtype]
    return Parity(
        path=path,
        num_tokens=len(tokens),
        num_equal=sum(gap == 0 for gap in gaps),
        largest_gap=max(gaps),
        tolerance=tolerance,
        agrees=all(gap <= tolerance for gap in gaps),
        tokens_sha256=tokens_sha256(tokens),
    )
