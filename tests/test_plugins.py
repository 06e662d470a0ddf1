import subprocess
import sys

import pytest

import infer_core
from infer_core import (
    AmbiguousArchitecture,
    ConfigError,
    ModelNotFound,
    PluginContractError,
    PluginError,
    UnknownArchitecture,
    __version__,
)
from infer_core.plugins import load_registry

TOY = {"architectures": ["ToyForCausalLM"], "model_type": "toy", "width": 8, "eos_token_id": [1, 2]}
OTHER = {"ToyForCausalLM": "OtherForCausalLM", '"toy"': '"other"', "toy-tiny": "other-tiny"}
NORM_HOOK = "@hookimpl\ndef infer_norm_flavour(config):"


@pytest.fixture
def load(make_plugin):
    """Load what `make_plugin` installed, under the given INFER_* variables and no others."""
    return lambda **environ: load_registry(environ=environ, path=make_plugin.path)


def only(registry):
    (status,) = registry.statuses
    return status


def test_resolve_collects_every_answer_of_the_owner(make_plugin, load):
    make_plugin("toy", version="1.2")

    spec = load().resolve(TOY)

    assert (spec.architecture, spec.plugin) == ("ToyForCausalLM", "toy")
    assert (spec.distribution, spec.plugin_version) == ("infer-toy", "1.2")
    assert spec.shape.hidden_size == 8
    assert len(spec.attention) == len(spec.kv_cache) == 2
    assert (spec.norm.eps, spec.block.activation) == (1e-6, "silu")
    assert spec.weights[0].target == "embed"
    assert (spec.bos_token_id, spec.eos_token_ids) == (None, (1, 2))


def test_each_hook_is_asked_once_and_only_of_the_owner(make_plugin, load):
    owner = make_plugin("toy")
    neighbour = make_plugin("other", edits=OTHER)
    registry = load()
    assert sys.modules[owner].ASKED == []

    registry.resolve(TOY)

    assert sorted(sys.modules[owner].ASKED) == [
        "infer_attention_layout",
        "infer_block_layout",
        "infer_config_fields",
        "infer_kv_cache_policy",
        "infer_model_shape",
        "infer_norm_flavour",
        "infer_weight_map",
    ]
    assert sys.modules[neighbour].ASKED == []


def test_a_field_the_plugin_does_not_handle_is_an_error_naming_field_and_plugin(make_plugin, load):
    make_plugin("toy")
    with pytest.raises(ConfigError, match=r"(?s)(?=.*attention_sink)(?=.*toy)"):
        load().resolve(TOY | {"attention_sink": 4})


# Which plugin owns a config


def test_model_type_decides_where_architectures_is_absent(make_plugin, load):
    make_plugin("toy")
    assert load().resolve({"model_type": "toy", "width": 8}).architecture == "toy"


def test_an_unserved_architecture_is_not_taken_for_a_served_model_type(make_plugin, load):
    make_plugin("toy")
    with pytest.raises(UnknownArchitecture, match="'ToyForSequenceClassification'"):
        load().resolve(TOY | {"architectures": ["ToyForSequenceClassification"]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param({"width": 8}, "neither `architectures` nor `model_type`", id="neither"),
        pytest.param({"architectures": "ToyForCausalLM"}, "expected a list", id="a-string"),
        pytest.param({"architectures": [7]}, "expected a list", id="a-number"),
    ],
)
def test_a_config_without_a_usable_architecture_is_a_config_error(
    make_plugin, load, config, message
):
    make_plugin("toy")
    with pytest.raises(ConfigError, match=message):
        load().resolve(config)


def test_without_any_plugin_the_error_says_how_to_install_one(load):
    registry = load()
    assert registry.statuses == ()
    assert registry.reference_models() == []
    help_text = r"pip install infer-(toy|<family>)`.*docs/writing-a-plugin\.md"
    with pytest.raises(UnknownArchitecture, match=help_text):
        registry.resolve(TOY)
    with pytest.raises(ModelNotFound, match=help_text):
        registry.reference_model("toy-tiny")


