"""The kit fails a spoilt plugin, and its message names the hook that was spoilt."""

import subprocess
import sys
import types
from pathlib import Path

import infer_llama
import pytest

from infer_core.testing import PluginContract
from infer_core.testing.case import ContractCase
from infer_core.testing.dialects import in_new_dialect, in_old_dialect

SOURCE = Path(infer_llama.__file__).read_text()
TINY = infer_llama.TINY
PARITY = "test_logits_equal_transformers_in_fp32"


def spoilt_plugin(edits):
    """The first plugin's module with parts of its source replaced."""
    source = SOURCE
    for old, new in edits.items():
        assert old in source, f"{old!r} is not in the plugin's source"
        source = source.replace(old, new)
    plugin = types.ModuleType("spoilt_plugin")
    plugin.__file__ = infer_llama.__file__
    exec(compile(source, "spoilt_plugin.py", "exec"), plugin.__dict__)
    return plugin


def check(name, edits, folder, **config):
    """Run one check on a spoilt plugin."""
    plugin = spoilt_plugin(edits)
    contract = type("Contract", (PluginContract,), {"plugin": plugin})()
    arguments = ()
    if "contract_case" in getattr(PluginContract, name).__code__.co_varnames[:2]:
        arguments = (ContractCase(plugin, {**TINY, **config}, folder),)
    getattr(contract, name)(*arguments)


SPOILT = [
    pytest.param(
        PARITY,
        {'eps=config["rms_norm_eps"]': "eps=0.5"},
        r"position 0\n  look at: infer_norm_flavour",
        id="norm-eps",
    ),
    pytest.param(
        PARITY,
        {'activation=activation(config["hidden_act"])': 'activation="gelu"'},
        r"position 0\n  look at: .*infer_block_layout",
        id="activation",
    ),
    pytest.param(
        PARITY,
        {"softmax_scale=": "softmax_scale=2 * "},
        r"position 1\n  look at: infer_attention_layout",
        id="softmax-scale",
    ),
    pytest.param(
        PARITY,
        {'part="q"': 'part="tmp"', 'part="k"': 'part="q"', 'part="tmp"': 'part="k"'},
        "infer_weight_map",
        id="q-and-k-swapped",
    ),
    pytest.param(
        "test_the_weight_map_is_a_bijection",
        {'self_attn.o_proj.weight"': 'self_attn.out_proj.weight"'},
        r"attn_out(.|\n)*look at: infer_weight_map",
        id="misspelt-tensor",
    ),
    pytest.param(
        "test_an_unknown_config_field_is_refused",
        {'"num_hidden_layers",': '"num_hidden_layers", "field_that_no_plugin_knows",'},
        "look at: infer_config_fields",
        id="anything-goes",
    ),
    pytest.param(
        "test_hooks_fit_the_contract",
        {"def infer_norm_flavour": "def infer_norm_flavor"},
        r"infer_norm_flavor, did you mean infer_norm_flavour\?",
        id="misspelt-hook",
    ),
    pytest.param(
        "test_specs_are_valid_for_every_reference_config",
        {'num_layers=config["num_hidden_layers"]': "num_layers=0"},
        "infer_model_shape built an invalid ModelShape: num_layers",
        id="invalid-spec",
    ),
    pytest.param(
        "test_both_config_dialects_say_the_same",
        {'dtype=config["dtype"]': 'dtype="float16" if "use_cache" in config else "float32"'},
        r"another shape(.|\n)*look at: infer_model_shape",
        id="reads-a-dialect",
    ),
]


@pytest.mark.parametrize(("name", "edits", "message"), SPOILT)
def test_a_spoilt_hook_fails_and_is_named(name, edits, message, tmp_path):
    with pytest.raises(pytest.fail.Exception, match=message):
        check(name, edits, tmp_path)


@pytest.mark.parametrize("name", sorted({case.values[0] for case in SPOILT}))
def test_the_plugin_as_it_is_passes_the_same_checks(name, tmp_path):
    check(name, {}, tmp_path)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [("import time; time.sleep(0.3)", r"takes 0\.\d+ s"), ("import torch", "imports torch")],
)
def test_a_heavy_entry_module_fails(source, complaint, tmp_path, monkeypatch):
    (tmp_path / "heavy_entry.py").write_text(source)
    (tmp_path / "torch.py").touch()  # a stand-in: the real one takes seconds to import
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    plugin = types.ModuleType("heavy_entry")
    contract = type("Contract", (PluginContract,), {"plugin": plugin})()

    with pytest.raises(pytest.fail.Exception, match=complaint):
        contract.test_the_entry_module_is_light()


