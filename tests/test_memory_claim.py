"""A GPU that is too small is told of before anything is allocated; a fake says what is free."""

import weakref

import pytest
import torch
from test_prefix_reuse import GraphSession, ids, run
from toy_specs import toy_spec

from infer_core import Engine, OutOfMemory
from infer_core.memory import memory_need
from infer_core.model_source import resolve_model
from infer_core.plugins import load_registry
from infer_core.session import Session
from infer_core.weights import dummy_weights


class Memory:
    """What the fake GPU has free: `size` less the caches of the engine's sessions."""

    def __init__(self):
        self.size = 10**12
        self.engine = None
        self.num_questions = 0

    def free_bytes(self, device):
        self.num_questions += 1
        sessions = self.engine._sessions.values() if self.engine else ()
        return self.size - sum(session.cache.num_bytes for session in sessions)


@pytest.fixture
def memory(monkeypatch):
    memory = Memory()
    monkeypatch.setattr("infer_core.memory_claim.free_bytes", memory.free_bytes)
    return memory


@pytest.fixture
def engine(memory):
    spec = toy_spec(max_context=4096)
    memory.engine = Engine(spec, dummy_weights(spec, device="cpu", dtype=torch.float32))
    return memory.engine


def need_of(context, *, prompt):
    return memory_need(
        toy_spec(max_context=4096),
        context=context,
        prompt=prompt,
        dtype="float32",
        prefill_chunk=2048,
        device="cpu",
    )


def test_weights_that_do_not_fit_are_refused_before_any_is_made(memory, monkeypatch):
    model = resolve_model("llama-3.2-1b", load_registry(), device="cuda", weights=False)
    monkeypatch.delattr("infer_core.engine.dummy_weights")
    memory.size = 2_000_000_000

    with pytest.raises(OutOfMemory) as refused:
        Engine.load(model, device="cpu", dtype="float32")

    message = str(refused.value)
    assert message.startswith("LlamaForCausalLM in float32, with a context of 64 tokens, needs 4.")
    assert "(weights 4.94 GB, KV cache 4.2 MB, workspace " in message
    assert "2.00 GB are free on cpu. Load a smaller model, load in bfloat16, or close" in message


def test_weights_that_torch_has_no_memory_for_are_told_of_the_same_way(memory, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr("infer_core.engine.dummy_weights", fail)
    model = resolve_model("llama-3.2-1b", load_registry(), device="cpu", weights=False)

    with pytest.raises(
        OutOfMemory, match=r"ran out \(CUDA out of memory. Tried to allocate 2.00 GiB\): Llama"
    ):
        Engine.load(model, device="cpu")


def test_a_request_that_does_not_fit_is_refused_and_a_smaller_one_still_runs(memory, engine):
    memory.size = need_of(1000, prompt=900).total_bytes - need_of(1, prompt=1).weight_bytes - 1

    with pytest.raises(OutOfMemory) as refused:
        engine.generate(ids(900), max_new_tokens=100)

    assert str(refused.value).startswith("a context of 1024 tokens, beside the 0.2 MB of float32")
    assert "(KV cache 0.6 MB, workspace " in str(refused.value)
    assert engine._sessions == {}
    assert len(engine.generate(ids(90), max_new_tokens=10).tokens) == 10


def test_sessions_unused_for_longest_make_room_for_a_new_one(memory, engine):
    for prompt in (100, 200, 300, 100):
        engine.generate(ids(prompt), max_new_tokens=20)
    assert list(engine._sessions) == [256, 320, 128]
    need = need_of(512, prompt=480)
    caches = {context: s.cache.num_bytes for context, s in engine._sessions.items()}
    memory.size = caches[128] + need.kv_cache_bytes + need.workspace_bytes

    engine.generate(ids(480), max_new_tokens=20)

    assert list(engine._sessions) == [128, 512]


def test_a_conversation_goes_on_without_its_cache_where_both_do_not_fit(memory, engine):
    expected = run(Engine(engine.spec, engine.parameters), ids(1100), reuse=False)[0].tokens
    run(engine, ids(900))
    need = need_of(2048, prompt=1100)
    memory.size = need.kv_cache_bytes + need.workspace_bytes

    generation, _ = run(engine, ids(1100))

    assert (generation.tokens, generation.num_cached_tokens) == (expected, 0)
    assert list(engine._sessions) == [2048]


def test_a_warm_session_is_asked_for_no_memory(memory, engine, monkeypatch):
    monkeypatch.setattr("infer_core.engine.Session", GraphSession)
    engine.generate(ids(100), max_new_tokens=20)
    before = memory.num_questions

    engine.generate(ids(100), max_new_tokens=20)

    assert before > 0
    assert memory.num_questions == before


def test_a_longer_prompt_of_a_session_is_refused_before_it_is_captured(memory, engine, monkeypatch):
    monkeypatch.setattr("infer_core.engine.Session", GraphSession)
    short = engine.generate(ids(64), max_new_tokens=900).tokens
    memory.size = engine._sessions[1024].cache.num_bytes + need_of(1024, prompt=900).pass_bytes - 1

    with pytest.raises(OutOfMemory, match=r"GPU memory \(workspace [\d.]+ MB\)"):
        engine.generate(ids(900), max_new_tokens=64)

    assert engine.generate(ids(64), max_new_tokens=900).tokens == short


def test_torch_running_out_leaves_no_session_and_holds_nothing(memory, engine, monkeypatch):
    expected = engine.generate(ids(50), max_new_tokens=9).tokens
    held = []

    def fail(session, *_, **__):
        taken = torch.zeros(1000)
        held.append(weakref.ref(taken))
        held.append(weakref.ref(session))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")

    with monkeypatch.context() as patched:
        patched.setattr(Session, "prefill", fail)
        with pytest.raises(OutOfMemory) as told:
            engine.generate(ids(700), max_new_tokens=9)

    assert "ran out (CUDA out of memory. Tried to allocate 20.00 MiB): a context of 768" in str(
        told.value
    )
    assert engine._sessions == {}
    assert [reference() for reference in held] == [None, None]
    assert engine.generate(ids(50), max_new_tokens=9).tokens == expected


def test_scoring_is_refused_and_told_of_as_generating_is(memory, engine, monkeypatch):
    memory.size = 1000
    with pytest.raises(OutOfMemory, match=r"a context of 64 tokens"):
        engine.score(ids(20), prompt_len=10)

    memory.size = 10**12

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Session, "force", fail)
    with pytest.raises(OutOfMemory, match=r"ran out \(CUDA out of memory.\): a context of 64"):
        engine.score(ids(20), prompt_len=10)
    assert engine._sessions == {}


@pytest.mark.gpu
def test_a_real_gpu_that_is_full_refuses_and_serves_again_once_it_is_not():
    spec = toy_spec(max_context=2**20)  # whose cache takes 302 MB
    engine = Engine(spec, dummy_weights(spec, device="cuda", dtype=torch.bfloat16))
    prompt = ids(20)
    expected = engine.generate(prompt, max_new_tokens=30).tokens
    engine.release()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    rest = 64 * 2**20
    filler = torch.empty(free - rest, dtype=torch.uint8, device="cuda")

    with pytest.raises(OutOfMemory, match=r"a context of 1048576 tokens.* are free on cuda"):
        engine.generate(prompt, max_new_tokens=2**20 - 20)

    assert engine._sessions == {}
    del filler
    torch.cuda.empty_cache()
    assert engine.generate(prompt, max_new_tokens=30).tokens == expected
