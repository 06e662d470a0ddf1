"""Logits and parameters that are hard on sampling, and what transformers makes of them."""

import math
from functools import partial
from types import SimpleNamespace
from unittest import mock

import torch
from transformers import GenerationConfig
from transformers.generation.utils import GenerationMixin

LARGEST_BELOW_ONE = 1 - 2**-24  # the largest value torch.rand gives in float32


def normal(size, seed=0):
    return 4 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def with_minus_infinity(size):
    logits = normal(size, seed=1)
    logits[::3] = -torch.inf
    return logits


LOGITS = {
    "one-token": normal(1),
    "seven": normal(7),
    "not-a-power-of-two": normal(1009),
    "ties": normal(257).round(),
    "bf16-ties": normal(2051).bfloat16().float(),
    "all-equal": torch.full((101,), -1.5),
    "minus-infinity": with_minus_infinity(130),
    "one-finite": torch.tensor([-torch.inf, 2.0, -torch.inf]),
    "underflowing-tail": torch.linspace(-300, 0, 64),
    "zeros-of-both-signs": torch.tensor([0.0, -0.0, 1.0, -1.0, 0.0]),
}


def by_transformers(processor, logits, input_ids=()):
    """Filter logits as transformers does, where it sorts with a stable sort.

    Top-p sorts; which of several equal logits it drops is otherwise the sort's own choice.
    """
    ids = torch.tensor([list(input_ids)], dtype=torch.int64)
    with mock.patch("torch.sort", partial(torch.sort, stable=True)):
        return processor(ids, logits.clone()[None])[0]


class Host(GenerationMixin):
    """Just enough of a model for transformers to choose and order its processors."""

    config = SimpleNamespace(is_encoder_decoder=False)


def transformers_probabilities(params, logits, input_ids):
    """What `generate` would draw from: its processors in its order, then softmax."""
    config = GenerationConfig(
        do_sample=True,
        temperature=params.temperature,
        top_k=params.top_k or 0,
        top_p=1.0 if params.top_p is None else params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
    )
    processors = Host()._get_logits_processor(config, input_ids_seq_length=len(input_ids))
    return by_transformers(processors, logits, input_ids).softmax(-1)


def assert_follows(counts, expected):
    """Hold counts of draws to what was expected of each token, by chi-square."""
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert expected[possible].min() > 5, "chi-square needs a few expected draws in every cell"
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    degrees = int(possible.sum()) - 1
    # 99.9 % point by Wilson and Hilferty; the seed is fixed, so this passes always or never
    limit = degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3
    assert chi_square < limit
