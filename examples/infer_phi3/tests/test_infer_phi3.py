import infer_phi3
import pytest

from infer_core import ConfigError
from infer_core.testing import PluginContract
from infer_core.testing.case import registry_of


class TestContract(PluginContract):
    plugin = infer_phi3
    variants = {
        "whole-heads-rotate-no-window": {"partial_rotary_factor": None, "sliding_window": None},
        "tied": {"tie_word_embeddings": True},
    }


def test_longrope_is_refused_by_name():
    scaling = {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}

    with pytest.raises(ConfigError, match="longrope"):
        registry_of(infer_phi3).resolve({**infer_phi3.TINY, "rope_scaling": scaling})