# Plugins that cannot be loaded


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param("raise RuntimeError('no\\nluck')", "RuntimeError: no luck", id="exception"),
        pytest.param("import a_missing_module", "No module named 'a_missing_module'", id="import"),
        pytest.param("def f(:", "SyntaxError", id="syntax-error"),
        pytest.param("raise SystemExit(3)", "SystemExit: 3", id="system-exit"),
        pytest.param(
            "class Panic(BaseException): pass\nraise Panic", "raised Panic", id="base-exception"
        ),
    ],
)
def test_an_import_that_raises_breaks_only_its_own_plugin(make_plugin, load, source, reason):
    make_plugin("bad", source=source)
    make_plugin("toy")

    registry = load()

    bad, toy = registry.statuses
    assert (bad.state, toy.state) == ("broken", "ok")
    assert "importing infer_bad raised" in bad.reason
    assert reason in bad.reason
    assert bad.mend == "pip install --upgrade --force-reinstall infer-bad"
    assert bad.error.__traceback__ is not None
    assert registry.resolve(TOY).plugin == "toy"


def test_a_keyboard_interrupt_during_import_is_not_swallowed(make_plugin, load):
    make_plugin("bad", source="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load()


def test_a_broken_plugin_is_named_again_where_it_is_missed(make_plugin, load):
    make_plugin("toy", source="raise RuntimeError('no luck')")
    registry = load()
    told = (
        r"(?s)plugin 'toy' \(infer-toy 1\.0\) is broken.*no luck"
        r".*pip install --upgrade --force-reinstall infer-toy"
    )
    with pytest.raises(UnknownArchitecture, match=told):
        registry.resolve(TOY)
    with pytest.raises(ModelNotFound, match=told):
        registry.reference_model("toy-tiny")


@pytest.mark.parametrize(
    ("edits", "reasons"),
    [
        pytest.param(
            {"infer_norm_flavour(config)": "infer_norm_flavor(config)"},
            ["unknown hook infer_norm_flavor, did you mean infer_norm_flavour?"],
            id="misspelt",
        ),
        pytest.param(
            {NORM_HOOK: "def infer_norm_flavor(config):"},
            ["infer_norm_flavor is not marked @infer_core.hookimpl, did you mean"],
            id="misspelt-and-not-marked",
        ),
        pytest.param(
            {NORM_HOOK: "def infer_norm_flavour(config):"},
            ["infer_norm_flavour is not marked @infer_core.hookimpl"],
            id="not-marked",
        ),
        pytest.param(
            {NORM_HOOK: "@hookimpl\ndef norm_flavour(config):"},
            ["unknown hook norm_flavour", "missing infer_norm_flavour"],
            id="without-prefix",
        ),
        pytest.param(
            {"infer_norm_flavour(config)": "infer_norm_flavour(config, layer)"},
            ["infer_norm_flavour has an unknown argument 'layer'; the contract gives config"],
            id="unknown-argument",
        ),
        pytest.param(
            {"infer_norm_flavour(config)": "infer_norm_flavour(config=None)"},
            ["infer_norm_flavour must take 'config' as a plain argument without a default"],
            id="argument-pluggy-would-not-pass",
        ),
        pytest.param(
            {"infer_norm_flavour(config)": "infer_norm_flavour(*, config)"},
            ["infer_norm_flavour must take 'config' as a plain argument without a default"],
            id="keyword-only-argument",
        ),
        pytest.param(
            {NORM_HOOK: "def norm(config):", "infer_block_layout(config)": "blocks(config)"},
            ["missing infer_norm_flavour, infer_block_layout"],
            id="missing",
        ),
        pytest.param(
            {
                NORM_HOOK: NORM_HOOK.replace("hookimpl", "hookimpl(wrapper=True)"),
                "return NormFlavour": "yield NormFlavour",
            },
            ["infer_norm_flavour is a wrapper"],
            id="wrapper",
        ),
        pytest.param(
            {"reference_models=(TOY_TINY,)": "reference_models=(TOY_TINY, TOY_TINY)"},
            ["names a reference model twice: ['toy-tiny', 'toy-tiny']"],
            id="reference-model-twice",
        ),
        pytest.param(
            {"return Architectures(": "return dict("},
            ["infer_architectures returned a value of type dict, expected a value of type Archi"],
            id="architectures-of-the-wrong-type",
        ),
        pytest.param(
            {'architectures=("ToyForCausalLM",)': "architectures=()"},
            ["infer_architectures built an invalid Architectures: architectures: "],
            id="architectures-invalid",
        ),
        pytest.param(
            {"return Architectures(": "1 / 0\n    return Architectures("},
            ["infer_architectures raised ZeroDivisionError: division by zero"],
            id="architectures-raises",
        ),
    ],
)
def test_hooks_that_do_not_fit_the_contract_break_the_plugin(make_plugin, load, edits, reasons):
    make_plugin("toy", edits=edits)

    status = only(load())

    assert status.state == "broken"
    assert [reason for reason in reasons if reason not in status.reason] == []
    assert status.mend == "pip install --upgrade infer-toy"


def test_an_optional_hook_of_another_core_version_is_allowed(make_plugin, load):
    later = "\n\n@hookimpl(optionalhook=True)\ndef infer_from_the_future(config): ...\n"
    make_plugin("toy", edits={"NormFlavour(eps=1e-6)": f"NormFlavour(eps=1e-6){later}"})
    assert only(load()).state == "ok"


def test_a_plugin_object_that_cannot_be_hashed_leaves_its_neighbours_alone(make_plugin, load):
    make_plugin("bad", source="plugin = {}", attribute=":plugin")
    make_plugin("toy")
    registry = load()
    assert [status.state for status in registry.statuses] == ["broken", "ok"]
    assert registry.resolve(TOY).plugin == "toy"


def test_what_a_plugin_prints_while_it_loads_stays_off_stdout(make_plugin, load, capsys):
    make_plugin("toy", source="print('hello')")
    load()
    assert capsys.readouterr() == ("", "hello\n")


def test_loading_plugins_imports_neither_torch_nor_triton(make_plugin):
    make_plugin("toy")
    program = (
        "import sys; from infer_core.plugins import load_registry;"
        f"sys.path.insert(0, {make_plugin.path[0]!r});"
        f"registry = load_registry(environ={{}}, path={make_plugin.path!r});"
        "registry.resolve(registry.reference_model('toy-tiny').config);"
        "print([name for name in ('torch', 'triton') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Which core a plugin was made for


@pytest.mark.parametrize(
    ("requires", "state"),
    [
        pytest.param(("infer-core>=0.1,<0.2",), "ok", id="fits"),
        pytest.param(("Infer_Core (>=0.1)",), "ok", id="other-spelling"),
        pytest.param(("infer-core>=99",), "broken", id="needs-newer"),
        pytest.param(("infer-core<0.1",), "broken", id="needs-older"),
        pytest.param(("infer-core>=0.1", "infer-core!=" + __version__), "broken", id="two-lines"),
        pytest.param(("infer-core>=0.1", "infer-core>=99; extra == 'x'"), "ok", id="extra"),
        pytest.param(("infer-core>=0.1", "infer-core-tools>=99"), "ok", id="neighbour"),
        pytest.param(("infer-core>=0.1", "what is this?"), "ok", id="unreadable-neighbour"),
        pytest.param(("infer-core=>0.1",), "broken", id="unreadable"),
    ],
)
def test_the_core_range_of_the_distribution_is_held(make_plugin, load, requires, state):
    module = make_plugin("toy", requires=requires)

    status = only(load())

    assert (status.state, status.notes) == (state, ())
    assert (module in sys.modules) == (state == "ok"), "a plugin for another core was imported"


def test_a_development_version_of_the_core_counts_as_within_the_range(
    make_plugin, load, monkeypatch
):
    monkeypatch.setattr(infer_core, "__version__", "0.2.0.dev1")
    make_plugin("toy", requires=("infer-core>=0.1,<0.3",))
    assert only(load()).state == "ok"


def test_a_plugin_for_another_core_says_both_versions_and_the_command(make_plugin, load):
    make_plugin("toy", requires=("infer-core>=99",))
    status = only(load())
    assert status.reason == f"requires infer-core>=99, installed is infer-core {__version__}"
    assert status.mend == "pip install --upgrade infer-toy infer-core"


@pytest.mark.parametrize("requires", [(), ("infer-core",)], ids=["no-line", "no-range"])
def test_a_plugin_without_a_core_range_works_with_a_note(make_plugin, load, requires):
    make_plugin("toy", requires=requires)
    status = only(load())
    assert status.state == "ok"
    assert status.notes == ("does not say which infer-core versions it works with",)


# Two of a kind


def test_two_owners_of_one_architecture_are_an_error_naming_both(make_plugin, load):
    make_plugin("toy", edits={"toy-tiny": "toy-a"})
    make_plugin("toy2", edits={"toy-tiny": "toy-b"})

    registry = load()

    assert [status.state for status in registry.statuses] == ["conflict", "conflict"]
    assert "claim the same architecture 'ToyForCausalLM'" in registry.statuses[0].reason
    with pytest.raises(
        AmbiguousArchitecture,
        match=r"'toy' and 'toy2'.*INFER_PREFER=toy or export INFER_PREFER=toy2",
    ):
        registry.resolve(TOY)


@pytest.mark.parametrize("prefer", ["toy2", "absent, toy2 ,toy"], ids=["one", "first-of-list"])
@pytest.mark.filterwarnings("ignore:INFER_PREFER names 'absent'")
def test_infer_prefer_says_which_owner_serves(make_plugin, load, prefer):
    make_plugin("toy")
    make_plugin("toy2")

    registry = load(INFER_PREFER=prefer)

    assert registry.resolve(TOY).plugin == "toy2"
    assert [plugin for plugin, _ in registry.reference_models()] == ["toy2"]
    loser, winner = registry.statuses
    assert (loser.state, winner.state, winner.notes) == ("ok", "ok", ())
    assert "architecture 'ToyForCausalLM' is left to 'toy2' (INFER_PREFER)" in loser.notes


def test_a_reference_model_two_plugins_bring_is_refused_by_name(make_plugin, load):
    make_plugin("toy")
    make_plugin("other", edits={**OTHER, "toy-tiny": "toy-tiny"})

    registry = load()

    assert [plugin for plugin, _ in registry.reference_models()] == ["other", "toy"]
    assert {status.state for status in registry.statuses} == {"conflict"}
    with pytest.raises(PluginError, match=r"'other' and 'toy'.*'toy-tiny'.*INFER_PREFER=other"):
        registry.reference_model("toy-tiny")
    assert registry.resolve(TOY).plugin == "toy", "an undisputed architecture still works"


def test_two_distributions_with_one_plugin_name_are_both_refused(make_plugin, load):
    modules = [
        make_plugin("toy", distribution="infer-toy"),
        make_plugin("toy", distribution="Fork"),
    ]

    registry = load()

    assert [status.state for status in registry.statuses] == ["broken", "broken"]
    assert not set(modules) & sys.modules.keys()
    for status in registry.statuses:
        assert {"infer-toy 1.0", "Fork 1.0"} <= set(status.reason.split(" both ")[0].split(" and "))
        assert "pip uninstall Fork" in status.mend
        assert "pip uninstall infer-toy" in status.mend
    with pytest.raises(UnknownArchitecture, match=r"(?s)infer-toy 1\.0.*Fork 1\.0"):
        registry.resolve(TOY)


def test_one_distribution_met_twice_on_the_path_is_one_plugin(make_plugin, tmp_path):
    make_plugin("toy", distribution="infer-toy", version="1.1")
    make_plugin("toy", distribution="Infer_Toy", version="1.0", folder=tmp_path / "leftover")

    registry = load_registry(environ={}, path=[*make_plugin.path, str(tmp_path / "leftover")])

    assert (only(registry).state, only(registry).version) == ("ok", "1.1")


# Hooks that fail when a model is loaded


@pytest.mark.parametrize(
    ("edits", "error", "message"),
    [
        pytest.param(
            {"return NormFlavour(eps=1e-6)": "return None"},
            PluginContractError,
            "infer_norm_flavour returned None, expected a value of type NormFlavour",
            id="none",
        ),
        pytest.param(
            {"return NormFlavour(eps=1e-6)": "return {'eps': 1e-6}"},
            PluginContractError,
            "infer_norm_flavour returned a value of type dict, expected .* NormFlavour",
            id="dict",
        ),
        pytest.param(
            {"return [layer, layer]": "return layer"},
            PluginContractError,
            "infer_attention_layout returned a value of type AttentionLayout, "
            "expected a list or tuple of AttentionLayout",
            id="one-for-a-list",
        ),
        pytest.param(
            {"return [layer, layer]": "return [layer, None]"},
            PluginContractError,
            r"infer_attention_layout returned a list holding None at \[1\]",
            id="wrong-item",
        ),
        pytest.param(
            {"return [layer, layer]": "return [layer]"},
            PluginContractError,
            "answers for ToyForCausalLM do not fit .*infer_attention_layout described 1 layers",
            id="answers-disagree",
        ),
        pytest.param(
            {"vocab_size=32": "vocab_size=-32"},
            PluginContractError,
            r"infer_model_shape built an invalid ModelShape: vocab_size: .*greater.*\(got -32\)",
            id="validation-error",
        ),
        pytest.param(
            {"vocab_size=32": "vocab_size={}['v']"},
            PluginError,
            "infer_model_shape raised KeyError: 'v'",
            id="key-error",
        ),
        pytest.param(
            {"return NormFlavour(eps=1e-6)": "raise SystemExit(1)"},
            PluginError,
            "infer_norm_flavour raised SystemExit: 1",
            id="system-exit",
        ),
        pytest.param(
            {"return NormFlavour(eps=1e-6)": "raise ValueError"},
            PluginError,
            r"infer_norm_flavour raised ValueError\. To mend it",
            id="no-message",
        ),
    ],
)
def test_a_hook_that_fails_is_an_error_naming_plugin_hook_and_command(
    make_plugin, load, edits, error, message
):
    make_plugin("toy", edits=edits)
    registry = load()
    assert only(registry).state == "ok"

    with pytest.raises(error, match=message) as caught:
        registry.resolve(TOY)

    assert str(caught.value).startswith("plugin 'toy' (infer-toy 1.0): ")
    assert str(caught.value).endswith("To mend it: pip install --upgrade infer-toy")


def test_a_keyboard_interrupt_in_a_hook_is_not_swallowed(make_plugin, load):
    make_plugin("toy", edits={"return NormFlavour(eps=1e-6)": "raise KeyboardInterrupt"})
    with pytest.raises(KeyboardInterrupt):
        load().resolve(TOY)


def test_a_field_the_config_lacks_is_a_config_error_naming_field_and_hook(make_plugin, load):
    make_plugin("toy", edits={'config["width"]': 'config["depth"]'})
    with pytest.raises(ConfigError, match=r"plugin 'toy' .*infer_model_shape: .*no 'depth'"):
        load().resolve(TOY)


def test_a_family_default_reaches_the_hooks_where_the_config_is_silent(make_plugin, load):
    fields = 'ConfigFields(honoured=set(), defaults={"width": 24, "eos_token_ids": (7,)})'
    make_plugin("toy", edits={'ConfigFields(honoured={"width"})': fields})
    registry = load()

    silent = registry.resolve({"architectures": ["ToyForCausalLM"]})
    stated = registry.resolve(TOY)

    assert (silent.shape.hidden_size, silent.eos_token_ids) == (24, (7,))
    assert (stated.shape.hidden_size, stated.eos_token_ids) == (8, (1, 2))


def test_a_config_error_of_a_plugin_stays_a_config_error(make_plugin, load):
    refusal = "import infer_core; raise infer_core.ConfigError('rope of kind x')"
    make_plugin("toy", edits={"return NormFlavour(eps=1e-6)": refusal})
    with pytest.raises(ConfigError, match=r"'toy' \(infer-toy 1.0\): infer_norm.*rope of kind x"):
        load().resolve(TOY)


# The user's choice


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"INFER_BLOCK_PLUGINS": "bad"}, "INFER_BLOCK_PLUGINS=bad leaves it out"),
        ({"INFER_PLUGINS": "toy"}, "INFER_PLUGINS=toy does not list it"),
        (
            {"INFER_PLUGINS": "toy, bad", "INFER_BLOCK_PLUGINS": " bad ,"},
            "INFER_BLOCK_PLUGINS=bad leaves it out",
        ),
    ],
    ids=["blocked", "not-allowed", "allowed-and-blocked"],
)
def test_a_blocked_plugin_is_never_imported(make_plugin, load, environ, reason):
    make_plugin("toy")
    module = make_plugin("bad", edits=OTHER)

    registry = load(**environ)

    blocked, toy = registry.statuses
    assert (blocked.state, blocked.reason, toy.state) == ("blocked", reason, "ok")
    assert module not in sys.modules
    with pytest.raises(UnknownArchitecture, match=f"plugin 'bad'.* is blocked: {reason}"):
        registry.resolve({"architectures": ["OtherForCausalLM"]})


