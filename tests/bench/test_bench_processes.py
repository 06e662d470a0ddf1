"""Workers, for real: every cell in a process of its own, what dies or hangs is a row."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from infer_bench.backend import Backend
from infer_bench.cases import Case
from infer_bench.errors import WorkerDied
from infer_bench.job import Job, Machine, Survey
from infer_bench.launch import InOwnProcess, _Worker
from infer_bench.limits import time_limit
from infer_bench.report import Report, Settings

# What a plugin's hook does inside a worker only: the runner asks the same hooks.
IN_WORKER = (
    "import sys, os, time\n    if 'infer_bench.worker' in ' '.join(sys.orig_argv):\n        "
)
SHAPE = 'ASKED.append("infer_model_shape")'


@pytest.fixture
def bench(make_plugin, tmp_path):
    """Run infer-bench as a program that finds the plugins of `make_plugin` alone."""

    def run(*arguments, only="toy", wait=True):
        command = [
            sys.executable, "-c", "from infer_bench.cli import main; main()",
            "--device", "cpu", "--prompt-tokens", "12", "--max-new-tokens", "6",
            "--warmup", "1", "--trials", "2", "--max-trials", "2", *arguments,
        ]  # fmt: skip
        path = os.pathsep.join([*make_plugin.path, *filter(None, sys.path)])
        environment = os.environ | {"PYTHONPATH": path, "INFER_PLUGINS": only}
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not wait:
            return process
        out, err = process.communicate(timeout=120)
        return process.returncode, Report.model_validate(json.loads(out)) if out else None, err

    return run


def test_a_cell_in_its_own_process_has_a_cold_start_and_all_that_others_have(bench, make_plugin):
    make_plugin()

    code, report, err = bench("--json")

    (row,) = report.rows
    assert (code, row.status, row.reason) == (0, "ok", None), err
    # an interpreter with torch in it does not start in a tenth of a second
    assert 0.1 < row.cold_start_s < 60
    assert (row.loaded.num_cpu_threads, row.parity.agrees) == (1, True)


def test_a_report_of_a_whole_run_names_no_user_host_or_path(bench, make_plugin, tmp_path):
    make_plugin(edits={SHAPE: f"{IN_WORKER}open({str(tmp_path / 'gone')!r})\n    {SHAPE}"})

    _, report, _ = bench("--json")

    text = report.to_json()
    assert ".../gone" in report.rows[0].reason
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    assert socket.gethostname() not in text


def test_what_a_plugin_prints_does_not_disturb_the_news_of_a_worker(bench, make_plugin):
    noise = f"print('{{noise'); {IN_WORKER}os.write(1, b'more noise')\n    {SHAPE}"
    make_plugin(edits={SHAPE: noise})

    code, report, err = bench("--json")

    assert (code, report.rows[0].status) == (0, "ok"), err


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "the process was killed by SIGKILL, as Linux does when memory"),
        ("sys.stderr.write('bad luck'); os._exit(3)", "ended with exit code 3 .*: bad luck"),
        ("time.sleep(600)", r"timeout: not done after 6 s \(loading Toy on infer\)"),
    ],
    ids=["killed", "ended", "hanging"],
)
def test_a_worker_that_dies_or_hangs_is_a_failed_row(bench, make_plugin, deed, reason):
    make_plugin(edits={SHAPE: f"{IN_WORKER}{deed}\n    {SHAPE}"})

    code, report, _ = bench("--json", "--timeout", "6")

    (row,) = report.rows
    assert (code, row.status) == (1, "failed")
    assert re.search(reason, row.reason)


def test_a_plugin_that_hangs_on_import_is_a_row_and_the_others_run(bench, make_plugin):
    make_plugin()
    make_plugin("stuck", source="import time\ntime.sleep(600)\n")

    code, report, err = bench("--json", "--timeout", "10", only="toy,stuck")

    assert {row.model: row.status for row in report.rows} == {
        "toy-tiny (tiny)": "ok",
        "stuck": "failed",
    }, err
    assert code == 1
    assert "timeout: loading the plugin took longer than 10 s" in report.failures[0].reason


@pytest.mark.parametrize(
    ("edits", "death"),
    [
        (
            {"from infer_core import (": "import os; os._exit(7)\nfrom infer_core import ("},
            "exited with code 7",
        ),
        ({SHAPE: f"import os; os.kill(os.getpid(), 11)\n    {SHAPE}"}, "was killed by SIGSEGV"),
    ],
    ids=["exits-on-import", "crashes-in-a-hook"],
)
def test_a_plugin_that_ends_the_process_is_a_row_and_the_others_run(
    bench, make_plugin, edits, death
):
    make_plugin()
    renamed = {'"toy-tiny"': '"zzz-tiny"', '"toy"': '"zzz"', "ToyFor": "ZzzFor"}
    make_plugin("zzz", edits=renamed | edits)

    code, report, err = bench("--json", only="toy,zzz")

    assert code == 1, err
    assert [(row.model, row.status) for row in report.rows] == [
        ("toy-tiny (tiny)", "ok"),
        ("zzz", "failed"),
    ]
    assert f"a process that loaded it {death}" in report.failures[0].reason


def test_a_run_told_to_end_keeps_its_finished_rows_and_can_be_resumed(bench, make_plugin, tmp_path):
    make_plugin()
    make_plugin(
        "zzz",
        edits={'"toy-tiny"': '"zzz-tiny"', '"toy"': '"zzz"', "ToyFor": "ZzzFor", SHAPE:
               f"{IN_WORKER}time.sleep(600)\n    {SHAPE}"},
    )  # fmt: skip
    folder = tmp_path / "bench" / "reports"

    process = bench(only="toy,zzz", wait=False)
    wait_until(lambda: any(p.read_text().count("\n") == 2 for p in folder.glob("*.jsonl")))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    (path,) = folder.glob("*.json")
    partial = Report.model_validate_json(path.read_text())

    assert process.returncode == 130
    assert not partial.complete
    assert [(row.model, row.status) for row in partial.rows] == [("toy-tiny (tiny)", "ok")]

    _, report, err = bench("--json", "--resume", "--timeout", "6", only="toy,zzz")

    assert "resuming: 1 finished rows" in err
    assert report.complete
    assert report.rows[0] == partial.rows[0]
    assert report.rows[1].reason.startswith("timeout")


def test_a_run_blocks_resume_while_it_goes_on_but_not_once_it_was_killed(
    bench, make_plugin, tmp_path
):
    # what a worker leaves behind outlives the run, with every file that the worker had open
    orphans = tmp_path / "orphans"
    deed = (
        "import subprocess; left = subprocess.Popen(['sleep', '100'], close_fds=False); "
        f"print(left.pid, file=open({str(orphans)!r}, 'a')); time.sleep(600)"
    )
    make_plugin()
    make_plugin(
        "zzz",
        edits={'"toy-tiny"': '"zzz-tiny"', '"toy"': '"zzz"', "ToyFor": "ZzzFor", SHAPE:
               f"{IN_WORKER}{deed}\n    {SHAPE}"},
    )  # fmt: skip
    folder = tmp_path / "bench" / "reports"

    process = bench(only="toy,zzz", wait=False)
    wait_until(lambda: orphans.exists() and orphans.read_text().endswith("\n"))
    (journal,) = folder.iterdir()
    before = journal.read_bytes()
    code, report, err = bench("--json", "--resume", only="toy,zzz")

    assert (code, report) == (2, None)
    assert f"{journal.name}: the run that writes it is still going" in err
    assert journal.read_bytes() == before

    process.kill()
    process.communicate(timeout=30)
    orphan = int(orphans.read_text())
    os.kill(orphan, 0)  # it lives
    _, report, err = bench("--json", "--resume", "--timeout", "6", only="toy,zzz")
    os.kill(orphan, signal.SIGKILL)

    assert "resuming: 1 finished rows" in err
    assert [row.status for row in report.rows] == ["ok", "failed"]


def wait_until(happened, *, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def test_cases_after_one_that_ended_its_worker_get_a_new_worker(make_plugin, monkeypatch, tmp_path):
    mark = str(tmp_path / "mark")
    once = f"if not os.path.exists({mark!r}): open({mark!r}, 'w').close(); os._exit(3)"
    make_plugin(edits={SHAPE: f"{IN_WORKER}{once}\n    {SHAPE}"})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*make_plugin.path, *filter(None, sys.path)]))
    monkeypatch.setenv("INFER_PLUGINS", "toy")
    job = Job(
        engine="infer",
        model="toy-tiny",
        name="toy-tiny",
        label="Toy",
        cases=(
            Case(name="first", prompt_tokens=5, max_new_tokens=5),
            Case(name="too-long", prompt_tokens=50, max_new_tokens=50),
            Case(name="good", prompt_tokens=5, max_new_tokens=5),
        ),
        max_context=64,
        settings=Settings(warmup=1, max_warmup=1, trials=1, max_trials=1, isolation="model"),
        device="cpu",
    )
    rows = []

    class Listener:
        doing = staticmethod(lambda text: None)
        row = staticmethod(rows.append)

    InOwnProcess(Backend()).run(job, Listener)

    assert [(row.case, row.status) for row in rows] == [
        ("first", "failed"),
        ("too-long", "failed"),
        ("good", "ok"),
    ]
    assert "exit code 3" in rows[0].reason
    assert "context of 64" in rows[1].reason
    # a first request of a process has a cold start: what failed did not share its process
    assert rows[2].cold_start_s is not None


def test_a_worker_that_never_speaks_is_ended(monkeypatch):
    job = Job(
        engine="infer", model="m", name="m", label="M", cases=(), max_context=1,
        settings=Settings(), device="cpu",
    )  # fmt: skip
    monkeypatch.setattr(sys, "executable", "/bin/cat")

    with (
        pytest.raises(WorkerDied, match="ended with exit code 1 while starting"),
        _Worker(job, os.environ) as worker,
    ):
        worker.next("row", timeout_s=5)


def test_a_time_limit_interrupts_what_hangs_and_then_is_gone():
    began = time.monotonic()

    with (
        pytest.raises(TimeoutError, match=r"timeout: waiting took longer than 0\.1 s"),
        time_limit(0.1, "waiting"),
    ):
        time.sleep(30)

    time.sleep(0.2)  # an alarm left behind would end this test
    assert time.monotonic() - began < 10


def test_a_worker_ends_with_the_run_that_started_it(bench, make_plugin, tmp_path):
    told = tmp_path / "pid"
    tell = f"open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    make_plugin(edits={SHAPE: f"{IN_WORKER}{tell}\n    {SHAPE}"})

    process = bench(wait=False)
    wait_until(lambda: told.is_file() and told.read_text())
    process.kill()
    process.communicate(timeout=30)

    wait_until(lambda: not Path("/proc", told.read_text(), "cmdline").exists(), limit_s=10)


def test_a_worker_can_survey_the_machine():
    with _Worker(Survey(device="cpu", dtype=None), os.environ) as worker:
        machine = Machine.model_validate(worker.next("machine", timeout_s=60))

    assert machine == Backend().survey(Survey(device="cpu", dtype=None))
