import getpass
import json
import os
import resource
import socket
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
from bench_fakes import CPU, GPU
from bench_reports import a_report, a_row, a_sample
from infer_bench.environment import read_environment, without_paths
from infer_bench.errors import ReportError, UsageError
from infer_bench.gpu_state import GpuActivity, GpuState
from infer_bench.metrics import trial_values
from infer_bench.report import (
    Ceilings,
    LoadedModel,
    Metrics,
    Parity,
    Report,
    Sample,
    WarmUp,
)
from infer_bench.report_files import load_report, prepare_folder, report_path, save_report
from infer_bench.report_schema import SCHEMA_FILE, schema_text
from infer_bench.resolved import resolved_facts
from pydantic import ValidationError
from toy_specs import toy_spec

VERSION_1 = Path(__file__).parents[1] / "fixtures" / "reports" / "v1.json"


def test_a_report_survives_the_way_to_json_and_back():
    watched = GpuActivity(before=GpuState(power_w=80.0), after=GpuState(), throttle=("power cap",))
    report = a_report(a_row(gpu=watched), gpu_before=GpuState(sm_clock_mhz=1980.0))

    assert Report.model_validate_json(report.to_json()) == report


def test_the_steps_of_a_trial_stand_on_one_line():
    row = a_row().model_copy(update={"samples": (a_sample(num_tokens=3, step_ms=0.5),)})

    assert '"step_ms": [ 0.5, 0.5 ],' in a_report(row).to_json()


MEASURED = [
    Sample, Metrics, LoadedModel, WarmUp, Parity, Ceilings, GpuState, GpuActivity,
]  # fmt: skip


@pytest.mark.parametrize("model", MEASURED)
def test_every_measured_number_states_its_unit(model):
    properties = model.model_json_schema()["properties"]

    numbers = {
        name
        for name, schema in properties.items()
        if {"integer", "number", "array"}
        & {part.get("type") for part in [schema, *schema.get("anyOf", [])]}
        and schema.get("items") != {"type": "string"}
    }

    assert numbers
    assert not [name for name in numbers if not properties[name].get("unit")]


def test_an_unknown_field_or_a_nan_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        Report.model_validate(a_report().model_dump() | {"user": "me"})
    with pytest.raises(ValidationError, match="finite"):
        Metrics(e2e_tokens_per_s=float("nan"), ttft_ms=1.0, kv_cache_mb=1.0, num_trials=3)


@pytest.mark.parametrize(
    ("environment", "device", "name"),
    [
        (CPU, "cpu", "20260221T101500Z-configs-cpu.json"),
        (GPU, "cuda", "20260221T101500Z-configs-toy-gpu-9000.json"),
    ],
)
def test_a_report_is_named_after_time_suite_and_device(tmp_path, environment, device, name):
    report = a_report(environment=environment, device=device)
    path = report_path(report, tmp_path)
    save_report(report, path)

    assert path == tmp_path / name
    assert os.listdir(tmp_path) == [name]
    assert load_report(path) == report


def test_two_reports_of_one_second_do_not_overwrite_each_other(tmp_path):
    for _ in range(3):
        save_report(a_report(), report_path(a_report(), tmp_path))

    assert len(list(tmp_path.iterdir())) == 3


def test_a_report_does_not_take_the_name_of_a_run_under_way(tmp_path):
    free = report_path(a_report(), tmp_path)
    free.with_suffix(".jsonl").touch()

    assert report_path(a_report(), tmp_path) != free


