"""A complete plugin for a model nobody trained; `make_plugin` installs it, whole or spoilt."""

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
    hookimpl,
)

CONFIG = {"architectures": ["ToyForCausalLM"], "model_type": "toy", "width": 8, "eos_token_id": 1}
TOY_TINY = ReferenceModel(
    name="toy-tiny",
    label="Toy",
    hub_id="toys/toy-tiny",
    revision="main",
    config=CONFIG,
    tiny_config=CONFIG,
)
ASKED = []


@hookimpl
def infer_architectures():
    return Architectures(
        architectures=("ToyForCausalLM",), model_types=("toy",), reference_models=(TOY_TINY,)
    )


@hookimpl
def infer_config_fields(config):
    ASKED.append("infer_config_fields")
    return ConfigFields(honoured={"width"})


@hookimpl
def infer_model_shape(config):
    ASKED.append("infer_model_shape")
    return ModelShape(
        num_layers=2,
        hidden_size=config["width"],
        intermediate_size=16,
        vocab_size=32,
        max_context=64,
        dtype="float32",
        tied_embeddings=True,
    )


@hookimpl
def infer_weight_map(config):
    ASKED.append("infer_weight_map")
    return [WeightRule("embed.weight", "embed")]


@hookimpl
def infer_attention_layout(config):
    ASKED.append("infer_attention_layout")
    rope = Rope(theta=1e4)
    layer = AttentionLayout(num_heads=2, num_kv_heads=1, head_dim=4, softmax_scale=0.5, rope=rope)
    return [layer, layer]


@hookimpl
def infer_norm_flavour(config):
    ASKED.append("infer_norm_flavour")
    return NormFlavour(eps=1e-6)


@hookimpl
def infer_kv_cache_policy(config):
    ASKED.append("infer_kv_cache_policy")
    return [KVCachePolicy(), KVCachePolicy()]


@hookimpl
def infer_block_layout(config):
    ASKED.append("infer_block_layout")
    return BlockLayout(activation="silu")
