"""RoPE in config.json: its dialects brought to one, and that one turned into a `Rope`.

Source: the RoPE types and their parameters as transformers' modeling_rope_utils names them.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

from pydantic import ValidationError

from infer_core.errors import ConfigError
from infer_core.specs import LinearRopeScaling, Llama3RopeScaling, Rope, YarnRopeScaling

_SCALINGS: dict[str, type[LinearRopeScaling | Llama3RopeScaling | YarnRopeScaling] | None] = {
    "default": None,
    "linear": LinearRopeScaling,
    "llama3": Llama3RopeScaling,
    "yarn": YarnRopeScaling,
}


def rope_from_parameters(parameters: Mapping[str, Any]) -> Rope:
    """Build the RoPE of one kind of layer from its flat, normalised `rope_parameters`.

    A missing `rope_theta` is an error: a silent 10000 gives fluent nonsense.

    Raises:
        ConfigError: an unsupported `rope_type`, or a parameter missing or of the wrong type.
    """
    rope_type = parameters.get("rope_type", "default")
    nested = [name for name, value in parameters.items() if isinstance(value, Mapping)]
    if nested:
        raise ConfigError(
            f"config.json gives rope_parameters per layer type ({', '.join(nested)}), but its "
            "plugin expects one RoPE for all layers"
        )
    check_rope_type(rope_type)
    if parameters.get("rope_theta") is None:
        raise ConfigError(
            f"config.json states no rope_theta, and its plugin gives no default; got {parameters}"
        )
    scaling = _SCALINGS[rope_type]
    stated = {name: parameters[name] for name in rope_keys(rope_type) if name in parameters}
    try:
        return Rope(
            theta=parameters["rope_theta"],
            rotary_fraction=parameters.get("partial_rotary_factor", 1.0),
            scaling=None if scaling is None else scaling(**stated),
        )
    except ValidationError as error:
        raise ConfigError(f"config.json: rope_parameters {dict(parameters)}: {error}") from error


def check_rope_type(rope_type: object) -> None:
    """Refuse, by name, a RoPE type the core cannot compute."""
    if not isinstance(rope_type, str) or rope_type not in _SCALINGS:
        raise ConfigError(
            f"config.json: rope_type {rope_type!r} is not supported; "
            f"supported: {', '.join(_SCALINGS)}"
        )


def rope_keys(rope_type: str) -> frozenset[str]:
    """Name the scaling parameters a supported RoPE type reads."""
    scaling = _SCALINGS[rope_type]
    return frozenset() if scaling is None else frozenset(scaling.model_fields) - {"kind"}


def rope_entries(parameters: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Give the flat entries of normalised `rope_parameters`, by path ('' when it is flat)."""
    if "rope_type" in parameters:
        return {"": parameters}
    return {f"{layer_type}.": entry for layer_type, entry in parameters.items()}


def fold_rope(config: dict[str, Any]) -> None:
    """Fold every spelling of RoPE into `config["rope_parameters"]`, in place.

    Nested parameters belong to layer types; a `rope_theta` or `rope_scaling` beside them, or
    beside `rope_local_base_freq`, is that of the full-attention layers.
    """
    stated = _object(config.pop("rope_parameters", {}), "rope_parameters")
    scaling = _flat(_object(config.pop("rope_scaling", {}), "rope_scaling"), "rope_scaling")
    if "rope_theta" in config:
        merge(scaling, {"rope_theta": config.pop("rope_theta")}, source="rope_theta")
    everywhere = {name: config.pop(name) for name in ("partial_rotary_factor",) if name in config}
    local_theta = config.pop("rope_local_base_freq", None)

    nested = bool(stated) and all(isinstance(entry, Mapping) for entry in stated.values())
    if not nested and local_theta is None:
        flat = _flat(stated, "rope_parameters")
        merge(flat, scaling, source="rope_scaling and rope_theta")
        merge(flat, everywhere, source="the field outside")
        if flat:
            config["rope_parameters"] = {"rope_type": "default", **flat}
        return

    entries = stated if nested else {"full_attention": stated}
    layers = {kind: _flat(entry, f"rope_parameters.{kind}") for kind, entry in entries.items()}
    if scaling:
        full = layers.setdefault("full_attention", {})
        merge(full, scaling, source="rope_scaling and rope_theta")
    if local_theta is not None:
        local = layers.setdefault("sliding_attention", {})
        merge(local, {"rope_theta": local_theta}, source="rope_local_base_freq")
    for entry in layers.values():
        merge(entry, everywhere, source="the field outside")
    config["rope_parameters"] = {
        kind: {"rope_type": "default", **entry} for kind, entry in layers.items()
    }


def merge(target: MutableMapping[str, Any], extra: Mapping[str, Any], *, source: str) -> None:
    """Add fields to `target`; one that is there already must have the same value.

    Raises:
        ConfigError: it has another value.
    """
    for name, value in extra.items():
        if target.setdefault(name, value) != value:
            raise ConfigError(
                f"config.json contradicts itself: {name} is {target[name]!r}, "
                f"but {source} says {value!r}; correct one of them"
            )


def _flat(parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Copy without nulls, the older `type` renamed to `rope_type`."""
    flat = {name: value for name, value in parameters.items() if value is not None}
    if "type" in flat:
        merge(flat, {"rope_type": flat.pop("type")}, source=f"{where}.type")
    return flat


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"config.json: {name} is {value!r}, expected an object")
    return {key: entry for key, entry in value.items() if entry is not None}
