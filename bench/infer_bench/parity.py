"""Hold the tokens of the timed path against what the engine's plainest path would have picked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from infer_bench.metrics import tokens_sha256
from infer_bench.report import Parity

if TYPE_CHECKING:
    import torch

NUM_TOKENS = 32
# A gap between the best token and the one picked that rounding explains, in standard deviations of
# the logits. Two bf16 paths each err by about 2 % of them (dummy weights of 16 to 28 layers; see
# infer_core.dummy_weights), so two near-equal tokens may swap within twice the sum. float16 keeps
# three more bits; in float32 only the order of sums differs. A wrong token lies 3 to 5 below.
TOLERANCE = {"bfloat16": 0.1, "float16": 0.0125, "float32": 1e-3}


def judge(logits: "torch.Tensor", tokens: Sequence[int], *, path: str, dtype: str) -> Parity:
    """Compare greedy `tokens` with the logits that decide each of them.

    Shape: logits [len(tokens), vocab_size].
    """
    logits = logits.float()
    best = logits.max(dim=-1).values
    picked = logits[range(len(tokens)), list(tokens)]
    gaps = ((best - picked) / logits.std(dim=-1)).tolist()
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
