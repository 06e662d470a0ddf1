"""A decode chain over random weights of a published shape, without any plugin or pydantic."""

import json
import math
from pathlib import Path
from types import SimpleNamespace as Namespace

import torch

from infer_core import decode_chain


def read(folder: str) -> Namespace:
    """Read a config.json into the attributes of a ModelSpec that the chain uses."""
    raw = json.loads((Path(folder) / "config.json").read_text())
    gemma = "gemma3" in raw["model_type"]
    heads, kv_heads = raw["num_attention_heads"], raw["num_key_value_heads"]
    layers = raw["num_hidden_layers"]
    pattern = raw.get("sliding_window_pattern", 6)
    windows = [
        raw["sliding_window"] if gemma and (layer + 1) % pattern else None
        for layer in range(layers)
    ]
    attention = [
        Namespace(
            num_heads=heads, num_kv_heads=kv_heads, head_dim=raw["head_dim"],
            softmax_scale=raw.get("query_pre_attn_scalar", raw["head_dim"]) ** -0.5,
            window=window, logit_softcap=None,
            qk_norm=None if raw["model_type"] == "llama" else "head",
        )
        for window in windows
    ]  # fmt: skip
    return Namespace(
        name=Path(folder).name,
        shape=Namespace(
            num_layers=layers, hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"], vocab_size=raw["vocab_size"],
        ),
        attention=attention,
        norm=Namespace(
            eps=raw["rms_norm_eps"], weight_offset=1.0 if gemma else 0.0, weight_in_fp32=gemma,
            placement="sandwich" if gemma else "pre",
        ),
        block=Namespace(
            activation="gelu_tanh" if gemma else "silu", gated=True, final_logit_softcap=None,
            embedding_scale=raw["hidden_size"] ** 0.5 if gemma else 1.0,
        ),
    )  # fmt: skip


def parameters(spec: Namespace, device: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of unit gain, bfloat16."""
    generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)
    sizes, offset = spec.shape, spec.norm.weight_offset

    def draw(*shape: int, gain: float | None = None) -> torch.Tensor:
        out = torch.empty(shape, dtype=torch.bfloat16, device=device)
        return out.normal_(0, gain or shape[-1] ** -0.5, generator=generator)

    def norm(width: int) -> torch.Tensor:
        return (draw(width, gain=0.1) + (1 - offset)).to(torch.bfloat16)

    params = {
        "embed": draw(sizes.vocab_size, sizes.hidden_size),
        "final_norm": norm(sizes.hidden_size),
    }
    for layer, a in enumerate(spec.attention):
        n = f"layers.{layer}."
        params[n + "qkv"] = draw((a.num_heads + 2 * a.num_kv_heads) * a.head_dim, sizes.hidden_size)
        params[n + "attn_out"] = draw(sizes.hidden_size, a.num_heads * a.head_dim)
        params[n + "gate_up"] = draw(2 * sizes.intermediate_size, sizes.hidden_size)
        params[n + "mlp_out"] = draw(sizes.hidden_size, sizes.intermediate_size)
        for name in ("attn_norm", "mlp_norm"):
            params[n + name] = norm(sizes.hidden_size)
        if spec.norm.placement == "sandwich":
            for name in ("attn_post_norm", "mlp_post_norm"):
                params[n + name] = norm(sizes.hidden_size)
        if a.qk_norm:
            params[n + "q_norm"], params[n + "k_norm"] = norm(a.head_dim), norm(a.head_dim)
    return params


def tables(spec: Namespace, context: int, device: str):
    """Plain RoPE tables, one a layer."""
    dim = spec.attention[0].head_dim
    frequencies = 1e5 ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angles = torch.arange(context, device=device, dtype=torch.float32)[:, None] * frequencies
    return [(angles.cos(), angles.sin())] * spec.shape.num_layers


def caches(spec: Namespace, context: int, device: str, seed: int = 1):
    """Caches full of random numbers, sliding layers as rings."""
    generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)
    pairs = []
    for a in spec.attention:
        shape = (a.num_kv_heads, min(a.window or context, context), a.head_dim)
        pairs.append(tuple(
            torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(generator=generator)
            for _ in range(2)
        ))  # fmt: skip
    return pairs


def build(spec, context, *, device, pdl, sms=None, params=None, kv=None, tiles=None):
    """Make the chain."""
    if sms is not None:
        decode_chain.num_multiprocessors = lambda device: sms
    return decode_chain.DecodeChain(
        spec, params if params is not None else parameters(spec, device),
        tables(spec, context, device), kv if kv is not None else caches(spec, context, device),
        max_context=context, pdl=pdl, tiles=tiles,
    )  # fmt: skip


def floor_us(spec, params, position: int, bandwidth: float) -> float:
    """Time to read the weights and the cache once, microseconds."""
    weights = sum(p.nbytes for p in params.values())
    kv = sum(4 * min(position, a.window or position) * a.num_kv_heads * a.head_dim
             for a in spec.attention)  # fmt: skip
    return (weights + kv) / bandwidth * 1e6 if not math.isnan(bandwidth) else math.nan


def reference_step(spec, params, kv, token: int, position: int, dtype: torch.dtype) -> torch.Tensor:
    """One step in eager torch at `dtype`; returns logits, writes no cache. The truth at float32."""
    from infer_core.kernels.chain_attention import chain_attention_ref
    from infer_core.kernels.chain_types import Norm
    from infer_core.kernels.linear_residual import linear_residual_ref
    from infer_core.kernels.norm_linear import norm_linear_ref, rms_norm_vector_ref

    norm = Norm(spec.norm.eps, spec.norm.weight_offset, spec.norm.weight_in_fp32)
    sandwich = spec.norm.placement == "sandwich"
    get = lambda name: params[name].to(dtype) if name in params else None  # noqa: E731
    x = get("embed")[token] * torch.tensor(spec.block.embedding_scale, dtype=torch.bfloat16)
    x = x.to(dtype)
    (cos, sin) = tables(spec, position + 1, str(x.device))[0]
    for layer, a in enumerate(spec.attention):
        n = f"layers.{layer}."
        qkv, _ = norm_linear_ref(x, get(n + "attn_norm"), get(n + "qkv"), norm)
        k, v = (cache.to(dtype) for cache in kv[layer])
        out = chain_attention_ref(
            qkv, k.clone(), v.clone(), position, cos, sin, num_heads=a.num_heads,
            softmax_scale=a.softmax_scale, window=a.window, q_norm=get(n + "q_norm"),
            k_norm=get(n + "k_norm"), norm=norm if a.qk_norm else None,
        )  # fmt: skip
        delta = linear_residual_ref(out, get(n + "attn_out"))
        x = x + (rms_norm_vector_ref(delta, get(n + "attn_post_norm"), norm) if sandwich else delta)
        inner, _ = norm_linear_ref(
            x, get(n + "mlp_norm"), get(n + "gate_up"), norm,
            activation=spec.block.activation, gated=True,
        )  # fmt: skip
        delta = linear_residual_ref(inner, get(n + "mlp_out"))
        x = x + (rms_norm_vector_ref(delta, get(n + "mlp_post_norm"), norm) if sandwich else delta)
    return norm_linear_ref(x, get("final_norm"), get("embed"), norm)[0]
