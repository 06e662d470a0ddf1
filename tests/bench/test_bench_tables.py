"""The log this project continues is the oracle: its numbers must render to its very text."""

import io

import pytest
from bench_fakes import CPU, GPU
from bench_reports import CEILINGS, a_report, a_row, a_sample, loaded_model
from infer_bench.gpu_state import GpuActivity, GpuState
from infer_bench.report import Metrics, Model, Row, WarmUp
from infer_bench.summary import summary_lines
from infer_bench.table import to_markdown, to_rich
from infer_bench.tables import failure_lines, heading, ratio_table, report_tables
from rich.console import Console

E2E = """\
### E2E throughput (tok/s)

| Config    | Llama | Qwen3 | Gemma3 |
|-----------|------:|------:|-------:|
| short     | 215.1 | 133.2 |  120.0 |
| full-pipe | 214.2 | 135.3 |  126.0 |
"""

STEPS = """\
### Per-step decode latency (ms)

| Config    | Llama P50 | Llama P95 | Qwen3 P50 | Qwen3 P95 | Gemma3 P50 | Gemma3 P95 |
|-----------|----------:|----------:|----------:|----------:|-----------:|-----------:|
| short     |       4.6 |       5.6 |       7.4 |       8.7 |        8.2 |        9.8 |
| full-pipe |       4.6 |       5.1 |       7.3 |       8.0 |        7.8 |        8.9 |
"""

MEMORY = """\
### KV cache memory (MB) and peak GPU allocation (GB)

| Config    | Llama cache | Llama peak | Qwen3 cache | Qwen3 peak | Gemma3 cache | Gemma3 peak |
|-----------|------------:|-----------:|------------:|-----------:|-------------:|------------:|
| short     |         4.2 |        2.8 |        14.7 |        3.8 |          3.4 |         2.6 |
| full-pipe |        16.8 |        2.9 |        58.7 |        3.9 |         13.6 |         2.6 |
"""

# e2e, decode, P50, P95, TTFT, cache, peak of short and full-pipe
LOG = {
    "Llama": [
        (215.1, 219.0, 4.6, 5.6, 5.4, 4.194304, 2.8),
        (214.2, 216.3, 4.6, 5.1, 8.5, 16.777216, 2.9),
    ],
    "Qwen3": [
        (133.2, 135.5, 7.4, 8.7, 8.6, 14.680064, 3.8),
        (135.3, 136.4, 7.3, 8.0, 14.8, 58.720256, 3.9),
    ],
    "Gemma3": [
        (120.0, 122.2, 8.2, 9.8, 8.8, 3.407872, 2.6),
        (126.0, 127.6, 7.8, 8.9, 9.4, 13.631488, 2.6),
    ],
}
NAMES = (
    "e2e_tokens_per_s",
    "decode_tokens_per_s",
    "step_p50_ms",
    "step_p95_ms",
    "ttft_ms",
    "kv_cache_mb",
    "peak_gpu_gb",
)


def log_report(*, environment=GPU, mbu=None, labels=tuple(LOG), loaded=None, **changes):
    """The log's numbers as a report."""
    names = {label: f"{label.lower()}-1b" for label in labels}
    rows = [
        Row(
            engine="infer",
            model=names[label],
            case=case,
            status="ok",
            loaded=loaded or loaded_model(),
            metrics=Metrics(**dict(zip(NAMES, numbers, strict=True)), num_trials=3, mbu=mbu),
            warm_up=WarmUp(num_runs=2, wall_s=0.5, stable=True),
            samples=(a_sample(),),
        )
        for label in labels
        for case, numbers in zip(("short", "full-pipe"), LOG[label], strict=True)
    ]
    models = tuple(Model(name=names[label], label=label, plugin=None) for label in labels)
    fields = {"environment": environment, "models": models, "ceilings": None}
    return a_report(*rows, **(fields | changes))


def rendered(report):
    return {table.title: to_markdown(table) for table in report_tables(report)}


@pytest.mark.parametrize("expected", [E2E, STEPS, MEMORY])
def test_the_logs_numbers_render_to_the_logs_text(expected):
    assert expected in rendered(log_report()).values()


