"""One call of infer-bench: plan, run, show, save; the exit code says how it went."""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from infer_bench.backend import Backend
from infer_bench.cases import Case
from infer_bench.progress import Progress
from infer_bench.report import Report, Settings, prepare_folder, save_report
from infer_bench.runner import Plan, run
from infer_bench.tables import failure_lines, heading, report_tables, to_markdown, to_rich
from infer_bench.targets import describe, find_targets

EXIT_OK, EXIT_FAILURES, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asked for, checked for contradictions."""

    suite: str
    cases: tuple[Case, ...]
    models: tuple[str, ...]
    revision: str | None
    settings: Settings
    device: str | None
    output_dir: Path | None
    json: bool


def run_session(request: Request, backend: Backend) -> int:
    """Measure, print tables (or the report as JSON), save the report, give the exit code.

    Raises:
        UsageError: nothing to measure, no such device or model, no folder to write to.
        ReportError: the report cannot be written; the tables are already printed then.
    """
    created = datetime.now(UTC)
    device = backend.pick_device(request.device)
    resolve = partial(
        backend.resolve,
        revision=request.revision,
        weights=request.settings.weights != "dummy",
    )
    targets = find_targets(request.models, backend.load_registry(), resolve, device=device)
    if request.output_dir is not None:
        prepare_folder(request.output_dir)

    plan = Plan(
        cases=tuple(case.seeded(request.settings.seed) for case in request.cases),
        targets=targets,
        settings=request.settings,
        device=device,
        bandwidth=_bandwidth(backend, device),
    )
    with Progress(len(plan.cases) * len(targets)) as progress:
        results = run(plan, backend, progress)
    report = Report(
        created=created,
        suite=request.suite,
        device=device.split(":")[0],
        complete=not results.interrupted,
        settings=request.settings,
        cases=plan.cases,
        environment=backend.read_environment(device),
        read_bandwidth_bytes_per_s=plan.bandwidth,
        models=tuple(results.models),
        rows=tuple(results.rows),
    )

    _show(report, as_json=request.json)
    if request.output_dir is not None:
        path = save_report(report, request.output_dir)
        print(f"report: {path}", file=sys.stderr if request.json else sys.stdout)
    if results.interrupted:
        print("interrupted: the rows above were finished, the rest did not run", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_FAILURES if report.failures else EXIT_OK


def _bandwidth(backend: Backend, device: str) -> float | None:
    """Measure the GPU before any model takes its memory; without the figure there is no MBU."""
    try:
        return backend.measure_bandwidth(device)
    except Exception as error:
        print(f"no MBU: read bandwidth not measured: {describe(error)}", file=sys.stderr)
        return None


def _show(report: Report, *, as_json: bool) -> None:
    """Print for a program, a terminal or a file."""
    if as_json:
        print(report.to_json(), end="")
    else:
        print("\n".join(heading(report)), end="\n\n")
        if sys.stdout.isatty():
            from rich.console import Console

            console = Console()
            for table in report_tables(report):
                console.print(to_rich(table), end="\n\n")
        else:
            print("\n".join(map(to_markdown, report_tables(report))))
    for line in failure_lines(report):
        print(line, file=sys.stderr)
