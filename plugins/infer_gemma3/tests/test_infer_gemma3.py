import infer_gemma3

from infer_core.testing import PluginContract


class TestContract(PluginContract):
    plugin = infer_gemma3
