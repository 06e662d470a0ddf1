"""Run a job in a process of its own: a death or a hang is a row."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import IO, Protocol

from infer_bench.backend import Backend
from infer_bench.canary import blocking
from infer_bench.environment import without_paths
from infer_bench.errors import WorkerDied
from infer_bench.job import Job, Listener, Machine, Survey
from infer_bench.report import Row

SURVEY_TIMEOUT_S = 300.0
STDERR_LINES = 40


class Launcher(Protocol):
    """Runs jobs."""

    def survey(self, survey: Survey) -> Machine:
        """Describe the machine and measure its GPU.

        Raises:
            WorkerDied: nobody could.
        """

    def run(self, job: Job, listener: Listener) -> None:
        """Run a job; afterwards the listener has had one row for each of its cases."""


class InOwnProcess:
    """Starts a worker a job; when one dies, hangs or fails, its remaining cases get another.

    `blocked` are plugins that workers must not import, because they do not work.
    """

    def __init__(self, backend: Backend, *, blocked: Iterable[str] = ()) -> None:
        self._backend = backend
        self._blocked = list(blocked)

    def survey(self, survey: Survey) -> Machine:
        if survey.device == "cpu":
            return self._backend.survey(survey)
        with _Worker(survey, self._environment()) as worker:
            return Machine.model_validate(worker.next("machine", timeout_s=SURVEY_TIMEOUT_S))

    def run(self, job: Job, listener: Listener) -> None:
        remaining = list(job.cases)
        while remaining:
            part = job.model_copy(update={"cases": tuple(remaining)})
            with _Worker(part, self._environment()) as worker:
                while remaining:
                    try:
                        news = worker.next(
                            "row", timeout_s=job.settings.timeout_s, doing=listener.doing
                        )
                    except WorkerDied as death:
                        case = remaining.pop(0)
                        listener.row(
                            Row(
                                engine=job.engine,
                                model=job.name,
                                case=case.name,
                                status="failed",
                                reason=str(death),
                            )
                        )
                        break
                    remaining.pop(0)
                    row = Row.model_validate(news)
                    listener.row(row)
                    if row.loaded is not None and row.status in ("failed", "oom"):
                        worker.end()  # a GPU that once raised an error may go on raising it
                        break

    def _environment(self) -> dict[str, str]:
        return blocking(os.environ, self._blocked)


class _Worker:
    """One worker process; leaving the context ends it and whatever it started."""

    def __init__(self, work: Job | Survey, environment: Mapping[str, str]) -> None:
        began = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infer_bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,  # Ctrl-C is the runner's to hear, and the group can be ended
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._news: queue.Queue[str | None] = queue.Queue()
        self._stderr: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_news, args=[self._process.stdout], daemon=True),
            threading.Thread(target=self._read_stderr, args=[self._process.stderr], daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        with suppress(BrokenPipeError):  # it died at once; `next` says why
            self._process.stdin.write(
                json.dumps({"began": began, "work": work.model_dump(mode="json")})
            )
            self._process.stdin.close()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)  # it has said all it had to
        self.end()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def next(
        self, kind: str, *, timeout_s: float, doing: "_Hear | None" = None
    ) -> dict[str, object]:
        """Wait for the next news of a kind; tells `doing` what runs meanwhile.

        Raises:
            WorkerDied: the process ended, or nothing came in time.
        """
        deadline = time.monotonic() + timeout_s
        latest = "starting"
        while True:
            try:
                line = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.end()
                raise WorkerDied(f"timeout: not done after {timeout_s:g} s ({latest})") from None
            if line is None:
                raise WorkerDied(self._why_dead(latest))
            news = json.loads(line)
            if kind in news:
                found: dict[str, object] = news[kind]
                return found
            latest = news["doing"]
            if doing is not None:
                doing(latest)

    def end(self) -> None:
        """Kill the process and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _why_dead(self, latest: str) -> str:
        code = self._process.wait()
        for reader in self._readers:
            reader.join(timeout=1)
        if code < 0:
            how = f"killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += ", as Linux does when memory runs out"
        else:
            how = f"ended with exit code {code}"
        said = [line.strip() for line in self._stderr if line.strip()]
        last = f": {without_paths(said[-1])}" if said else ""
        return f"the process was {how} while {latest}{last}".replace("was ended", "ended")

    def _read_news(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._news.put(line)
        self._news.put(None)

    def _read_stderr(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._stderr = [*self._stderr[1 - STDERR_LINES :], line]


class _Hear(Protocol):
    def __call__(self, text: str) -> None: ...
