"""One call of infer-bench: plan, run, show, save; the exit code says how it went."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from infer_bench.backend import Backend
from infer_bench.canary import blocking, deadly_plugins
from infer_bench.cases import Case
from infer_bench.engines import check_engines
from infer_bench.errors import EngineUnavailable, ReportError, UsageError
from infer_bench.exit_codes import EXIT_FAILURES, EXIT_INTERRUPTED, EXIT_OK
from infer_bench.gate import Gate
from infer_bench.job import Machine, Survey
from infer_bench.journal import Header, Journal, Unfinished
from infer_bench.launch import InOwnProcess, Launcher
from infer_bench.limits import time_limit
from infer_bench.plan import Plan, plan_table
from infer_bench.progress import Progress
from infer_bench.report import Model, Report, Settings
from infer_bench.report_files import prepare_folder, report_path, save_report
from infer_bench.resolved import resolved_facts
from infer_bench.runner import Results, run
from infer_bench.show import print_report, print_table
from infer_bench.targets import Target, describe, find_targets

if TYPE_CHECKING:
    from infer_core.model_source import ResolvedModel
    from infer_core.plugins import PluginRegistry

# Finding plugins takes milliseconds; one that takes this long hangs.
PLUGIN_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asked for, checked for contradictions."""

    suite: str
    cases: tuple[Case, ...]
    models: tuple[str, ...]
    revision: str | None
    engines: tuple[str, ...]
    settings: Settings
    device: str | None
    output_dir: Path | None
    json: bool
    resume: bool = False
    dry_run: bool = False
    gate: Gate = field(default_factory=Gate)


MakeLauncher = Callable[[Backend, list[str]], Launcher]


def own_processes(backend: Backend, blocked: list[str]) -> Launcher:
    """Give every job a process; `blocked` plugins are left out of it."""
    return InOwnProcess(backend, blocked=blocked)


