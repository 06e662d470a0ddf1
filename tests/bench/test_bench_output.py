"""The log entry and the CSV: reports for the log, and for a spreadsheet."""

import csv
import io
import sys

from bench_fakes import GPU
from bench_reports import a_report, a_row
from infer_bench.log_entry import to_log_entry
from infer_bench.report import Row
from infer_bench.rows_csv import to_csv
from infer_bench.show import print_report


def test_a_log_entry_has_the_logs_heading_tables_and_notes():
    environment = GPU.model_copy(update={"git_revision": "0123456789abcdef+changes"})
    failed = Row(engine="infer", model="toy", case="medium", status="oom", reason="too big")

    lines = to_log_entry(
        a_report(a_row(), failed, environment=environment), title="First numbers"
    ).splitlines()

    assert lines[:4] == [
        "## 2026-02-21 — First numbers",
        "",
        "**Hardware**: Toy GPU 9000 (141 GB, 132 SMs, compute 9.0, CUDA 13.0, driver 580.1)",
        "",
    ]
    assert lines[4].startswith(
        "torch 2.13.0; triton 3.9.0; revision 0123456789ab and uncommitted changes; read bandwidth"
    )
    assert lines[6:11] == [
        "### E2E throughput (tok/s)",
        "",
        "| Config |   Toy |",
        "|--------|------:|",
        "| short  | 647.8 |",  # 8 tokens in 5 ms + 7 * 1.05 ms
    ]
    assert lines[-3:] == ["### Notes", "", "- oom: toy (medium): too big"]


def test_an_interrupted_run_says_so_in_the_log():
    assert "- the run was interrupted" in to_log_entry(a_report(complete=False), title="x")


def test_csv_has_a_line_a_row_and_report_and_empty_cells_where_nothing_is_known():
    failed = Row(engine="infer", model="toy", case="medium", status="failed", reason='a "b", c')
    report = a_report(a_row(), failed)

    lines = list(csv.DictReader(io.StringIO(to_csv([report, report]))))

    assert len(lines) == 4
    good, bad = lines[:2]
    assert (good["gpu"], good["model"], good["case"]) == ("Toy GPU 9000", "toy", "short")
    assert float(good["e2e_tokens_per_s"]) == report.rows[0].metrics.e2e_tokens_per_s
    assert (good["prompt_tokens"], good["parity_equal"], good["dtype"]) == ("64", "8", "bfloat16")
    assert (bad["status"], bad["reason"], bad["step_p50_ms"]) == ("failed", 'a "b", c', "")


def test_a_terminal_without_block_characters_gets_bars_all_the_same(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))

    print_report(a_report(), as_json=False)
    sys.stdout.flush()

    assert b"  Toy ######" in raw.getvalue()
