"""What an engine must offer to be measured, and where engines come from.

Another engine is a distribution with an entry point in the group `infer_bench.engines` whose
object has the attributes of `Engine`; its module must import in milliseconds, so the heavy parts
belong inside `load`. docs/benchmarking.md has an example.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, Protocol

from infer_bench.environment import ENGINE_GROUP
from infer_bench.errors import EngineUnavailable, UsageError
from infer_bench.report import DType
from infer_core import SamplingParams

if TYPE_CHECKING:
    import torch

    from infer_core import Generation
    from infer_core.model_source import ResolvedModel

# Our own are listed here and not in the group, so that they are there in a source tree as well.
BUILT_IN = {
    "infer": "infer_bench.engines.infer:ENGINE",
    "transformers": "infer_bench.engines.transformers:EAGER",
    "transformers-static": "infer_bench.engines.transformers:STATIC",
    "vllm": "infer_bench.engines.vllm:ENGINE",
}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is to be loaded; `dtype` None leaves it to the model's config."""

    device: str
    dtype: DType | None
    weights: Literal["auto", "dummy"]
    max_context: int
    kv_cache: bool


class LoadedEngine(Protocol):
    """A model on a device, ready for one request at a time."""

    @property
    def dtype(self) -> Any: ...
    @property
    def kernels(self) -> str: ...
    @property
    def weights_kind(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def load_s(self) -> float: ...

    # What `plain_logits` computes with, for the report.
    plain_path: str
    # Whether a greedy request is promised the same tokens every time. Trials of an engine without
    # that promise may differ, if its plain path finds every token of each right within rounding.
    repeatable: bool

    def release(self) -> None:
        """Free caches of the case before; the weights stay."""

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams,
        ignore_eos: bool,
    ) -> "Generation":
        """Continue `prompt`; times as `infer_core.Generation` defines them."""

    def plain_logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> "torch.Tensor | None":
        """Give what the simplest path computes after `prompt` and each of `tokens[:-1]`.

        Shape: [len(tokens), vocab_size], any float dtype; row i decides `tokens[i]`. None where
        there is no path besides the one that `generate` takes.
        """


class Engine(Protocol):
    """An implementation that can load the models of `infer_core`."""

    def missing(self) -> str | None:
        """Say what must be installed first; None when it can run."""

    def load(self, model: "ResolvedModel", options: LoadOptions) -> LoadedEngine:
        """Load a model.

        Raises:
            EngineUnavailable: this engine cannot run this model or these options.
        """


def engine_names() -> list[str]:
    """List every engine that may be asked for, ours first."""
    return [*BUILT_IN, *(name for name in _installed() if name not in BUILT_IN)]


def check_engines(names: Sequence[str]) -> tuple[str, ...]:
    """Give the names in their order, repeats dropped.

    Raises:
        UsageError: one is not an engine.
    """
    known = engine_names()
    for name in names:
        if name not in known:
            raise UsageError(
                f"unknown engine {name!r}; known: {', '.join(known)}. Others come with "
                f"distributions that have an entry point in the group {ENGINE_GROUP}"
            )
    return tuple(dict.fromkeys(names))


def find_engine(name: str) -> Engine:
    """Import an engine.

    Raises:
        EngineUnavailable: it is not there, does not import, or what it needs is not installed.
    """
    entry = (
        EntryPoint(name, BUILT_IN[name], ENGINE_GROUP)
        if name in BUILT_IN
        else _installed().get(name)
    )
    if entry is None:
        raise EngineUnavailable(f"no installed distribution brings an engine named {name!r}")
    try:
        engine: Engine = entry.load()
        missing = engine.missing()
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything
        raise EngineUnavailable(
            f"engine {name!r} ({entry.value}) does not import: {type(error).__name__}: {error}"
        ) from error
    if missing is not None:
        raise EngineUnavailable(missing)
    return engine


def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENGINE_GROUP)}
