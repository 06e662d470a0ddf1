"""How a model wants to be sampled: its generation_config.json, under what the request says."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infer_core.errors import ConfigError
from infer_core.json_files import read_json_object
from infer_core.sampling_params import SamplingParams

FILTERS = ("top_k", "top_p", "min_p")


def read_generation_defaults(folder: Path) -> dict[str, Any]:
    """Fields of `SamplingParams` that generation_config.json sets; empty without such a file.

    Temperature and filters count only beside `do_sample: true`, as in transformers; what the file
    leaves out is off.

    Raises:
        ConfigError: the file is not a JSON object, or holds a value that cannot be sampled with.
    """
    path = folder / "generation_config.json"
    config = {name: value for name, value in read_json_object(path).items() if value is not None}
    defaults: dict[str, Any] = {}
    if "repetition_penalty" in config:
        defaults["repetition_penalty"] = config["repetition_penalty"]
    if "max_new_tokens" in config:
        defaults["max_tokens"] = config["max_new_tokens"]
    if config.get("do_sample", False) and config.get("temperature", 1.0) != 0:
        defaults["temperature"] = config.get("temperature", 1.0)
        # transformers writes 0 for "no top-k"
        defaults |= {name: config[name] for name in FILTERS if config.get(name, 0) != 0}
    try:
        SamplingParams(**defaults)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: {field} is {first['input']!r}: {first['msg']}; mend or remove it"
        ) from error
    return defaults


def with_generation_defaults(
    params: SamplingParams | None, defaults: dict[str, Any]
) -> SamplingParams:
    """Fill the fields that `params` was not given; what neither says stays greedy."""
    if params is None:
        return SamplingParams(**defaults)
    given = {name: getattr(params, name) for name in params.model_fields_set}
    if given.get("temperature") == 0:  # greedy on request: the model's filters have no meaning
        defaults = {name: value for name, value in defaults.items() if name not in FILTERS}
    return SamplingParams(**{**defaults, **given})
