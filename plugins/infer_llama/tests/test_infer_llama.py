import infer_llama

from infer_core.config import audit, normalise, with_defaults
from infer_core.testing import PluginContract


class TestContract(PluginContract):
    plugin = infer_llama


def answers(raw):
    """Ask the hooks as the core does: normalise, audit, fill in the family's defaults."""
    config = normalise(raw)
    fields = infer_llama.infer_config_fields(config)
    audit(config, fields, plugin="infer_llama")
    config = with_defaults(config, fields)
    return (
        infer_llama.infer_model_shape(config),
        infer_llama.infer_attention_layout(config),
        infer_llama.infer_kv_cache_policy(config),
    )


def test_the_reference_model_is_the_published_one():
    (reference,) = infer_llama.infer_architectures().reference_models

    shape, attention, _ = answers(reference.config)

    assert (reference.name, reference.label) == ("llama-3.2-1b", "Llama")
    assert reference.hub_id == "meta-llama/Llama-3.2-1B-Instruct"
    assert len(reference.revision) == 40  # a commit, not a branch
    assert (shape.num_layers, shape.hidden_size, shape.vocab_size) == (16, 2048, 128256)
    assert (attention[0].num_heads, attention[0].num_kv_heads, attention[0].head_dim) == (32, 8, 64)


def test_the_tiny_config_is_the_same_architecture_in_cpu_size():
    (reference,) = infer_llama.infer_architectures().reference_models

    shape, attention, policies = answers(reference.tiny_config)

    assert reference.tiny_config["architectures"] == reference.config["architectures"]
    assert shape.max_context >= 2048  # the longest benchmark case
    assert 2 <= shape.num_layers == len(attention) == len(policies) <= 4
    assert shape.hidden_size <= 64
    assert attention[0].group_size > 1
    assert shape.dtype == "float32"


def test_llama3_rope_scaling_is_in_both_reference_configs():
    (reference,) = infer_llama.infer_architectures().reference_models

    for raw in (reference.config, reference.tiny_config):
        _, attention, _ = answers(raw)
        assert attention[0].rope.scaling.kind == "llama3"


def test_every_layer_keeps_every_token():
    _, attention, policies = answers(infer_llama.TINY)

    assert {layout.window for layout in attention} == {None}
    assert {policy.kind for policy in policies} == {"full"}
