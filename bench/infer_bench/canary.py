"""Find the plugins that end the process they are loaded in, in processes that may end.

A plugin that calls os._exit or crashes in C on import or in a hook would take the whole run down
without a word. A fork that loads the plugins first costs milliseconds.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from infer_core.hookspecs import GROUP

# Plugins are data and load in milliseconds; one that hangs is the time limit's business.
LIMIT_S = 5.0


def deadly_plugins(load: Callable[[], object]) -> dict[str, str]:
    """Say of each plugin that `load` dies of how it died; empty where nothing does.

    `load` loads and asks every plugin that the environment leaves in.
    """
    if not hasattr(os, "fork") or _death(load) is None:
        return {}
    allowed = os.environ.get("INFER_PLUGINS")
    names = sorted({entry.name for entry in entry_points(group=GROUP)})
    if allowed:
        names = [name for name in names if name in map(str.strip, allowed.split(","))]
    deaths = {name: _death(load, only=name) for name in names}
    return {name: death for name, death in deaths.items() if death is not None}


def blocking(environment: Mapping[str, str], names: list[str]) -> dict[str, str]:
    """Give the environment in which these plugins are left out as well."""
    if not names:
        return dict(environment)
    blocked = [*filter(None, [environment.get("INFER_BLOCK_PLUGINS")]), *names]
    return {**environment, "INFER_BLOCK_PLUGINS": ",".join(blocked)}


def _death(load: Callable[[], object], *, only: str | None = None) -> str | None:
    """Run `load` in a fork; None if that lives through it, or hangs."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)  # whatever it says it will say again
            if only is not None:
                os.environ["INFER_PLUGINS"] = only
            load()
        finally:
            os._exit(0)  # an exception is for the parent to meet and report
    deadline = time.monotonic() + LIMIT_S
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    return f"a process that loaded it {how}"