def test_what_pytest_loads_by_itself_imports_neither_torch_nor_the_contract():
    code = "import sys, infer_core.testing.pytest_plugin as p; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    heavy = {"torch", "triton", "transformers", "pydantic", "infer_core.testing.contract"}
    assert heavy & set(done.stdout.split()) == set()


def test_an_architecture_that_transformers_does_not_know_is_skipped_by_name(tmp_path):
    edits = {'"LlamaForCausalLM"': '"UnheardOfForCausalLM"'}

    with pytest.raises(pytest.skip.Exception, match="does not know UnheardOfForCausalLM"):
        check(PARITY, edits, tmp_path, architectures=["UnheardOfForCausalLM"])
    # the checkpoint then comes from the plugin's own table
    check(
        "test_the_weight_map_is_a_bijection",
        edits,
        tmp_path,
        architectures=["UnheardOfForCausalLM"],
    )


def test_without_transformers_parity_is_skipped_and_the_rest_still_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(pytest.skip.Exception, match="transformers, the oracle, which is not inst"):
        check(PARITY, {}, tmp_path)
    check("test_the_weight_map_is_a_bijection", {}, tmp_path)
    check("test_cached_equals_uncached", {}, tmp_path)


def test_dialects_differ_in_words_and_agree_in_meaning():
    config = {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "dtype": "bfloat16",
        "eos_token_id": [1, 2],
        "bos_token_id": None,
    }

    old = in_old_dialect(config)

    assert old == {
        "num_hidden_layers": 4,
        "sliding_window_pattern": 2,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "torch_dtype": "bfloat16",
        "eos_token_id": [1, 2],
    }
    assert in_new_dialect(old) == in_new_dialect(config)


@pytest.fixture
def verdict(tmp_path, monkeypatch):
    """Feed reports to the verdict plugin; tells whether a record stands at the end."""
    from infer_core.kit_record import read_record
    from infer_core.testing.pytest_plugin import PROPERTY, _Verdicts

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(*outcomes, names=("test_a", "test_b"), count=2):
        import json

        note = json.dumps(
            {
                "distribution": "infer-mine",
                "version": "1.0",
                "class": "m.TestContract",
                "names": names,
                "count": count,
            }
        )
        verdicts = _Verdicts()
        for nodeid, outcome in outcomes:
            report = pytest.TestReport(
                nodeid, ("m.py", 1, nodeid), {}, outcome, None, "call",
                user_properties=[(PROPERTY, note)],
            )  # fmt: skip
            verdicts.pytest_runtest_logreport(report)
        verdicts.pytest_sessionfinish()
        return read_record("infer-mine", "1.0")

    return run


def test_a_record_is_written_when_every_check_passed_or_could_not_run(verdict):
    record = verdict(("m.py::T::test_a[x]", "passed"), ("m.py::T::test_b", "skipped"))

    assert (record.passed, record.skipped) == (1, 1)
    assert "1 checks, 1 skipped" in record.badge


def test_a_failure_takes_the_record_back(verdict):
    assert verdict(("m.py::T::test_a", "passed"), ("m.py::T::test_b", "passed"))

    assert verdict(("m.py::T::test_a", "passed"), ("m.py::T::test_b", "failed")) is None


def test_a_part_of_the_checks_is_no_pass_and_takes_nothing_back(verdict):
    assert verdict(("m.py::T::test_a", "passed")) is None
    assert verdict(("m.py::T::test_a", "passed"), count=1) is None  # test_b was not collected

    assert verdict(("m.py::T::test_a", "passed"), ("m.py::T::test_b", "passed"))
    assert verdict(("m.py::T::test_a", "passed"))


def test_an_unreadable_record_is_no_record(verdict, tmp_path):
    assert verdict(("m.py::T::test_a", "passed"), ("m.py::T::test_b", "passed"))
    (file,) = tmp_path.rglob("*.json")
    file.write_text("{")

    assert verdict() is None