def test_there_is_a_table_for_each_metric_in_the_logs_order():
    assert list(rendered(log_report(mbu=0.5))) == [
        "E2E throughput (tok/s)",
        "Decode throughput (tok/s)",
        "Per-step decode latency (ms)",
        "TTFT / prefill (ms)",
        "KV cache memory (MB) and peak GPU allocation (GB)",
        "Memory bandwidth utilisation of decode (%)",
        "Load, warm-up and first token after process start (s)",
        "Trust: interval of E2E throughput, tokens as the plain path's",
    ]


def test_bandwidth_utilisation_is_in_percent_and_absent_where_unknown():
    title = "Memory bandwidth utilisation of decode (%)"

    assert "| short     |  77.3 |" in rendered(log_report(mbu=0.7731))[title]
    assert title not in rendered(log_report())


def test_load_and_warm_up_stand_beside_each_other():
    report = log_report(labels=("Llama",))
    table = rendered(report)["Load, warm-up and first token after process start (s)"]

    assert table.splitlines()[2:5] == [
        "| Config    | Llama load | Llama warm-up | Llama first |",
        "|-----------|-----------:|--------------:|------------:|",
        "| short     |       1.23 |          0.50 |           - |",
    ]


def test_kernels_compiled_are_counted_where_triton_compiles():
    title = "Kernels compiled before the trials (0: all were in Triton's cache)"
    cold, warm = (
        a_row(model, warm_up=WarmUp(num_runs=2, wall_s=9.0, stable=True, num_compiled=number))
        for model, number in (("cold", 41), ("warm", 0))
    )

    assert "| short  |   41 |    0 |" in rendered(a_report(cold, warm))[title]
    assert title not in rendered(a_report())


def test_numbers_below_two_get_three_decimals():
    report = log_report()
    fast = report.rows[0].metrics.model_copy(update={"step_p50_ms": 0.7284})
    rows = (report.rows[0].model_copy(update={"metrics": fast}), *report.rows[1:])

    table = rendered(report.model_copy(update={"rows": rows}))["Per-step decode latency (ms)"]

    assert "|     0.728 |     5.600 |" in table


def test_percentages_get_one_decimal_however_small():
    row = a_row()
    small = row.model_copy(
        update={"metrics": row.metrics.model_copy(update={"prefill_mfu": 0.0123456})}
    )

    assert "| short  | 1.2 |" in rendered(a_report(small))["Matmul utilisation of prefill (%)"]


def test_a_failed_cell_says_so_in_every_table_and_its_reason_is_listed():
    report = log_report()
    failed = Row(
        engine="infer", model="llama-1b", case="short", status="invalid", reason="63 tokens"
    )
    report = report.model_copy(update={"rows": (failed, *report.rows[1:])})

    assert all(
        "| short     | invalid |" in text.replace("P50", "")
        for text in [
            rendered(report)["E2E throughput (tok/s)"],
            rendered(report)["TTFT / prefill (ms)"],
        ]
    )
    assert failure_lines(report) == ["invalid: llama-1b (short): 63 tokens"]


def test_one_reason_for_every_config_is_one_line():
    rows = tuple(
        Row(engine="infer", model="toy", case=case, status="failed", reason="broken")
        for case in ("short", "full-pipe")
    )
    report = a_report(*rows)

    assert failure_lines(report) == ["failed: toy (every config): broken"]
    assert "| short     | failed |" in rendered(report)["E2E throughput (tok/s)"]


def test_a_cell_that_never_ran_is_a_dash():
    report = log_report()
    report = report.model_copy(update={"rows": report.rows[:1]})

    assert "| short     | 215.1 |     - |      - |" in rendered(report)["E2E throughput (tok/s)"]


def test_the_heading_says_what_the_numbers_were_taken_on():
    lines = heading(log_report(ceilings=CEILINGS))

    assert lines == [
        "device: Toy GPU 9000 (141 GB, 132 SMs, compute 9.0, CUDA 13.0, driver 580.1)",
        "read bandwidth: 4.00 TB/s, bfloat16 matmul: 700 Tflop/s, measured now",
        "Llama: llama-1b, random weights, bfloat16, triton kernels",
        "Qwen3: qwen3-1b, random weights, bfloat16, triton kernels",
        "Gemma3: gemma3-1b, random weights, bfloat16, triton kernels",
        "suite configs: 2 to 5 warm-ups, median of 3 to 9 trials, seed 42",
    ]


