"""A table per metric in the layout of the benchmark log: configs down, models across."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infer_bench.catalogue import METRICS, cells, columns, decimals
from infer_bench.report import Report, Row
from infer_bench.table import Table


@dataclass(frozen=True, slots=True)
class _Number:
    """One number a model; `suffix` follows the model's label where a table has several."""

    suffix: str
    value: Callable[[Row | None], float | None]
    unit: str


def _metric(name: str, suffix: str = "") -> _Number:
    return _Number(suffix, METRICS[name].value, METRICS[name].unit)


_TABLES = (
    ("E2E throughput (tok/s)", (_metric("e2e_tokens_per_s"),)),
    ("Decode throughput (tok/s)", (_metric("decode_tokens_per_s"),)),
    (
        "Per-step decode latency (ms)",
        (_metric("step_p50_ms", "P50"), _metric("step_p95_ms", "P95")),
    ),
    ("TTFT / prefill (ms)", (_metric("ttft_ms"),)),
    (
        "KV cache memory (MB) and peak GPU allocation (GB)",
        (_metric("kv_cache_mb", "cache"), _metric("peak_gpu_gb", "peak")),
    ),
    ("Memory bandwidth utilisation of decode (%)", (_metric("mbu"),)),
    ("Matmul utilisation of prefill (%)", (_metric("prefill_mfu"),)),
    ("Energy (tokens/J)", (_metric("tokens_per_joule"),)),
    (
        "Load, warm-up and first token after process start (s)",
        (
            _Number("load", lambda row: row.loaded.load_s if row and row.loaded else None, "s"),
            _Number(
                "warm-up", lambda row: row.warm_up.wall_s if row and row.warm_up else None, "s"
            ),
            _Number("first", lambda row: row.cold_start_s if row else None, "s"),
        ),
    ),
    (
        "Kernels compiled before the trials (0: all were in Triton's cache)",
        (
            _Number(
                "", lambda row: row.warm_up.num_compiled if row and row.warm_up else None, "kernels"
            ),
        ),
    ),
)

_PLACES = {"s": 2, "%": 1, "kernels": 0}


def report_tables(report: Report) -> list[Table]:
    """Lay out every metric the report holds, the log's order first, then how sure it is."""
    tables: list[Table] = []
    for title, numbers in _TABLES:
        known = any(number.value(row) is not None for row in report.rows for number in numbers)
        # a table nobody has a number for says nothing, except the first: it shows the failures
        if known or not tables:
            tables.append(_metric_table(report, title, numbers))
    if len({column.engine for column in columns(report)}) > 1:
        tables.insert(1, ratio_table(report))
    tables.append(trust_table(report))
    return tables


def ratio_table(report: Report) -> Table:
    """Divide the first engine's E2E throughput by every other's: above 1 the first is faster."""
    rows, first = cells(report), report.engines[0]
    labels = {model.name: model.label for model in report.models}
    metric = METRICS["e2e_tokens_per_s"]
    header = ["Config"]
    lines = [[case.name] for case in report.cases]
    for column in columns(report):
        if column.engine == first:
            continue
        header.append(f"{labels[column.model]} / {column.engine}")
        for line, case in zip(lines, report.cases, strict=True):
            row = rows.get((column.engine, column.model, case.name))
            ours = metric.value(rows.get((first, column.model, case.name)))
            theirs = metric.value(row)
            if ours is not None and theirs is not None:
                line.append(f"{ours / theirs:.2f}x")
            else:
                line.append("-" if row is None or row.status == "ok" else row.status)
    title = f"How many times as fast {first} is (E2E throughput)"
    return Table(title, tuple(header), tuple(map(tuple, lines)))


def trust_table(report: Report) -> Table:
    """Show what each headline number rests on: interval, trials, tokens checked, throttling."""
    header = ["Config"]
    for column in columns(report):
        header += [f"{column.label} 95 % (n)", f"{column.label} tokens"]
    rows = cells(report)
    lines = []
    for case in report.cases:
        line = [case.name]
        for column in columns(report):
            row = rows.get((column.engine, column.model, case.name))
            line += [_interval(row), _tokens(row)]
        lines.append(tuple(line))
    return Table("Trust: interval of E2E throughput, tokens as the plain path's",
                 tuple(header), tuple(lines))  # fmt: skip


