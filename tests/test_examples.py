"""The outside families as a user meets them: wheels in a clean environment, nothing else."""

import json
from pathlib import Path

import pytest
from clean_environment import Run, build, clean_environment

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def core(tmp_path_factory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("core"))


def environment(core: Path, name: str, folder: Path) -> Run:
    """Core and one example, from their wheels."""
    (folder / "wheels").mkdir()
    wheel = build(ROOT / "examples" / name, "wheel", folder / "wheels")
    return clean_environment(folder, core, wheel)


def test_core_and_one_example_list_one_architecture_and_run_the_quick_suite(core, tmp_path):
    run = environment(core, "infer_olmo2", tmp_path)

    listed = run("infer", "plugins", "list", "--json")
    measured = run("infer-bench", "--suite", "quick", "--max-trials", "3", "--no-save")

    assert listed.returncode == 0, listed.stderr
    (plugin,) = json.loads(listed.stdout)["plugins"]
    assert (plugin["name"], plugin["state"]) == ("olmo2", "ok")
    assert plugin["architectures"] == ["Olmo2ForCausalLM"]
    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert "OLMo2" in measured.stdout


def test_a_plugin_with_its_own_decoder_is_reported_as_unfused(core, tmp_path):
    run = environment(core, "infer_parallel_toy", tmp_path)

    measured = run(
        "infer-bench",
        "--prompt-tokens",
        "8",
        "--max-new-tokens",
        "4",
        "--max-trials",
        "3",
        "--output-dir",
        "reports",
    )

    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert "reference kernels, unfused" in measured.stdout
    (report,) = (tmp_path / "reports").glob("*.json")
    (row,) = json.loads(report.read_text())["rows"]
    assert row["loaded"]["unfused"] is True


@pytest.mark.parametrize("name", ["infer_granite", "infer_phi3"])
def test_every_other_example_builds(name, tmp_path):
    assert build(ROOT / "examples" / name, "wheel", tmp_path).name.startswith(f"{name}-0.1.0")
