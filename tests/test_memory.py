from dataclasses import astuple, replace

import pytest
import torch
from live_bytes import LiveBytes
from toy_specs import toy_spec

from infer_core.decoder import Decoder, Piece
from infer_core.device import cublas_workspace_bytes
from infer_core.kernels._common import has_tma
from infer_core.kernels.linear import parts_tile
from infer_core.kernels.mlp import FUSED_FROM, fused_schedule
from infer_core.memory import memory_need
from infer_core.model_source import resolve_model
from infer_core.ops import Ops
from infer_core.parameters import model_parameters
from infer_core.plugins import load_registry
from infer_core.session import GraphPool, Session
from infer_core.weights import dummy_weights

CHUNK = 2048


def rows_of(x, width=None):
    return torch.empty((x.shape[0], width or x.shape[1]), dtype=x.dtype, device=x.device)


def add_rms_norm(x, residual, weight, eps, **_):
    new_residual = rows_of(residual)
    return (new_residual if weight is None else rows_of(residual)), new_residual


def linear(x, weight, *_, **__):
    return rows_of(x, weight.shape[0])


def linear_parts(x, weight, *_):
    tile = parts_tile(x.shape[0], *weight.shape, num_sms=132)
    if tile is None or tile.parts == 1:
        return linear(x, weight)[None]
    return torch.empty((tile.parts, x.shape[0], weight.shape[0]), device=x.device)


