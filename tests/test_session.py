"""What the sessions of an engine share; what one session does is in test_engine.py."""

import itertools

import pytest
import torch
from toy_specs import toy_spec

from infer_core import Engine, SamplingParams
from infer_core.session import GraphPool
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


def graph_pools():
    return {segment["segment_pool_id"] for segment in torch.cuda.memory_snapshot()} - {(0, 0)}


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
