"""What the runner and its worker processes tell each other."""

from typing import Literal, Protocol

from infer_bench.cases import Case
from infer_bench.environment import Environment
from infer_bench.gpu_state import GpuState
from infer_bench.record import Record
from infer_bench.report import Ceilings, DType, Row, Settings


class Job(Record):
    """Cases of one model on one engine, for one process."""

    kind: Literal["measure"] = "measure"
    engine: str
    model: str  # as --model takes it: a folder, a hub id or a reference model's name
    revision: str | None = None  # the commit, if `model` is a repository of the hub
    name: str
    label: str
    cases: tuple[Case, ...]
    max_context: int
    settings: Settings
    device: str
    ceilings: Ceilings | None = None


class Survey(Record):
    """Find out what the machine is and what it is capable of."""

    kind: Literal["survey"] = "survey"
    device: str
    dtype: DType | None


class Machine(Record):
    """Answer to a survey; `problem` says why a GPU has no ceilings."""

    environment: Environment
    ceilings: Ceilings | None = None
    gpu: GpuState | None = None
    problem: str | None = None


class Listener(Protocol):
    """Hears of a job's progress while it runs."""

    def doing(self, text: str) -> None:
        """Hear what runs now."""

    def row(self, row: Row) -> None:
        """Hear of a finished cell."""