def test_the_heading_says_first_that_tiny_models_ran_on_the_cpu():
    loaded = loaded_model(tiny=True, num_cpu_threads=1)

    lines = heading(log_report(environment=CPU, device="cpu", loaded=loaded))

    assert lines[0].startswith("device: cpu (tiny reference models")
    assert lines[1].endswith("triton kernels, 1 CPU thread")


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_a_terminal_of_any_width_shows_every_cell_whole(width):
    console = Console(width=width, record=True, file=io.StringIO())
    tables = report_tables(side_by_side("two-word-engine", models=("alpha", "beta", "gamma")))

    for table in tables:
        for piece in to_rich(table, width=width):
            console.print(piece)

    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for table in tables:
        assert all(cell in text for row in table.rows for cell in row)


@pytest.mark.parametrize("width", [40, 60, 200])
def test_the_summary_fits_a_narrow_terminal(width):
    lines = summary_lines(side_by_side(models=("alpha", "beta")), width=width)

    assert len(lines) == 7
    assert max(map(len, lines)) <= max(width, 50)  # bars are never shorter than 8


def side_by_side(other="other", *, models=("toy",)):
    return a_report(
        *(
            row
            for model in models
            for row in (
                a_row(model, engine="infer", times=(1.0, 1.0, 1.0)),
                a_row(model, engine=other, times=(2.0, 2.0, 2.0)),
                Row(engine="absent", model=model, case="short", status="skipped",
                    reason="not installed"),
            )
        )
    )  # fmt: skip


def test_several_engines_stand_side_by_side_with_their_ratio():
    report = side_by_side()

    table = ratio_table(report)

    # 8 tokens in 5 ms + 7 steps that rise by 10 %: 12.35 ms against 19.7 ms
    assert table.header == ("Config", "Toy / other")
    assert table.rows == (("short", "1.60x"),)
    assert "| Toy infer | Toy other |" in rendered(report)["E2E throughput (tok/s)"]


def test_an_engine_that_ran_nothing_has_no_column_unless_none_ran():
    skipped = Row(engine="absent", model="toy", case="short", status="skipped", reason="-")

    assert "| short  | skipped |" in rendered(a_report(skipped))["E2E throughput (tok/s)"]
    assert list(rendered(a_report(a_row(), skipped))) == list(rendered(a_report(a_row())))
    assert "| Config |   Toy |" in rendered(a_report(a_row(), skipped))["E2E throughput (tok/s)"]


def test_a_skipped_engine_is_explained_but_is_no_failure():
    report = side_by_side()

    assert report.failures == ()
    assert failure_lines(report) == ["skipped: toy on absent (every config): not installed"]


def test_the_interval_the_trials_and_the_tokens_checked_are_shown():
    table = rendered(a_report(a_row(times=(1.0, 1.02, 0.98))))[
        "Trust: interval of E2E throughput, tokens as the plain path's"
    ]

    # 8 tokens in 5 ms + 7 * 1.05 ms times 1.02 or 0.98
    assert "| short  | 640.2 to 655.6 (3) |        8/8 |" in table


def test_a_throttled_row_is_named():
    hot = GpuActivity(before=GpuState(), after=GpuState(), throttle=("power cap",))

    assert failure_lines(a_report(a_row(gpu=hot))) == [
        "throttled (power cap) during 1 rows: toy short"
    ]


def test_the_summary_draws_bars_and_names_the_best_and_worst_mbu():
    report = a_report(a_row("fast", times=(0.75,)), a_row("slow", times=(1.5,)))

    lines = summary_lines(report)

    assert lines[0] == "E2E throughput of short (tok/s)"
    assert lines[1].startswith("  Fast " + "\N{FULL BLOCK}" * 32)
    assert lines[2].count("\N{FULL BLOCK}") < 32
    # 2.1 GB in 0.75 ms * 1.05 at 4 TB/s
    assert lines[3].startswith("best  MBU")
    assert lines[3].endswith("66.7 % (Fast short)")
    assert lines[4].endswith("33.3 % (Slow short)")
