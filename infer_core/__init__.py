"""Small core of the inference engine: contract, loading, decoder, engine; knows no model family.

Names that need torch or pydantic are loaded on first use, so that a plugin's import and the
command line's start stay light.
"""

from typing import TYPE_CHECKING, Any

from infer_core.errors import (
    AmbiguousArchitecture,
    ChatTemplateError,
    ConfigError,
    HubError,
    InferError,
    ModelNotFound,
    OutOfMemory,
    PluginContractError,
    PluginError,
    RequestError,
    TokenizerError,
    UnknownArchitecture,
    WeightError,
)

if TYPE_CHECKING:
    from infer_core.completion import Completion, TokenLogprob
    from infer_core.config import activation, layer_windows, rope_from_parameters
    from infer_core.conversation import Conversation
    from infer_core.decoder import Decoder, Piece
    from infer_core.engine import Engine, Generation
    from infer_core.hookspecs import hookimpl
    from infer_core.llm import LLM
    from infer_core.sampling_params import SamplingParams
    from infer_core.specs import (
        Architectures,
        AttentionLayout,
        BlockLayout,
        ConfigFields,
        CustomDecoder,
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

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AmbiguousArchitecture",
    "Architectures",
    "AttentionLayout",
    "BlockLayout",
    "ChatTemplateError",
    "Completion",
    "ConfigError",
    "ConfigFields",
    "Conversation",
    "CustomDecoder",
    "Decoder",
    "Engine",
    "Generation",
    "HubError",
    "InferError",
    "KVCachePolicy",
    "LinearRopeScaling",
    "Llama3RopeScaling",
    "ModelNotFound",
    "ModelShape",
    "ModelSpec",
    "NormFlavour",
    "OutOfMemory",
    "Piece",
    "PluginContractError",
    "PluginError",
    "ReferenceModel",
    "RequestError",
    "Rope",
    "SamplingParams",
    "TokenLogprob",
    "TokenizerError",
    "UnknownArchitecture",
    "WeightError",
    "WeightRule",
    "YarnRopeScaling",
    "activation",
    "hookimpl",
    "layer_windows",
    "rope_from_parameters",
]

_LAZY = {
    "infer_core.config": ("activation", "layer_windows", "rope_from_parameters"),
    "infer_core.decoder": ("Decoder", "Piece"),
    "infer_core.completion": ("Completion", "TokenLogprob"),
    "infer_core.conversation": ("Conversation",),
    "infer_core.engine": ("Engine", "Generation"),
    "infer_core.hookspecs": ("hookimpl",),
    "infer_core.llm": ("LLM",),
    "infer_core.sampling_params": ("SamplingParams",),
    "infer_core.specs": (
        "Architectures",
        "AttentionLayout",
        "BlockLayout",
        "ConfigFields",
        "CustomDecoder",
        "KVCachePolicy",
        "LinearRopeScaling",
        "Llama3RopeScaling",
        "ModelShape",
        "ModelSpec",
        "NormFlavour",
        "ReferenceModel",
        "Rope",
        "WeightRule",
        "YarnRopeScaling",
    ),
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        import importlib

        value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
