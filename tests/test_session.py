"""What the sessions of an engine share; what one session does is in test_engine.py."""

import itertools
from typing import ClassVar

import pytest
import torch
from toy_specs import toy_spec

from infer_core import Engine, SamplingParams
from infer_core import engine as engine_module
from infer_core.session import GraphPool, Session
from infer_core.weights import dummy_weights


class Graph:
    """Stands for a captured graph: anything that can be kept or dropped."""


@pytest.fixture
def pool(monkeypatch):
    handles = itertools.count()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, next(handles)))
    return GraphPool()


def test_graphs_are_captured_into_one_pool_while_any_of_them_lives(pool):
    first, second = Graph(), Graph()
    handle = pool.handle
    pool.add(first)
    assert pool.handle == handle
    pool.add(second)

    del first

    assert pool.handle == handle


def test_a_pool_whose_last_graph_is_gone_is_not_captured_into_again(pool):
    graph, handle = Graph(), pool.handle
    pool.add(graph)
    del graph

    assert pool.handle != handle


def test_a_capture_that_failed_leaves_no_handle_behind(pool):
    failed = pool.handle

    assert pool.handle != failed


class Replay:
    """Stands for a captured graph on a CPU: runs what was captured."""

    def __init__(self, body):
        self.replay = body


class CapturingSession(Session):
    captures: ClassVar[list] = []

    def _capture(self, body):
        self.captures.append(body)
        body()
        return Replay(body)


def test_requests_with_graphs_give_the_tokens_of_those_without(monkeypatch):
    # lengths of one bucket and of others, in one piece, two and four, greedy and not, and again
    lengths = (5, 9, 40, 75, 200)
    requests = [(length, temperature) for length in lengths for temperature in (0.0, 1.2)]
    spec = toy_spec(max_context=512)
    parameters = dummy_weights(spec, device="cpu", dtype=torch.float32)

    def tokens(engine, length, temperature):
        prompt = [(7 * token) % spec.shape.vocab_size for token in range(length)]
        sampling = SamplingParams(temperature=temperature, seed=length)
        return engine.generate(prompt, max_new_tokens=12, sampling=sampling).tokens

    plain = Engine(spec, parameters, prefill_chunk=64)
    expected = [tokens(plain, *request) for request in requests]
    monkeypatch.setattr(engine_module, "Session", CapturingSession)
    monkeypatch.setattr(CapturingSession, "captures", [])
    captured = Engine(spec, parameters, prefill_chunk=64)
    captured._use_graph = True  # which a CPU has not

    for _ in range(2):
        assert [tokens(captured, *request) for request in requests] == expected
    # contexts 64 (prompts 5, 9 and 40), 128 (75) and 256 (200): of both kinds of pick a step, and a
    # graph a prompt size; for either kind the first piece of 75 and 200, and one for those between
    assert len(CapturingSession.captures) == 2 * (1 + 2 + 1 + 1 + 1 + 1) + 1 + 2


def graph_pools():
    return {segment["segment_pool_id"] for segment in torch.cuda.memory_snapshot()} - {(0, 0)}


@pytest.mark.gpu
@pytest.mark.parametrize("prompt_len", [5, 64, 200])
def test_kernels_that_start_early_change_no_logit(prompt_len, monkeypatch):
    spec = toy_spec(max_context=512)
    engine = Engine(spec, dummy_weights(spec, device="cuda", dtype=torch.bfloat16))
    ids = [token % spec.shape.vocab_size for token in range(prompt_len + 20)]
    early = engine.score(ids, prompt_len=prompt_len)
    for module in ("decode_chain", "kernels._common"):
        monkeypatch.setattr(f"infer_core.{module}.has_pdl", lambda _: False)
    engine.release()

    assert torch.equal(engine.score(ids, prompt_len=prompt_len), early)


@pytest.mark.gpu
def test_graphs_of_many_lengths_share_their_memory_and_stay_right():
    spec = toy_spec(max_context=4096)
    parameters = dummy_weights(spec, device="cuda", dtype=torch.float32)
    lengths = [40, 700, 90, 1500, 300]
    sampled = SamplingParams(temperature=1.0, seed=4)

    def generate(engine, length, sampling=None):
        prompt = [token % spec.shape.vocab_size for token in range(length)]
        return engine.generate(prompt, max_new_tokens=20, sampling=sampling).tokens

    alone = [generate(Engine(spec, parameters), length) for length in lengths]
    drawn = [generate(Engine(spec, parameters), length, sampled) for length in lengths]
    before = graph_pools()
    engine = Engine(spec, parameters)
    for _ in range(2):  # the second time every graph is there, and the others ran in between
        assert [generate(engine, length) for length in lengths] == alone
        assert [generate(engine, length, sampled) for length in lengths] == drawn
    pools = graph_pools() - before
    engine.release()

    assert len(pools) == 1
    # after the last graph of a pool is gone torch takes a new one
    assert generate(engine, lengths[0]) == alone[0]
