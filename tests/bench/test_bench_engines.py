import sys

import pytest
import transformers
from infer_bench.engines import LoadOptions, check_engines, engine_names, find_engine
from infer_bench.errors import EngineUnavailable, UsageError
from infer_bench.parity import judge

from infer_core import SamplingParams
from infer_core.model_source import resolve_model
from infer_core.plugins import load_registry

GREEDY = SamplingParams()
PROMPT = list(range(3, 40))
REFERENCES = ["llama-3.2-1b", "qwen3-1.7b", "gemma3-1b"]


def options(**changes):
    fields = {
        "device": "cpu",
        "dtype": "float32",
        "weights": "auto",
        "max_context": 64,
        "kv_cache": True,
    }
    return LoadOptions(**(fields | changes))


def resolved(model="llama-3.2-1b"):
    return resolve_model(str(model), load_registry(environ={}), device="cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint, whose greedy continuation of PROMPT begins with its end-of-sequence id."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    config = transformers.LlamaConfig.from_dict(dict(resolved().config))
    transformers.set_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    first = ask(find_engine("infer").load(resolved(folder), options()), 1).tokens[0]
    config.eos_token_id = first
    model.generation_config.eos_token_id = first
    model.save_pretrained(folder)
    return folder


def ask(engine, max_new_tokens=8, sampling=GREEDY):
    return engine.generate(
        PROMPT, max_new_tokens=max_new_tokens, sampling=sampling, ignore_eos=True
    )


@pytest.mark.parametrize("name", ["infer", "transformers", "transformers-static"])
@pytest.mark.parametrize("model", REFERENCES)
def test_an_engine_answers_with_exact_counts_and_its_tokens_are_the_plain_paths(name, model):
    engine = find_engine(name).load(resolved(model), options())

    generation = ask(engine)

    assert len(generation.tokens) == 8
    assert len(generation.step_ms) == 7
    assert min(generation.ttft_ms, generation.decode_s, *generation.step_ms) > 0
    # of the wall time of the request only what lies around the steps is in neither
    assert sum(generation.step_ms) / 1e3 <= generation.decode_s < generation.e2e_s
    assert generation.kv_cache_bytes > 0
    assert (engine.weights_kind, str(engine.dtype)) == ("dummy", "torch.float32")
    logits = engine.plain_logits(PROMPT, generation.tokens)
    verdict = judge(logits, generation.tokens, path=engine.plain_path, dtype="float32")
    assert (verdict.agrees, verdict.num_equal) == (True, 8)


def test_all_engines_give_a_checkpoints_tokens_beyond_its_end_of_sequence(checkpoint):
    model = resolved(checkpoint)

    answers = {}
    for name in ("infer", "transformers", "transformers-static"):
        engine = find_engine(name).load(model, options())
        answers[name] = ask(engine).tokens
        assert engine.weights_kind == "checkpoint"
        assert answers[name][0] in model.spec.eos_token_ids

    assert answers["infer"] == answers["transformers"] == answers["transformers-static"]
    assert len(answers["infer"]) == 8


def test_dummy_weights_of_a_checkpoint_do_not_read_it(checkpoint):
    engine = find_engine("transformers").load(resolved(checkpoint), options(weights="dummy"))

    assert engine.weights_kind == "dummy"


def test_weight_bytes_are_the_same_whoever_counts(checkpoint):
    model = resolved(checkpoint)

    ours, theirs = (find_engine(n).load(model, options()) for n in ("infer", "transformers"))

    assert ours.weight_bytes == theirs.weight_bytes


def test_a_static_cache_serves_requests_of_other_lengths():
    engine = find_engine("transformers-static").load(resolved(), options())

    answers = []
    for max_new_tokens in (4, 9, 4):
        engine.release()
        answers.append(ask(engine, max_new_tokens))

    assert [len(answer.tokens) for answer in answers] == [4, 9, 4]
    # a case does not inherit the longer cache of the case before
    first, longer, last = (answer.kv_cache_bytes for answer in answers)
    assert first == last < longer


def test_sampling_is_seeded_per_request_and_reaches_the_engine():
    engine = find_engine("transformers").load(resolved(), options())
    wild = SamplingParams(temperature=5.0, seed=1)

    first, again, other = (
        ask(engine, sampling=sampling).tokens
        for sampling in (wild, wild, wild.model_copy(update={"seed": 2}))
    )
    top = ask(engine, sampling=SamplingParams(temperature=5.0, top_k=1)).tokens

    assert first == again
    assert first != other
    assert top == ask(engine).tokens


def test_an_architecture_transformers_does_not_have_is_unavailable():
    model = resolved()
    spec = model.spec.model_copy(update={"architecture": "ToyForCausalLM"})
    model = type(model)(model.name, model.label, model.config, spec, None)

    with pytest.raises(EngineUnavailable, match="transformers has no class ToyForCausalLM"):
        find_engine("transformers").load(model, options())


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_a_path_without_a_cache_is_ours_alone(name, monkeypatch):
    monkeypatch.setattr("infer_bench.engines.vllm.Vllm.missing", lambda self: None)

    with pytest.raises(EngineUnavailable, match=r"vllm is measured on a GPU|KV cache"):
        find_engine(name).load(resolved(), options(kv_cache=False))


def test_an_engine_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(EngineUnavailable, match="vllm is not installed; pip install vllm"):
        find_engine("vllm")


ENGINE = """
class Echo:
    def missing(self): return {missing!r}
    def load(self, model, options): return (model, options)
ENGINE = Echo()
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution that brings an engine."""

    def put(name, source):
        info = tmp_path / f"bench_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bench-{name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(
            f"[infer_bench.engines]\n{name} = bench_{name}:ENGINE\n"
        )
        (tmp_path / f"bench_{name}.py").write_text(source)

    monkeypatch.syspath_prepend(str(tmp_path))
    yield put
    for name in [name for name in sys.modules if name.startswith("bench_") and "fakes" not in name]:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_an_installed_engine_is_found_by_its_entry_point(install):
    install("echo", ENGINE.format(missing=None))

    assert engine_names() == ["infer", "transformers", "transformers-static", "vllm", "echo"]
    assert check_engines(["echo", "infer", "echo"]) == ("echo", "infer")
    assert find_engine("echo").load("model", "options") == ("model", "options")


def test_an_installed_engine_cannot_take_the_name_of_ours(install):
    install("infer", ENGINE.format(missing=None))

    assert type(find_engine("infer")).__name__ == "Infer"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nothing_of_this_name", "'odd' .* does not import: ModuleNotFoundError"),
        ("", "'odd' .* does not import: AttributeError"),
        ("raise SystemExit(3)", "'odd' .* does not import: SystemExit: 3"),
        (ENGINE.format(missing="pip install odd"), "^pip install odd$"),
    ],
)
def test_an_engine_that_cannot_run_is_unavailable_with_its_reason(install, source, message):
    install("odd", source)

    with pytest.raises(EngineUnavailable, match=message):
        find_engine("odd")


def test_an_unknown_engine_is_a_usage_error():
    with pytest.raises(UsageError, match="unknown engine 'nobody'; known: infer"):
        check_engines(["nobody"])
