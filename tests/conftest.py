"""Fixtures shared by several test files."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Before any test imports triton: its own functions are wrapped when it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure() -> None:
    """Let Triton's interpreter look through `triton.language` once a launch.

    It does so at every call of a device function too, which was a third of what the kernels' tests
    take, and finds what the launch has replaced already.
    """
    if torch.cuda.is_available():
        return
    import triton.language as tl
    from triton.runtime import interpreter

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        names = self.fn.__globals__.values()
        modules = (module for module in (tl, tl.core) if any(value is module for value in names))
        if any(tl.core.is_builtin(module.arange) for module in modules):  # not replaced yet
            interpreter._patch_lang(self.fn)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.InterpretedFunction.__call__ = call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` on a machine without one."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device that runs whole models: a CPU the references, a GPU the kernels."""
    return str(request.param)


TOY_PLUGIN = (Path(__file__).parent / "toy_plugin.py").read_text()


class PluginFolder:
    """A folder of installed distributions, each with one plugin; `path` finds nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = [str(folder)]

    def __call__(
        self,
        name: str = "toy",
        *,
        edits: dict[str, str] | None = None,
        source: str = TOY_PLUGIN,
        distribution: str | None = None,
        version: str = "1.0",
        requires: tuple[str, ...] = ("infer-core>=0.1,<0.2",),
        attribute: str = "",
        folder: Path | None = None,
    ) -> str:
        """Install a plugin as a wheel would; returns the name of its module.

        `edits` (old text -> new text) spoils the toy plugin. `attribute` (":name") makes the entry
        point an object inside the module.
        """
        for old, new in (edits or {}).items():
            assert old in source, f"{old!r} is not in the plugin's source"
            source = source.replace(old, new)
        distribution = distribution or f"infer-{name}"
        module = distribution.replace("-", "_").lower()
        folder = folder or self.folder
        info = folder / f"{module}-{version}.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
            + "".join(f"Requires-Dist: {line}\n" for line in requires)
        )
        (info / "entry_points.txt").write_text(
            f"[infer_core.architectures]\n{name} = {module}{attribute}\n"
        )
        return module


@pytest.fixture
def make_plugin(tmp_path, monkeypatch):
    """Install toy plugins: `make_plugin("toy")`, then `load_registry(path=make_plugin.path)`."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield PluginFolder(folder)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
