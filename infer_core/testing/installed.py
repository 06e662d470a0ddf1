"""Which installed distribution offers a plugin module; light, for the start of a test run."""

from dataclasses import dataclass
from importlib.metadata import entry_points

GROUP = "infer_core.architectures"  # as in infer_core.hookspecs, which would import pydantic


@dataclass(frozen=True, slots=True)
class InstalledAs:
    """The entry point of a plugin."""

    entry_point: str
    distribution: str
    version: str


def installed_as(module: str) -> InstalledAs | None:
    """Find the entry point that names `module`; None when the plugin is not installed."""
    for one in entry_points(group=GROUP):
        if one.module == module and one.dist is not None:
            return InstalledAs(one.name, one.dist.name, one.dist.version)
    return None
