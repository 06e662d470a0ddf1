"""OLMo 2 models (Olmo2ForCausalLM) for infer_core.

Differs from Llama in two ways: norms sit after attention and after the MLP, where Llama has them
before, and q and k are normalised over their whole projection, all heads together. RMSNorm
multiplies by its weight in fp32, then rounds.

Source: arXiv:2501.00656; weight names, omitted fields and rounding from transformers'
modeling_olmo2 and configuration_olmo2.
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

# What OLMo 2 means by a field that config.json leaves out.
DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "dtype": "float32",
}

TINY = {
    "architectures": ["Olmo2ForCausalLM"],
    "model_type": "olmo2",
    "num_hidden_layers": 3,
    "hidden_size": 72,
    "intermediate_size": 152,
    "vocab_size": 307,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


@hookimpl
def infer_architectures() -> Architectures:
    published = Path(__file__).with_name("olmo2-1b.json").read_text(encoding="utf-8")
    return Architectures(
        architectures=("Olmo2ForCausalLM",),
        model_types=("olmo2",),
        reference_models=(
            ReferenceModel(
                name="olmo2-1b",
                label="OLMo2",
                hub_id="allenai/OLMo-2-0425-1B",
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
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    layer = AttentionLayout(
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=head_dim,
        softmax_scale=head_dim**-0.5,
        rope=rope_from_parameters(config["rope_parameters"]),
        qk_norm="projection",
        qkv_bias=config["attention_bias"],
        out_bias=config["attention_bias"],
    )
    return [layer] * config["num_hidden_layers"]


@hookimpl
def infer_norm_flavour(config: Mapping[str, Any]) -> NormFlavour:
    return NormFlavour(eps=config["rms_norm_eps"], weight_in_fp32=True, placement="post")


@hookimpl
def infer_kv_cache_policy(config: Mapping[str, Any]) -> Sequence[KVCachePolicy]:
    return [KVCachePolicy()] * config["num_hidden_layers"]  # every layer keeps every token


@hookimpl
def infer_block_layout(config: Mapping[str, Any]) -> BlockLayout:
    return BlockLayout(activation=activation(config["hidden_act"]))


@hookimpl
def infer_weight_map(config: Mapping[str, Any]) -> Sequence[WeightRule]:
    return WEIGHTS + ATTENTION_BIASES if config["attention_bias"] else WEIGHTS


# checkpoint name -> parameter; rules that share a target are stacked by part
WEIGHTS = [
    WeightRule("model.embed_tokens.weight", "embed"),
    WeightRule("model.layers.{layer}.self_attn.q_proj.weight", "layers.{layer}.qkv", part="q"),
    WeightRule("model.layers.{layer}.self_attn.k_proj.weight", "layers.{layer}.qkv", part="k"),
    WeightRule("model.layers.{layer}.self_attn.v_proj.weight", "layers.{layer}.qkv", part="v"),
    WeightRule("model.layers.{layer}.self_attn.q_norm.weight", "layers.{layer}.q_norm"),
    WeightRule("model.layers.{layer}.self_attn.k_norm.weight", "layers.{layer}.k_norm"),
    WeightRule("model.layers.{layer}.self_attn.o_proj.weight", "layers.{layer}.attn_out"),
    WeightRule(
        "model.layers.{layer}.post_attention_layernorm.weight", "layers.{layer}.attn_post_norm"
    ),
    WeightRule("model.layers.{layer}.mlp.gate_proj.weight", "layers.{layer}.gate_up", part="gate"),
    WeightRule("model.layers.{layer}.mlp.up_proj.weight", "layers.{layer}.gate_up", part="up"),
    WeightRule("model.layers.{layer}.mlp.down_proj.weight", "layers.{layer}.mlp_out"),
    WeightRule(
        "model.layers.{layer}.post_feedforward_layernorm.weight", "layers.{layer}.mlp_post_norm"
    ),
    WeightRule("model.norm.weight", "final_norm"),
    WeightRule("lm_head.weight", "lm_head"),  # absent, or equal to embed, when tied
]
ATTENTION_BIASES = [
    WeightRule("model.layers.{layer}.self_attn.q_proj.bias", "layers.{layer}.qkv_bias", part="q"),
    WeightRule("model.layers.{layer}.self_attn.k_proj.bias", "layers.{layer}.qkv_bias", part="k"),
    WeightRule("model.layers.{layer}.self_attn.v_proj.bias", "layers.{layer}.qkv_bias", part="v"),
    WeightRule("model.layers.{layer}.self_attn.o_proj.bias", "layers.{layer}.attn_out_bias"),
]
