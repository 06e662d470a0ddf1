"""How sure a median is: percentiles, bootstrap intervals, and when to stop measuring."""

import random
from collections.abc import Sequence
from math import ceil, floor
from statistics import median

RESAMPLES = 2000


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolate linearly between the two nearest ranks, as numpy does by default."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below, above = ordered[floor(rank)], ordered[ceil(rank)]
    return below + (above - below) * (rank - floor(rank))


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Give the percentile bootstrap's 95 % interval of the median; same values, same interval.

    Source: Efron, "Bootstrap Methods" (1979). Resampling cannot show what was never seen: with
    three trials the interval is their whole range, which covers the true median in 75 % of cases
    (1 - 2 * 0.5**3).
    """
    draw = random.Random(seed)
    medians = [median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES)]
    return percentile(medians, 2.5), percentile(medians, 97.5)


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float], *, seed: int = 0
) -> tuple[float, float]:
    """Give the 95 % bootstrap interval of median(numerator) / median(denominator)."""
    draw = random.Random(seed)
    ratios = [
        median(draw.choices(numerator, k=len(numerator)))
        / median(draw.choices(denominator, k=len(denominator)))
        for _ in range(RESAMPLES)
    ]
    return percentile(ratios, 2.5), percentile(ratios, 97.5)


def is_tight(values: Sequence[float], *, within: float) -> bool:
    """Whether the interval of the median is no wider than `within` times the median."""
    low, high = bootstrap_interval(values)
    return high - low <= within * median(values)


def is_steady(values: Sequence[float], *, within: float) -> bool | None:
    """Whether the last two values differ by no more than `within`; None with fewer than two."""
    if len(values) < 2:
        return None
    before, last = values[-2:]
    return abs(before - last) <= within * max(before, last)
