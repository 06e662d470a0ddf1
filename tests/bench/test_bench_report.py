import getpass
import os
import resource
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bench_fakes import CPU, GPU
from infer_bench.cases import CASES
from infer_bench.environment import read_environment, without_paths
from infer_bench.errors import ReportError, UsageError
from infer_bench.report import (
    LoadedModel,
    Metrics,
    Model,
    Report,
    Row,
    Sample,
    Settings,
    prepare_folder,
    save_report,
)
from pydantic import ValidationError


def a_report(**changes):
    sample = Sample(
        num_tokens=3,
        ttft_ms=1.25,
        step_ms=(0.5, 0.75),
        decode_s=0.00125,
        e2e_s=0.0025,
        warm_up_s=0.0,
        kv_cache_bytes=4096,
        tokens_sha256="0123456789abcdef",
    )
    loaded = LoadedModel(
        architecture="ToyForCausalLM",
        distribution="infer-toy",
        plugin_version="0.1.0",
        tiny=True,
        dtype="float32",
        kernels="reference",
        weights="dummy",
        weight_bytes=4000,
        load_s=0.25,
    )
    metrics = Metrics(e2e_tokens_per_s=1200.0, ttft_ms=1.25, kv_cache_mb=0.004, warm_up_s=0.5)
    fields = {
        "created": datetime(2026, 2, 21, 10, 15, 0, tzinfo=UTC),
        "suite": "quick",
        "device": "cpu",
        "complete": True,
        "settings": Settings(),
        "cases": (CASES["short"], CASES["sampled"]),
        "environment": CPU,
        "models": (Model(name="toy", label="Toy", plugin="toy", loaded=loaded),),
        "rows": (
            Row(model="toy", case="short", status="ok", metrics=metrics, samples=(sample,)),
            Row(model="toy", case="sampled", status="failed", reason="no luck, [1,  2]"),
        ),
    }
    return Report(**(fields | changes))


def test_a_report_survives_the_way_to_json_and_back():
    report = a_report(environment=GPU, read_bandwidth_bytes_per_s=4.6e12)

    assert Report.model_validate_json(report.to_json()) == report


def test_the_steps_of_a_trial_stand_on_one_line():
    assert '"step_ms": [ 0.5, 0.75 ],' in a_report().to_json()


@pytest.mark.parametrize("model", [Sample, Metrics, LoadedModel])
def test_every_measured_number_states_its_unit(model):
    properties = model.model_json_schema()["properties"]

    numbers = {
        name
        for name, schema in properties.items()
        if {"integer", "number", "array"}
        & {part.get("type") for part in [schema, *schema.get("anyOf", [])]}
    }

    assert numbers
    assert not [name for name in numbers if not properties[name].get("unit")]


def test_an_unknown_field_or_a_nan_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        Report.model_validate(a_report().model_dump() | {"user": "me"})
    with pytest.raises(ValidationError, match="finite"):
        Metrics(e2e_tokens_per_s=float("nan"), ttft_ms=1.0, kv_cache_mb=1.0, warm_up_s=0.0)


@pytest.mark.parametrize(
    ("environment", "device", "name"),
    [
        (CPU, "cpu", "20260221T101500Z-quick-cpu.json"),
        (GPU, "cuda", "20260221T101500Z-quick-toy-gpu-9000.json"),
    ],
)
def test_a_report_is_named_after_time_suite_and_device(tmp_path, environment, device, name):
    path = save_report(a_report(environment=environment, device=device), tmp_path)

    assert path == tmp_path / name
    assert os.listdir(tmp_path) == [name]
    assert Report.model_validate_json(path.read_text()).suite == "quick"


def test_two_reports_of_one_second_do_not_overwrite_each_other(tmp_path):
    paths = {save_report(a_report(), tmp_path) for _ in range(3)}

    assert len(paths) == 3
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}


def test_a_report_that_does_not_fit_leaves_nothing_behind(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(ReportError, match=r"cannot write the report .*quick-cpu\.json"):
            save_report(a_report(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_found_out_before_the_run(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")

    with pytest.raises(UsageError, match=r"cannot write reports to .*taken.*--no-save"):
        prepare_folder(tmp_path / "taken" / "reports")


def test_preparing_a_folder_makes_it_and_leaves_it_empty(tmp_path):
    prepare_folder(tmp_path / "a" / "b")

    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_the_environment_names_versions_but_no_user_host_or_path():
    environment = read_environment("cpu")

    text = environment.model_dump_json()

    assert environment.gpu is None
    assert environment.torch[0].isdigit()
    assert environment.infer_core == "0.1.0"
    assert environment.python.startswith("3.")
    assert str(Path.home()) not in text
    assert socket.gethostname() not in text
    assert f'"{getpass.getuser()}"' not in text
    assert "/" not in text


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("no config.json in /home/ann/models/toy", "no config.json in .../toy"),
        ("cannot read '/data/x/y.safetensors': gone", "cannot read '.../y.safetensors': gone"),
        ("see ~/models/toy/ for more", "see .../ for more"),
        ("toys/model at 3/4 of 1024+64 tok/s", "toys/model at 3/4 of 1024+64 tok/s"),
        ("https://example.org/a/b says so", "https://example.org/a/b says so"),
        ("pip install ./plugins/toy", "pip install ./plugins/toy"),
    ],
)
def test_absolute_paths_are_shortened_in_published_messages(text, public):
    assert without_paths(text) == public
