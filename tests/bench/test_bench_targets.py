from types import SimpleNamespace

import pytest
from bench_fakes import FakeBackend, FakeEngine, FakeRegistry
from infer_bench.errors import UsageError
from infer_bench.targets import describe, find_targets
from toy_specs import toy_spec

from infer_core import ConfigError


def targets(models, registry, resolve=None):
    backend = FakeBackend({name: FakeEngine() for name in registry.names})
    return find_targets(models, registry, resolve or backend.resolve, device="cpu")


def resolve_folder(model, registry, device):
    name = model.split("/")[-1]
    return SimpleNamespace(name=name, label=name, spec=toy_spec(), checkpoint=model)


def test_without_a_choice_every_reference_model_is_a_target():
    found = targets((), FakeRegistry(["alpha", "beta"]))

    assert [(target.name, target.label) for target in found] == [
        ("alpha", "Alpha"),
        ("beta", "Beta"),
    ]


def test_no_plugin_installed_is_an_error_with_the_install_command():
    with pytest.raises(UsageError, match=r"no architecture plugin is installed.*pip install"):
        targets((), FakeRegistry())


def test_no_plugin_left_by_the_block_list_is_an_error_that_names_them():
    with pytest.raises(UsageError, match=r"no installed plugin .*alpha: blocked; beta: blocked"):
        targets((), FakeRegistry(blocked=["alpha", "beta"]))


def test_a_blocked_plugin_is_not_a_failure():
    found = targets((), FakeRegistry(["alpha"], blocked=["beta"]))

    assert [target.name for target in found] == ["alpha"]


def test_a_broken_plugin_does_not_matter_to_a_chosen_model():
    found = targets(("alpha",), FakeRegistry(["alpha"], broken={"beta": "ImportError: no"}))

    assert [target.name for target in found] == ["alpha"]


def test_an_unknown_model_is_a_usage_error():
    with pytest.raises(UsageError, match="'gamma' is neither"):
        targets(("alpha", "gamma"), FakeRegistry(["alpha"]))


def test_a_config_that_cannot_be_served_is_a_target_with_its_reason():
    def resolve(model, registry, device):
        raise ConfigError(f"{model}/config.json: field 'odd' is not handled")

    (found,) = targets(("/home/ann/models/toy",), FakeRegistry(["alpha"]), resolve)

    assert (found.name, found.model) == ("toy", None)
    assert found.reason == ".../config.json: field 'odd' is not handled"


def test_two_folders_of_one_name_stay_apart():
    found = targets(("/a/toy", "/b/toy"), FakeRegistry(["alpha"]), resolve_folder)

    assert [target.name for target in found] == ["toy", "toy-2"]
    assert [target.label for target in found] == ["toy", "toy (toy-2)"]


def test_a_model_named_twice_is_measured_once():
    found = targets(("/a/toy", "/a/toy"), FakeRegistry(["alpha"]), resolve_folder)

    assert len(found) == 1


def test_our_own_errors_speak_for_themselves_and_strangers_are_named():
    assert describe(ConfigError("field\n  x")) == "field x"
    assert describe(KeyError("x")) == "KeyError: 'x'"
    assert describe(ValueError()) == "ValueError: "