def test_an_empty_variable_counts_as_unset(make_plugin, load):
    make_plugin("toy")
    registry = load(
        INFER_PLUGINS="", INFER_BLOCK_PLUGINS=" ", INFER_PREFER=",", INFER_STRICT_PLUGINS="0"
    )
    assert only(registry).state == "ok"


@pytest.mark.parametrize("variable", ["INFER_PLUGINS", "INFER_BLOCK_PLUGINS", "INFER_PREFER"])
def test_a_variable_naming_an_unknown_plugin_warns(make_plugin, load, variable):
    make_plugin("toy")
    message = rf"{variable} names 'tyo', which is not installed; did you mean 'toy'\?"
    with pytest.warns(UserWarning, match=message):
        registry = load(**{variable: "toy,tyo"})
    assert len(registry.warnings) == 1


def test_preferring_a_broken_plugin_warns(make_plugin, load):
    make_plugin("bad", source="raise RuntimeError")
    make_plugin("toy")
    with pytest.warns(UserWarning, match="INFER_PREFER names 'bad', which is broken"):
        registry = load(INFER_PREFER="bad")
    assert registry.resolve(TOY).plugin == "toy"


@pytest.mark.parametrize(
    "spoilt",
    [
        pytest.param({"source": "raise RuntimeError"}, id="broken"),
        pytest.param({"edits": {"toy-tiny": "bad-tiny"}}, id="conflict"),
    ],
)
def test_strict_makes_a_bad_plugin_an_error_even_where_it_is_not_needed(make_plugin, load, spoilt):
    make_plugin("bad", **spoilt)
    make_plugin("toy")

    registry = load(INFER_STRICT_PLUGINS="1")

    for use in (
        lambda: registry.resolve(TOY),
        registry.reference_models,
        lambda: registry.reference_model("toy-tiny"),
    ):
        with pytest.raises(PluginError, match=r"(?s)INFER_STRICT_PLUGINS.*plugin 'bad'"):
            use()


