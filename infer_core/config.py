"""config.json: read it, bring every published dialect to one, fill in a family's defaults.

The one dialect, which is what every hook sees:
- the text model's fields stand at the top level (`text_config` is lifted);
- `rope_parameters` holds all of RoPE: flat when every layer shares it, or layer type -> flat;
  a flat one always states its `rope_type`. `rope_theta`, `rope_scaling`,
  `rope_local_base_freq` and `partial_rotary_factor` are folded into it;
- `layer_types` lists the layers; `sliding_window_pattern` is folded into it;
- `dtype` replaces `torch_dtype`; `eos_token_ids` is a tuple and replaces `eos_token_id`;
- null fields are left out, with two exceptions: a null `sliding_window` says that there is no
  window (absence says that the family's default holds), and `bos_token_id` is always there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from infer_core.config_audit import METADATA, audit
from infer_core.config_rope import fold_rope, merge, rope_from_parameters
from infer_core.errors import ConfigError
from infer_core.specs import Activation, ConfigFields

__all__ = [
    "activation",
    "audit",
    "layer_windows",
    "normalise",
    "read_config",
    "rope_from_parameters",
    "with_defaults",
]

FULL, SLIDING = "full_attention", "sliding_attention"


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a checkpoint folder as it stands.

    Raises:
        ConfigError: the file is missing, unreadable, not JSON or not an object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist; a checkpoint folder holds config.json beside its safetensors"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:  # malformed JSON, or bytes that are not UTF-8
        raise ConfigError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds a JSON {_kind(config)}, expected an object")
    return config


def normalise(config: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a raw config.json to the one dialect described above; the input stays as it is.

    Raises:
        ConfigError: two spellings of a field contradict each other, or a field every family
            shares has the wrong type.
    """
    normal = _Config(_lift_text_config(config))
    _check_counts(normal)
    for name in ("dtype", "torch_dtype"):
        if name in normal:
            dtype = str(normal.pop(name)).removeprefix("torch.")
            merge(normal, {"dtype": dtype}, source=name)
    fold_rope(normal)
    _fold_layer_types(normal)
    _fold_token_ids(normal)
    return normal


def with_defaults(config: Mapping[str, Any], fields: ConfigFields) -> dict[str, Any]:
    """Fill the fields a normalised config leaves out with the plugin's family defaults."""
    stated = {
        name: value
        for name, value in config.items()
        if value not in (None, ()) or name in _NULL_SPEAKS
    }
    return _Config({"bos_token_id": None, "eos_token_ids": (), **fields.defaults, **stated})


def layer_windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Give each layer's attention window in tokens, from `layer_types` and `sliding_window`.

    Raises:
        ConfigError: a layer type is neither full nor sliding attention, there are not
            `num_hidden_layers` of them, or sliding layers have no window.
    """
    layer_types, num_layers = config["layer_types"], config["num_hidden_layers"]
    if len(layer_types) != num_layers:
        raise ConfigError(
            f"config.json lists {len(layer_types)} layer_types, but num_hidden_layers is "
            f"{num_layers}"
        )
    unknown = sorted({repr(kind) for kind in layer_types if kind not in (FULL, SLIDING)})
    if unknown:
        raise ConfigError(
            f"config.json: layer_types holds {', '.join(unknown)}; known are {FULL!r}, {SLIDING!r}"
        )
    if SLIDING in layer_types and config["sliding_window"] is None:
        raise ConfigError(f"config.json: layer_types holds {SLIDING!r}, but sliding_window is null")
    return tuple(config["sliding_window"] if kind == SLIDING else None for kind in layer_types)


def activation(name: str) -> Activation:
    """Translate config.json's name of an activation, whose spellings are many.

    Raises:
        ConfigError: the core has no such activation.
    """
    if name not in _ACTIVATIONS:
        raise ConfigError(
            f"config.json: activation {name!r} is not supported; known: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

# Sizes every family spells alike; plugins compute with them, so a wrong type stops here.
_COUNTS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
)


_NULL_SPEAKS = ("sliding_window",)


class _Config(dict[str, Any]):
    """A dict whose missing keys are the config's fault, not the plugin's."""

    def __missing__(self, field: str) -> NoReturn:
        raise ConfigError(f"config.json states no {field!r}, and its plugin gives no default")


def _lift_text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Put the text model's fields at the top; of the outer ones, metadata stays in force."""
    outer = _stated(config)
    text = outer.pop("text_config", {})
    if not isinstance(text, Mapping):
        raise ConfigError(f"config.json: text_config is a JSON {_kind(text)}, expected an object")
    inner = {
        name: value
        for name, value in _stated(text).items()
        if not (name in METADATA and name in outer)
    }
    merge(outer, inner, source="text_config")
    return outer


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in config.items() if value is not None or name in _NULL_SPEAKS
    }


def _check_counts(config: Mapping[str, Any]) -> None:
    for name in _COUNTS:
        value = config.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(f"config.json: {name} is {value!r}, expected a positive integer")


def _fold_layer_types(config: dict[str, Any]) -> None:
    """Spell `sliding_window_pattern` n, every n-th layer full and the others sliding, out."""
    # The underscored field is a writer's bookkeeping: beside layer_types it may be stale.
    bookkeeping = config.pop("_sliding_window_pattern", None)
    pattern = config.pop("sliding_window_pattern", None)
    stated = config.get("layer_types")
    if stated is not None and not isinstance(stated, list | tuple):
        raise ConfigError(f"config.json: layer_types is a JSON {_kind(stated)}, expected an array")
    if pattern is None and stated is None:
        pattern = bookkeeping
    num_layers = config.get("num_hidden_layers")
    if pattern is not None:
        if type(pattern) is not int or pattern < 1:
            raise ConfigError(
                f"config.json: sliding_window_pattern is {pattern!r}, expected a positive integer"
            )
        if num_layers is None:
            raise ConfigError("config.json: sliding_window_pattern without num_hidden_layers")
        layers = [SLIDING if (layer + 1) % pattern else FULL for layer in range(num_layers)]
        merge(config, {"layer_types": layers}, source="sliding_window_pattern")


def _fold_token_ids(config: dict[str, Any]) -> None:
    eos = config.pop("eos_token_id", config.get("eos_token_ids", ()))
    config["eos_token_ids"] = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    config.setdefault("bos_token_id", None)
    if not all(_is_token_id(token) for token in config["eos_token_ids"]):
        raise ConfigError(f"config.json: eos_token_id is {eos!r}, expected a token id or a list")
    bos = config["bos_token_id"]
    if bos is not None and not _is_token_id(bos):
        raise ConfigError(f"config.json: bos_token_id is {bos!r}, expected a token id")


def _is_token_id(value: object) -> bool:
    return type(value) is int and value >= 0


def _kind(value: object) -> str:
    """Name the JSON type of a parsed value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
