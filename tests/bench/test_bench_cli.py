import json
import signal
import subprocess
import sys

import pytest
from bench_fakes import FakeBackend, FakeEngine, FakeRegistry
from infer_bench.cli import make_app
from infer_bench.report import Report
from typer.testing import CliRunner


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the command in an empty folder; gives its result and the reports it left."""
    monkeypatch.chdir(tmp_path)

    def run(backend, *arguments):
        result = CliRunner().invoke(make_app(backend), arguments, catch_exceptions=False)
        reports = sorted(tmp_path.rglob("*.json"))
        return result, [Report.model_validate_json(path.read_text()) for path in reports]

    return run


def toy():
    return FakeBackend({"toy": FakeEngine()})


def test_the_quick_suite_over_every_plugin_is_the_default(call):
    backend = FakeBackend({"alpha": FakeEngine(), "beta": FakeEngine()})

    result, (report,) = call(backend)

    assert result.exit_code == 0
    assert report.suite == "quick"
    assert [(row.model, row.case) for row in report.rows] == [
        ("alpha", "short"),
        ("alpha", "medium"),
        ("beta", "short"),
        ("beta", "medium"),
    ]
    assert report.settings.model_dump() == {
        "seed": 42,
        "warmup": 2,
        "trials": 3,
        "dtype": None,
        "weights": "auto",
        "kv_cache": True,
    }


def test_tables_go_to_stdout_and_the_reports_path_is_said(call, tmp_path):
    result, _ = call(toy(), "--suite", "full")

    (path,) = tmp_path.rglob("*.json")
    assert result.stdout.startswith("device: cpu")
    assert "| full-pipe |" in result.stdout
    assert f"report: bench/reports/{path.name}" in result.stdout
    assert "[7/7] Toy full-pipe: " in result.stderr


def test_json_prints_the_saved_report_and_nothing_else(call):
    result, (report,) = call(toy(), "--json")

    assert Report.model_validate(json.loads(result.stdout)) == report
    assert "report: " in result.stderr


def test_no_save_leaves_no_file(call, tmp_path):
    result, reports = call(toy(), "--no-save")

    assert (result.exit_code, reports) == (0, [])
    assert list(tmp_path.iterdir()) == []
    assert "report:" not in result.output


def test_a_report_goes_where_it_is_told(call, tmp_path):
    call(toy(), "--output-dir", "elsewhere")

    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "elsewhere"]


def test_an_ad_hoc_case_takes_its_sizes_and_sampling(call):
    result, (report,) = call(
        toy(), "--prompt-tokens", "7", "--max-new-tokens", "5", "--temperature", "0.8",
        "--top-k", "3", "--top-p", "0.5", "--min-p", "0.1", "--repetition-penalty", "1.2",
        "--seed", "9",
    )  # fmt: skip

    assert result.exit_code == 0
    assert report.suite == "ad-hoc"
    (case,) = report.cases
    assert case.model_dump() == {
        "name": "ad-hoc",
        "prompt_tokens": 7,
        "max_new_tokens": 5,
        "sampling": {
            "temperature": 0.8,
            "top_k": 3,
            "top_p": 0.5,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "seed": 9,
            "max_tokens": None,
            "stop": (),
            "logprobs": None,
        },
    }
    assert report.rows[0].samples[0].num_tokens == 5


def test_an_ad_hoc_case_of_one_token_works(call):
    result, (report,) = call(toy(), "--max-new-tokens", "1")

    assert result.exit_code == 0
    assert report.rows[0].metrics.decode_tokens_per_s is None


def test_options_reach_engine_and_report(call):
    backend = toy()

    _, (report,) = call(
        backend, "--model", "toy", "--revision", "v1", "--config", "short", "--dtype", "bfloat16",
        "--weights", "dummy", "--no-kv-cache", "--warmup", "0", "--trials", "1",
    )  # fmt: skip

    _, options = backend.loads[0]
    assert options == {
        "device": "cpu",
        "dtype": "bfloat16",
        "weights": "dummy",
        "max_context": 128,
        "kv_cache": False,
    }
    assert (report.suite, report.settings.kv_cache) == ("configs", False)
    assert (report.models[0].hub_id, report.models[0].commit) == ("toys/toy", "v1")
    assert len(report.rows[0].samples) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "quick", "--config", "short"], "--suite is a set of configs"),
        (["--suite", "quick", "--prompt-tokens", "4"], "--prompt-tokens describes an ad-hoc"),
        (["--config", "short", "--temperature", "1"], "drop --config"),
        (["--top-k", "5"], "temperature is 0"),
        (["--top-p", "1.5", "--temperature", "1"], "--top-p: Input should be less than"),
        (["--repetition-penalty", "0"], "--repetition-penalty: Input should be greater than 0"),
        (["--config", "shrot"], "unknown config 'shrot'"),
        (["--no-save", "--output-dir", "x"], "--output-dir has no use"),
        (["--model", "nobody"], "'nobody' is neither"),
        (["--revision", "v1"], "--revision needs exactly one --model"),
        (["--max-new-tokens", "-1"], "Invalid value for '--max-new-tokens'"),
        (["--trials", "0"], "Invalid value for '--trials'"),
        (["--warmup", "-1"], "Invalid value for '--warmup'"),
        (["--suite", "huge"], "'huge' is not one of"),
    ],
)
def test_contradictions_and_nonsense_are_usage_errors(call, tmp_path, arguments, message):
    backend = toy()

    result, _ = call(backend, *arguments)

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert backend.loads == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["tpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_a_usage_error(call, device):
    from infer_bench.backend import Backend

    result, _ = call(Backend(), "--device", device)

    assert result.exit_code == 2
    assert f"--device {device}" in result.stderr.replace("'", "")


def test_no_plugin_is_an_error_with_the_install_command(call):
    result, _ = call(FakeBackend({}))

    assert result.exit_code == 2
    assert "pip install" in result.stderr


def test_a_failure_is_shown_and_ends_in_exit_code_one(call):
    registry = FakeRegistry(["toy"], broken={"odd": "ImportError: no module 'x'"})

    result, (report,) = call(FakeBackend({"toy": FakeEngine()}, registry=registry))

    assert result.exit_code == 1
    assert "failed: odd (every config): ImportError: no module 'x'" in result.stderr
    assert "| short  | 1000.0 | failed |" in result.stdout
    assert [row.status for row in report.rows] == ["ok", "ok", "failed", "failed"]


def test_an_invalid_row_ends_in_exit_code_one(call):
    result, (report,) = call(FakeBackend({"toy": FakeEngine(tokens=lambda call, n: [0])}))

    assert result.exit_code == 1
    assert {row.status for row in report.rows} == {"invalid"}


def test_a_folder_that_cannot_be_written_stops_before_any_model_loads(call, tmp_path):
    (tmp_path / "taken").write_text("")
    backend = toy()

    result, _ = call(backend, "--output-dir", "taken/reports")

    assert result.exit_code == 2
    assert "--no-save" in result.stderr
    assert backend.loads == []
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_bandwidth_that_cannot_be_measured_costs_the_mbu_only(call):
    backend = FakeBackend({"toy": FakeEngine()}, bandwidth=RuntimeError("no compiler"))

    result, (report,) = call(backend)

    assert result.exit_code == 0
    assert "no MBU: read bandwidth not measured: RuntimeError: no compiler" in result.stderr
    assert report.rows[0].metrics.mbu is None


def test_ctrl_c_saves_the_finished_rows_and_exits_130(call):
    def interrupt_on_medium(call, max_new_tokens):
        if max_new_tokens == 256:
            signal.raise_signal(signal.SIGINT)
        return list(range(max_new_tokens))

    result, (report,) = call(FakeBackend({"toy": FakeEngine(tokens=interrupt_on_medium)}))

    assert result.exit_code == 130
    assert not report.complete
    assert [(row.case, row.status) for row in report.rows] == [("short", "ok")]
    assert "interrupted" in result.stderr


def test_help_imports_neither_torch_nor_triton():
    program = (
        "import sys\n"
        "from infer_bench.cli import main\n"
        "sys.argv = ['infer-bench', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as done:\n    assert done.code == 0\n"
        "print([name for name in ('torch', 'triton', 'transformers') if name in sys.modules])\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert "--prompt-tokens" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