def test_a_report_that_does_not_fit_leaves_nothing_behind(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(ReportError, match=r"cannot write .*report\.json: File too large"):
            save_report(a_report(), tmp_path / "report.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_replaced_stays_as_it_was(tmp_path):
    path = tmp_path / "report.json"
    save_report(a_report(), path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(ReportError):
            save_report(a_report(suite="full"), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["report.json"]


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
    assert environment.other_engines["transformers"] == version("transformers")
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
        ("not in /home/ann, nor in /Users/bob/models", "not in ~, nor in ~/models"),
        ("see file:///data/x/y.json", "see .../y.json"),
        ("HOME=/srv/ann is ann's, on box7 and box7.example.org", "HOME=~ is <user>'s, on <host> "
         "and <host>"),
        ("annual sums of toy-ann and box70", "annual sums of toy-ann and box70"),
    ],
)  # fmt: skip
def test_published_messages_do_not_say_whose_machine_it_was(text, public, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/srv/ann"))
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    monkeypatch.setattr(socket, "gethostname", lambda: "box7.example.org")

    assert without_paths(text) == public


def test_the_committed_schema_is_that_of_the_code():
    assert SCHEMA_FILE.read_text() == schema_text(), (
        "run: python -m infer_bench.report_schema > bench/infer_bench/report.schema.json"
    )


def test_a_report_is_valid_by_the_committed_schema_and_a_spoilt_one_is_not():
    schema = json.loads(SCHEMA_FILE.read_text())
    data = json.loads(a_report().to_json())

    jsonschema.validate(data, schema)

    data["rows"][0]["metrics"]["e2e_tokens_per_s"] = "fast"
    with pytest.raises(jsonschema.ValidationError, match="'fast' is not of type 'number'"):
        jsonschema.validate(data, schema)


def test_a_report_of_version_1_still_loads_with_its_numbers_in_their_new_places():
    old = json.loads(VERSION_1.read_text())

    report = load_report(VERSION_1)

    assert (old["schema_version"], report.schema_version) == (1, 2)
    assert report.engines == ("infer",)
    for row, before in zip(report.rows, old["rows"], strict=True):
        assert row.metrics.e2e_tokens_per_s == before["metrics"]["e2e_tokens_per_s"]
        assert row.metrics.num_trials == len(before["samples"])
        assert row.loaded.load_s == old["models"][0]["loaded"]["load_s"]
        assert trial_values(row.samples, "ttft_ms") == [s["ttft_ms"] for s in before["samples"]]
        assert row.warm_up is None  # what it meant then is not what it means now
    jsonschema.validate(json.loads(report.to_json()), json.loads(SCHEMA_FILE.read_text()))


def test_a_version_1_report_of_a_gpu_keeps_its_bandwidth(tmp_path):
    old = json.loads(VERSION_1.read_text()) | {"read_bandwidth_bytes_per_s": 4.5e12}
    (tmp_path / "old.json").write_text(json.dumps(old))

    ceilings = load_report(tmp_path / "old.json").ceilings

    assert (ceilings.read_bandwidth_bytes_per_s, ceilings.matmul_flops_per_s) == (4.5e12, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        (a_report().to_json()[:2000], "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\x80", "is not JSON"),
        ("[1, 2]", "is not a report of infer-bench: it has no schema_version"),
        ('{"results": []}', "is not a report of infer-bench: it has no schema_version"),
        ('{"schema_version": 99}', "99 is newer than this infer-bench.*pip install --upgrade"),
        ('{"schema_version": "2"}', "schema_version is '2', expected 1 to 2"),
        ('{"schema_version": 0}', "schema_version is 0"),
        ('{"schema_version": 1}', "not a valid report: KeyError: 'models'"),
        ('{"schema_version": 1, "models": 3}', "not a valid report: TypeError"),
        ('{"schema_version": 2}', r"created: Field required \(\d+ such errors\)"),
    ],
)
def test_a_damaged_or_foreign_file_is_said_to_be_one(tmp_path, text, message):
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(ReportError, match=message):
        load_report(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data["cases"].clear(), "not listed"),
        (lambda data: data["models"].clear(), "not listed"),
        (lambda data: data.update(engines=["other"]), "not listed"),
        (lambda data: data["rows"].append(data["rows"][0]), "same engine, model and case"),
        (lambda data: data["rows"][0]["samples"].clear(), "has metrics and samples"),
        (lambda data: data["rows"][0].update(metrics=None), "has metrics and samples"),
        (lambda data: data["rows"][0]["samples"][0].update(e2e_s=0), "times above zero"),
        (lambda data: data["rows"][0]["samples"][0]["step_ms"].pop(), "a time for each token"),
    ],
)
def test_a_report_at_odds_with_itself_is_refused(tmp_path, spoil, message):
    data = json.loads(a_report().to_json())
    spoil(data)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))

    with pytest.raises(ReportError, match=message):
        load_report(path)


def test_a_report_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(ReportError, match=r"cannot read the report .*nowhere\.json: No such file"):
        load_report(tmp_path / "nowhere.json")


def test_a_resolved_model_says_equal_layers_once():
    facts = resolved_facts(toy_spec(num_layers=4, window=5, ring=True))

    assert facts["shape"]["num_layers"] == 4
    assert "weights" not in facts
    assert [(one["layers"], one["window"]) for one in facts["attention"]] == [
        ([0, 1, 2], 5),
        ([3], None),
    ]
    assert [(one["layers"], one["kind"]) for one in facts["kv_cache"]] == [
        ([0, 1, 2], "ring"),
        ([3], "full"),
    ]
    json.dumps(facts)
