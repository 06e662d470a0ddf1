"""Which models a run measures: those asked for, or every installed plugin's reference models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from infer_bench.environment import without_paths
from infer_bench.errors import UsageError
from infer_core import InferError, ModelNotFound

if TYPE_CHECKING:
    from infer_core.model_source import ResolvedModel
    from infer_core.plugin_status import PluginStatus
    from infer_core.plugins import PluginRegistry


@dataclass(frozen=True, slots=True)
class Target:
    """One column of the tables; `reason` says why there is no model to load.

    `argument` is what --model takes for it.
    """

    argument: str
    name: str
    label: str
    plugin: str | None
    model: "ResolvedModel | None"
    reason: str | None = None


class Resolve(Protocol):
    """Turns a --model argument into specs."""

    def __call__(self, model: str, registry: "PluginRegistry", device: str) -> "ResolvedModel": ...


def find_targets(
    models: Sequence[str],
    registry: "PluginRegistry",
    resolve: Resolve,
    *,
    device: str,
    deadly: Mapping[str, str] | None = None,
) -> tuple[Target, ...]:
    """List what to measure; whatever cannot be loaded is a target with its reason.

    `deadly` are plugins that the registry was not to load, and why.

    Raises:
        UsageError: no plugin is installed, none is left by the environment's allow and block
            lists, none brings a reference model, or a --model does not exist.
    """
    if not registry.statuses:
        raise UsageError(
            "no architecture plugin is installed, so there is nothing to measure; "
            "install one: pip install infer-<family> (from a checkout: pip install ./plugins/*)"
        )
    if models:
        return _distinct([_target(model, registry, resolve, device) for model in models])

    broken = [
        Target(status.name, status.name, status.name, status.name, None, _why_broken(status))
        for status in registry.statuses
        if status.state == "broken"
    ]
    for name, reason in (deadly or {}).items():
        broken.append(Target(name, name, name, name, None, f"{reason}; to mend: upgrade it"))
    found = [
        _target(reference.name, registry, resolve, device, plugin=plugin)
        for plugin, reference in registry.reference_models()
    ]
    if not found and not broken:
        why = "; ".join(
            f"{status.name}: {status.reason or status.state}" for status in registry.statuses
        )
        raise UsageError(
            f"no installed plugin offers a reference model here ({why}); see "
            "`infer plugins list`, or name a checkpoint folder with --model"
        )
    return _distinct([*found, *broken])


def _target(
    argument: str,
    registry: "PluginRegistry",
    resolve: Resolve,
    device: str,
    *,
    plugin: str | None = None,
) -> Target:
    try:
        model = resolve(argument, registry, device)
    except ModelNotFound as error:
        raise UsageError(str(error)) from error
    except Exception as error:  # its config.json or its plugin; the other models still run
        name = Path(argument).name
        return Target(argument, name, name, plugin, None, describe(error))
    return Target(argument, model.name, model.label, model.spec.plugin, model)


def _why_broken(status: "PluginStatus") -> str:
    mend = f"; to mend: {status.mend}" if status.mend else ""
    return without_paths(f"{status.reason}{mend}")


def describe(error: BaseException) -> str:
    """Say an error in one line that may be published; an `InferError` speaks for itself."""
    text = " ".join(str(error).split())
    if not isinstance(error, InferError) or not text:
        text = f"{type(error).__name__}: {text}"
    # a file's name may hold bytes that are no text, which JSON could not either
    return without_paths(text.encode(errors="replace").decode())


def _distinct(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Number names that occur twice (two folders of one name), and drop exact repeats."""
    distinct: list[Target] = []
    for target in targets:
        if any(target.model is not None and target.model == other.model for other in distinct):
            continue
        taken = [other.name for other in distinct]
        name, number = target.name, 2
        while name in taken:
            name, number = f"{target.name}-{number}", number + 1
        labels = [other.label for other in distinct]
        label = f"{target.label} ({name})" if target.label in labels else target.label
        distinct.append(replace(target, name=name, label=label))
    return tuple(distinct)
