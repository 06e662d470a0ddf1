"""The report of one run: everything a reader needs to trust or repeat its numbers.

Quantities carry their unit in the name and in the JSON Schema (`Report.model_json_schema()`).
Nothing in a report names a user, a host or a path.
"""

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from infer_bench.cases import Case
from infer_bench.environment import Environment
from infer_bench.errors import ReportError, UsageError
from infer_bench.record import Record, quantity

DType = Literal["float32", "bfloat16", "float16"]
Status = Literal["ok", "invalid", "failed", "oom"]


class Settings(Record):
    """How every case of a run was measured."""

    seed: int = Field(default=42, ge=0)
    warmup: int = Field(default=2, ge=0, description="untimed runs before the trials of a case")
    trials: int = Field(default=3, ge=1, description="timed runs of a case; medians are over them")
    dtype: DType | None = Field(default=None, description="asked for; None leaves it to the engine")
    weights: Literal["auto", "dummy"] = "auto"
    kv_cache: bool = True


class LoadedModel(Record):
    """What an engine said of itself once a model was loaded."""

    architecture: str
    distribution: str | None
    plugin_version: str | None
    tiny: bool = Field(description="a reference model's small stand-in for machines without a GPU")
    dtype: str
    kernels: str = Field(description="'triton' or 'reference' (plain torch)")
    unfused: bool = Field(
        default=False,
        description="the fused decode kernels do not cover this model: one kernel an operation",
    )
    weights: str = Field(description="'checkpoint' or 'dummy' (seeded random)")
    weight_bytes: int = quantity("bytes", "all parameters, as they lie in memory")
    load_s: float = quantity("s", "from specs to an engine that can take a request")


class Model(Record):
    """A model that was to be measured; `loaded` is None when it never got that far."""

    name: str = Field(description="what rows refer to")
    label: str = Field(description="column heading")
    plugin: str | None
    hub_id: str | None = Field(
        default=None, description="repository of config and weights; None for a folder or tiny"
    )
    commit: str | None = Field(default=None, description="full commit of that repository")
    loaded: LoadedModel | None = None


class Sample(Record):
    """One timed trial, as the engine returned it."""

    num_tokens: int = quantity("tokens", "generated")
    ttft_ms: float = quantity("ms", "token ids on the host to first token on the host")
    step_ms: tuple[float, ...] = quantity("ms", "each decode step, the first token excluded")
    decode_s: float = quantity("s", "wall time of all decode steps")
    e2e_s: float = quantity("s", "wall time of the request")
    warm_up_s: float = quantity("s", "compilation and graph capture inside this trial")
    kv_cache_bytes: int = quantity("bytes", "KV cache of the request")
    tokens_sha256: str = Field(
        description="first 16 hex digits of the SHA-256 of the ids, decimal, joined by commas"
    )


class Metrics(Record):
    """What the tables show: medians over the trials of a row."""

    e2e_tokens_per_s: float = quantity("tokens/s", "n / wall time of the request")
    decode_tokens_per_s: float | None = quantity(
        "tokens/s", "(n - 1) / wall time of decode; None for a single token", default=None
    )
    step_p50_ms: float | None = quantity("ms", "median decode step of a trial", default=None)
    step_p95_ms: float | None = quantity("ms", "95th percentile of a trial", default=None)
    ttft_ms: float = quantity("ms", "time to first token")
    kv_cache_mb: float = quantity("MB", "KV cache of the request, 10**6 bytes")
    peak_gpu_gb: float | None = quantity(
        "GB", "largest allocation during the row, 10**9 bytes; None without a GPU", default=None
    )
    warm_up_s: float = quantity("s", "compilation and graph capture in warm-ups and trials")
    mbu: float | None = quantity(
        "fraction",
        "(weights + KV read at mid-generation) / step_p50_ms / measured read bandwidth",
        default=None,
    )


class Row(Record):
    """One cell of the tables: one model, one case."""

    model: str
    case: str
    status: Status
    reason: str | None = Field(default=None, description="why the status is not ok")
    metrics: Metrics | None = Field(default=None, description="None unless the status is ok")
    greedy_tokens_sha256: str | None = Field(
        default=None, description="fingerprint of the tokens of a greedy row"
    )
    trials_agree: bool | None = Field(default=None, description="every trial gave the same tokens")
    samples: tuple[Sample, ...] = ()


class Report(Record):
    """One run of infer-bench."""

    schema_version: Literal[1] = 1
    created: datetime = Field(description="start of the run, UTC")
    suite: str = Field(description="a suite's name, 'configs' or 'ad-hoc'")
    device: str = Field(description="'cpu' or 'cuda'")
    complete: bool = Field(description="False when the run was interrupted; finished rows stand")
    settings: Settings
    cases: tuple[Case, ...]
    environment: Environment
    read_bandwidth_bytes_per_s: float | None = quantity(
        "bytes/s", "measured on this GPU in this run; None without a GPU", default=None
    )
    models: tuple[Model, ...]
    rows: tuple[Row, ...]

    @property
    def failures(self) -> tuple[Row, ...]:
        """Rows that are anything but ok."""
        return tuple(row for row in self.rows if row.status != "ok")

    def to_json(self) -> str:
        """Render as indented JSON, lists of numbers on one line each."""
        text = self.model_dump_json(indent=2)
        # strings hold no raw line break, so only lists of numbers match
        numbers = re.compile(r"\[\n[\d\s.,eE+-]+\]")
        return numbers.sub(lambda found: " ".join(found[0].split()), text) + "\n"


def prepare_folder(folder: Path) -> None:
    """Make the folder for reports; fail now rather than after a long run.

    Raises:
        UsageError: the folder cannot be made or written.
    """
    probe = folder / f".writable-{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write reports to {folder}: {error.strerror}; "
            "give another --output-dir, or --no-save"
        ) from error


def save_report(report: Report, folder: Path) -> Path:
    """Write a report whole or not at all, under a name of its own.

    Raises:
        ReportError: the file could not be written; nothing of it is left behind.
    """
    gpu = report.environment.gpu.name if report.environment.gpu else report.device
    stem = f"{report.created.astimezone(UTC):%Y%m%dT%H%M%SZ}-{report.suite}-{_slug(gpu)}"
    path = folder / f"{stem}.json"
    number = 2
    while path.exists():
        path = folder / f"{stem}-{number}.json"
        number += 1

    unfinished = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        with unfinished.open("x", encoding="utf-8") as file:
            file.write(report.to_json())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise ReportError(f"cannot write the report {path}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
