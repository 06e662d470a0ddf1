import infer_granite

from infer_core.testing import PluginContract


class TestContract(PluginContract):
    plugin = infer_granite
    variants = {
        "biases-and-untied": {
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
        "no-multipliers": {
            "embedding_multiplier": None,
            "residual_multiplier": None,
            "logits_scaling": None,
        },
    }
