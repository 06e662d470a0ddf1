import infer_llama

from infer_core.testing import PluginContract


class TestContract(PluginContract):
    plugin = infer_llama
