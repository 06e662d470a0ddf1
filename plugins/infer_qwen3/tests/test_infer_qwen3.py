import infer_qwen3

from infer_core.config import audit, normalise, with_defaults
from infer_core.testing import PluginContract


class TestContract(PluginContract):
    plugin = infer_qwen3


def answers(raw):
    """Ask the hooks as the core does: normalise, audit, fill in the family's defaults."""
    config = normalise(raw)
    fields = infer_qwen3.infer_config_fields(config)
    audit(config, fields, plugin="infer_qwen3")
    config = with_defaults(config, fields)
    return (
        infer_qwen3.infer_model_shape(config),
        infer_qwen3.infer_attention_layout(config),
        infer_qwen3.infer_kv_cache_policy(config),
    )


def test_the_reference_model_is_the_published_one():
    (reference,) = infer_qwen3.infer_architectures().reference_models

    shape, attention, _ = answers(reference.config)

    assert (reference.name, reference.label) == ("qwen3-1.7b", "Qwen3")
    assert reference.hub_id == "Qwen/Qwen3-1.7B"
    assert len(reference.revision) == 40  # a commit, not a branch
    assert (shape.num_layers, shape.hidden_size, shape.vocab_size) == (28, 2048, 151936)
    assert (attention[0].num_heads, attention[0].num_kv_heads, attention[0].head_dim) == (
        16,
        8,
        128,
    )


def test_the_tiny_config_is_the_same_architecture_in_cpu_size():
    (reference,) = infer_qwen3.infer_architectures().reference_models

    shape, attention, policies = answers(reference.tiny_config)

    assert reference.tiny_config["architectures"] == reference.config["architectures"]
    assert shape.max_context >= 2048  # the longest benchmark case
    assert 2 <= shape.num_layers == len(attention) == len(policies) <= 4
    assert shape.hidden_size <= 64
    assert attention[0].group_size > 1
    assert shape.dtype == "float32"


def test_head_dim_is_not_hidden_size_over_heads():
    _, attention, _ = answers(infer_qwen3.TINY)

    assert attention[0].head_dim != infer_qwen3.TINY["hidden_size"] // attention[0].num_heads
    assert attention[0].softmax_scale == infer_qwen3.TINY["head_dim"] ** -0.5


def test_layers_from_max_window_layers_on_slide_when_switched_on():
    raw = {
        **infer_qwen3.TINY,
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 1,
    }

    _, attention, policies = answers(raw)

    assert [layout.window for layout in attention] == [None, 16, 16]
    assert [policy.kind for policy in policies] == ["full", "ring", "ring"]


def test_a_window_that_is_switched_off_is_no_window():
    _, attention, _ = answers({**infer_qwen3.TINY, "sliding_window": 16})

    assert {layout.window for layout in attention} == {None}
