import infer_gemma3

from infer_core.config import audit, normalise, with_defaults
from infer_core.testing import PluginContract


class TestContract(PluginContract):
    plugin = infer_gemma3


def answers(raw):
    """Ask the hooks as the core does: normalise, audit, fill in the family's defaults."""
    config = normalise(raw)
    fields = infer_gemma3.infer_config_fields(config)
    audit(config, fields, plugin="infer_gemma3")
    config = with_defaults(config, fields)
    return (
        infer_gemma3.infer_model_shape(config),
        infer_gemma3.infer_attention_layout(config),
        infer_gemma3.infer_kv_cache_policy(config),
    )


def test_the_reference_model_is_the_published_one():
    (reference,) = infer_gemma3.infer_architectures().reference_models

    shape, attention, _ = answers(reference.config)

    assert (reference.name, reference.label) == ("gemma3-1b", "Gemma3")
    assert reference.hub_id == "google/gemma-3-1b-it"
    assert len(reference.revision) == 40  # a commit, not a branch
    assert (shape.num_layers, shape.hidden_size, shape.vocab_size) == (26, 1152, 262144)
    assert (attention[0].num_heads, attention[0].num_kv_heads, attention[0].head_dim) == (4, 1, 256)


def test_the_tiny_config_is_the_same_architecture_in_cpu_size():
    (reference,) = infer_gemma3.infer_architectures().reference_models

    shape, attention, policies = answers(reference.tiny_config)

    assert reference.tiny_config["architectures"] == reference.config["architectures"]
    assert shape.max_context >= 2048  # the longest benchmark case
    assert 2 <= shape.num_layers == len(attention) == len(policies) <= 4
    assert shape.hidden_size <= 64
    assert attention[0].group_size > 1
    assert shape.dtype == "float32"


def test_the_tiny_config_has_both_kinds_of_layer():
    _, attention, policies = answers(infer_gemma3.TINY)

    assert [layout.window for layout in attention] == [16, None, 16, None]
    assert [policy.window for policy in policies] == [16, None, 16, None]
    assert [layout.rope.theta for layout in attention] == [1e4, 1e6, 1e4, 1e6]


def test_rope_scaling_concerns_the_global_layers_only():
    _, attention, _ = answers(infer_gemma3.TINY)

    assert [layout.rope.scaling is None for layout in attention] == [True, False, True, False]


def test_the_softmax_scale_is_that_of_the_config_and_not_of_head_dim():
    _, attention, _ = answers(infer_gemma3.TINY)

    assert attention[0].softmax_scale == 20**-0.5 != attention[0].head_dim ** -0.5


def test_a_text_config_that_states_only_what_differs_is_filled_in():
    raw = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}

    shape, attention, _ = answers(raw)

    assert (shape.num_layers, shape.hidden_size, shape.vocab_size) == (26, 2304, 262208)
    assert [layer for layer, a in enumerate(attention) if a.window is None] == [5, 11, 17, 23]
