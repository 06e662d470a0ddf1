"""vLLM, in this process and one request at a time; its scheduler is stepped by hand for timing."""

import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer_bench.engines import LoadedEngine, LoadOptions
from infer_bench.errors import EngineUnavailable
from infer_core import SamplingParams

if TYPE_CHECKING:
    from infer_core import Generation
    from infer_core.model_source import ResolvedModel

# Leaves room for the other engine's leftovers and for vLLM's own CUDA graphs.
GPU_SHARE = 0.6


class Vllm:
    """Loads models with vLLM; needs a GPU."""

    def missing(self) -> str | None:
        return (
            None if importlib.util.find_spec("vllm") else "vllm is not installed; pip install vllm"
        )

    def load(self, model: "ResolvedModel", options: LoadOptions) -> LoadedEngine:
        if options.device == "cpu":
            raise EngineUnavailable("vllm is measured on a GPU only")
        if not options.kv_cache:
            raise EngineUnavailable("vllm has no path without a KV cache")
        began = time.perf_counter()
        # in this process, where peak memory and steps can be seen
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        import vllm

        dummy = model.checkpoint is None or options.weights == "dummy"
        with tempfile.TemporaryDirectory() as scratch:
            folder = model.checkpoint
            if folder is None:
                folder = Path(scratch)
                (folder / "config.json").write_text(json.dumps(dict(model.config)))
            llm = vllm.LLM(
                model=str(folder),
                load_format="dummy" if dummy else "safetensors",
                dtype=options.dtype or model.spec.shape.dtype,
                max_model_len=options.max_context,
                max_num_seqs=1,
                skip_tokenizer_init=True,
                enable_prefix_caching=False,
                gpu_memory_utilization=GPU_SHARE,
                seed=0,
            )
        return LoadedVllm(llm, dummy=dummy, load_s=time.perf_counter() - began)


class LoadedVllm:
    """A vLLM engine ready for one request at a time."""

    plain_path = "none"
    repeatable = False
    kernels = "vllm"

    def __init__(self, llm: Any, *, dummy: bool, load_s: float) -> None:
        self._engine = llm.llm_engine
        self._numbers = count()
        config = self._engine.model_config
        self.dtype = config.dtype
        self.weights_kind = "dummy" if dummy else "checkpoint"
        self.weight_bytes = sum(
            llm.apply_model(lambda network: sum(p.nbytes for p in network.parameters()))
        )
        self.load_s = load_s

    def release(self) -> None:
        """Its cache is one pool, made once."""

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams,
        ignore_eos: bool,
    ) -> "Generation":
        from infer_core import Generation

        tokens, times, began, done = self._run(
            prompt,
            max_tokens=max_new_tokens,
            ignore_eos=ignore_eos,
            detokenize=False,
            temperature=sampling.temperature,
            top_k=sampling.top_k or 0,
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
            min_p=sampling.min_p or 0.0,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
        )
        return Generation(
            tokens=tokens,
            finish_reason="length",
            ttft_ms=1e3 * (times[0] - began),
            step_ms=[1e3 * (b - a) for a, b in pairwise(times)],
            decode_s=done - times[0],
            e2e_s=done - began,
            kv_cache_bytes=0,  # pages of a pool; a request's own share is not told
            warm_up_s=0.0,
        )

    def plain_logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        """Nothing: vLLM has no simpler path that gives whole rows of logits."""

    def _run(
        self, prompt: Sequence[int], **params: Any
    ) -> tuple[list[int], list[float], float, float]:
        import vllm

        began = time.perf_counter()
        self._engine.add_request(
            str(next(self._numbers)),
            {"prompt_token_ids": list(prompt)},
            vllm.SamplingParams(**params),
        )
        tokens: list[int] = []
        times: list[float] = []
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                ids = list(output.outputs[0].token_ids)
                times += [time.perf_counter()] * (len(ids) - len(tokens))
                tokens = ids
        return tokens, times, began, time.perf_counter()


ENGINE = Vllm()
