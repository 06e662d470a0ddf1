"""One config under test: its spec, a checkpoint of it, and every way to run that."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file

from infer_core.decoder import decoder_class
from infer_core.dummy_weights import dummy_weights
from infer_core.engine import Engine
from infer_core.kv_cache import KVCache
from infer_core.ops import ops_for
from infer_core.parameters import model_parameters
from infer_core.plugin_hooks import PluginHooks
from infer_core.plugin_status import PluginSettings, PluginStatus
from infer_core.plugins import PluginRegistry
from infer_core.specs import KVCachePolicy, ModelSpec
from infer_core.testing.hints import looking_at
from infer_core.testing.installed import installed_as
from infer_core.testing.oracle import build_oracle, save_oracle, why_no_oracle
from infer_core.weights import load_checkpoint

NEW_TOKENS = 32
SPEC_HOOKS = (
    "infer_config_fields",
    "infer_model_shape",
    "infer_attention_layout",
    "infer_norm_flavour",
    "infer_kv_cache_policy",
    "infer_block_layout",
)


def registry_of(plugin: ModuleType) -> PluginRegistry:
    """A registry of this plugin alone, whether or not it is installed.

    Raises:
        PluginError, PluginContractError: as loading it would.
    """
    found = installed_as(plugin.__name__)
    name = found.entry_point if found else plugin.__name__
    status = PluginStatus(
        name, found.distribution if found else None, found.version if found else None
    )
    hooks = PluginHooks(plugin, status)
    status = PluginStatus(
        name, status.distribution, status.version, answer=hooks.ask("infer_architectures")
    )
    return PluginRegistry([status], {name: hooks}, PluginSettings())


class ContractCase:
    """One config.json of a plugin, with everything the checks derive from it, built on demand.

    `config` is the raw config; `folder` an empty folder for its checkpoint.
    """

    def __init__(self, plugin: ModuleType, config: Mapping[str, Any], folder: Path) -> None:
        self.config = dict(config)
        self.why_no_oracle = why_no_oracle(self.config)
        self._plugin = plugin
        self._folder = folder

    @cached_property
    def registry(self) -> PluginRegistry:
        """This plugin and no other."""
        with looking_at("the hook named above"):
            return registry_of(self._plugin)

    @cached_property
    def spec(self) -> ModelSpec:
        """What the plugin says of the config."""
        with looking_at(*SPEC_HOOKS):
            return self.registry.resolve(self.config)

    @cached_property
    def oracle(self) -> torch.nn.Module:
        """transformers' model of the config, fp32, random weights."""
        block = self.spec.block
        embed_std = 0.1 * block.residual_scale / block.embedding_scale
        return build_oracle(self.config, embed_std=embed_std)

    @cached_property
    def checkpoint(self) -> Path:
        """The folder of a checkpoint: by transformers, or else from the plugin's own table."""
        if self.why_no_oracle is None:
            save_oracle(self.oracle, self._folder)
        else:
            parameters = dummy_weights(self.spec, device="cpu", dtype=torch.float32)
            save_by_table(self.spec, parameters, self._folder)
        return self._folder

    @cached_property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The checkpoint as the core loads it, fp32."""
        with looking_at("infer_weight_map", "infer_model_shape", "infer_attention_layout"):
            return load_checkpoint(self.checkpoint, self.spec, device="cpu", dtype=torch.float32)

    @cached_property
    def prompt(self) -> list[int]:
        """Random ids, more than twice the smallest window, so that every ring goes round."""
        windows = [layer.window for layer in self.spec.attention if layer.window is not None]
        length = max(40, 2 * min(windows, default=0) + 8)
        length = min(length, self.spec.shape.max_context - NEW_TOKENS)
        generator = torch.Generator().manual_seed(7)
        return torch.randint(self.spec.shape.vocab_size, (length,), generator=generator).tolist()

    @cached_property
    def tokens(self) -> list[int]:
        """The greedy continuation of the prompt: cached, prefill at once, rings as specified."""
        return self.greedy(self.engine())

    def engine(self, *, spec: ModelSpec | None = None, **options: Any) -> Engine:
        """An engine over the loaded parameters; `options` as `Engine` takes them."""
        with looking_at("infer_block_layout (decoder)", "infer_attention_layout"):
            return Engine(spec or self.spec, self.parameters, **options)

    def greedy(self, engine: Engine) -> list[int]:
        """Continue the prompt by NEW_TOKENS ids."""
        return engine.generate(self.prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True).tokens

    def masked_spec(self) -> ModelSpec:
        """The spec with every token kept: windows are then a mask only."""
        keep_all = tuple(KVCachePolicy() for _ in self.spec.kv_cache)
        return self.spec.model_copy(update={"kv_cache": keep_all})


@torch.no_grad()
def every_logit(
    spec: ModelSpec, parameters: Mapping[str, torch.Tensor], ids: Sequence[int]
) -> torch.Tensor:
    """Logits after every token of one prefill: [len(ids), vocab_size], float32, on the CPU."""
    embed = parameters["embed"]
    device, context = embed.device, len(ids)
    decoder = decoder_class(spec)(spec, dict(parameters), context=context, ops=ops_for(device))
    cache = KVCache(spec, context=context, device=device, dtype=embed.dtype)
    start = torch.zeros(1, dtype=torch.int32, device=device)
    tokens = torch.tensor(list(ids), device=device)
    return decoder.forward(tokens, cache, start, is_prefill=True, every_row=True).float().cpu()


def save_by_table(
    spec: ModelSpec, parameters: Mapping[str, torch.Tensor], folder: Path
) -> dict[str, tuple[str, int, int]]:
    """Write parameters as the checkpoint the weight rules describe, first name of each rule.

    Returns:
        For each tensor written, the parameter and the rows [start, stop) it holds.
    """
    table = model_parameters(spec)
    tensors: dict[str, torch.Tensor] = {}
    where: dict[str, tuple[str, int, int]] = {}
    filled = set()
    for rule in spec.weights:
        for layer in range(spec.shape.num_layers):
            target = (rule.target or "").replace("{layer}", str(layer))
            known = target in table and (rule.part is None or rule.part in table[target].parts)
            if not known or (target, rule.part) in filled:
                continue
            filled.add((target, rule.part))
            start, stop = table[target].parts.get(rule.part, (0, 0)) if rule.part else (0, 0)
            stop = stop or table[target].shape[0]
            name = rule.source[0].replace("{layer}", str(layer))
            tensors[name] = parameters[target][start:stop].clone()
            where[name] = (target, start, stop)
    save_file(tensors, folder / "model.safetensors")
    return where
