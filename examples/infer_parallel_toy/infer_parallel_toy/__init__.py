"""A family nobody trained, odd on purpose: what it does the specs cannot say.

Attention and MLP read the same normalised input, side by side, and a learned gate for each
channel weighs what the two add together: x + gate * (attention(n) + mlp(n)), n = norm(x). So it
brings a decoder class of its own (`infer_parallel_toy.decoder`), one parameter more and one norm
fewer a layer. Everything else is the contract as usual.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from infer_core import (
    Architectures,
    AttentionLayout,
    BlockLayout,
    ConfigFields,
    CustomDecoder,
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

DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "float32",
}

TINY = {
    "architectures": ["ParallelToyForCausalLM"],
    "model_type": "parallel_toy",
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
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


@hookimpl
def infer_architectures() -> Architectures:
    return Architectures(
        architectures=("ParallelToyForCausalLM",),
        model_types=("parallel_toy",),
        reference_models=(
            ReferenceModel(
                name="parallel-toy",
                label="ParallelToy",
                hub_id="nobody/parallel-toy",
                revision="none",
                config=TINY,
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
        head_dim=config["head_dim"],
        softmax_scale=config["head_dim"] ** -0.5,
        rope=rope_from_parameters(config["rope_parameters"]),
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
        decoder=CustomDecoder(
            target="infer_parallel_toy.decoder:ParallelDecoder",
            adds={"layers.{layer}.gate": (config["hidden_size"],)},
            omits=frozenset({"layers.{layer}.mlp_norm"}),
        ),
    )


@hookimpl
def infer_weight_map(config: Mapping[str, Any]) -> Sequence[WeightRule]:
    return WEIGHTS


# checkpoint name -> parameter; rules that share a target are stacked by part
WEIGHTS = [
    WeightRule("model.embed_tokens.weight", "embed"),
    WeightRule("model.layers.{layer}.input_layernorm.weight", "layers.{layer}.attn_norm"),
    WeightRule("model.layers.{layer}.self_attn.q_proj.weight", "layers.{layer}.qkv", part="q"),
    WeightRule("model.layers.{layer}.self_attn.k_proj.weight", "layers.{layer}.qkv", part="k"),
    WeightRule("model.layers.{layer}.self_attn.v_proj.weight", "layers.{layer}.qkv", part="v"),
    WeightRule("model.layers.{layer}.self_attn.o_proj.weight", "layers.{layer}.attn_out"),
    WeightRule("model.layers.{layer}.gate.weight", "layers.{layer}.gate"),
    WeightRule("model.layers.{layer}.mlp.gate_proj.weight", "layers.{layer}.gate_up", part="gate"),
    WeightRule("model.layers.{layer}.mlp.up_proj.weight", "layers.{layer}.gate_up", part="up"),
    WeightRule("model.layers.{layer}.mlp.down_proj.weight", "layers.{layer}.mlp_out"),
    WeightRule("model.norm.weight", "final_norm"),
    WeightRule("lm_head.weight", "lm_head"),  # absent, or equal to embed, when tied
]
