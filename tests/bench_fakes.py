"""An engine side without an engine, for tests of the benchmark: times and tokens are scripted."""

import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace

from infer_bench.backend import Backend
from infer_bench.environment import Environment, Gpu
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
        self.device = "cpu"
        self.dtype = "torch.float32"
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


class FakeBackend(Backend):
    """Engines by model name; an exception in place of an engine is raised when it is loaded."""

    def __init__(self, engines, *, registry=None, device="cpu", bandwidth=None, peak=None):
        self.engines = dict(engines)
        self.registry = registry or FakeRegistry(list(engines))
        self.device = device
        self.bandwidth = bandwidth
        self.peak = peak
        self.loads = []
        self.alive_at_load = []
        self._last = None

    def pick_device(self, requested):
        return requested or self.device

    def load_registry(self):
        return self.registry

    def resolve(self, model, registry, device, *, revision=None, weights=True):
        if model not in self.engines:
            raise ModelNotFound(f"{model!r} is neither a folder nor an installed model")
        engine = self.engines[model]
        spec = engine.spec if isinstance(engine, FakeEngine) else toy_spec(max_context=4096)
        return SimpleNamespace(
            name=model,
            label=model.title(),
            spec=spec,
            checkpoint=None,
            hub_id=f"toys/{model}",
            commit=revision,
        )

    def load_engine(self, model, **options):
        # one reference each: from here on only the runner keeps an engine alive
        engine = self.engines.pop(model.name)
        self.loads.append((model.name, options))
        self.alive_at_load.append(self._last is not None and self._last() is not None)
        if isinstance(engine, BaseException):
            raise engine
        self._last = weakref.ref(engine)
        return engine

    def measure_bandwidth(self, device):
        if isinstance(self.bandwidth, BaseException):
            raise self.bandwidth
        return self.bandwidth

    def read_environment(self, device):
        return CPU if device == "cpu" else GPU

    def start_peak(self, device):
        pass

    def peak_bytes(self, device):
        return self.peak
