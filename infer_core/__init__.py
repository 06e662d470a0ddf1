"""Small core of the inference engine: contract, loading, decoder, engine; knows no model family.

Names that need torch are loaded on first use, so that a plugin's import stays light.
"""

from typing import TYPE_CHECKING, Any

from infer_core.config import activation, layer_windows, rope_from_parameters
from infer_core.errors import (
    AmbiguousArchitecture,
    ConfigError,
    InferError,
    ModelNotFound,
    PluginContractError,
    PluginError,
    RequestError,
    UnknownArchitecture,
    WeightError,
)
from infer_core.hookspecs import hookimpl
from infer_core.sampling_params import SamplingParams
from infer_core.specs import (
    Architectures,
    AttentionLayout,
    BlockLayout,
    ConfigFields,
    KVCachePolicy,
    LinearRopeScaling,
    Llama3RopeScaling,
    ModelShape,
    ModelSpec,
    NormFlavour,
    ReferenceModel,
    Rope,
    WeightRule,
    YarnRopeScaling,
)

if TYPE_CHECKING:
    from infer_core.engine import Engine, Generation

__version__ = "0.1.0"

__all__ = [
    "AmbiguousArchitecture",
    "Architectures",
    "AttentionLayout",
    "BlockLayout",
    "ConfigError",
    "ConfigFields",
    "Engine",
    "Generation",
    "InferError",
    "KVCachePolicy",
    "LinearRopeScaling",
    "Llama3RopeScaling",
    "ModelNotFound",
    "ModelShape",
    "ModelSpec",
    "NormFlavour",
    "PluginContractError",
    "PluginError",
    "ReferenceModel",
    "RequestError",
    "Rope",
    "SamplingParams",
    "UnknownArchitecture",
    "WeightError",
    "WeightRule",
    "YarnRopeScaling",
    "activation",
    "hookimpl",
    "layer_windows",
    "rope_from_parameters",
]

_LAZY = {"Engine": "infer_core.engine", "Generation": "infer_core.engine"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
