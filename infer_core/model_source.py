"""Turn what `--model` was given into a spec and, where there is one, a checkpoint folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer_core.config import read_config
from infer_core.errors import ModelNotFound
from infer_core.plugins import PluginRegistry
from infer_core.specs import ModelSpec


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model ready to load; `checkpoint` is None for a reference model, which has no weights."""

    name: str
    label: str
    config: Mapping[str, Any]
    spec: ModelSpec
    checkpoint: Path | None


def resolve_model(model: str, registry: PluginRegistry, *, device: str) -> ResolvedModel:
    """Find a checkpoint folder, or an installed reference model by name.

    On `device` "cpu" a reference model stands for its tiny configuration: same architecture,
    sizes a CPU runs in seconds.

    Raises:
        ModelNotFound: neither; names the reference models that are installed.
        ConfigError, UnknownArchitecture, PluginError: the config.json cannot be served.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        config = read_config(folder)
        name = folder.resolve().name
        return ResolvedModel(name, name, config, registry.resolve(config), folder)
    known = {reference.name: reference for _, reference in registry.reference_models()}
    if model not in known:
        raise ModelNotFound(
            f"{model!r} is neither a folder with a checkpoint nor an installed reference model; "
            f"installed reference models: {', '.join(sorted(known)) or 'none'} "
            f"(`infer plugins list` shows every plugin and its state)"
        )
    reference = known[model]
    tiny = device == "cpu"
    config = reference.tiny_config if tiny else reference.config
    name = f"{reference.name} (tiny)" if tiny else reference.name
    return ResolvedModel(name, reference.label, config, registry.resolve(config), None)
