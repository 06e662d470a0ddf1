import infer_olmo2

from infer_core.testing import PluginContract


class TestContract(PluginContract):
    plugin = infer_olmo2
    variants = {
        "biases-and-tied": {"attention_bias": True, "tie_word_embeddings": True},
        "as-many-kv-heads": {"num_key_value_heads": None},
    }
