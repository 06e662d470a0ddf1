import infer_qwen3

from infer_core.testing import PluginContract


class TestContract(PluginContract):
    plugin = infer_qwen3
