"""From what was typed to what is meant: configs, engines, settings, metrics to compare."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from infer_bench.cases import SUITES, Case, named_cases
from infer_bench.catalogue import METRICS
from infer_bench.compare import DEFAULT_METRICS
from infer_bench.errors import UsageError
from infer_bench.report import Settings
from infer_core import SamplingParams

DEFAULT_SUITE = "quick"
EXTRA_WARMUPS = 3


def cases(
    suite: str | None, configs: list[str], ad_hoc: Mapping[str, Any]
) -> tuple[str, tuple[Case, ...]]:
    """Take the suite, the named configs or the one ad-hoc case, and say which it was.

    Raises:
        UsageError: more than one of the three is given, or one is not valid.
    """
    first = f"--{next(iter(ad_hoc), '').replace('_', '-')}"
    if suite and configs:
        raise UsageError("--suite is a set of configs and --config names single ones; give one")
    if ad_hoc and (suite or configs):
        fixed = "--suite" if suite else "--config"
        raise UsageError(
            f"{first} describes an ad-hoc case and {fixed} picks fixed ones; drop {fixed} or "
            "the ad-hoc options"
        )
    if configs:
        return "configs", named_cases(split("--config", configs))
    if ad_hoc:
        return "ad-hoc", (_ad_hoc_case(**ad_hoc),)
    name = suite or DEFAULT_SUITE
    return name, named_cases(SUITES[name])


def engines(given: list[str] | None) -> tuple[str, ...]:
    """Give the names of engines, which may be repeated, comma-separated or both.

    Raises:
        UsageError: a name is empty.
    """
    return tuple(split("--engine", given or ["infer"]))


def split(option: str, given: Sequence[str]) -> list[str]:
    """Read names that may be comma-separated, repeated or both.

    Raises:
        UsageError: a name is empty.
    """
    names = [part.strip() for one in given for part in one.split(",")]
    if not all(names):
        raise UsageError(f"{option} {','.join(given)!r} holds an empty name")
    return names


def settings(*, warmup: int, trials: int, max_trials: int, **others: Any) -> Settings:
    """Add the limits that follow from the least numbers of runs."""
    return Settings(
        warmup=warmup,
        # a run that is not to be warmed up is not
        max_warmup=warmup + EXTRA_WARMUPS if warmup else 0,
        trials=trials,
        max_trials=max(trials, max_trials),
        **others,
    )


def metrics(names: Sequence[str] | None) -> tuple[str, ...]:
    """Give the metrics to compare.

    Raises:
        UsageError: one is unknown, or has no better and worse.
    """
    known = [metric.name for metric in METRICS.values() if metric.higher_is_better is not None]
    chosen = split("--metric", names or DEFAULT_METRICS)
    for name in chosen:
        if name not in known:
            raise UsageError(f"unknown --metric {name!r}; known: {', '.join(known)}")
    return tuple(dict.fromkeys(chosen))


def percent(text: str) -> float:
    """Read "5%" or "5" as 0.05.

    Raises:
        UsageError: it is no percentage from 0 to 100.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%?", text.strip())
    if match is None or float(match[1]) > 100:
        raise UsageError(f"--max-regress {text!r} is no percentage; expected something like 5%")
    return float(match[1]) / 100


def _ad_hoc_case(prompt_tokens: int = 256, max_new_tokens: int = 256, **sampling: Any) -> Case:
    try:
        params = SamplingParams(**sampling)
    except ValidationError as error:
        first = error.errors()[0]
        option = "".join(f"--{part}: ".replace("_", "-") for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{option}{message}") from error
    return Case(
        name="ad-hoc",
        prompt_tokens=prompt_tokens,
        max_new_tokens=max_new_tokens,
        sampling=params,
    )
