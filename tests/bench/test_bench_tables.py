"""The log this project continues is the oracle: its numbers must render to its very text."""

from datetime import UTC, datetime

import pytest
from bench_fakes import CPU, GPU
from infer_bench.cases import named_cases
from infer_bench.report import LoadedModel, Metrics, Model, Report, Row, Settings
from infer_bench.tables import failure_lines, heading, report_tables, to_markdown, to_rich
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


def model(label, *, weights="dummy", tiny=False):
    loaded = LoadedModel(
        architecture="ToyForCausalLM",
        distribution=None,
        plugin_version=None,
        tiny=tiny,
        dtype="bfloat16",
        kernels="triton",
        weights=weights,
        weight_bytes=4000,
        load_s=1.234,
    )
    return Model(name=f"{label.lower()}-1b", label=label, plugin=None, loaded=loaded)


def log_report(*, environment=GPU, models=None, mbu=None, **changes):
    models = models or {label: model(label) for label in LOG}
    rows = [
        Row(
            model=models[label].name,
            case=case,
            status="ok",
            metrics=Metrics(**dict(zip(NAMES, numbers, strict=True)), warm_up_s=0.5, mbu=mbu),
        )
        for label in models
        for case, numbers in zip(("short", "full-pipe"), LOG[label], strict=True)
    ]
    fields = {
        "created": datetime(2026, 2, 21, tzinfo=UTC),
        "suite": "configs",
        "device": "cuda",
        "complete": True,
        "settings": Settings(),
        "cases": named_cases(["short", "full-pipe"]),
        "environment": environment,
        "models": tuple(models.values()),
        "rows": tuple(rows),
    }
    return Report(**(fields | changes))


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
        "Load and warm-up (s)",
    ]


def test_bandwidth_utilisation_is_in_percent_and_absent_where_unknown():
    title = "Memory bandwidth utilisation of decode (%)"

    assert "| short     |  77.3 |" in rendered(log_report(mbu=0.7731))[title]
    assert title not in rendered(log_report())


def test_load_time_stands_once_a_model_above_each_configs_warm_up():
    lines = rendered(log_report())["Load and warm-up (s)"].splitlines()

    assert lines[4:6] == [
        "| load      |  1.23 |  1.23 |   1.23 |",
        "| short     |  0.50 |  0.50 |   0.50 |",
    ]


def test_numbers_below_two_get_three_decimals():
    report = log_report()
    fast = report.rows[0].metrics.model_copy(update={"step_p50_ms": 0.7284})
    rows = (report.rows[0].model_copy(update={"metrics": fast}), *report.rows[1:])

    table = rendered(report.model_copy(update={"rows": rows}))["Per-step decode latency (ms)"]

    assert "|     0.728 |     5.600 |" in table


def test_a_failed_cell_says_so_in_every_table_and_its_reason_is_listed():
    report = log_report()
    failed = Row(model="llama-1b", case="short", status="invalid", reason="63 tokens")
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
        Row(model="toy", case=case, status="failed", reason="broken")
        for case in ("short", "full-pipe")
    )
    report = log_report(rows=rows, models={"Llama": Model(name="toy", label="Toy", plugin=None)})

    assert failure_lines(report) == ["failed: toy (every config): broken"]
    assert "| short     | failed |" in rendered(report)["E2E throughput (tok/s)"]


def test_a_cell_that_never_ran_is_a_dash():
    report = log_report()
    report = report.model_copy(update={"rows": report.rows[:1]})

    assert "| short     | 215.1 |     - |      - |" in rendered(report)["E2E throughput (tok/s)"]


def test_the_heading_says_what_the_numbers_were_taken_on():
    lines = heading(log_report(read_bandwidth_bytes_per_s=4.66e12))

    assert lines == [
        "device: Toy GPU 9000 (141 GB, 132 SMs, compute 9.0, CUDA 13.0, driver 580.1)",
        "read bandwidth: 4.66 TB/s, measured now",
        "Llama: llama-1b, random weights, bfloat16, triton kernels",
        "Qwen3: qwen3-1b, random weights, bfloat16, triton kernels",
        "Gemma3: gemma3-1b, random weights, bfloat16, triton kernels",
        "suite configs: 2 warm-ups, median of 3 trials, seed 42",
    ]


def test_the_heading_says_first_that_tiny_models_ran_on_the_cpu():
    models = {"Llama": model("Llama", tiny=True)}

    lines = heading(log_report(environment=CPU, device="cpu", models=models))

    assert lines[0].startswith("device: cpu (tiny reference models")


def test_a_terminal_shows_the_same_cells():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    table = report_tables(log_report())[0]

    console.print(to_rich(table))

    text = console.export_text()
    assert "E2E throughput (tok/s)" in text
    assert all(cell in text for row in table.rows for cell in row)
