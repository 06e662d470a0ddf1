"""The installed plugins: who serves a model, and everything they say about it.

`load_registry()` never fails because of a plugin. What went wrong is in `statuses`, and is
said again where the missing plugin would have been needed.
"""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from infer_core.config import audit, normalise, with_defaults
from infer_core.errors import (
    AmbiguousArchitecture,
    ConfigError,
    ModelNotFound,
    PluginContractError,
    PluginError,
    UnknownArchitecture,
)
from infer_core.plugin_claims import Claims, Kind
from infer_core.plugin_hooks import PluginHooks, validation_text
from infer_core.plugin_loader import load_plugins
from infer_core.plugin_status import PluginSettings, PluginStatus
from infer_core.specs import ModelSpec, ReferenceModel


def load_registry(
    *, environ: Mapping[str, str] | None = None, path: Sequence[str] | None = None
) -> "PluginRegistry":
    """Load the installed plugins, each isolated from the others.

    `environ` (default: os.environ) holds the INFER_* variables of `PluginSettings`; one that
    names a plugin that is not there warns. `path` (default: sys.path) is where distributions
    are looked for.
    """
    settings = PluginSettings.from_environment(os.environ if environ is None else environ)
    statuses, hooks = load_plugins(settings, path=path)
    registry = PluginRegistry(statuses, hooks, settings)
    for warning in registry.warnings:
        warnings.warn(warning, stacklevel=2)
    return registry


class PluginRegistry:
    """Every installed plugin's status, and answers from those that work.

    `statuses` has one entry for each installed plugin, usable or not; `warnings` what is
    wrong with the INFER_* variables. With INFER_STRICT_PLUGINS=1 every method raises
    PluginError while any plugin is broken or in conflict with another.
    """

    def __init__(
        self,
        statuses: Sequence[PluginStatus],
        hooks: Mapping[str, PluginHooks],
        settings: PluginSettings,
    ) -> None:
        self._claims = Claims(statuses, settings)
        self._hooks = hooks
        self._strict = settings.strict
        self.statuses = tuple(map(self._claims.mark, statuses))
        self.warnings = settings.warnings(statuses)

    def resolve(self, raw_config: Mapping[str, Any]) -> ModelSpec:
        """Find the plugin that owns a config.json and ask it everything, each hook once.

        Raises:
            UnknownArchitecture: no usable plugin; lists those that could not be used.
            AmbiguousArchitecture: two plugins claim it and INFER_PREFER names neither.
            ConfigError: the config is malformed or holds a field the plugin does not handle.
            PluginError, PluginContractError: a hook failed or broke the contract.
        """
        self._refuse_if_strict()
        config = normalise(raw_config)
        architecture, owner = self._owner(config)
        status, hooks = self._status(owner), self._hooks[owner]
        fields = hooks.ask("infer_config_fields", config=config)
        audit(config, fields, plugin=owner)
        config = with_defaults(config, fields)
        shape = hooks.ask("infer_model_shape", config=config)
        attention = hooks.ask("infer_attention_layout", config=config)
        norm = hooks.ask("infer_norm_flavour", config=config)
        kv_cache = hooks.ask("infer_kv_cache_policy", config=config)
        block = hooks.ask("infer_block_layout", config=config)
        weights = hooks.ask("infer_weight_map", config=config)
        try:
            return ModelSpec(
                architecture=architecture,
                plugin=owner,
                distribution=status.distribution,
                plugin_version=status.version,
                shape=shape,
                attention=tuple(attention),
                norm=norm,
                kv_cache=tuple(kv_cache),
                block=block,
                weights=tuple(weights),
                bos_token_id=config["bos_token_id"],
                eos_token_ids=config["eos_token_ids"],
            )
        except ValidationError as error:
            raise PluginContractError(
                f"{status.label}: its answers for {architecture} do not fit together: "
                f"{validation_text(error)}",
                mend=status.upgrade,
            ) from error

    def reference_models(self) -> list[tuple[str, ReferenceModel]]:
        """(plugin, model) for every reference model of the usable plugins, in plugin order.

        A name that two plugins claim is listed once for the plugin INFER_PREFER names; with no
        such choice it is listed for both, and `reference_model` refuses it.
        """
        self._refuse_if_strict()
        return [
            (status.name, model)
            for status in self.statuses
            for model in (status.answer.reference_models if status.answer else ())
            if self._claims.winner("reference model", model.name) in (status.name, None)
        ]

    def reference_model(self, name: str) -> ReferenceModel:
        """The reference model of that name.

        Raises:
            ModelNotFound: no usable plugin brings it; lists the names there are.
            PluginError: two plugins bring it and INFER_PREFER names neither.
        """
        found = [model for _, model in self.reference_models() if model.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            message, mend = self._claims.conflict("reference model", name)
            raise PluginError(message, mend=mend)
        known = ", ".join(self._claims.names("reference model"))
        raise ModelNotFound(
            f"no installed plugin brings a reference model named {name!r}; "
            f"known: {known or 'none'}. {self.missing_help()}"
        )

    def missing_help(self, family: str = "<family>") -> str:
        """Why something may be missing and what to do: unusable plugins, how to install one."""
        if not self.statuses:
            return (
                f"No architecture plugin is installed: `pip install infer-{family}`, "
                "or write one: docs/writing-a-plugin.md"
            )
        lines = [
            f"\n  {one.label} is {one.state}: {one.reason}"
            + (f". To mend it: {one.mend}" if one.mend else "")
            for one in self.statuses
            if one.state in ("broken", "blocked")
        ]
        unusable = f" These installed plugins could not be asked:{''.join(lines)}" if lines else ""
        return (
            f"Install its plugin (`pip install infer-{family}`), "
            f"or write one: docs/writing-a-plugin.md.{unusable}"
        )

    def _owner(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """The architecture's name as the config has it, and the plugin that serves it."""
        architectures, model_type = config.get("architectures"), config.get("model_type")
        if architectures:
            # model_type does not count here: a family's classifier shares it with the decoder
            kind: Kind = "architecture"
            names = architectures
        elif model_type:
            kind, names = "model_type", [model_type]
        else:
            raise ConfigError("config.json has neither `architectures` nor `model_type`")
        if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
            raise ConfigError(f"config.json: `architectures` is {names!r}, expected a list of str")
        for name in names:
            if not self._claims.claimed(kind, name):
                continue
            if owner := self._claims.winner(kind, name):
                return name, owner
            message, mend = self._claims.conflict(kind, name)
            raise AmbiguousArchitecture(f"{message}. To mend it: {mend}")
        served = ", ".join(self._claims.names(kind))
        raise UnknownArchitecture(
            f"no installed plugin serves {kind} {' / '.join(map(repr, names))}; "
            f"served: {served or 'none'}. {self.missing_help(_family(model_type))}"
        )

    def _status(self, plugin: str) -> PluginStatus:
        return next(one for one in self.statuses if one.name == plugin)

    def _refuse_if_strict(self) -> None:
        problems = [one for one in self.statuses if one.state in ("broken", "conflict")]
        if self._strict and problems:
            lines = [f"\n  {one.label}: {one.reason}. To mend it: {one.mend}" for one in problems]
            raise PluginError(
                f"INFER_STRICT_PLUGINS is set and plugins are unusable:{''.join(lines)}"
            )


def _family(model_type: object) -> str:
    """The part of a plugin's name that convention takes from `model_type`."""
    if not isinstance(model_type, str) or not re.fullmatch(r"[a-z0-9_]+", model_type):
        return "<family>"
    return model_type.removesuffix("_text").replace("_", "-")
