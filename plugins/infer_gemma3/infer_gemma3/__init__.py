"""Gemma 3 models for infer_core: Gemma3ForCausalLM, and the text half of
Gemma3ForConditionalGeneration (4b and larger; images are not supported).

Differs from Llama in these ways:
- RMSNorm multiplies by 1 + weight in fp32, then rounds; norms sit before *and* after a block;
- q and k are normalised per head; the softmax scale is query_pre_attn_scalar ** -0.5;
- five sliding-window layers, then one over the whole context; the two kinds have their own RoPE
  theta, and RoPE scaling concerns the global ones only;
- GeGLU (tanh), tied embeddings, embeddings multiplied by sqrt(hidden_size).

Source: config.json and weight names of the published Gemma 3 checkpoints; facts about omitted
fields and rounding from transformers' modeling_gemma3.
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
    Rope,
    WeightRule,
    activation,
    hookimpl,
    layer_windows,
    rope_from_parameters,
)

__version__ = "0.1.0"

# What Gemma 3 means by a field that config.json leaves out; the text_config of the larger
# models leaves out most of these.
DEFAULTS: dict[str, Any] = {
    "num_hidden_layers": 26,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_ids": (1,),
    "dtype": "float32",
}
GLOBAL_LAYER_EVERY = 6
ROPE_THETA = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}

TINY = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 144,
    "vocab_size": 307,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "sliding_window": 16,
    "sliding_window_pattern": 2,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "bos_token_id": 2,
    "eos_token_id": [1, 106],
    "pad_token_id": 0,
    "torch_dtype": "float32",
}


@hookimpl
def infer_architectures() -> Architectures:
    published = Path(__file__).with_name("gemma3-1b.json").read_text(encoding="utf-8")
    return Architectures(
        architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        model_types=("gemma3_text", "gemma3"),
        reference_models=(
            ReferenceModel(
                name="gemma3-1b",
                label="Gemma3",
                hub_id="google/gemma-3-1b-it",
                revision="dcc83ea841ab6100d6b47a070329e1ba4cf78752",
                config=json.loads(published),
                tiny_config=TINY,
            ),
        ),
    )


@hookimpl
def infer_config_fields(config: Mapping[str, Any]) -> ConfigFields:
    num_layers = config.get("num_hidden_layers", DEFAULTS["num_hidden_layers"])
    layer_types = [
        "sliding_attention" if layer % GLOBAL_LAYER_EVERY else "full_attention"
        for layer in range(1, num_layers + 1)
    ]
    image = "for images; this is the text model"
    return ConfigFields(
        honoured=frozenset({"rope_parameters", "final_logit_softcapping"}),
        defaults={**DEFAULTS, "layer_types": layer_types},
        required={
            "use_bidirectional_attention": (False,),  # an encoder made from this family
            "hidden_act": ("gelu_pytorch_tanh",),  # not read: hidden_activation is
        },
        ignored={
            "vision_config": image,
            "mm_tokens_per_image": image,
            "boi_token_index": image,
            "eoi_token_index": image,
            "image_token_index": image,
            "image_token_id": image,
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
    return [
        AttentionLayout(
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            softmax_scale=config["query_pre_attn_scalar"] ** -0.5,
            rope=_rope(config, "sliding_attention" if window else "full_attention"),
            window=window,
            qk_norm="head",
            qkv_bias=config["attention_bias"],
            out_bias=config["attention_bias"],
        )
        for window in layer_windows(config)
    ]


def _rope(config: Mapping[str, Any], layer_type: str) -> Rope:
    stated = config.get("rope_parameters", {})
    if "rope_type" in stated:  # flat: the older rope_theta and rope_scaling, which are global
        stated = {"full_attention": stated}
    theta = ROPE_THETA[layer_type]
    return rope_from_parameters({"rope_theta": theta, **stated.get(layer_type, {})})


@hookimpl
def infer_norm_flavour(config: Mapping[str, Any]) -> NormFlavour:
    return NormFlavour(
        eps=config["rms_norm_eps"], weight_offset=1.0, weight_in_fp32=True, placement="sandwich"
    )


@hookimpl
def infer_kv_cache_policy(config: Mapping[str, Any]) -> Sequence[KVCachePolicy]:
    return [
        KVCachePolicy(kind="ring", window=window) if window else KVCachePolicy()
        for window in layer_windows(config)
    ]


@hookimpl
def infer_block_layout(config: Mapping[str, Any]) -> BlockLayout:
    return BlockLayout(
        activation=activation(config["hidden_activation"]),
        embedding_scale=config["hidden_size"] ** 0.5,
        final_logit_softcap=config.get("final_logit_softcapping"),
    )


@hookimpl
def infer_weight_map(config: Mapping[str, Any]) -> Sequence[WeightRule]:
    return WEIGHTS + ATTENTION_BIASES if config["attention_bias"] else WEIGHTS


def _text(name: str, target: str, **part: Any) -> WeightRule:
    """A tensor of the text model: alone, or inside a multimodal checkpoint, older or newer."""
    prefixes = ("model.", "language_model.model.", "model.language_model.")
    return WeightRule(tuple(prefix + name for prefix in prefixes), target, **part)


# checkpoint name -> parameter; rules that share a target are stacked by part
WEIGHTS = [
    _text("embed_tokens.weight", "embed"),
    _text("layers.{layer}.input_layernorm.weight", "layers.{layer}.attn_norm"),
    _text("layers.{layer}.self_attn.q_proj.weight", "layers.{layer}.qkv", part="q"),
    _text("layers.{layer}.self_attn.k_proj.weight", "layers.{layer}.qkv", part="k"),
    _text("layers.{layer}.self_attn.v_proj.weight", "layers.{layer}.qkv", part="v"),
    _text("layers.{layer}.self_attn.q_norm.weight", "layers.{layer}.q_norm"),
    _text("layers.{layer}.self_attn.k_norm.weight", "layers.{layer}.k_norm"),
    _text("layers.{layer}.self_attn.o_proj.weight", "layers.{layer}.attn_out"),
    _text("layers.{layer}.post_attention_layernorm.weight", "layers.{layer}.attn_post_norm"),
    _text("layers.{layer}.pre_feedforward_layernorm.weight", "layers.{layer}.mlp_norm"),
    _text("layers.{layer}.mlp.gate_proj.weight", "layers.{layer}.gate_up", part="gate"),
    _text("layers.{layer}.mlp.up_proj.weight", "layers.{layer}.gate_up", part="up"),
    _text("layers.{layer}.mlp.down_proj.weight", "layers.{layer}.mlp_out"),
    _text("layers.{layer}.post_feedforward_layernorm.weight", "layers.{layer}.mlp_post_norm"),
    _text("norm.weight", "final_norm"),
    # absent, or equal to embed, when tied
    WeightRule(("lm_head.weight", "language_model.lm_head.weight"), "lm_head"),
    *(
        WeightRule(prefix + name, None, reason="brings images into the text model")
        for prefix in ("", "model.")
        for name in ("vision_tower.{any}", "multi_modal_projector.{any}")
    ),
]
ATTENTION_BIASES = [
    _text("layers.{layer}.self_attn.q_proj.bias", "layers.{layer}.qkv_bias", part="q"),
    _text("layers.{layer}.self_attn.k_proj.bias", "layers.{layer}.qkv_bias", part="k"),
    _text("layers.{layer}.self_attn.v_proj.bias", "layers.{layer}.qkv_bias", part="v"),
    _text("layers.{layer}.self_attn.o_proj.bias", "layers.{layer}.attn_out_bias"),
]
