"""How hooks are deprecated: a plugin for the older contract goes on working, with a warning."""

import types
import warnings

import pytest
import toy_plugin

from infer_core import NormFlavour, PluginContractError, hookimpl, hookspecs
from infer_core.hookspecs import hookspec
from infer_core.plugin_hooks import PluginHooks
from infer_core.plugin_loader import load_plugins
from infer_core.plugin_status import PluginSettings, PluginStatus

STATUS = PluginStatus("toy", "infer-toy", "1.0")


def later_contract(**changes):
    """The contract of some later version of the core: today's, with some names changed."""
    module = types.ModuleType("later_hookspecs")
    module.__dict__.update({**vars(hookspecs), **changes})
    return module


@hookspec(warn_on_impl=DeprecationWarning("infer_norm_style is now infer_norm_flavour"))
def infer_norm_style(config) -> NormFlavour:
    raise NotImplementedError


@hookspec(
    warn_on_impl_args={"layer": DeprecationWarning("infer_kv_cache_policy no longer needs layer")}
)
def infer_kv_cache_policy(config, layer) -> list:
    raise NotImplementedError


RENAMED = later_contract(
    infer_norm_style=infer_norm_style, REPLACED_BY={"infer_norm_style": "infer_norm_flavour"}
)
LESS_ARGUMENTS = later_contract(infer_kv_cache_policy=infer_kv_cache_policy)


def old_plugin(**hooks):
    """The toy plugin as it was written for an older contract; None removes a hook."""
    plugin = types.ModuleType("old_plugin")
    plugin.__dict__.update({**vars(toy_plugin), **hooks})
    for name in [name for name, hook in hooks.items() if hook is None]:
        delattr(plugin, name)
    return plugin


@hookimpl
def old_norm_style(config):
    return NormFlavour(eps=0.5)


@hookimpl
def old_kv_cache_policy(config, layer):
    return [layer]


OLD = old_plugin(infer_norm_flavour=None, infer_norm_style=old_norm_style)


def test_a_plugin_with_a_deprecated_hook_loads_with_a_warning_and_answers_for_its_successor():
    with pytest.warns(DeprecationWarning, match=r"plugin 'toy'.*is now infer_norm_flavour"):
        hooks = PluginHooks(OLD, STATUS, RENAMED)

    assert hooks.ask("infer_norm_flavour", config={}) == NormFlavour(eps=0.5)
    assert hooks.deprecations == ("infer_norm_style is now infer_norm_flavour",)


def test_a_plugin_with_a_deprecated_argument_loads_with_a_warning_and_still_gets_it():
    plugin = old_plugin(infer_kv_cache_policy=old_kv_cache_policy)

    with pytest.warns(DeprecationWarning, match="no longer needs layer"):
        hooks = PluginHooks(plugin, STATUS, LESS_ARGUMENTS)

    answer = hooks._manager.hook.infer_kv_cache_policy(config={}, layer=3)
    assert answer == [[3]]


@pytest.mark.parametrize("contract", [RENAMED, LESS_ARGUMENTS, hookspecs])
def test_a_plugin_of_today_loads_without_a_warning(contract):
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        hooks = PluginHooks(toy_plugin, STATUS, contract)

    assert hooks.deprecations == ()
    assert hooks.ask("infer_norm_flavour", config={}).eps == 1e-6


def test_a_plugin_with_neither_the_old_hook_nor_the_new_one_is_refused():
    with pytest.raises(PluginContractError, match=r"missing infer_norm_flavour\. To mend"):
        PluginHooks(old_plugin(infer_norm_flavour=None), STATUS, RENAMED)


def test_an_answer_of_the_old_hook_is_checked_under_the_name_its_author_knows():
    plugin = old_plugin(infer_norm_flavour=None, infer_norm_style=hookimpl(lambda config: 1))
    with pytest.warns(DeprecationWarning, match="is now infer_norm_flavour"):
        hooks = PluginHooks(plugin, STATUS, RENAMED)

    with pytest.raises(PluginContractError, match="infer_norm_style returned a value of type int"):
        hooks.ask("infer_norm_flavour", config={})


def test_the_list_of_plugins_notes_a_deprecation(make_plugin, monkeypatch):
    make_plugin("toy", edits={"def infer_norm_flavour": "def infer_norm_style"})
    monkeypatch.setattr(PluginHooks.__init__, "__defaults__", (RENAMED,))

    with pytest.warns(DeprecationWarning, match="is now infer_norm_flavour"):
        (status,), _ = load_plugins(PluginSettings(), path=make_plugin.path)

    assert status.state == "ok"
    assert status.notes == ("infer_norm_style is now infer_norm_flavour",)


def test_every_replaced_hook_is_known_and_marked():
    for old, new in hookspecs.REPLACED_BY.items():
        assert hasattr(hookspecs, new)
        assert getattr(hookspecs, old).infer_core_spec["warn_on_impl"] is not None
