"""Find and load installed plugins, each on its own: one that fails is a status, not a crash.

pluggy's own entry-point loader stops at the first import that raises.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, EntryPoint, distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import infer_core
from infer_core.errors import PluginContractError, PluginError
from infer_core.hookspecs import GROUP
from infer_core.plugin_hooks import PluginHooks, exception_text
from infer_core.plugin_status import PluginSettings, PluginStatus

CORE = "infer-core"


def load_plugins(
    settings: PluginSettings, *, path: Sequence[str] | None = None
) -> tuple[list[PluginStatus], dict[str, PluginHooks]]:
    """Load every plugin the settings allow; a plugin left out is never imported.

    Returns:
        A status for each entry point found on `path` (default: sys.path), sorted by name, and
        the hooks of those that loaded, by name.
    """
    found: dict[str, list[_Installed]] = {}
    for installed in _find(path):
        found.setdefault(installed.status.name, []).append(installed)

    statuses: list[PluginStatus] = []
    loaded: dict[str, PluginHooks] = {}
    for name, same_name in sorted(found.items()):
        if reason := settings.why_blocked(name):
            statuses += [replace(one.status, state="blocked", reason=reason) for one in same_name]
        elif len(same_name) > 1:
            statuses += _refuse_same_name([one.status for one in same_name])
        else:
            status, hooks = _load(same_name[0])
            statuses.append(status)
            if hooks is not None:
                loaded[name] = hooks
    return statuses, loaded


@dataclass(frozen=True, slots=True)
class _Installed:
    """One entry point before it is loaded; `entry_point` None if its metadata is unreadable."""

    status: PluginStatus
    entry_point: EntryPoint | None
    requires: tuple[str, ...]


def _find(path: Sequence[str] | None) -> Iterator[_Installed]:
    """Every entry point of the group, those of a distribution met twice on the path once."""
    seen = set()
    for distribution in distributions() if path is None else distributions(path=list(path)):
        try:
            entry_points = [one for one in distribution.entry_points if one.group == GROUP]
            if not entry_points:
                continue
            name, version = distribution.metadata["Name"], distribution.version
            requires = tuple(distribution.requires or ())
            key = canonicalize_name(name)
        except Exception as error:  # metadata a crash or a bad build left behind
            with suppress(Exception):
                if GROUP in (distribution.read_text("entry_points.txt") or ""):
                    yield _unreadable(distribution, error)
            continue
        # An editable install and a leftover wheel of it are one: the first on the path counts,
        # as it does for an import.
        if key in seen:
            continue
        seen.add(key)
        for entry_point in dict.fromkeys(entry_points):
            yield _Installed(PluginStatus(entry_point.name, name, version), entry_point, requires)


def _unreadable(distribution: Distribution, error: Exception) -> _Installed:
    folder = str(getattr(distribution, "_path", "unknown"))
    name = re.split(r"[\\/]", folder)[-1].split("-")[0]
    status = PluginStatus(
        name,
        distribution=None,
        version=None,
        state="broken",
        reason=f"its metadata in {folder} cannot be read ({type(error).__name__}: {error})",
        mend=f"pip install --force-reinstall {canonicalize_name(name)}",
        error=error,
    )
    return _Installed(status, None, ())


def _refuse_same_name(statuses: list[PluginStatus]) -> list[PluginStatus]:
    labels = " and ".join(f"{one.distribution} {one.version}" for one in statuses)
    return [
        replace(
            one,
            state="broken",
            reason=f"{labels} both install a plugin named {one.name!r}; neither is loaded",
            mend=" or ".join(f"pip uninstall {each.distribution}" for each in statuses),
        )
        for one in statuses
    ]


def _load(installed: _Installed) -> tuple[PluginStatus, PluginHooks | None]:
    status, entry_point = installed.status, installed.entry_point
    if entry_point is None:
        return status, None
    try:
        doing = "reading its requirements"
        notes = _check_core_range(status, installed.requires)
        doing = f"importing {entry_point.value}"
        with redirect_stdout(sys.stderr):  # stdout is for results (`infer plugins list --json`)
            plugin = entry_point.load()
        doing = "checking its hooks"
        hooks = PluginHooks(plugin, status)
        answer = hooks.ask("infer_architectures")
        names = [model.name for model in answer.reference_models]
        if len(names) != len(set(names)):
            raise PluginContractError(
                f"{status.label}: infer_architectures names a reference model twice: {names}",
                mend=status.upgrade,
            )
    except KeyboardInterrupt:
        raise
    except PluginError as error:
        reason = error.message.removeprefix(f"{status.label}: ")
        return replace(status, state="broken", reason=reason, mend=error.mend, error=error), None
    except BaseException as error:  # a stranger's import may raise anything, SystemExit too
        reason = f"{doing} raised {exception_text(error)}"
        mend = f"pip install --upgrade --force-reinstall {status.distribution}"
        return replace(status, state="broken", reason=reason, mend=mend, error=error), None
    return replace(status, answer=answer, notes=(*notes, *hooks.deprecations)), hooks


def _check_core_range(status: PluginStatus, requires: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a plugin made for another version of the core, before it is imported.

    Returns:
        A note when the plugin does not say which versions it was made for.
    """
    pinned = False
    for line in requires:
        name = re.match(r"[\w.-]*", line)
        if name is None or canonicalize_name(name[0]) != CORE:
            continue  # a neighbour's requirement is not ours to parse
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        pinned = pinned or bool(requirement.specifier)
        if not requirement.specifier.contains(infer_core.__version__, prereleases=True):
            raise PluginError(
                f"{status.label}: requires {CORE}{requirement.specifier}, "
                f"installed is {CORE} {infer_core.__version__}",
                mend=f"{status.upgrade} {CORE}",
            )
    return () if pinned else (f"does not say which {CORE} versions it works with",)
