"""Turn what a command was given as its model into a spec and, where there is one, a checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer_core.config import read_config
from infer_core.errors import ModelNotFound, RequestError
from infer_core.plugins import PluginRegistry
from infer_core.specs import ModelSpec


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model ready to load.

    `checkpoint` is None for a reference model, which has no weights. `hub_id` and `commit` say
    which published files the configuration is from: those of a downloaded checkpoint, or of the
    reference model; both are None for a folder and for a tiny configuration.
    """

    name: str
    label: str
    config: Mapping[str, Any]
    spec: ModelSpec
    checkpoint: Path | None
    hub_id: str | None = None
    commit: str | None = None


def check_name(model: str, registry: PluginRegistry) -> None:
    """Refuse what is no folder, no installed reference model and no hub id; reads no file.

    Raises:
        ModelNotFound: names the reference models that are installed.
    """
    folder = Path(model).expanduser()
    known = {reference.name for _, reference in registry.reference_models()}
    if folder.is_dir() or model in known:
        return

    from infer_core import hub  # no cost for those who need none of it

    if not hub.is_hub_id(model):
        raise ModelNotFound(_not_found(model, folder, known))


def resolve_model(
    model: str,
    registry: PluginRegistry,
    *,
    device: str,
    revision: str | None = None,
    weights: bool = True,
    before_download: Callable[[ModelSpec], None] | None = None,
) -> ResolvedModel:
    """Find a checkpoint folder, an installed reference model, or a repository of the hub.

    A hub id (`org/name`; `revision` is a branch, tag or commit, by default main) is fetched into
    the hub's cache: config.json first, and the rest only once a plugin serves it and
    `before_download` has raised nothing; with `weights=False` not at all. On `device` "cpu" a
    reference model stands for its tiny configuration: same architecture, sizes a CPU runs in
    seconds.

    Raises:
        ModelNotFound: none of the three; names the reference models that are installed.
        RequestError: a revision for something that has none.
        HubError: the repository is there, but cannot be had now.
        WeightError: the repository holds no safetensors.
        ConfigError, UnknownArchitecture, PluginError: the config.json cannot be served.
    """
    check_name(model, registry)
    folder = Path(model).expanduser()
    if folder.is_dir():
        _refuse_revision(revision, f"{model} is a folder")
        config = read_config(folder)
        name = folder.resolve().name
        return ResolvedModel(name, name, config, registry.resolve(config), folder)
    if any(model == reference.name for _, reference in registry.reference_models()):
        _refuse_revision(revision, f"{model} is a reference model, whose revision is fixed")
        return _reference_model(model, registry, tiny=device == "cpu")

    from infer_core import hub

    found = hub.find_hub_model(model, revision)
    config = read_config(found.folder)
    spec = registry.resolve(config)  # before gigabytes are downloaded in vain
    if weights:
        if before_download is not None:
            before_download(spec)
        hub.fetch_files(found)
    label = model.partition("/")[2]
    return ResolvedModel(
        model, label, config, spec, found.folder, hub_id=model, commit=found.commit
    )


def _reference_model(name: str, registry: PluginRegistry, *, tiny: bool) -> ResolvedModel:
    reference = registry.reference_model(name)
    if tiny:
        config = reference.tiny_config
        spec = registry.resolve(config)
        return ResolvedModel(f"{name} (tiny)", reference.label, config, spec, None)
    return ResolvedModel(
        name,
        reference.label,
        reference.config,
        registry.resolve(reference.config),
        None,
        hub_id=reference.hub_id,
        commit=reference.revision,
    )


def _refuse_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise RequestError(f"--revision {revision} is for hub ids, but {what}; leave it out")


def _not_found(model: str, folder: Path, known: set[str]) -> str:
    if folder.is_file():
        return f"{model} is a file; give the folder that holds config.json and the safetensors"
    return (
        f"{model!r} is neither a folder with a checkpoint, nor a hub id (org/name), nor an "
        f"installed reference model; installed reference models: "
        f"{', '.join(sorted(known)) or 'none'} (`infer plugins list` shows every plugin and its "
        "state)"
    )
