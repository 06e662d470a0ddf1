import errno
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench_fakes import FakeBackend, FakeEngine, FakeRegistry, in_this_process
from bench_reports import a_report, a_row
from infer_bench.cli import make_app
from infer_bench.report import Report
from infer_bench.report_files import report_path, save_report
from typer.testing import CliRunner


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the command in an empty folder; gives its result and the reports it left."""
    monkeypatch.chdir(tmp_path)

    def run(backend, *arguments):
        app = make_app(backend, in_this_process)
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        reports = sorted((tmp_path / "bench" / "reports").glob("*.json"))
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
        "max_warmup": 5,
        "trials": 3,
        "max_trials": 9,
        "dtype": None,
        "weights": "auto",
        "kv_cache": True,
        "isolation": "cell",
        "timeout_s": 600.0,
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


def test_a_download_may_take_longer_than_a_plugin(call):
    limits = []

    class Hub(FakeBackend):
        def resolve(self, model, registry, device, *, revision=None, weights=True):
            limits.append((weights, signal.getitimer(signal.ITIMER_REAL)[0] > 0))
            found = super().resolve(model, registry, device, revision=revision, weights=weights)
            found.hub_id = model
            return found

    result, _ = call(Hub({"org/toy": FakeEngine()}), "--model", "org/toy", "--config", "short")

    assert result.exit_code == 0, result.stderr
    # planning asks for the specs with a limit, then for the weights without one
    assert limits[:2] == [(False, True), (True, False)]


def test_an_ad_hoc_case_of_one_token_works(call):
    result, (report,) = call(toy(), "--max-new-tokens", "1")

    assert result.exit_code == 0
    assert report.rows[0].metrics.decode_tokens_per_s is None


def test_options_reach_engine_and_report(call):
    backend = toy()

    _, (report,) = call(
        backend, "--model", "toy", "--revision", "v1", "--config", "short,short",
        "--dtype", "bfloat16", "--weights", "dummy", "--no-kv-cache",
        "--warmup", "0", "--trials", "1", "--max-trials", "1", "--isolation", "model",
        "--timeout", "5",
    )  # fmt: skip

    _, _, options = backend.loads[0]
    assert asdict(options) == {
        "device": "cpu",
        "dtype": "bfloat16",
        "weights": "dummy",
        "max_context": 128,
        "kv_cache": False,
    }
    assert (report.suite, report.settings.kv_cache) == ("configs", False)
    assert (report.models[0].hub_id, report.models[0].commit) == ("toys/toy", "v1")
    assert (report.settings.max_warmup, report.settings.timeout_s) == (0, 5.0)
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
        (["--engine", "ifner"], "unknown engine 'ifner'; known: infer, transformers"),
        (["--engine", "infer,"], "holds an empty name"),
        (["--timeout", "0"], "Invalid value for '--timeout'"),
        (["--timeout", "inf"], "Invalid value for '--timeout'"),
        (["--seed", "99999999999999999999"], "Invalid value for '--seed'"),
        (["--config", "short,"], "--config 'short,' holds an empty name"),
        (["--no-save", "--resume"], "drop --no-save"),
        (["--no-save", "--baseline", "x"], "drop --no-save"),
        (["--baseline", "nobody"], "no baseline 'nobody' in bench/reports/baselines; there: none"),
        (["--save-baseline", "../x"], "'../x' is no name for a baseline"),
        (["--max-regress", "lots"], "--max-regress 'lots' is no percentage"),
        (["--metric", "speed"], "unknown --metric 'speed'; known: e2e_tokens_per_s"),
        (["--metric", "kv_cache_mb"], "unknown --metric 'kv_cache_mb'"),
    ],
)
def test_contradictions_and_nonsense_are_usage_errors(call, tmp_path, arguments, message):
    backend = toy()

    result, _ = call(backend, *arguments)

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert backend.loads == []
    assert list(tmp_path.iterdir()) == []


def test_signals_held_back_while_torch_is_imported_come_through_afterwards():
    program = (
        "import signal, sys\n"
        "from infer_bench.backend import Backend\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch': signal.raise_signal(signal.SIGINT); print('held')\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "try: Backend().pick_device('cpu')\n"
        "except KeyboardInterrupt: print('interrupted', 'torch' in sys.modules)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip

    assert done.stdout.splitlines() == ["held", "interrupted True"], done.stderr


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


def test_ctrl_c_before_any_row_leaves_nothing_behind(call, tmp_path):
    result, reports = call(interrupted_on(64))

    assert (result.exit_code, reports) == (130, [])
    assert "interrupted before any row was finished" in result.stderr
    assert list((tmp_path / "bench" / "reports").iterdir()) == []


def test_numbers_that_cannot_be_printed_are_saved_all_the_same(call, monkeypatch):
    def full(report, *, as_json):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("infer_bench.session.print_report", full)

    result, (report,) = call(toy())

    assert result.exit_code == 1
    assert "error: [Errno 28] No space left on device" in result.stderr
    assert [row.status for row in report.rows] == ["ok", "ok"]


def interrupted_on(length):
    def tokens(call, max_new_tokens):
        if max_new_tokens == length:
            signal.raise_signal(signal.SIGINT)
        return list(range(max_new_tokens))

    return FakeBackend({"toy": FakeEngine(tokens=tokens)})


def test_an_interrupted_run_goes_on_where_it_stopped(call, tmp_path):
    _, (partial,) = call(interrupted_on(256))
    backend = toy()

    result, (report,) = call(backend, "--resume")

    assert result.exit_code == 0
    assert "resuming: 1 finished rows" in result.stderr
    assert [len(request.prompt) for request in backend.engines["toy"].requests] == [256] * 5
    assert report.complete
    assert report.created == partial.created
    assert report.rows[0] == partial.rows[0]
    assert [path.suffix for path in (tmp_path / "bench" / "reports").iterdir()] == [".json"]


@pytest.mark.parametrize("options", [[], ["--resume"]], ids=["started", "resumed"])
def test_a_run_that_is_still_going_is_not_resumed(call, tmp_path, options):
    if options:
        call(interrupted_on(256))
    second, meanwhile = toy(), []

    def resume_meanwhile(number, max_new_tokens):
        if max_new_tokens == 256 and not meanwhile:
            (journal,) = (tmp_path / "bench" / "reports").glob("*.jsonl")
            before = journal.read_bytes()
            result, _ = call(second, "--resume")
            meanwhile.append((result, journal.name, before, journal.read_bytes()))
        return list(range(max_new_tokens))

    first, (report,) = call(FakeBackend({"toy": FakeEngine(tokens=resume_meanwhile)}), *options)

    ((refused, name, before, after),) = meanwhile
    assert refused.exit_code == 2
    assert f"error: cannot resume bench/reports/{name}: the run that" in refused.stderr
    assert "is still going; wait until it is done, or end it first" in refused.stderr
    assert second.engines["toy"].requests == []
    assert before == after
    assert first.exit_code == 0
    assert [row.status for row in report.rows] == ["ok", "ok"]


def test_two_runs_that_begin_in_the_same_second_keep_to_their_own_files(
    call, tmp_path, monkeypatch
):
    theirs = []

    def find_a_free_name_too_late(report, folder):
        path = report_path(report, folder)
        if not theirs:
            theirs.append(path.with_suffix(".jsonl"))
            theirs[0].write_text("theirs")
        return path

    monkeypatch.setattr("infer_bench.session.report_path", find_a_free_name_too_late)

    result, _ = call(toy())

    assert result.exit_code == 0
    assert "cannot write" not in result.stderr
    assert theirs[0].read_text() == "theirs"
    (ours,) = (tmp_path / "bench" / "reports").glob("*.json")
    assert ours.stem == f"{theirs[0].stem}-2"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_runs_are_kept_and_resumed_where_the_file_system_has_no_locks(call, monkeypatch, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    call(interrupted_on(256))

    result, (report,) = call(toy(), "--resume")

    assert "resuming: 1 finished rows" in result.stderr
    assert [row.status for row in report.rows] == ["ok", "ok"]


def test_rows_that_came_until_the_journal_was_locked_are_not_measured_again(
    call, tmp_path, monkeypatch
):
    call(interrupted_on(256))
    (journal,) = (tmp_path / "bench" / "reports").glob("*.jsonl")
    header, short = journal.read_text().splitlines()
    medium = json.dumps(json.loads(short) | {"case": "medium"})
    backend = toy()
    monkeypatch.setattr(
        fcntl, "flock", lambda *_: journal.write_text("\n".join([header, short, medium]))
    )

    result, _ = call(backend, "--resume")

    assert "resuming: 2 finished rows" in result.stderr
    assert backend.engines["toy"].requests == []


def test_a_run_that_was_done_before_its_journal_was_locked_keeps_its_report(
    call, tmp_path, monkeypatch
):
    call(interrupted_on(256))
    (journal,) = (tmp_path / "bench" / "reports").glob("*.jsonl")
    report = journal.with_suffix(".json")
    before = report.read_bytes()
    monkeypatch.setattr(fcntl, "flock", lambda *_: journal.unlink(missing_ok=True))

    result, reports = call(toy(), "--resume")

    assert "nothing to resume" in result.stderr
    assert report.read_bytes() == before
    assert len(reports) == 2


def test_half_a_line_at_the_end_of_a_journal_is_measured_again(call, tmp_path):
    call(interrupted_on(256), "--suite", "standard")
    (journal,) = (tmp_path / "bench" / "reports").glob("*.jsonl")
    journal.write_text(journal.read_text()[:-100])

    result, (report,) = call(toy(), "--suite", "standard", "--resume")

    assert "resuming: 0 finished rows" in result.stderr
    assert [row.status for row in report.rows] == ["ok"] * 5


@pytest.mark.parametrize(
    "other", [["--seed", "1"], ["--suite", "standard"], ["--trials", "4"], ["--dtype", "bfloat16"]]
)
def test_rows_of_an_unlike_run_are_not_taken_over(call, other):
    call(interrupted_on(256))
    backend = toy()

    result, _ = call(backend, "--resume", *other)

    assert "nothing to resume" in result.stderr
    assert len(backend.engines["toy"].requests[0].prompt) == 64


def test_a_failed_row_is_tried_again(call):
    def fail_then_stop(call, max_new_tokens):
        if max_new_tokens == 256:
            signal.raise_signal(signal.SIGINT)
        raise ValueError("unlucky")

    call(FakeBackend({"toy": FakeEngine(tokens=fail_then_stop)}))

    result, (report,) = call(toy(), "--resume")

    assert "resuming: 0 finished rows" in result.stderr
    assert [row.status for row in report.rows] == ["ok", "ok"]


def test_a_full_disk_costs_the_report_but_not_the_tables_and_leaves_nothing_cut_short(
    call, tmp_path
):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        result, reports = call(toy())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert result.exit_code == 1
    assert "| short  | 1000.0 |" in result.stdout
    assert "the run goes on, but rows from here on could not be resumed" in result.stderr
    assert "File too large" in result.stderr
    assert reports == []


def test_a_report_that_did_not_fit_is_written_once_there_is_room(call, tmp_path):
    _, (report,) = call(toy())
    (path,) = (tmp_path / "bench" / "reports").iterdir()
    size = path.stat().st_size
    path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, hard))
    try:
        full, nothing = call(toy())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    backend = toy()

    result, (again,) = call(backend, "--resume")

    assert (full.exit_code, nothing) == (1, [])
    assert "finished rows are kept beside it: make room, and --resume" in full.stderr
    assert result.exit_code == 0
    assert backend.engines["toy"].requests == []
    assert [row.status for row in again.rows] == [row.status for row in report.rows]


def test_the_plan_is_shown_with_its_memory_and_nothing_is_loaded(call, tmp_path):
    backend = FakeBackend({"toy": FakeEngine()}, missing={"vllm": "vllm is not installed"})

    result, _ = call(backend, "--dry-run", "--engine", "infer,vllm")

    assert result.exit_code == 0
    # 64 + 64 tokens of 3 layers, 2 kv heads of 12, keys and values, 4 bytes
    assert re.search(r"\| Toy +\| infer +\| short +\| +\S+ \| +0.074 \|.*to run", result.stdout)
    assert result.stdout.count("vllm is not installed") == 2
    assert backend.loads == []
    assert list(tmp_path.iterdir()) == []


def slower(factor):
    def times(call, num_tokens):
        jitter = 1 + 0.004 * (call % 3)
        steps = [factor * jitter] * (num_tokens - 1)
        return {"step_ms": steps, "decode_s": sum(steps) / 1e3, "e2e_s": (1 + sum(steps)) / 1e3}

    return FakeBackend({"toy": FakeEngine(times=times)})


def test_a_baseline_catches_a_planted_slowdown_and_lets_the_same_build_pass(call):
    first, _ = call(slower(1.0), "--save-baseline", "main")
    again, _ = call(slower(1.0), "--baseline", "main")
    slow, _ = call(slower(1.1), "--baseline", "main", "--save-baseline", "main")
    third, _ = call(slower(1.0), "--baseline", "main")

    assert [run.exit_code for run in (first, again, slow, third)] == [0, 0, 3, 0]
    assert "against baseline main: 4 same" in again.stderr
    assert "against baseline main: 4 regression" in slow.stderr
    assert "baseline: " not in slow.stderr  # what regressed is no new baseline


def test_a_baseline_of_other_weights_is_not_comparable(call):
    call(toy(), "--save-baseline", "main")
    other = FakeEngine()
    other.weights_kind = "checkpoint"

    refused, _ = call(FakeBackend({"toy": other}), "--baseline", "main")
    forced, _ = call(FakeBackend({"toy": other}), "--baseline", "main", "--force")

    assert (refused.exit_code, forced.exit_code) == (4, 0)
    assert "weights of toy on infer: dummy against checkpoint" in refused.stderr


@pytest.fixture
def reports(tmp_path):
    """Write reports by name; gives their paths as text."""

    def write(**named):
        for name, report in named.items():
            save_report(report, tmp_path / f"{name}.json")
        return [str(tmp_path / f"{name}.json") for name in named]

    return write


def test_compare_prints_a_table_writes_files_and_exits_with_3_on_a_regression(
    call, reports, tmp_path
):
    paths = reports(
        a=a_report(a_row(times=(1.0, 1.001, 0.999)), a_row("odd")),
        b=a_report(a_row(times=(1.1, 1.101, 1.099)), a_row("odd")),
    )

    result, _ = call(toy(), "compare", *paths, "--markdown", "diff.md", "--junit", "diff.xml")

    assert result.exit_code == 3
    assert "| regression | toy   | infer  | short  | Decode step P50 |" in result.stdout
    assert "+10.0 %" in result.stdout
    assert (tmp_path / "diff.md").read_text() == result.stdout
    suite = ElementTree.parse(tmp_path / "diff.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "2", "0")
    assert "limit 5 %" in suite.find(".//failure").get("message")


def test_compare_lets_pass_what_is_below_the_limit_asked_for(call, reports):
    paths = reports(
        a=a_report(a_row(times=(1.0, 1.001, 0.999))), b=a_report(a_row(times=(1.1, 1.101, 1.099)))
    )

    result, _ = call(toy(), "compare", *paths, "--max-regress", "15%")

    assert result.exit_code == 0


def test_compare_reads_the_same_build_twice_as_the_same(call, reports):
    paths = reports(
        a=a_report(a_row(times=(1.0, 1.02, 0.99))), b=a_report(a_row(times=(1.01, 0.98, 1.03)))
    )

    result, _ = call(toy(), "compare", *paths)

    assert result.exit_code == 0
    assert "2 same" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compare", "a.json"], 2, "1 reports given, expected 2"),
        (["compare", "a.json", "b.json", "--baseline", "x"], 2, "expected 1"),
        (["compare", "a.json", "gone.json"], 1, "cannot read the report gone.json"),
        (["compare", "a.json", "foreign.json"], 1, "is not a report of infer-bench"),
        (["compare", "a.json", "cpu.json"], 4, "GPU: Toy GPU 9000 against None"),
        (["compare", "a.json", "a.json", "--metric", "x"], 2, "unknown --metric 'x'"),
        (["report", "foreign.json"], 1, "is not a report of infer-bench"),
        (["report", "a.json", "--csv", "--markdown"], 2, "give one"),
        (["report", "a.json", "--html", "a.json/page"], 1, "cannot write a.json/page"),
    ],
)
def test_wrong_reports_are_refused_in_words(call, reports, tmp_path, arguments, code, message):
    without_gpu = a_report().environment.model_copy(update={"gpu": None})
    reports(a=a_report(), cpu=a_report(environment=without_gpu, device="cpu"))
    (tmp_path / "foreign.json").write_text('{"results": []}')

    result, _ = call(toy(), *arguments)

    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())


def test_report_prints_the_tables_of_a_saved_report_once_more(call, reports):
    result, _ = call(toy(), "report", *reports(a=a_report()))

    assert result.exit_code == 0
    assert result.stdout.startswith("device: Toy GPU 9000")
    assert "### E2E throughput (tok/s)" in result.stdout


def test_a_reader_that_stops_early_is_no_error_to_shout_about(reports, tmp_path):
    reports(a=a_report())
    command = f"{sys.executable} -c 'from infer_bench.cli import main; main()' report a.json"

    done = subprocess.run(
        f"{command} | true", shell=True, capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip

    assert done.stderr == ""


def test_a_page_can_be_written_to_a_pipe(call, reports, tmp_path):
    reports(a=a_report())
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)

    result, _ = call(toy(), "report", "a.json", "--html", "pipe")

    assert result.exit_code == 0, result.stderr
    assert os.read(reader, 15) == b"<!doctype html>"
    os.close(reader)


def test_report_shows_the_models_asked_for_in_the_order_asked_for(call, reports):
    reports(a=a_report(a_row("alpha"), a_row("beta"), a_row("gamma")))

    shown, _ = call(toy(), "report", "a.json", "--markdown", "--model", "gamma,alpha")
    unknown, _ = call(toy(), "report", "a.json", "--model", "delta")

    assert "| Config | Gamma | Alpha |" in shown.stdout
    assert "beta" not in shown.stdout
    assert unknown.exit_code == 2
    assert "no report has a model 'delta'; there: alpha, beta, gamma" in unknown.stderr


def test_report_reads_version_1_too(call):
    old = Path(__file__).parents[1] / "fixtures" / "reports" / "v1.json"

    result, _ = call(toy(), "report", str(old), "--csv")

    assert result.exit_code == 0
    assert result.stdout.count("\n") == 3


def test_options_of_a_run_do_not_run_beside_a_command(call, reports):
    backend = toy()

    call(backend, "report", *reports(a=a_report()))

    assert backend.loads == []


def test_help_imports_neither_torch_nor_triton_nor_pydantic():
    program = (
        "import sys\n"
        "from infer_bench.cli import main\n"
        "sys.argv = ['infer-bench', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as done:\n    assert done.code == 0\n"
        "heavy = ('torch', 'triton', 'transformers', 'pydantic')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert "--prompt-tokens" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
