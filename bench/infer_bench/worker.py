"""A process that measures one job: the job comes on stdin, its news go out as lines of JSON.

`python -m infer_bench.worker`, started by `launch.py`. Whatever a model, an engine or a plugin
prints goes to stderr; the original stdout carries news alone.
"""

import ctypes
import json
import os
import signal
import sys
import time
from typing import TextIO

from pydantic import Field, TypeAdapter

from infer_bench.backend import Backend
from infer_bench.job import Job, Survey
from infer_bench.measure import measure
from infer_bench.record import Record
from infer_bench.report import Row

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Task(Record):
    """What a worker reads from stdin; `began` is when its process was started, by the epoch."""

    began: float
    work: Job | Survey = Field(discriminator="kind")


class _Speaker:
    """A listener at the other end of a pipe."""

    def __init__(self, pipe: TextIO) -> None:
        self._pipe = pipe

    def doing(self, text: str) -> None:
        self.say("doing", json.dumps(text))

    def row(self, row: Row) -> None:
        self.say("row", row.model_dump_json())

    def say(self, kind: str, body: str) -> None:
        """Send one line; `body` is JSON already."""
        print(f'{{"{kind}": {body}}}', file=self._pipe, flush=True)


def main() -> None:
    """Do the task on stdin."""
    _end_with_the_parent()
    # a copy of stdout for news; then prints of anybody's, from C as well, join stderr
    news = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task = TypeAdapter(Task).validate_json(sys.stdin.read())
    backend, speaker = Backend(), _Speaker(news)
    if isinstance(task.work, Survey):
        speaker.say("machine", backend.survey(task.work).model_dump_json())
    else:
        measure(task.work, backend, speaker, began=min(task.began, time.time()))
    news.flush()
    os._exit(0)  # everything is said; tearing down torch and CUDA takes a second


def _end_with_the_parent() -> None:
    """Let Linux end this process with the runner, so that a killed run frees the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
