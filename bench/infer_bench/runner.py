"""Run a plan cell by cell; a failure is a row and never stops the others."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from infer_bench.cases import Case
from infer_bench.job import Job
from infer_bench.launch import Launcher
from infer_bench.plan import Plan
from infer_bench.progress import Progress
from infer_bench.report import Ceilings, Row
from infer_bench.targets import Target


@dataclass(slots=True)
class Results:
    """What a run has done so far, in the order of the plan; `interrupted` by Ctrl-C."""

    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False


def run(
    plan: Plan,
    launcher: Launcher,
    progress: Progress,
    *,
    ceilings: Ceilings | None = None,
    finished: Iterable[Row] = (),
    keep: Callable[[Row], None] = lambda row: None,
) -> Results:
    """Measure every cell of the plan that is not among the `finished`.

    `keep` is given each new row at once, before the next cell starts. Ctrl-C ends the run and
    leaves the rows there are.
    """
    results = Results()
    done = {row.key: row for row in finished}
    try:
        for target in plan.targets:
            for engine in plan.engines:
                listener = _Listener(target, engine, plan, progress, results, keep)
                _run_model(target, engine, plan, launcher, listener, ceilings, done)
    except KeyboardInterrupt:
        results.interrupted = True
    return results


def _run_model(
    target: Target,
    engine: str,
    plan: Plan,
    launcher: Launcher,
    listener: "_Listener",
    ceilings: Ceilings | None,
    done: dict[tuple[str, str, str], Row],
) -> None:
    waiting: list[Case] = []

    def start(cases: list[Case]) -> None:
        if not cases:
            return
        job = Job(
            engine=engine,
            model=target.argument,
            revision=_commit(target),
            name=target.name,
            label=target.label,
            cases=tuple(cases),
            max_context=max(case.context for case in plan.cases),
            settings=plan.settings,
            device=plan.device,
            ceilings=ceilings,
        )
        launcher.run(job, listener)

    for case in plan.cases:
        known = done.get((engine, target.name, case.name))
        if known is not None:
            start(waiting)  # rows stand in the order of the plan
            waiting = []
            listener.again(known)
        elif engine in plan.unavailable:
            listener.row(_row(target, engine, case, "skipped", plan.unavailable[engine]))
        elif target.model is None:
            listener.row(_row(target, engine, case, "failed", target.reason))
        elif plan.settings.isolation == "cell":
            start([case])
        else:
            waiting.append(case)
    start(waiting)


def _commit(target: Target) -> str | None:
    """The commit the plan was made with, so that no worker takes a later one."""
    model = target.model
    return model.commit if model is not None and model.hub_id == target.argument else None


def _row(target: Target, engine: str, case: Case, status: str, reason: str | None) -> Row:
    return Row.model_validate(
        {
            "engine": engine,
            "model": target.name,
            "case": case.name,
            "status": status,
            "reason": reason,
        }
    )


@dataclass(slots=True)
class _Listener:
    """Puts every row where it belongs as soon as it is there."""

    target: Target
    engine: str
    plan: Plan
    progress: Progress
    results: Results
    keep: Callable[[Row], None]

    def doing(self, text: str) -> None:
        self.progress.working_on(text)

    def row(self, row: Row) -> None:
        self.results.rows.append(row)
        self.keep(row)
        self.progress.finished(self._label, row)

    def again(self, row: Row) -> None:
        """Take over a row of an earlier, interrupted run."""
        self.results.rows.append(row)
        self.progress.finished(f"{self._label} (kept)", row)

    @property
    def _label(self) -> str:
        several = len(self.plan.engines) > 1
        return f"{self.target.label} on {self.engine}" if several else self.target.label