def linear_activation(x, weight, *_, gated, **__):
    return rows_of(x, weight.shape[0] // (2 if gated else 1))


def mlp_flags(x, inner_size, num_layers):
    if len(x) < FUSED_FROM:
        return None
    blocks = (-(-len(x) // 128), -(-inner_size // 128))
    return torch.empty((num_layers, *blocks), dtype=torch.int32, device=x.device)


def two_kernels(linear_activation, linear_parts):
    def mlp_parts(x, gate_up, mlp_out, gate_up_bias=None, *_, gated, **__):
        y = linear_activation(x, gate_up, gated=gated)
        return linear_parts(y, mlp_out)

    return mlp_parts


def mlp_parts(x, gate_up, mlp_out, gate_up_bias, out_bias, *, gated, flags, **how):
    if flags is None or not gated or gate_up_bias is not None or out_bias is not None:
        return two_kernels(linear_activation, linear_parts)(x, gate_up, mlp_out, gated=gated)
    num_parts = fused_schedule(len(x), *mlp_out.shape, 132).parts
    padded = -(-len(x) // 256) * 256
    parts = torch.empty((num_parts, padded, mlp_out.shape[0]), device=x.device)
    y = rows_of(x, mlp_out.shape[1])
    return parts[:, : len(y)]


# What each kernel's launcher allocates, and nothing more: a reference makes fp32 copies.
ALLOCATIONS = Ops(
    name="triton",
    embed=lambda tokens, weight, scale: rows_of(tokens, weight.shape[1]).to(weight.dtype),
    linear=linear,
    qkv_linear=linear,
    linear_parts=linear_parts,
    linear_activation=linear_activation,
    mlp_flags=mlp_flags,
    mlp_parts=mlp_parts,
    rms_norm=lambda x, weight, eps, in_place=False, **_: x if in_place else rows_of(x),
    add_rms_norm=add_rms_norm,
    qk_norm_rope=lambda *_, **__: None,
    write_kv=lambda *_, **__: None,
    prefill_attention=lambda qkv, *_, num_heads, head_dim, **__: rows_of(qkv, num_heads * head_dim),
    decode_attention=lambda qkv, *_, num_heads, head_dim, **__: rows_of(qkv, num_heads * head_dim),
)


def whole_product(x, weight, *_):
    return linear(x, weight)[None]


def activation_after(x, weight, *_, gated, **__):
    return rows_of(linear(x, weight), weight.shape[0] // (2 if gated else 1))


# The same where cuBLAS makes the products, and the activation is a kernel of its own.
CUBLAS = replace(
    ALLOCATIONS,
    linear_parts=whole_product,
    mlp_flags=lambda *_: None,
    mlp_parts=two_kernels(activation_after, whole_product),
)


def specs():
    registry = load_registry()
    for _, model in registry.reference_models():
        spec = resolve_model(model.name, registry, device="cuda", weights=False).spec
        yield pytest.param(spec, id=model.name)
    wide = {"num_layers": 4, "max_context": 4096}
    yield pytest.param(toy_spec(**wide, gated=False, biases=True), id="ungated")
    yield pytest.param(toy_spec(**wide, placement="post", qk_norm="projection"), id="post-norm")


@pytest.mark.parametrize("spec", list(specs()))
@pytest.mark.parametrize(("context", "prompt"), [(128, 64), (1088, 1024), (4000, 3900)])
@pytest.mark.parametrize(
    ("ops", "num_sms", "fuses_mlp"),
    [
        pytest.param(ALLOCATIONS, 132, True, id="kernels"),
        pytest.param(replace(ALLOCATIONS, mlp_flags=lambda *_: None), 132, False, id="no-hopper"),
        pytest.param(CUBLAS, None, False, id="cublas"),
    ],
)
def test_a_session_and_its_prefill_take_what_is_predicted(
    spec, context, prompt, ops, num_sms, fuses_mlp, monkeypatch
):
    monkeypatch.setattr("infer_core.memory._fuses_mlp", lambda device: fuses_mlp)
    monkeypatch.setattr("infer_core.memory._product_sms", lambda *_: num_sms)
    monkeypatch.setattr("infer_core.session.use_chain", lambda spec, device: not spec.uncommon)
    dtype = spec.shape.dtype
    parameters = {
        name: torch.empty(each.shape, dtype=getattr(torch, dtype), device="meta")
        for name, each in model_parameters(spec).items()
    }
    need = memory_need(
        spec, context=context, prompt=prompt, dtype=dtype, prefill_chunk=CHUNK, device="cpu"
    )

    with torch.inference_mode(), LiveBytes("meta") as live:
        decoder = Decoder(spec, parameters, context=need.context, padding=CHUNK, ops=ops)
        session = Session(
            spec,
            parameters,
            decoder,
            use_kv_cache=True,
            use_graph=False,
            prefill_chunk=CHUNK,
            graph_pool=GraphPool(),
        )
        kept = live.now
        if spec.uncommon:  # else they are the chain's
            session.logits = torch.empty((1, spec.shape.vocab_size), device="meta")
        rows = torch.empty(min(prompt, CHUNK), dtype=torch.int64, device="meta")
        count = torch.empty(1, dtype=torch.int32, device="meta")
        if spec.uncommon:
            session.logits = decoder.forward(
                rows, session.cache, count, is_prefill=True, count=count
            )
        else:
            decoder.hidden(rows, Piece(session.cache, count, count, True, False))
        taken = live.peak - kept - rows.nbytes

    assert need.kv_cache_bytes == session.cache.num_bytes
    # 8 KiB: tables of the sampling kernels whose size depends on nothing
    assert need.session_bytes == pytest.approx(kept - session.cache.num_bytes, rel=0.02, abs=8192)
    assert need.pass_bytes == pytest.approx(taken, rel=0.001, abs=2048)


def need_of(**changes):
    arguments = {"context": 1000, "dtype": "bfloat16", "prefill_chunk": CHUNK, "device": "cpu"}
    return memory_need(toy_spec(max_context=4096), **{**arguments, **changes})


def test_without_tma_the_wide_mlp_is_in_memory_beside_the_narrow(monkeypatch):
    spec = toy_spec(max_context=4096)
    shape = spec.shape.model_copy(update={"intermediate_size": 1000})
    wide = spec.model_copy(update={"shape": shape})
    # short enough for an MLP of two kernels
    here = {"context": 256, "dtype": "bfloat16", "prefill_chunk": CHUNK, "device": "cuda"}
    without_a_gpu = memory_need(wide, **here)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("infer_core.memory.num_multiprocessors", lambda device: 132)
    monkeypatch.setattr("infer_core.memory.has_tma", has_tma.__wrapped__)  # remembers nothing
    pass_bytes = []
    for capability in (9, 0), (8, 9):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        need = memory_need(wide, **here)
        pass_bytes.append(need.pass_bytes - cublas_workspace_bytes("cuda"))
        assert need == without_a_gpu or capability < (9, 0)

    # gate and up, less what `linear_parts` leaves, which does not lie beside them
    hidden = spec.shape.hidden_size
    assert pass_bytes[1] - pass_bytes[0] == 256 * 2 * (2 * 1000 - hidden)


def test_a_ring_caches_no_more_than_its_window():
    ring = toy_spec(window=5, ring=True)

    need = memory_need(ring, context=64, dtype="bfloat16", prefill_chunk=CHUNK, device="cpu")

    # 3 layers, 2 of them rings, of 2 kv heads * 12, keys and values, 2 bytes
    assert need.kv_cache_bytes == 2 * 48 * (5 + 5 + 64)


def test_weights_are_those_of_the_parameters():
    spec = toy_spec(tied=False, biases=True)
    weights = dummy_weights(spec, device="cpu", dtype=torch.float32)

    need = memory_need(spec, context=64, dtype="float32", prefill_chunk=CHUNK, device="cpu")

    assert need.weight_bytes == sum(weight.nbytes for weight in weights.values())
    assert need.num_parameters == sum(weight.numel() for weight in weights.values())


def test_a_context_takes_the_memory_of_its_bucket():
    assert need_of(context=1025) == need_of(context=1280)
    assert need_of(context=1025).context == 1280
    assert need_of(context=1025, max_context=1100).context == 1100


def test_a_batch_takes_as_many_caches_and_one_prefill():
    one, three = need_of(), need_of(batch=3)

    assert three.kv_cache_bytes == 3 * one.kv_cache_bytes
    assert one.session_bytes < three.session_bytes < 3 * one.session_bytes
    assert (three.pass_bytes, three.weight_bytes) == (one.pass_bytes, one.weight_bytes)


def test_pieces_of_a_long_prompt_bound_its_memory():
    assert need_of(context=4096).pass_bytes == need_of(context=2048).pass_bytes
    # without a cache there are no pieces
    assert need_of(context=4096, kv_cache=False).pass_bytes > 1.9 * need_of().pass_bytes
    assert need_of(kv_cache=False).kv_cache_bytes == 0


def test_every_part_counts_in_the_total():
    need = need_of()
    assert need.total_bytes == sum(astuple(need)[2:])