def heading(report: Report) -> list[str]:
    """Say under which conditions the numbers were taken."""
    loaded = [row.loaded for row in report.rows if row.loaded is not None]
    gpu = report.environment.gpu
    if gpu is None:
        models = "tiny reference models" if any(one.tiny for one in loaded) else "no GPU takes part"
        lines = [f"device: cpu ({models}, plain-torch path; these are no GPU numbers)"]
    else:
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        cuda = f", CUDA {report.environment.cuda}" if report.environment.cuda else ""
        lines = [
            f"device: {gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB, {gpu.num_sms} SMs, "
            f"compute {gpu.compute_capability}{cuda}{driver})"
        ]
    if report.ceilings is not None:
        line = f"read bandwidth: {report.ceilings.read_bandwidth_bytes_per_s / 1e12:.2f} TB/s"
        if report.ceilings.matmul_flops_per_s is not None:
            speed = report.ceilings.matmul_flops_per_s / 1e12
            line += f", {report.ceilings.matmul_dtype} matmul: {speed:.0f} Tflop/s"
        lines.append(f"{line}, measured now")
    for column in columns(report):
        found = [row.loaded for row in report.rows if row.key[:2] == (column.engine, column.model)]
        facts = next((one for one in found if one is not None), None)
        if facts is not None:
            weights = "random weights" if facts.weights == "dummy" else "checkpoint"
            threads = ""
            if gpu is None and facts.num_cpu_threads is not None:
                plural = "" if facts.num_cpu_threads == 1 else "s"
                threads = f", {facts.num_cpu_threads} CPU thread{plural}"
            unfused = ", unfused" if facts.unfused else ""
            lines.append(
                f"{column.label}: {column.model}, {weights}, {facts.dtype}, "
                f"{facts.kernels} kernels{unfused}{threads}"
            )
    settings = report.settings
    lines.append(
        f"suite {report.suite}: {_range(settings.warmup, settings.max_warmup)} warm-ups, median of "
        f"{_range(settings.trials, settings.max_trials)} trials, seed {settings.seed}"
        f"{'' if settings.kv_cache else ', no KV cache'}"
    )
    return lines


def failure_lines(report: Report) -> list[str]:
    """Say what failed or was left out and why, one line for each reason; then what to doubt."""
    reasons: dict[tuple[str, str, str, str], list[str]] = {}
    for row in report.rows:
        if row.status != "ok":
            key = (row.model, row.engine, row.status, row.reason or "")
            reasons.setdefault(key, []).append(row.case)
    several = len(report.engines) > 1
    lines = []
    for (model, engine, status, reason), cases in reasons.items():
        where = "every config" if len(cases) == len(report.cases) else ", ".join(cases)
        which = f"{model} on {engine}" if several else model
        lines.append(f"{status}: {which} ({where}): {reason}")
    throttled: dict[str, list[str]] = {}
    for row in report.rows:
        for reason in row.gpu.throttle if row.gpu else ():
            throttled.setdefault(reason, []).append(f"{row.model} {row.case}")
    for reason, where_all in throttled.items():
        shown = ", ".join(where_all[:3]) + (", ..." if len(where_all) > 3 else "")
        lines.append(f"throttled ({reason}) during {len(where_all)} rows: {shown}")
    return lines


def _metric_table(report: Report, title: str, numbers: Sequence[_Number]) -> Table:
    places = {
        unit: _PLACES[unit]
        if unit in _PLACES
        else _places(report, [number for number in numbers if number.unit == unit])
        for unit in {number.unit for number in numbers}
    }
    header = ["Config"]
    for column in columns(report):
        header += [f"{column.label} {number.suffix}".strip() for number in numbers]
    rows = cells(report)
    lines = []
    for case in report.cases:
        line = [case.name]
        for column in columns(report):
            row = rows.get((column.engine, column.model, case.name))
            line += [_cell(row, number, places[number.unit]) for number in numbers]
        lines.append(tuple(line))
    return Table(title, tuple(header), tuple(lines))


def _places(report: Report, numbers: Sequence[_Number]) -> int:
    return decimals(number.value(row) for row in report.rows for number in numbers)


def _cell(row: Row | None, number: _Number, places: int) -> str:
    value = number.value(row)
    if value is not None:
        return f"{value:.{places}f}"
    return "-" if row is None or row.status == "ok" else row.status


def _interval(row: Row | None) -> str:
    if row is None or row.metrics is None:
        return "-" if row is None else row.status
    low, high = row.metrics.intervals.get("e2e_tokens_per_s", (None, None))
    if low is None or high is None:
        return f"- ({row.metrics.num_trials})"
    places = decimals([low])
    return f"{low:.{places}f} to {high:.{places}f} ({row.metrics.num_trials})"


def _tokens(row: Row | None) -> str:
    if row is None or row.parity is None:
        return "-"
    equal = f"{row.parity.num_equal}/{row.parity.num_tokens}"
    return f"{equal}, trials differ" if row.trials_agree is False else equal


def _range(least: int, most: int) -> str:
    return f"{least}" if most <= least else f"{least} to {most}"
