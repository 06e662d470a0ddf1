"""This project's engine."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infer_bench.engines import LoadedEngine, LoadOptions
from infer_core import SamplingParams

if TYPE_CHECKING:
    import torch

    from infer_core import Engine, Generation
    from infer_core.model_source import ResolvedModel


class Infer:
    """Loads models with `infer_core`; always installed."""

    def missing(self) -> str | None:
        return None

    def load(self, model: "ResolvedModel", options: LoadOptions) -> LoadedEngine:
        from infer_core import Engine

        return LoadedInfer(
            Engine.load(
                model,
                device=options.device,
                dtype=options.dtype,
                weights=options.weights,
                max_context=options.max_context,
                kv_cache=options.kv_cache,
            )
        )


class LoadedInfer:
    """A loaded `infer_core.Engine`, and a second, plain one over the same weights."""

    plain_path = "no KV cache, no CUDA graph"
    repeatable = True

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    @property
    def dtype(self) -> Any:
        return self._engine.dtype

    @property
    def kernels(self) -> str:
        return self._engine.kernels

    @property
    def unfused(self) -> bool:
        return self._engine.unfused

    @property
    def weights_kind(self) -> str:
        return self._engine.weights_kind

    @property
    def weight_bytes(self) -> int:
        return self._engine.weight_bytes

    @property
    def load_s(self) -> float:
        return self._engine.load_s

    def release(self) -> None:
        self._engine.release()

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams,
        ignore_eos: bool,
    ) -> "Generation":
        return self._engine.generate(
            prompt, max_new_tokens=max_new_tokens, sampling=sampling, ignore_eos=ignore_eos
        )

    def plain_logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> "torch.Tensor":
        from infer_core import Engine

        engine = self._engine
        plain = Engine(
            engine.spec,
            engine.parameters,
            max_context=engine.max_context,
            kv_cache=False,
            cuda_graph=False,
        )
        return plain.score([*prompt, *tokens[:-1]], prompt_len=len(prompt))


ENGINE = Infer()
