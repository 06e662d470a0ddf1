"""Write a complete distribution for a new model family, ready to build and to test."""

import os
import re
import shutil
from pathlib import Path
from string import Template

import infer_core
from infer_core.errors import NewPluginError

TEMPLATES = Path(__file__).with_name("templates")
# where a file goes -> its template; names are templates too
FILES = {
    "pyproject.toml": "pyproject.toml.tmpl",
    "README.md": "README.md.tmpl",
    ".gitignore": "gitignore.tmpl",
    ".github/workflows/test.yml": "workflow.yml.tmpl",
    "$package/__init__.py": "plugin.py.tmpl",
    "$package/py.typed": None,
    "tests/test_$package.py": "test_plugin.py.tmpl",
}
TAKEN = ("core", "bench")


def new_plugin(family: str, directory: Path) -> Path:
    """Write `directory`/infer_`family`, whole or not at all; give the folder.

    Raises:
        NewPluginError: `family` cannot be part of a package's name, the folder is there already, or
            it cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", family) or family in TAKEN:
        raise NewPluginError(
            f"{family!r} cannot name a plugin: expected lower-case letters, digits and single "
            f"underscores, a letter first, and none of {', '.join(TAKEN)}; for example 'mymodel'"
        )
    words = _words(family)
    folder = directory / words["package"]
    unfinished = directory / f".{words['package']}.{os.getpid()}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            raise NewPluginError(f"{folder} exists already; remove it, or give another --directory")
        for target, template in FILES.items():
            file = unfinished / Template(target).substitute(words)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = (TEMPLATES / template).read_text(encoding="utf-8") if template else ""
            file.write_text(Template(text).substitute(words), encoding="utf-8")
        unfinished.rename(folder)
    except OSError as error:
        raise NewPluginError(
            f"cannot write {folder}: {error.strerror}; give another --directory"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _words(family: str) -> dict[str, str]:
    label = "".join(part.capitalize() for part in family.split("_"))
    major, minor = infer_core.__version__.split(".")[:2]
    return {
        "family": family,
        "package": f"infer_{family}",
        "distribution": f"infer-{family.replace('_', '-')}",
        "model": f"{family.replace('_', '-')}-toy",
        "label": label,
        "architecture": f"{label}ForCausalLM",
        "core_version": f"{major}.{minor}",
        "next_version": f"{major}.{int(minor) + 1}",
    }
