"""Qwen3 dense models (Qwen3ForCausalLM) for infer_core.

Differs from Llama in three ways: q and k are RMS-normalised per head before RoPE, head_dim is
128 whatever hidden_size is (0.6B: 16 heads * 128 = 2048, hidden_size 1024), and the last layers
may use a sliding window (`use_sliding_window`; no published dense model switches it on).

Source: config.json and weight names of the published Qwen3 checkpoints; facts about omitted
fields and rounding from transformers' modeling_qwen3.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infer_core import (
    Architectures,
    AttentionLayout,
    BlockLayout,
    ConfigError,
    ConfigFields,
    KVCachePolicy,
    ModelShape,
    NormFlavour,
    ReferenceModel,
    WeightRule,
    activation,
    hookimpl,
    layer_windows,
    rope_from_parameters,
)

__version__ = "0.1.0"

# What Qwen3 means by a field that config.json leaves out.
DEFAULTS: dict[str, Any] = {
    "head_dim": 128,
    "attention_bias": False,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "dtype": "float32",
}

TINY = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 152,
    "vocab_size": 307,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


@hookimpl
def infer_architectures() -> Architectures:
    published = Path(__file__).with_name("qwen3-1.7b.json").read_text(encoding="utf-8")
    return Architectures(
        architectures=("Qwen3ForCausalLM",),
        model_types=("qwen3",),
        reference_models=(
            ReferenceModel(
                name="qwen3-1.7b",
                label="Qwen3",
                hub_id="Qwen/Qwen3-1.7B",
                revision="70d244cc86ccca08cf5af4e1e306ecf908b1ad5e",
                config=json.loads(published),
                tiny_config=TINY,
            ),
        ),
    )


@hookimpl
def infer_config_fields(config: Mapping[str, Any]) -> ConfigFields:
    return ConfigFields(
        honoured=frozenset(
            {
                "num_hidden_layers",
                "hidden_size",
                "intermediate_size",
                "vocab_size",
                "max_position_embeddings",
                "num_attention_heads",
                "num_key_value_heads",
                "rms_norm_eps",
                "rope_parameters",
                "sliding_window",
                "layer_types",
            }
        ),
        defaults=DEFAULTS,
    )


@hookimpl
def infer_model_shape(config: Mapping[str, Any]) -> ModelShape:
    return ModelShape(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        max_context=config["max_position_embeddings"],
        dtype=config["dtype"],
        tied_embeddings=config["tie_word_embeddings"],
    )


@hookimpl
def infer_attention_layout(config: Mapping[str, Any]) -> Sequence[AttentionLayout]:
    return [
        AttentionLayout(
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            softmax_scale=config["head_dim"] ** -0.5,
            rope=rope_from_parameters(config.get("rope_parameters", {})),
            window=window,
            qk_norm="head",
            qkv_bias=config["attention_bias"],
            out_bias=config["attention_bias"],
        )
        for window in _windows(config)
    ]


@hookimpl
def infer_norm_flavour(config: Mapping[str, Any]) -> NormFlavour:
    return NormFlavour(eps=config["rms_norm_eps"])


@hookimpl
def infer_kv_cache_policy(config: Mapping[str, Any]) -> Sequence[KVCachePolicy]:
    return [
        KVCachePolicy(kind="ring", window=window) if window else KVCachePolicy()
        for window in _windows(config)
    ]


@hookimpl
def infer_block_layout(config: Mapping[str, Any]) -> BlockLayout:
    return BlockLayout(activation=activation(config["hidden_act"]))


@hookimpl
def infer_weight_map(config: Mapping[str, Any]) -> Sequence[WeightRule]:
    return WEIGHTS + ATTENTION_BIASES if config["attention_bias"] else WEIGHTS


def _windows(config: Mapping[str, Any]) -> Sequence[int | None]:
    """Layers from max_window_layers on slide, unless layer_types says which."""
    if "layer_types" in config:
        windows = layer_windows(config)
        if any(windows) and not config["use_sliding_window"]:
            raise ConfigError(
                "config.json contradicts itself: layer_types has sliding_attention, but "
                "use_sliding_window is false; correct one of them"
            )
        return windows
    num_layers = config["num_hidden_layers"]
    if not config["use_sliding_window"]:
        return [None] * num_layers
    first = config["max_window_layers"]
    return [config["sliding_window"] if layer >= first else None for layer in range(num_layers)]


# checkpoint name -> parameter; rules that share a target are stacked by part
WEIGHTS = [
    WeightRule("model.embed_tokens.weight", "embed"),
    WeightRule("model.layers.{layer}.input_layernorm.weight", "layers.{layer}.attn_norm"),
    WeightRule("model.layers.{layer}.self_attn.q_proj.weight", "layers.{layer}.qkv", part="q"),
    WeightRule("model.layers.{layer}.self_attn.k_proj.weight", "layers.{layer}.qkv", part="k"),
    WeightRule("model.layers.{layer}.self_attn.v_proj.weight", "layers.{layer}.qkv", part="v"),
    WeightRule("model.layers.{layer}.self_attn.q_norm.weight", "layers.{layer}.q_norm"),
    WeightRule("model.layers.{layer}.self_attn.k_norm.weight", "layers.{layer}.k_norm"),
    WeightRule("model.layers.{layer}.self_attn.o_proj.weight", "layers.{layer}.attn_out"),
    WeightRule("model.layers.{layer}.post_attention_layernorm.weight", "layers.{layer}.mlp_norm"),
    WeightRule("model.layers.{layer}.mlp.gate_proj.weight", "layers.{layer}.gate_up", part="gate"),
    WeightRule("model.layers.{layer}.mlp.up_proj.weight", "layers.{layer}.gate_up", part="up"),
    WeightRule("model.layers.{layer}.mlp.down_proj.weight", "layers.{layer}.mlp_out"),
    WeightRule("model.norm.weight", "final_norm"),
    WeightRule("lm_head.weight", "lm_head"),  # absent, or equal to embed, when tied
]
ATTENTION_BIASES = [
    WeightRule("model.layers.{layer}.self_attn.q_proj.bias", "layers.{layer}.qkv_bias", part="q"),
    WeightRule("model.layers.{layer}.self_attn.k_proj.bias", "layers.{layer}.qkv_bias", part="k"),
    WeightRule("model.layers.{layer}.self_attn.v_proj.bias", "layers.{layer}.qkv_bias", part="v"),
    WeightRule("model.layers.{layer}.self_attn.o_proj.bias", "layers.{layer}.attn_out_bias"),
]
