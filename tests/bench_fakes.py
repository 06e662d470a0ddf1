"""An engine side without an engine, for tests of the benchmark: times and tokens are scripted."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from infer_bench.backend import Backend
from infer_bench.environment import Environment, Gpu
from infer_bench.errors import EngineUnavailable
from infer_bench.gpu_watch import GpuWatch
from infer_bench.job import Machine
from infer_bench.measure import measure
from infer_bench.report import Ceilings
from toy_specs import toy_spec

from infer_core import ModelNotFound, ReferenceModel
from infer_core.plugin_status import PluginStatus

CPU = Environment(
    gpu=None,
    operating_system="Linux",
    machine="x86_64",
    num_cpu_threads=2,
    python="3.11.0",
    torch="2.13.0",
    triton="3.9.0",
    cuda=None,
    infer_core="0.1.0",
    plugins={"infer-toy": "0.1.0"},
    git_revision=None,
)
GPU = CPU.model_copy(
    update={
        "gpu": Gpu(
            name="Toy GPU 9000",
            compute_capability="9.0",
            num_sms=132,
            memory_bytes=141 * 10**9,
            driver="580.1",
        ),
        "cuda": "13.0",
    }
)


def one_token_after_another(call, max_new_tokens):
    """Give the same tokens whatever the call."""
    return list(range(max_new_tokens))


class FakeEngine:
    """Answers every request; `tokens` and `times` decide with what.

    `tokens(call, max_new_tokens)` gives the ids, `times(call, num_tokens)` a dict that overrides
    fields of the generation; `call` counts requests of one case from 0, warm-ups included.
    """

    def __init__(self, spec=None, *, tokens=one_token_after_another, times=None):
        self.spec = spec or toy_spec(max_context=4096)
        self.dtype = "torch.float32"
        self.plain_path = "scripted"
        self.repeatable = True
        self.plain_tokens = lambda tokens: tokens
        self.kernels = "reference"
        self.unfused = False
        self.weights_kind = "dummy"
        self.weight_bytes = 4000
        self.load_s = 0.25
        self.tokens = tokens
        self.times = times or (lambda call, num_tokens: {})
        self.requests = []
        self.call = 0
        self.num_releases = 0

    def release(self):
        self.num_releases += 1
        self.call = 0

    def generate(self, prompt, *, max_new_tokens, sampling, ignore_eos):
        self.requests.append(SimpleNamespace(**{k: v for k, v in locals().items() if k != "self"}))
        tokens = self.tokens(self.call, max_new_tokens)
        generation = {
            "tokens": tokens,
            "finish_reason": "length",
            "ttft_ms": 1.0,
            "step_ms": [1.0] * (len(tokens) - 1),
            "decode_s": 1e-3 * max(1, len(tokens) - 1),
            "e2e_s": 1e-3 * len(tokens),
            "kv_cache_bytes": 2_000_000,
            "warm_up_s": 0.5 if self.call == 0 else 0.0,
        } | self.times(self.call, len(tokens))
        self.call += 1
        return SimpleNamespace(**generation)

    def plain_logits(self, prompt, tokens):
        """Be sure of `plain_tokens(tokens)`, whatever the vocabulary."""
        best = torch.tensor(self.plain_tokens(list(tokens)))
        return torch.nn.functional.one_hot(best, max(*tokens, *best.tolist()) + 2).float()


def reference(name, label=None):
    """Build a reference model nobody will load."""
    return ReferenceModel(
        name=name,
        label=label or name.title(),
        hub_id=f"toys/{name}",
        revision="0" * 40,
        config={},
        tiny_config={},
    )


@dataclass
class FakeRegistry:
    """Plugins by name, each with a reference model of the same name, and the broken ones."""

    names: list = field(default_factory=list)
    broken: dict = field(default_factory=dict)
    blocked: list = field(default_factory=list)

    @property
    def statuses(self):
        return (
            *(PluginStatus(name, f"infer-{name}", "0.1.0") for name in self.names),
            *(
                PluginStatus(name, f"infer-{name}", "0.1.0", "broken", reason, "pip install it")
                for name, reason in self.broken.items()
            ),
            *(PluginStatus(name, f"infer-{name}", "0.1.0", "blocked") for name in self.blocked),
        )

    def reference_models(self):
        return [(name, reference(name)) for name in self.names]


class InThisProcess:
    """Runs jobs here: nothing is isolated and nothing times out."""

    def __init__(self, backend):
        self._backend = backend

    def survey(self, survey):
        return self._backend.survey(survey)

    def run(self, job, listener):
        measure(job, self._backend, listener)


def in_this_process(backend, blocked):
    """Give the launcher that fakes need; nothing of theirs exists in another process."""
    return InThisProcess(backend)


class FakeBackend(Backend):
    """Engines by model name; an exception in place of an engine is raised when it is loaded.

    Keys may be (engine name, model name) for several engines; `missing` maps the names of
    engines that are not installed to the reason.
    """

    def __init__(
        self,
        engines,
        *,
        registry=None,
        device="cpu",
        bandwidth=None,
        matmul=None,
        peak=None,
        gauge=None,
        missing=None,
    ):
        self.engines = dict(engines)
        names = dict.fromkeys(key if isinstance(key, str) else key[1] for key in engines)
        self.registry = registry or FakeRegistry(list(names))
        self.device = device
        self.bandwidth = bandwidth
        self.matmul = matmul
        self.peak = peak
        self.gauge = gauge
        self.missing = missing or {}
        self.threads = 4
        self.loads = []

    def pick_device(self, requested):
        return requested or self.device

    def load_registry(self):
        return self.registry

    def resolve(self, model, registry, device, *, revision=None, weights=True):
        found = [e for key, e in self.engines.items() if model in (key, key[1])]
        if not found:
            raise ModelNotFound(f"{model!r} is neither a folder nor an installed model")
        engine = found[0]
        spec = engine.spec if isinstance(engine, FakeEngine) else toy_spec(max_context=4096)
        return SimpleNamespace(
            name=model,
            label=model.title(),
            spec=spec,
            checkpoint=None,
            hub_id=f"toys/{model}",
            commit=revision,
        )

    def check_engine(self, engine):
        if engine in self.missing:
            raise EngineUnavailable(self.missing[engine])

    def load_engine(self, engine, model, options):
        self.loads.append((engine, model.name, options))
        loaded = self.engines.get((engine, model.name), self.engines.get(model.name))
        if isinstance(loaded, BaseException):
            raise loaded
        return loaded

    def survey(self, survey):
        if isinstance(self.bandwidth, BaseException):
            problem = f"{type(self.bandwidth).__name__}: {self.bandwidth}"
            return Machine(environment=GPU, problem=problem)
        ceilings = None
        if self.bandwidth is not None:
            ceilings = Ceilings(
                read_bandwidth_bytes_per_s=self.bandwidth,
                matmul_flops_per_s=self.matmul,
                matmul_dtype="float32",
            )
        return Machine(environment=CPU if survey.device == "cpu" else GPU, ceilings=ceilings)

    def gpu_state(self, device):
        return self.gauge.read() if self.gauge else None

    def watch_gpu(self, device):
        return GpuWatch(self.gauge)

    def use_one_thread(self):
        self.threads = 1

    def num_threads(self):
        return self.threads

    def start_peak(self, device):
        pass

    def peak_bytes(self, device):
        return self.peak