def run_session(
    request: Request, backend: Backend, make_launcher: MakeLauncher = own_processes
) -> int:
    """Measure, print tables (or the report as JSON), save the report, give the exit code.

    Raises:
        UsageError: nothing to measure, no such device, engine, model or baseline, no folder to
            write to, a run to resume that is still going.
        ReportError: the report cannot be written; the tables are printed all the same.
    """
    created = datetime.now(UTC)
    device = backend.pick_device(request.device)
    plan, broken = _plan(request, backend, device)
    if request.dry_run:
        print_table(plan_table(plan))
        return EXIT_OK
    request.gate.check(request.output_dir)
    if request.output_dir is not None:
        prepare_folder(request.output_dir)

    launcher = make_launcher(backend, broken)
    machine = _survey(launcher, Survey(device=device, dtype=request.settings.dtype))
    header = Header(
        created=created,
        suite=request.suite,
        device=device.split(":")[0],
        engines=plan.engines,
        models=tuple(target.name for target in plan.targets),
        cases=plan.cases,
        settings=plan.settings,
        machine=machine,
    )
    unfinished = _unfinished(request, header)
    header = unfinished.header if unfinished else header
    empty = _report(header, plan, Results(), None)
    if unfinished is None:
        path, journal = _begin(request.output_dir, empty, header)
    else:
        path, journal = unfinished.path.with_suffix(".json"), unfinished.journal

    with journal:  # nobody else resumes this run before its report is written
        with Progress(plan.num_cells) as progress:
            results = run(
                plan,
                launcher,
                progress,
                ceilings=header.machine.ceilings,
                finished=unfinished.rows if unfinished else (),
                keep=journal.append,
            )
        report = _report(header, plan, results, backend)

        if results.interrupted and not results.rows:
            journal.remove()
            print("interrupted before any row was finished", file=sys.stderr)
            return EXIT_INTERRUPTED
        try:
            if path is not None:
                save_report(report, path)
            if not results.interrupted:
                journal.remove()
        except ReportError as error:
            if not journal.is_on_disk:
                raise
            raise ReportError(
                f"{error}; finished rows are kept beside it: make room, and --resume with the same "
                "options writes the report"
            ) from error
        finally:  # the numbers are there, whatever became of the file, and the other way round
            print_report(report, as_json=request.json)
    if path is not None:
        print(f"report: {path}", file=sys.stderr if request.json else sys.stdout)
    if results.interrupted:
        again = "; infer-bench --resume, with the same options, goes on" if path else ""
        print(
            f"interrupted: the rows above were finished, the rest did not run{again}",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    measured = any(row.status == "ok" for row in report.rows)
    gate = request.gate.close(report, request.output_dir)
    return gate or (EXIT_FAILURES if report.failures or not measured else EXIT_OK)


def _plan(request: Request, backend: Backend, device: str) -> tuple[Plan, list[str]]:
    """Find engines and models; also the names of plugins that do not work."""
    limit_s = min(PLUGIN_LIMIT_S, request.settings.timeout_s)

    # an engine or a plugin may hang or print; stdout is for the report
    @contextmanager
    def strangers_code(doing: str) -> Iterator[None]:
        with time_limit(limit_s, doing), redirect_stdout(sys.stderr):
            yield

    unavailable = {}
    for engine in (engines := check_engines(request.engines)):
        try:
            with strangers_code(f"importing engine {engine}"):
                backend.check_engine(engine)
        except (EngineUnavailable, TimeoutError) as error:
            unavailable[engine] = describe(error)

    def resolve(model: str, registry: "PluginRegistry", device: str) -> "ResolvedModel":
        with strangers_code(f"describing {Path(model).name}"):
            found = backend.resolve(
                model, registry, device, revision=request.revision, weights=False
            )
        with_weights = request.settings.weights != "dummy" and not request.dry_run
        if with_weights and found.hub_id == model:  # gigabytes take as long as they take
            found = backend.resolve(
                model, registry, device, revision=request.revision, weights=True
            )
        return found

    def load_and_ask() -> None:
        registry = backend.load_registry()
        local = [model for model in request.models if Path(model).expanduser().is_dir()]
        for model in [*local, *(reference.name for _, reference in registry.reference_models())]:
            with suppress(Exception):
                backend.resolve(model, registry, device, weights=False)

    deadly = deadly_plugins(load_and_ask)
    try:
        with time_limit(limit_s, "loading the plugin"), _left_out(list(deadly)):
            registry = backend.load_registry()
        targets = find_targets(request.models, registry, resolve, device=device, deadly=deadly)
    except TimeoutError as error:  # outside of any one plugin
        raise UsageError(f"{error}; see `infer plugins list`") from error
    cases = tuple(case.seeded(request.settings.seed) for case in request.cases)
    plan = Plan(cases, targets, request.settings, device, engines, unavailable)
    broken = [status.name for status in registry.statuses if status.state == "broken"]
    return plan, [*broken, *deadly]


@contextmanager
def _left_out(plugins: list[str]) -> Iterator[None]:
    """Block plugins for a while, as INFER_BLOCK_PLUGINS does."""
    before = dict(os.environ)
    os.environ.update(blocking(before, plugins))
    try:
        yield
    finally:
        if plugins:
            os.environ.clear()
            os.environ.update(before)


def _survey(launcher: Launcher, survey: Survey) -> Machine:
    """Measure the GPU before any model takes its memory; without the figures there is no MBU."""
    machine = launcher.survey(survey)
    if machine.problem is not None:
        print(f"no MBU: read bandwidth not measured: {machine.problem}", file=sys.stderr)
    return machine


def _unfinished(request: Request, header: Header) -> Unfinished | None:
    if not request.resume:
        return None
    folder = request.output_dir
    found = Unfinished.latest(folder, header) if folder is not None else None
    if found is None:
        print("nothing to resume: no interrupted run of just this kind; starting", file=sys.stderr)
    else:
        print(f"resuming: {len(found.rows)} finished rows of {found.path.name}", file=sys.stderr)
    return found


def _begin(folder: Path | None, report: Report, header: Header) -> tuple[Path | None, Journal]:
    """Name the report that is to come, and start its journal under that name."""
    while folder is not None:
        path = report_path(report, folder)
        journal = Journal(path.with_suffix(".jsonl"))
        try:
            journal.start(header)
        except FileExistsError:  # a run that began in the same second was faster
            continue
        return path, journal
    return None, Journal(None)


def _report(header: Header, plan: Plan, results: Results, backend: Backend | None) -> Report:
    """Put together what was planned and what came of it."""
    machine = header.machine
    on_gpu = backend is not None and plan.device != "cpu"
    return Report(
        created=header.created,
        suite=header.suite,
        device=header.device,
        complete=not results.interrupted,
        engines=plan.engines,
        settings=plan.settings,
        cases=plan.cases,
        environment=machine.environment,
        ceilings=machine.ceilings,
        gpu_before=machine.gpu,
        gpu_after=backend.gpu_state(plan.device) if backend and on_gpu else None,
        models=tuple(map(_model, plan.targets)),
        rows=tuple(results.rows),
    )


def _model(target: Target) -> Model:
    return Model(
        name=target.name,
        label=target.label,
        plugin=target.plugin,
        hub_id=target.model.hub_id if target.model else None,
        commit=target.model.commit if target.model else None,
        resolved=resolved_facts(target.model.spec) if target.model else None,
    )
