"""Granite 3 dense models (GraniteForCausalLM) for infer_core.

Differs from Llama in four numbers of the config: embeddings are multiplied by
embedding_multiplier, scores by attention_multiplier (in place of 1 / sqrt(head_dim)), what a
block adds to the residual stream by residual_multiplier, and logits divided by logits_scaling.

Source: weight names, omitted fields and where the numbers apply from transformers'
modeling_granite and configuration_granite.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infer_core import (
    Architectures,
    AttentionLayout,
    BlockLayout,
    ConfigFields,
    KVCachePolicy,
    ModelShape,
    NormFlavour,
    ReferenceModel,
    WeightRule,
    activation,
    hookimpl,
    rope_from_parameters,
)

__version__ = "0.1.0"

# What Granite means by a field that config.json leaves out.
DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "dtype": "float32",
}

TINY = {
    "architectures": ["GraniteForCausalLM"],
    "model_type": "granite",
    "num_hidden_layers": 3,
    "hidden_size": 72,
    "intermediate_size": 152,
    "vocab_size": 307,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.125,
    "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


@hookimpl
def infer_architectures() -> Architectures:
    published = Path(__file__).with_name("granite-3.1-2b.json").read_text(encoding="utf-8")
    return Architectures(
        architectures=("GraniteForCausalLM",),
        model_types=("granite",),
        reference_models=(
            ReferenceModel(
                name="granite-3.1-2b",
                label="Granite",
                hub_id="ibm-granite/granite-3.1-2b-base",
                revision="main",
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
                "rms_norm_eps",
                "rope_parameters",
            }
        ),
        # as many as query heads when left out
        defaults={**DEFAULTS, "num_key_value_heads": config.get("num_attention_heads")},
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
    layer = AttentionLayout(
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        softmax_scale=config["attention_multiplier"],
        rope=rope_from_parameters(config["rope_parameters"]),
        qkv_bias=config["attention_bias"],
        out_bias=config["attention_bias"],
    )
    return [layer] * config["num_hidden_layers"]


@hookimpl
def infer_norm_flavour(config: Mapping[str, Any]) -> NormFlavour:
    return NormFlavour(eps=config["rms_norm_eps"])


@hookimpl
def infer_kv_cache_policy(config: Mapping[str, Any]) -> Sequence[KVCachePolicy]:
    return [KVCachePolicy()] * config["num_hidden_layers"]  # every layer keeps every token


@hookimpl
def infer_block_layout(config: Mapping[str, Any]) -> BlockLayout:
    return BlockLayout(
        activation=activation(config["hidden_act"]),
        mlp_bias=config["mlp_bias"],
        embedding_scale=config["embedding_multiplier"],
        residual_scale=config["residual_multiplier"],
        logits_scale=1 / config["logits_scaling"],
    )


@hookimpl
def infer_weight_map(config: Mapping[str, Any]) -> Sequence[WeightRule]:
    biases = ATTENTION_BIASES if config["attention_bias"] else []
    return WEIGHTS + biases + (MLP_BIASES if config["mlp_bias"] else [])


# checkpoint name -> parameter; rules that share a target are stacked by part
WEIGHTS = [
    WeightRule("model.embed_tokens.weight", "embed"),
    WeightRule("model.layers.{layer}.input_layernorm.weight", "layers.{layer}.attn_norm"),
    WeightRule("model.layers.{layer}.self_attn.q_proj.weight", "layers.{layer}.qkv", part="q"),
    WeightRule("model.layers.{layer}.self_attn.k_proj.weight", "layers.{layer}.qkv", part="k"),
    WeightRule("model.layers.{layer}.self_attn.v_proj.weight", "layers.{layer}.qkv", part="v"),
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
MLP_BIASES = [
    WeightRule(
        "model.layers.{layer}.mlp.gate_proj.bias", "layers.{layer}.gate_up_bias", part="gate"
    ),
    WeightRule("model.layers.{layer}.mlp.up_proj.bias", "layers.{layer}.gate_up_bias", part="up"),
    WeightRule("model.layers.{layer}.mlp.down_proj.bias", "layers.{layer}.mlp_out_bias"),
]
