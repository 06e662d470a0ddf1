"""The four distributions: what their wheels hold, and that core + one plugin is a whole.

Wheels are built by hatchling from the working tree.
"""

import importlib
import json
import tarfile
import tomllib
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from clean_environment import Run, build, clean_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# distribution -> project folder, and the package folders its wheel installs
PLUGINS = {
    f"infer-{family}": (
        ROOT / "plugins" / f"infer_{family}",
        [ROOT / "plugins" / f"infer_{family}" / f"infer_{family}"],
    )
    for family in ("llama", "qwen3", "gemma3")
}
PROJECTS = {
    "infer-core": (ROOT, [ROOT / "infer_core", ROOT / "bench" / "infer_bench"]),
    **PLUGINS,
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: build(project, "wheel", tmp_path_factory.mktemp(name))
        for name, (project, _) in PROJECTS.items()
    }


def names_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def metadata_of(wheel: Path) -> PathDistribution:
    (info,) = {name.split("/")[0] for name in names_in(wheel) if ".dist-info/" in name}
    return PathDistribution(zipfile.Path(wheel, f"{info}/"))


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_holds_its_packages_whole_and_nothing_else(name, wheels):
    expected = {
        str(file.relative_to(package.parent))
        for package in PROJECTS[name][1]
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }

    assert {file for file in names_in(wheels[name]) if ".dist-info/" not in file} == expected


@pytest.mark.parametrize("name", PROJECTS)
def test_every_package_is_typed(name, wheels):
    for package in PROJECTS[name][1]:
        assert f"{package.name}/py.typed" in names_in(wheels[name])


@pytest.mark.parametrize("name", PROJECTS)
def test_every_wheel_carries_the_licence(name, wheels):
    metadata = metadata_of(wheels[name])

    assert metadata.metadata["License-Expression"] == "Apache-2.0"
    assert metadata.read_text("licenses/LICENSE") == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_bundles_the_config_of_its_reference_models(name, wheels):
    bundled = [file for file in names_in(wheels[name]) if file.endswith(".json")]

    assert bundled
    for file in bundled:
        assert "architectures" in json.loads(zipfile.ZipFile(wheels[name]).read(file)), file


@pytest.mark.parametrize("name", PROJECTS)
def test_a_version_is_written_once_in_the_package(name, wheels):
    project, packages = PROJECTS[name]
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    package = importlib.import_module(packages[0].name)

    assert "version" not in declared
    assert metadata_of(wheels[name]).version == package.__version__


@pytest.mark.parametrize("name", PROJECTS)
def test_an_sdist_builds_the_same_wheel(name, wheels, tmp_path):
    sdist = build(PROJECTS[name][0], "sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)

    rebuilt = build(tmp_path / sdist.name.removesuffix(".tar.gz"), "wheel", tmp_path / "rebuilt")

    assert names_in(rebuilt) == names_in(wheels[name])


def test_the_core_installs_both_commands_the_test_kit_and_no_architecture(wheels):
    entry_points = metadata_of(wheels["infer-core"]).entry_points

    assert {(e.group, e.name, e.value) for e in entry_points} == {
        ("console_scripts", "infer", "infer_core.cli:main"),
        ("console_scripts", "infer-bench", "infer_bench.cli:main"),
        ("pytest11", "infer_core", "infer_core.testing.pytest_plugin"),
    }


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_offers_one_architecture_and_pins_only_the_core(name, wheels):
    metadata = metadata_of(wheels[name])
    family = name.removeprefix("infer-")

    assert [(e.group, e.name, e.value) for e in metadata.entry_points] == [
        ("infer_core.architectures", family, f"infer_{family}")
    ]
    assert [Requirement(line) for line in metadata.requires or []] == [
        Requirement("infer-core>=0.1,<0.2")
    ]


def test_transformers_is_required_by_the_test_extra_alone(wheels):
    requirements = [Requirement(line) for line in metadata_of(wheels["infer-core"]).requires or []]
    (transformers,) = (each for each in requirements if each.name == "transformers")

    assert transformers.marker is not None
    assert not transformers.marker.evaluate({"extra": ""})
    assert transformers.marker.evaluate({"extra": "test"})


def test_the_constraints_leave_triton_to_torch():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constrained = {Requirement(line).name for line in lines if not line.startswith("#")}

    assert "torch" in constrained
    assert "triton" not in constrained


@pytest.fixture(scope="module")
def core_alone(wheels, tmp_path_factory) -> Run:
    return clean_environment(tmp_path_factory.mktemp("core"), wheels["infer-core"])


@pytest.fixture(scope="module")
def core_and_gemma3(wheels, tmp_path_factory) -> Run:
    return clean_environment(
        tmp_path_factory.mktemp("gemma3"), wheels["infer-core"], wheels["infer-gemma3"]
    )


def test_one_plugin_gives_exactly_one_architecture(core_and_gemma3):
    listed = core_and_gemma3("infer", "plugins", "list", "--json")

    assert listed.returncode == 0, listed.stderr
    plugins = json.loads(listed.stdout)["plugins"]
    assert [(plugin["name"], plugin["state"]) for plugin in plugins] == [("gemma3", "ok")]


def test_one_plugin_gives_a_working_benchmark(core_and_gemma3):
    ran = core_and_gemma3(
        "infer-bench", "--prompt-tokens", "4", "--max-new-tokens", "4", "--no-save"
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "gemma" in ran.stdout.lower()


def test_no_plugin_is_an_empty_list(core_alone):
    listed = core_alone("infer", "plugins", "list", "--json")

    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout)["plugins"] == []


def test_the_benchmark_without_a_plugin_says_what_to_install(core_alone):
    ran = core_alone("infer-bench", "--suite", "quick")

    assert ran.returncode == 2
    assert "pip install infer-" in ran.stdout + ran.stderr


@pytest.mark.parametrize("stray", ["bench", "tests", "plugins", "transformers", "infer_llama"])
def test_nothing_else_is_importable(core_and_gemma3, stray):
    assert core_and_gemma3("python", "-c", "import infer_core, infer_bench").returncode == 0
    assert core_and_gemma3("python", "-c", f"import {stray}").returncode == 1
