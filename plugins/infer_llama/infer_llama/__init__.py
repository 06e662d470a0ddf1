"""Llama models (LlamaForCausalLM) for infer_core.

The plain decoder the others are described against: RMSNorm before each block, grouped-query
attention over the whole context, one RoPE (Llama 3.1 and later: with llama3 scaling), SwiGLU.

Source: config.json and weight names of the published Llama 3 checkpoints; facts about omitted
fields and rounding from transformers' modeling_llama.
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

# What Llama means by a field that config.json leaves out (Llama 1 and 2 leave out most of these).
DEFAULTS: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "float32",
}
ROPE_THETA = 10000.0  # Llama 3 states its own

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 176,
    "vocab_size": 307,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "torch_dtype": "float32",
}


@hookimpl
def infer_architectures() -> Architectures:
    published = Path(__file__).with_name("llama-3.2-1b.json").read_text(encoding="utf-8")
    return Architectures(
        architectures=("LlamaForCausalLM",),
        model_types=("llama",),
        reference_models=(
            ReferenceModel(
                name="llama-3.2-1b",
                label="Llama",
                hub_id="meta-llama/Llama-3.2-1B-Instruct",
                revision="9213176726f574b556790deb65791e0c5aa438b6",
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
                "head_dim",
                "rms_norm_eps",
                "rope_parameters",
            }
        ),
        defaults=DEFAULTS,
        ignored={"pretraining_tp": "how training split the matrices; the product is the same"},
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
    num_heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // num_heads)
    layout = AttentionLayout(
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads", num_heads),
        head_dim=head_dim,
        softmax_scale=head_dim**-0.5,
        rope=rope_from_parameters({"rope_theta": ROPE_THETA, **config.get("rope_parameters", {})}),
        qkv_bias=config["attention_bias"],
        out_bias=config["attention_bias"],
    )
    return [layout] * config["num_hidden_layers"]


@hookimpl
def infer_norm_flavour(config: Mapping[str, Any]) -> NormFlavour:
    return NormFlavour(eps=config["rms_norm_eps"])


@hookimpl
def infer_kv_cache_policy(config: Mapping[str, Any]) -> Sequence[KVCachePolicy]:
    return [KVCachePolicy()] * config["num_hidden_layers"]  # every layer keeps every token


@hookimpl
def infer_block_layout(config: Mapping[str, Any]) -> BlockLayout:
    return BlockLayout(activation=activation(config["hidden_act"]), mlp_bias=config["mlp_bias"])


@hookimpl
def infer_weight_map(config: Mapping[str, Any]) -> Sequence[WeightRule]:
    rules = list(WEIGHTS)
    if config["attention_bias"]:
        rules += ATTENTION_BIASES
    if config["mlp_bias"]:
        rules += MLP_BIASES
    return rules


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
    WeightRule(
        "model.layers.{layer}.self_attn.rotary_emb.inv_freq",
        None,
        reason="older checkpoints store the RoPE table; it is computed from config.json",
    ),
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
