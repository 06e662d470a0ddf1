"""Hugging Face transformers: `generate` as a user calls it, with a growing or a static cache.

The static cache is what `generate(cache_implementation="static")` does, which on a GPU also
compiles the forward pass. Weights are the checkpoint's, or the model class's own random ones.
"""

import importlib.util
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from infer_bench.engines import LoadedEngine, LoadOptions
from infer_bench.errors import EngineUnavailable
from infer_core import SamplingParams

if TYPE_CHECKING:
    import torch

    from infer_core import Generation
    from infer_core.model_source import ResolvedModel

# transformers 5 has every name used here.
INSTALL = "transformers is not installed; pip install 'transformers>=5.10'"


@dataclass(frozen=True, slots=True)
class Transformers:
    """Loads models with transformers; `cache` is generate's cache_implementation."""

    cache: Literal["dynamic", "static"]

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("transformers") else INSTALL

    def load(self, model: "ResolvedModel", options: LoadOptions) -> LoadedEngine:
        import torch
        import transformers

        if not options.kv_cache:
            raise EngineUnavailable("transformers is measured with its KV cache only")
        began = time.perf_counter()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        name = model.spec.architecture
        kind = getattr(transformers, name, None)
        if kind is None:
            raise EngineUnavailable(f"transformers has no class {name}")
        default = "float32" if options.device == "cpu" else model.spec.shape.dtype
        dtype = getattr(torch, options.dtype or default)
        if model.checkpoint is not None and options.weights == "auto":
            network = kind.from_pretrained(
                str(model.checkpoint), dtype=dtype, local_files_only=True
            ).to(options.device)
        else:
            config = kind.config_class.from_dict(dict(model.config))
            torch.manual_seed(0)
            with torch.device(options.device):
                network = kind._from_config(config, dtype=dtype)
        # generate would otherwise stop at the model's own end-of-sequence token
        network.generation_config.eos_token_id = None
        network.generation_config.pad_token_id = 0
        dummy = model.checkpoint is None or options.weights == "dummy"
        return LoadedTransformers(
            network.eval(), self.cache, dummy=dummy, load_s=time.perf_counter() - began
        )


class LoadedTransformers:
    """A transformers model ready to generate."""

    plain_path = "one pass over all tokens, no KV cache, not compiled"
    repeatable = False  # in bf16 on an H100 the same request may give other tokens

    def __init__(self, network: Any, cache: str, *, dummy: bool, load_s: float) -> None:
        self._network = network
        self._cache = cache
        self.dtype = network.dtype
        self.kernels = f"torch ({cache} cache)"
        self.weights_kind = "dummy" if dummy else "checkpoint"
        # tied parameters are listed once
        self.weight_bytes = sum(parameter.nbytes for parameter in network.parameters())
        self.load_s = load_s

    def release(self) -> None:
        # Each case gets a static cache of its own length and code compiled for it, as in a process
        # of its own: generate would go on with the longest cache it ever had.
        for name in ("_previous_max_cache_length", "_compiled_call"):
            if name in vars(self._network):
                delattr(self._network, name)
        if "torch._dynamo" in sys.modules:
            sys.modules["torch._dynamo"].reset()

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams,
        ignore_eos: bool,
    ) -> "Generation":
        import torch

        from infer_core import Generation

        stamps = _Stamps()
        ids = torch.tensor([list(prompt)], device=self._network.device)
        torch.manual_seed(sampling.seed)
        began = time.perf_counter()
        with torch.inference_mode(False), torch.no_grad():
            answer = self._network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                streamer=stamps,
                use_cache=True,
                cache_implementation=self._cache,
                return_dict_in_generate=True,
                **_sampling(sampling),
            )
        done = time.perf_counter()
        tokens = answer.sequences[0, len(prompt) :].tolist()
        times = stamps.times
        return Generation(
            tokens=tokens,
            finish_reason="length",
            ttft_ms=1e3 * (times[0] - began),
            step_ms=[1e3 * (b - a) for a, b in pairwise(times)],
            decode_s=done - times[0],
            e2e_s=done - began,
            kv_cache_bytes=_cache_bytes(answer.past_key_values),
            warm_up_s=0.0,
        )

    def plain_logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> "torch.Tensor":
        import torch

        ids = torch.tensor([[*prompt, *tokens[:-1]]], device=self._network.device)
        with torch.no_grad():
            answer = self._network(ids, use_cache=False, logits_to_keep=len(tokens))
        logits: torch.Tensor = answer.logits[0]
        return logits


class _Stamps:
    """A streamer that notes when each token reached the host; the first call is the prompt's."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._seen_prompt = False

    def put(self, value: object) -> None:
        if self._seen_prompt:
            self.times.append(time.perf_counter())
        self._seen_prompt = True

    def end(self) -> None:
        """Nothing is buffered."""


def _sampling(params: SamplingParams) -> dict[str, Any]:
    if params.greedy:
        chosen: dict[str, Any] = {"do_sample": False}
    else:
        # transformers' own default top_k is 50, not off
        chosen = {
            "do_sample": True,
            "temperature": params.temperature,
            "top_k": params.top_k or 0,
            "top_p": 1.0 if params.top_p is None else params.top_p,
            "min_p": params.min_p,
        }
    if params.repetition_penalty != 1.0:
        chosen["repetition_penalty"] = params.repetition_penalty
    return chosen


def _cache_bytes(cache: Any) -> int:
    """Sum what the layers of a transformers cache hold."""
    layers = getattr(cache, "layers", None) or []
    total = 0
    for layer in layers:
        for name in ("keys", "values"):
            tensor = getattr(layer, name, None)
            total += 0 if tensor is None else tensor.nbytes
    return total


EAGER = Transformers("dynamic")
STATIC = Transformers("static")
