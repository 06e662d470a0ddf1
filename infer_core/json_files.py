"""Read the optional JSON files of a checkpoint folder."""

import json
from pathlib import Path
from typing import Any

from infer_core.errors import ConfigError


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that does not exist counts as an empty one.

    Raises:
        ConfigError: the file is not readable UTF-8 JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ConfigError(f"{path} cannot be read: {error}; fetch the file again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content
