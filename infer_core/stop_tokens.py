"""Which tokens end an answer: the checkpoint's word on it is spread over three files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infer_core.errors import ConfigError
from infer_core.json_files import read_json_object


def stop_token_ids(
    config: Mapping[str, Any], folder: Path | None, *, tokenizer_eos: int | None = None
) -> tuple[int, ...]:
    """Join the EOS of config.json, generation_config.json and the tokenizer, each once.

    Each may be one id or a list. Chat models need the join: often only generation_config.json
    names the token that ends a turn, while config.json names the one that ends a document.

    Raises:
        ConfigError: an `eos_token_id` is neither an id nor a list of ids.
    """
    generation = {} if folder is None else read_json_object(folder / "generation_config.json")
    ids = [
        *_ids(config.get("eos_token_id"), "config.json"),
        *_ids(generation.get("eos_token_id"), "generation_config.json"),
        *_ids(tokenizer_eos, "the tokenizer"),
    ]
    return tuple(dict.fromkeys(ids))


def _ids(value: Any, source: str) -> list[int]:
    ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for token in ids:
        if type(token) is not int or token < 0:  # a bool is an int to isinstance
            raise ConfigError(
                f"{source}: eos_token_id is {value!r}, expected a token id or a list of them"
            )
    return list(ids)
