"""Phi-3 and Phi-4 dense models (Phi3ForCausalLM) for infer_core.

Differs from Llama in these ways: the checkpoint holds q, k, v and gate, up already stacked;
RoPE may rotate only the leading part of a head (partial_rotary_factor); every layer may slide.
RoPE of type longrope (the 128k variants) is not supported, and refused by name.

Source: weight names, omitted fields and the order of the stacked parts from transformers'
modeling_phi3 and configuration_phi3.
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

# What Phi-3 means by a field that config.json leaves out.
DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "sliding_window": None,
    "dtype": "float32",
}

TINY = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "num_hidden_layers": 3,
    "hidden_size": 96,
    "intermediate_size": 152,
    "vocab_size": 307,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.75,
    "sliding_window": 17,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


@hookimpl
def infer_architectures() -> Architectures:
    published = Path(__file__).with_name("phi-3-mini.json").read_text(encoding="utf-8")
    return Architectures(
        architectures=("Phi3ForCausalLM",),
        model_types=("phi3",),
        reference_models=(
            ReferenceModel(
                name="phi-3-mini",
                label="Phi3",
                hub_id="microsoft/Phi-3-mini-4k-instruct",
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
                "rope_parameters.partial_rotary_factor",
            }
        ),
        # as many as query heads when left out
        defaults={**DEFAULTS, "num_key_value_heads": config.get("num_attention_heads")},
        required={"attention_bias": (False,)},
        ignored={
            "auto_map": "names code in the model's repository, which is never run",
            "original_max_position_embeddings": "read by RoPE of type longrope alone",
            "resid_pdrop": "used in training only",
            "embd_pdrop": "used in training only",
        },
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
        window=config["sliding_window"],
    )
    return [layer] * config["num_hidden_layers"]


@hookimpl
def infer_norm_flavour(config: Mapping[str, Any]) -> NormFlavour:
    return NormFlavour(eps=config["rms_norm_eps"])


@hookimpl
def infer_kv_cache_policy(config: Mapping[str, Any]) -> Sequence[KVCachePolicy]:
    window = config["sliding_window"]
    policy = KVCachePolicy(kind="ring", window=window) if window else KVCachePolicy()
    return [policy] * config["num_hidden_layers"]


@hookimpl
def infer_block_layout(config: Mapping[str, Any]) -> BlockLayout:
    return BlockLayout(activation=activation(config["hidden_act"]))


@hookimpl
def infer_weight_map(config: Mapping[str, Any]) -> Sequence[WeightRule]:
    return WEIGHTS


# checkpoint name -> parameter; a rule without a part fills all rows: q, k, v and gate, up in order
WEIGHTS = [
    WeightRule("model.embed_tokens.weight", "embed"),
    WeightRule("model.layers.{layer}.input_layernorm.weight", "layers.{layer}.attn_norm"),
    WeightRule("model.layers.{layer}.self_attn.qkv_proj.weight", "layers.{layer}.qkv"),
    WeightRule("model.layers.{layer}.self_attn.o_proj.weight", "layers.{layer}.attn_out"),
    WeightRule("model.layers.{layer}.post_attention_layernorm.weight", "layers.{layer}.mlp_norm"),
    WeightRule("model.layers.{layer}.mlp.gate_up_proj.weight", "layers.{layer}.gate_up"),
    WeightRule("model.layers.{layer}.mlp.down_proj.weight", "layers.{layer}.mlp_out"),
    WeightRule("model.norm.weight", "final_norm"),
    WeightRule("lm_head.weight", "lm_head"),  # absent, or equal to embed, when tied
]
