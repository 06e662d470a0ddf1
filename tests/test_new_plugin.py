"""`infer plugins new` writes what builds, installs and passes the kit, or writes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infer_core import new_plugin as module
from infer_core.cli import app
from infer_core.errors import NewPluginError
from infer_core.new_plugin import new_plugin


def run(*command, cwd, **environment):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A generated project, its wheel installed into a folder, and the run of its tests there."""
    project = new_plugin("my_family", tmp_path_factory.mktemp("work"))
    target = tmp_path_factory.mktemp("site")
    built = run("-m", "hatchling", "build", "-t", "wheel", "-d", target, cwd=project)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = target.glob("*.whl")
    unpacked = run("-m", "zipfile", "-e", wheel, target, cwd=target)
    assert unpacked.returncode == 0, unpacked.stderr
    # the project folder lies under no import path: the tests see the installed wheel
    environment = {"PYTHONPATH": str(target), "XDG_CACHE_HOME": str(target / "cache")}
    flags = ("-q", "--import-mode=importlib", "-p", "no:cacheprovider", "-rs")
    tested = run("-m", "pytest", *flags, cwd=project, **environment)
    listed = run(
        "-c", "from infer_core.cli import main; main()", "plugins", "list", "--json",
        cwd=target, INFER_PLUGINS="my_family", **environment,
    )  # fmt: skip
    return project, tested, listed


def test_a_generated_plugin_passes_the_kit_as_it_is(installed):
    _, tested, _ = installed

    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "failed" not in tested.stdout
    assert "does not know MyFamilyForCausalLM" in tested.stdout  # why parity was skipped


def test_the_list_shows_that_the_installed_version_passed(installed):
    _, _, listed = installed

    assert listed.returncode == 0, listed.stderr
    (plugin,) = (p for p in json.loads(listed.stdout)["plugins"] if p["name"] == "my_family")
    assert (plugin["distribution"], plugin["state"]) == ("infer-my-family", "ok")
    assert plugin["kit"]["passed"] > 10
    assert plugin["kit"]["version"] == "0.1.0"


def test_a_generated_project_is_complete(installed):
    project, _, _ = installed
    files = {str(p.relative_to(project)) for p in project.rglob("*") if p.is_file()}

    assert files >= {
        "pyproject.toml",
        "README.md",
        ".gitignore",
        ".github/workflows/test.yml",
        "infer_my_family/__init__.py",
        "infer_my_family/py.typed",
        "tests/test_infer_my_family.py",
    }
    for file in files:
        assert "$" not in (project / file).read_text(), file


@pytest.mark.parametrize(
    "name", ["", "Upper", "1st", "a-b", "a b", "a__b", "_a", "a_", "../x", "core", "bench", "ä"]
)
def test_a_bad_name_is_refused_and_writes_nothing(name, tmp_path):
    with pytest.raises(NewPluginError, match="cannot name a plugin"):
        new_plugin(name, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "infer_mine").mkdir()

    with pytest.raises(NewPluginError, match="exists already"):
        new_plugin("mine", tmp_path)

    assert list(tmp_path.rglob("*")) == [tmp_path / "infer_mine"]


def test_a_failure_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setitem(module.FILES, "last.txt", "no_such_template.tmpl")

    with pytest.raises(NewPluginError, match="No such file"):
        new_plugin("mine", tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(NewPluginError, match="cannot write"):
        new_plugin("mine", tmp_path / "file")


def test_the_command_says_what_to_do_next(tmp_path):
    done = CliRunner().invoke(app, ["plugins", "new", "mine", "--directory", str(tmp_path)])

    assert done.exit_code == 0, done.output
    assert "pip install -e '.[test]' && pytest" in done.output
    assert Path(tmp_path / "infer_mine" / "pyproject.toml").exists()
