"""The contract: what the core asks of an architecture plugin.

A plugin is a light module (it imports neither torch nor triton) named by an entry point of
group `infer_core.architectures`. The core asks each hook once, when a model is loaded, and only
of the plugin that owns the architecture, so no hook needs a guard clause. Every `config` is
the normalised config.json (`infer_core.config.normalise`): one dialect, the text model's
fields at the top level. Answers are the frozen models of `infer_core.specs`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pluggy

from infer_core.specs import (
    Architectures,
    AttentionLayout,
    BlockLayout,
    ConfigFields,
    KVCachePolicy,
    ModelShape,
    NormFlavour,
    WeightRule,
)

GROUP = "infer_core.architectures"
PROJECT = "infer_core"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

# Deprecated hook -> the hook that takes its place (docs/compatibility.md). A plugin that still
# has the old one loads with a warning; the old answer must be of the new hook's type.
REPLACED_BY: dict[str, str] = {}


@hookspec
def infer_architectures() -> Architectures:
    """Name the `architectures` / `model_type` values served, and the reference models.

    The only hook asked without a model: `infer plugins list` and the benchmark read it.
    """
    raise NotImplementedError


@hookspec
def infer_config_fields(config: Mapping[str, Any]) -> ConfigFields:
    """Account for the fields of config.json: honoured, required to equal a value, or ignored.

    Any other field that is neither absent nor null is an error naming field, value and plugin.
    """
    raise NotImplementedError


@hookspec
def infer_model_shape(config: Mapping[str, Any]) -> ModelShape:
    """Give the sizes of the decoder, its dtype and whether embeddings are tied."""
    raise NotImplementedError


@hookspec
def infer_weight_map(config: Mapping[str, Any]) -> Sequence[WeightRule]:
    """Map checkpoint names to the parameters of `infer_core.parameters`, every tensor once.

    Example: `WeightRule("model.layers.{layer}.self_attn.q_proj.weight", "layers.{layer}.qkv",
    part="q")`.
    """
    raise NotImplementedError


@hookspec
def infer_attention_layout(config: Mapping[str, Any]) -> Sequence[AttentionLayout]:
    """Describe the attention of each layer, first layer first."""
    raise NotImplementedError


@hookspec
def infer_norm_flavour(config: Mapping[str, Any]) -> NormFlavour:
    """Say how RMSNorm rounds and where norms sit around a block."""
    raise NotImplementedError


@hookspec
def infer_kv_cache_policy(config: Mapping[str, Any]) -> Sequence[KVCachePolicy]:
    """Say, for each layer, whether every token is kept or a ring of the last `window`."""
    raise NotImplementedError


@hookspec
def infer_block_layout(config: Mapping[str, Any]) -> BlockLayout:
    """Give the activation, whether the MLP is gated, embedding scale and final soft cap."""
    raise NotImplementedError
