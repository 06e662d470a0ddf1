"""config.json said again in the words of transformers 4, and in those of transformers 5."""

from collections.abc import Mapping
from typing import Any

from infer_core.config import normalise

FULL, SLIDING = "full_attention", "sliding_attention"


def in_new_dialect(config: Mapping[str, Any]) -> dict[str, Any]:
    """Say a config as transformers 5 writes it: rope_parameters, layer_types, dtype."""
    new = {name: value for name, value in normalise(config).items() if value is not None}
    if eos := new.pop("eos_token_ids", ()):
        new["eos_token_id"] = list(eos)
    return new


def in_old_dialect(config: Mapping[str, Any]) -> dict[str, Any]:
    """Say a config as transformers 4 wrote it: rope_theta and rope_scaling, torch_dtype.

    What had no spelling then (two layer types that differ in more than RoPE's base, layer types
    without a period) stays as it is.
    """
    old = in_new_dialect(config)
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    pattern = _pattern(old.get("layer_types", []))
    if pattern is not None:
        del old["layer_types"]
        old["sliding_window_pattern"] = pattern
    rope = old.get("rope_parameters", {})
    if "rope_type" not in rope and rope:
        local = rope.get(SLIDING, {})
        if set(rope) != {FULL, SLIDING} or local != {**_plain(local), "rope_type": "default"}:
            return old
        old["rope_local_base_freq"] = local["rope_theta"]
        rope = rope[FULL]
    old.pop("rope_parameters", None)
    scaling = dict(rope)
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in scaling:
            old[name] = scaling.pop(name)
    old["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    return old


def _plain(rope: Mapping[str, Any]) -> dict[str, Any]:
    return {name: rope[name] for name in ("rope_theta",) if name in rope}


def _pattern(layer_types: list[str]) -> int | None:
    """The n of "every n-th layer is full and the others slide", if the layers are so."""
    for n in range(1, len(layer_types) + 1):
        period = [FULL if (layer + 1) % n == 0 else SLIDING for layer in range(len(layer_types))]
        if list(layer_types) == period:
            return n
    return None
