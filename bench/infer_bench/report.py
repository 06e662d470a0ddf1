"""The report of one run: everything a reader needs to trust or repeat its numbers.

Quantities carry their unit in the name and in the JSON Schema (`report.schema.json` beside this
file). Nothing in a report names a user, a host or a path. Files are `report_files.py`'s business,
older schema versions `migrate.py`'s.
"""

import re
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from infer_bench.cases import Case
from infer_bench.environment import Environment
from infer_bench.gpu_state import GpuActivity, GpuState
from infer_bench.record import Record, quantity

SCHEMA_VERSION: Literal[2] = 2
DType = Literal["float32", "bfloat16", "float16"]
Status = Literal["ok", "invalid", "failed", "oom", "skipped"]
Isolation = Literal["cell", "model"]


class Settings(Record):
    """How every case of a run was measured."""

    seed: int = Field(default=42, ge=0)
    warmup: int = Field(default=2, ge=0, description="untimed runs of a case, at least")
    max_warmup: int = Field(default=5, ge=0, description="and at most, while times still change")
    trials: int = Field(default=3, ge=1, description="timed runs of a case, at least")
    max_trials: int = Field(default=9, ge=1, description="and at most, while they scatter")
    dtype: DType | None = Field(default=None, description="asked for; None leaves it to the engine")
    weights: Literal["auto", "dummy"] = "auto"
    kv_cache: bool = True
    isolation: Isolation = Field(default="cell", description="what has a process of its own")
    timeout_s: float = quantity("s", "a cell that takes longer fails", default=600.0, gt=0)


class Ceilings(Record):
    """What this GPU was measured to be capable of, in this run."""

    read_bandwidth_bytes_per_s: float = quantity("bytes/s", "read-only pass over random data")
    matmul_flops_per_s: float | None = quantity(
        "flop/s", "one large matrix product of random data", default=None
    )
    matmul_dtype: str | None = None


class LoadedModel(Record):
    """What an engine said of itself once a model was loaded."""

    architecture: str
    distribution: str | None
    plugin_version: str | None
    tiny: bool = Field(description="a reference model's small stand-in for machines without a GPU")
    dtype: str
    kernels: str = Field(description="what computes: 'triton', 'reference' (plain torch), ...")
    unfused: bool = Field(
        default=False,
        description="the fused decode kernels do not cover this model: one kernel an operation",
    )
    weights: str = Field(description="'checkpoint' or 'dummy' (seeded random)")
    weight_bytes: int = quantity("bytes", "all parameters, as they lie in memory")
    load_s: float = quantity("s", "from specs to an engine that can take a request")
    num_cpu_threads: int | None = quantity("threads", "torch computed with", default=None)


class Model(Record):
    """A model that was to be measured."""

    name: str = Field(description="what rows refer to")
    label: str = Field(description="column heading")
    plugin: str | None
    hub_id: str | None = Field(
        default=None, description="repository of config and weights; None for a folder or tiny"
    )
    commit: str | None = Field(default=None, description="full commit of that repository")
    resolved: dict[str, Any] | None = Field(
        default=None, description="the plugin's answers (infer_core.ModelSpec), equal layers once"
    )


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


class WarmUp(Record):
    """The untimed runs before the trials of a row."""

    num_runs: int = quantity("runs", "before the first trial")
    wall_s: float = quantity("s", "wall time of these runs, compilation and capture included")
    stable: bool | None = Field(description="the last two took the same time; None with fewer")
    num_compiled: int | None = quantity(
        "kernels",
        "Triton kernels compiled for them, loading included; with 0 all were in Triton's cache on "
        "disk; None for engines whose kernels are not Triton's",
        default=None,
    )


class Parity(Record):
    """Greedy tokens of the path that was timed, held against the engine's plain path.

    The plain path is given the same tokens and says, after each, how likely it finds the next.
    """

    path: str = Field(description="what the plain path is")
    num_tokens: int = quantity("tokens", "compared, from the first generated one on")
    num_equal: int = quantity("tokens", "of these that the plain path would have picked too")
    largest_gap: float = quantity(
        "standard deviations", "of a position's logits between its best token and the one picked"
    )
    tolerance: float = quantity("standard deviations", "a gap that rounding explains")
    agrees: bool = Field(description="no gap is above the tolerance")
    tokens_sha256: str = Field(description="fingerprint of the tokens compared")


