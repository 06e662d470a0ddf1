"""What a plugin answered about a model, short enough to read in a report."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from infer_core import ModelSpec


def resolved_facts(spec: ModelSpec) -> dict[str, Any]:
    """Give a spec as plain data: weight names left out, equal layers said once.

    `attention` and `kv_cache` become lists of their distinct answers, each with the `layers` it
    holds for.
    """
    facts = spec.model_dump(mode="json", exclude={"weights", "attention", "kv_cache"})
    return facts | {
        "attention": _distinct(spec.attention),
        "kv_cache": _distinct(spec.kv_cache),
    }


def _distinct(answers: Sequence[BaseModel]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for layer, answer in enumerate(answers):
        key = answer.model_dump_json()
        found.setdefault(key, {"layers": [], **answer.model_dump(mode="json")})
        found[key]["layers"].append(layer)
    return list(found.values())