def test_strict_is_content_with_blocked_plugins(make_plugin, load):
    make_plugin("bad", source="raise RuntimeError")
    make_plugin("toy")
    registry = load(INFER_STRICT_PLUGINS="1", INFER_BLOCK_PLUGINS="bad")
    assert registry.resolve(TOY).plugin == "toy"


# Reference models


def test_reference_models_come_with_their_plugin(make_plugin, load):
    make_plugin("toy")
    make_plugin("other", edits=OTHER)
    make_plugin("bad", source="raise RuntimeError")

    registry = load()

    listed = [(plugin, model.name) for plugin, model in registry.reference_models()]
    assert listed == [("other", "other-tiny"), ("toy", "toy-tiny")]
    assert registry.reference_model("toy-tiny").hub_id == "toys/toy-tiny"


def test_an_unknown_reference_model_lists_the_known_ones(make_plugin, load):
    make_plugin("toy")
    with pytest.raises(ModelNotFound, match="'toy-huge'; known: toy-tiny"):
        load().reference_model("toy-huge")


# Distributions whose metadata a crash or a bad build left behind


def test_a_plugin_without_metadata_is_reported(make_plugin, load):
    make_plugin("toy")
    (make_plugin.folder / "infer_toy-1.0.dist-info" / "METADATA").unlink()
    status = only(load())
    assert (status.name, status.state) == ("infer_toy", "broken")
    assert "cannot be read" in status.reason
    assert status.mend == "pip install --force-reinstall infer-toy"


def test_entry_points_that_cannot_be_parsed_are_reported(make_plugin, load):
    make_plugin("toy")
    entry_points = make_plugin.folder / "infer_toy-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text("[infer_core.architectures]\ntoy\n")
    status = only(load())
    assert (status.state, status.distribution) == ("broken", None)
    assert "infer_toy-1.0.dist-info cannot be read" in status.reason


def test_broken_metadata_of_an_unrelated_distribution_is_not_ours_to_report(make_plugin, load):
    unrelated = make_plugin.folder / "unrelated-1.0.dist-info"
    unrelated.mkdir()
    (unrelated / "entry_points.txt").write_text("[console_scripts]\nnonsense\n")
    assert load().statuses == ()