class Metrics(Record):
    """What the tables show: medians over the trials of a row."""

    num_trials: int = quantity("trials", "behind every number of the row")
    e2e_tokens_per_s: float = quantity("tokens/s", "n / wall time of the request")
    decode_tokens_per_s: float | None = quantity(
        "tokens/s", "(n - 1) / wall time of decode; None for a single token", default=None
    )
    prefill_tokens_per_s: float | None = quantity("tokens/s", "prompt / ttft_ms", default=None)
    num_steps: int = quantity("steps", "decode steps of all trials", default=0)
    step_p50_ms: float | None = quantity("ms", "median decode step of a trial", default=None)
    step_p95_ms: float | None = quantity("ms", "95th percentile of a trial", default=None)
    step_p99_ms: float | None = quantity("ms", "99th percentile of a trial", default=None)
    ttft_ms: float = quantity("ms", "time to first token")
    kv_cache_mb: float = quantity("MB", "KV cache of the request, 10**6 bytes")
    peak_gpu_gb: float | None = quantity(
        "GB", "largest allocation during the row, 10**9 bytes; None without a GPU", default=None
    )
    mbu: float | None = quantity(
        "fraction",
        "(weights + KV read at mid-generation) / step_p50_ms / measured read bandwidth",
        default=None,
    )
    prefill_mfu: float | None = quantity(
        "fraction", "flops of the prompt / ttft_ms / measured matmul speed", default=None
    )
    tokens_per_joule: float | None = quantity(
        "tokens/J", "generated / energy of the GPU during the trials", default=None
    )
    intervals: dict[str, tuple[float, float]] = quantity(
        "the metric's", "95 % bootstrap interval of the median, by metric", default={}
    )


class Row(Record):
    """One cell of the tables: one engine, one model, one case."""

    engine: str
    model: str
    case: str
    status: Status
    reason: str | None = Field(default=None, description="why the status is not ok")
    loaded: LoadedModel | None = Field(default=None, description="None when it never got that far")
    metrics: Metrics | None = Field(default=None, description="None unless the status is ok")
    warm_up: WarmUp | None = None
    cold_start_s: float | None = quantity(
        "s", "start of the process to its first token; None if it had run before", default=None
    )
    greedy_tokens_sha256: str | None = Field(
        default=None,
        description="fingerprint of the tokens of a greedy row; None where trials differ",
    )
    parity: Parity | None = None
    trials_agree: bool | None = Field(default=None, description="every trial gave the same tokens")
    gpu: GpuActivity | None = Field(default=None, description="clocks and power of the trials")
    samples: tuple[Sample, ...] = ()

    @model_validator(mode="after")
    def _ok_rows_hold_what_readers_rely_on(self) -> Self:
        if self.status != "ok":
            return self
        if self.metrics is None or not self.samples:
            raise ValueError("an ok row has metrics and samples")
        for sample in self.samples:
            if min(sample.num_tokens, sample.e2e_s, sample.ttft_ms, *sample.step_ms) <= 0:
                raise ValueError("every trial of an ok row has tokens, and times above zero")
            if len(sample.step_ms) != sample.num_tokens - 1:
                raise ValueError("every trial of an ok row has a time for each token but the first")
        return self

    @property
    def key(self) -> tuple[str, str, str]:
        """Engine, model and case: what makes a row one of its kind in a report."""
        return self.engine, self.model, self.case


class Report(Record):
    """One run of infer-bench."""

    schema_version: Literal[2] = SCHEMA_VERSION
    created: datetime = Field(description="start of the run, UTC")
    suite: str = Field(description="a suite's name, 'configs' or 'ad-hoc'")
    device: str = Field(description="'cpu' or 'cuda'")
    complete: bool = Field(description="False when the run was interrupted; finished rows stand")
    engines: tuple[str, ...] = Field(min_length=1, description="in the order they were asked for")
    settings: Settings
    cases: tuple[Case, ...]
    environment: Environment
    ceilings: Ceilings | None = None
    gpu_before: GpuState | None = None
    gpu_after: GpuState | None = None
    models: tuple[Model, ...]
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _rows_belong_to_the_plan(self) -> Self:
        cases, models = ({one.name for one in group} for group in (self.cases, self.models))
        for row in self.rows:
            if row.engine not in self.engines or row.model not in models or row.case not in cases:
                raise ValueError(f"row {row.key} is of an engine, model or case that is not listed")
        if len({row.key for row in self.rows}) < len(self.rows):
            raise ValueError("two rows are of the same engine, model and case")
        return self

    @property
    def failures(self) -> tuple[Row, ...]:
        """Rows that were run and are anything but ok."""
        return tuple(row for row in self.rows if row.status not in ("ok", "skipped"))

    def to_json(self) -> str:
        """Render as indented JSON, lists of numbers on one line each."""
        text = self.model_dump_json(indent=2)
        # strings hold no raw line break, so only lists of numbers match
        numbers = re.compile(r"\[\n[\d\s.,eE+-]+\]")
        return numbers.sub(lambda found: " ".join(found[0].split()), text) + "\n"
