import json
import subprocess
import sys
import warnings

import pytest
import typer

from infer_core import __version__, cli
from infer_core.errors import UnknownArchitecture

JSON_KEYS = {
    "name",
    "distribution",
    "version",
    "state",
    "architectures",
    "model_types",
    "reference_models",
    "reason",
    "mend",
    "notes",
    "kit",
}


@pytest.fixture
def infer(monkeypatch, capsys):
    """Run `infer` in this process: `infer("plugins", "list")` -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main() sets it
    for variable in ("PLUGINS", "BLOCK_PLUGINS", "PREFER", "STRICT_PLUGINS"):
        monkeypatch.delenv(f"INFER_{variable}", raising=False)

    def run(*arguments, **environ):
        for variable, value in environ.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setattr(sys, "argv", ["infer", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return (exit_.value.code or 0, *capsys.readouterr())

    return run


def listed(output, *names):
    """Rows of `infer plugins list --json` (plugins of this environment left out)."""
    return [row for row in json.loads(output)["plugins"] if row["name"] in names]


def test_version_is_the_package_version(infer):
    assert infer("--version") == (0, f"infer-core {__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["plugins"]], ids=["infer", "infer-plugins"])
def test_without_a_command_the_help_is_shown(infer, arguments):
    _, out, err = infer(*arguments)
    assert "Usage: infer" in out + err


def test_an_unknown_command_exits_with_2(infer):
    code, _, err = infer("plugins", "heal")
    assert code == 2
    assert "heal" in err


def test_an_error_the_user_can_act_on_is_one_message_and_exit_code_2(infer, monkeypatch):
    failing = typer.Typer()

    @failing.command()
    def fail():
        raise UnknownArchitecture("no installed plugin serves 'X'")

    monkeypatch.setattr(cli, "app", failing)
    assert infer() == (2, "", "infer: error: no installed plugin serves 'X'\n")


def test_an_error_of_our_own_keeps_its_traceback(infer, monkeypatch):
    failing = typer.Typer()

    @failing.command()
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", failing)
    monkeypatch.setattr(sys, "argv", ["infer"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_list_json_has_the_documented_keys_for_usable_and_broken_plugins(infer, make_plugin):
    make_plugin("bad", source="raise RuntimeError('no luck')")
    make_plugin("toy", version="1.2")

    code, out, _ = infer("plugins", "list", "--json")

    assert code == 0
    assert json.loads(out).keys() == {"core_version", "plugins", "warnings"}
    bad, toy = listed(out, "bad", "toy")
    assert bad.keys() == toy.keys() == JSON_KEYS
    assert toy == {
        "name": "toy",
        "distribution": "infer-toy",
        "version": "1.2",
        "state": "ok",
        "architectures": ["ToyForCausalLM"],
        "model_types": ["toy"],
        "reference_models": ["toy-tiny"],
        "reason": None,
        "mend": None,
        "notes": [],
        "kit": None,
    }
    assert (bad["state"], bad["architectures"]) == ("broken", [])
    assert bad["reason"] == "importing infer_bad raised RuntimeError: no luck"
    assert bad["mend"] == "pip install --upgrade --force-reinstall infer-bad"


def test_list_shows_a_row_for_each_plugin_and_what_is_wrong_below_it(infer, make_plugin):
    make_plugin("bad", source="raise RuntimeError('no luck')")
    make_plugin("toy", requires=())

    code, out, _ = infer("plugins", "list", INFER_PLUGINS="bad,toy")

    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["toy", "infer-toy", "1.0", "ok", "ToyForCausalLM", "toy-tiny"] in rows
    assert ["bad", "infer-bad", "1.0", "broken", "-", "-"] in rows
    assert "    reason: importing infer_bad raised RuntimeError: no luck\n    mend: pip" in out
    assert "    note: does not say which infer-core versions" in out


def test_list_keeps_json_clean_when_a_plugin_prints_and_a_name_is_unknown(infer, make_plugin):
    make_plugin("toy", source="print('hello')")

    with pytest.warns(UserWarning, match="INFER_BLOCK_PLUGINS names 'tyo'") as warned:
        code, out, err = infer("plugins", "list", "--json", INFER_BLOCK_PLUGINS="tyo")

    assert (code, err) == (0, "hello\n")
    text = str(warned[0].message)
    assert json.loads(out)["warnings"] == [text]
    assert warnings.formatwarning(text, UserWarning, "f.py", 1) == f"infer: warning: {text}\n"


def test_list_works_in_strict_mode_to_show_what_is_wrong(infer, make_plugin):
    make_plugin("bad", source="raise RuntimeError")
    code, out, _ = infer("plugins", "list", "--json", INFER_STRICT_PLUGINS="1")
    assert (code, listed(out, "bad")[0]["state"]) == (0, "broken")


def test_doctor_is_content_with_a_working_plugin(infer, make_plugin):
    make_plugin("toy")
    code, out, _ = infer("plugins", "doctor", INFER_PLUGINS="toy")
    assert code == 0
    assert ", problems: 0, notes: 0\n" in out


def test_doctor_shows_the_traceback_and_the_mending_command(infer, make_plugin):
    make_plugin("bad", source="def fail():\n    raise RuntimeError('no luck')\nfail()")

    code, out, _ = infer("plugins", "doctor", INFER_PLUGINS="bad", INFER_STRICT_PLUGINS="1")

    assert code == 1
    assert "Traceback" in out
    assert 'infer_bad.py", line 2, in fail' in out
    assert "To mend it: pip install --upgrade --force-reinstall infer-bad\n" in out
    assert ", problems: 1, notes: 0\n" in out


def test_doctor_finds_a_hook_that_fails_only_for_a_model(infer, make_plugin):
    make_plugin("toy", edits={"return NormFlavour(eps=1e-6)": "return 1 / 0"})

    code, out, _ = infer("plugins", "doctor", INFER_PLUGINS="toy")

    assert code == 1
    assert "config of reference model 'toy-tiny'" in out
    assert "infer_norm_flavour raised ZeroDivisionError: division by zero" in out
    assert 'infer_toy.py", line' in out


@pytest.mark.parametrize(
    ("arguments", "shown", "code"),
    [
        pytest.param(["--help"], "Usage: infer", 0, id="help"),
        pytest.param(["plugins", "list"], "ToyForCausalLM", 0, id="plugins-list"),
        pytest.param(["generate", "nowhere", "hi"], "'nowhere' is neither", 2, id="generate"),
        pytest.param(["chat", "nowhere"], "'nowhere' is neither", 2, id="chat"),
    ],
)
def test_starting_imports_neither_torch_nor_triton(make_plugin, arguments, shown, code):
    make_plugin("toy")
    program = (
        "import os, sys; os.environ['INFER_PLUGINS'] = 'toy'\n"
        f"sys.path.insert(0, {make_plugin.path[0]!r})\n"
        f"sys.argv = ['infer', *{arguments!r}]\n"
        "from infer_core.cli import main\n"
        "try:\n    main()\n"
        f"except SystemExit as done:\n    assert (done.code or 0) == {code}, done.code\n"
        "heavy = {'torch', 'triton', 'transformers', 'numpy', 'safetensors', 'rich'}\n"
        "heavy |= {'huggingface_hub', 'tokenizers', 'jinja2'}\n"
        "print('imported:', sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout + done.stderr
    assert done.stdout.endswith("imported: []\n")
