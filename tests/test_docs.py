"""The documentation runs: every code block of the plugin guide and of the pages beside it."""

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import infer_qwen3
import pytest
from clean_environment import build, clean_environment

from infer_core import Decoder, hookspecs
from infer_core.new_plugin import new_plugin
from infer_core.testing.case import registry_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDE = (DOCS / "writing-a-plugin.md").read_text()
PAGES = {name: (DOCS / name).read_text() for name in ("compatibility.md", "security.md")}
QWEN3 = Path(infer_qwen3.__file__).read_text()


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


EXCERPTS = [block for block in blocks(GUIDE, "python") if block.strip() in QWEN3]
OTHERS = [block for block in blocks(GUIDE, "python") if block.strip() not in QWEN3]


def test_every_block_says_its_language_and_has_a_test():
    fences = [line for line in GUIDE.splitlines() if line.startswith("```")]

    assert set(fences[::2]) == {"```sh", "```toml", "```python"}
    assert set(fences[1::2]) == {"```"}
    for page in PAGES.values():
        assert {line for line in page.splitlines() if line.startswith("```")} <= {"```sh", "```"}


def test_the_walk_through_quotes_the_whole_plugin_in_order():
    def body(source):
        return [line for line in source.splitlines() if line.strip()]

    without_docstring = QWEN3[QWEN3.index("import json") :]

    assert body("\n".join(EXCERPTS)) == body(without_docstring)


def test_the_quoted_blocks_together_are_a_plugin_with_the_same_answers():
    quoted = types.ModuleType("quoted_qwen3")
    quoted.__file__ = infer_qwen3.__file__
    exec("\n".join(EXCERPTS), quoted.__dict__)

    spec = registry_of(quoted).resolve(infer_qwen3.TINY)

    expected = registry_of(infer_qwen3).resolve(infer_qwen3.TINY)
    differing = [
        name for name in type(spec).model_fields if getattr(spec, name) != getattr(expected, name)
    ]
    assert set(differing) <= {"plugin", "distribution", "plugin_version"}


@pytest.mark.parametrize("block", OTHERS, ids=lambda block: block.strip().splitlines()[0][:40])
def test_every_other_python_block_runs(block):
    # the two contract classes are run as tests by plugins/infer_qwen3/tests; the last block, a
    # whole plugin, is compared with transformers by test_family_specs.py
    exec(compile(block, "writing-a-plugin.md", "exec"), {"__name__": "guide"})


@pytest.mark.parametrize("name", [name for name in vars(hookspecs) if name.startswith("infer_")])
def test_every_hook_has_a_heading_with_its_exact_signature(name):
    tree = ast.parse(inspect.getsource(getattr(hookspecs, name)))
    (function,) = tree.body
    signature = f"{name}({ast.unparse(function.args)}) -> {ast.unparse(function.returns)}"

    assert GUIDE.count(f"\n### `{signature}`\n") == 1


def test_every_heading_of_a_hook_is_a_hook():
    headings = re.findall(r"^### `(\w+)\(", GUIDE, re.MULTILINE)

    assert sorted(headings) == sorted(n for n in vars(hookspecs) if n.startswith("infer_"))


def test_the_decoder_shown_has_the_signature_that_is_called():
    (block,) = (block for block in OTHERS if "class MyDecoder" in block)
    namespace = {}
    exec(block, namespace)

    shown = inspect.signature(namespace["MyDecoder"].hidden)
    assert shown == inspect.signature(Decoder.hidden)


def test_the_pyproject_shown_is_the_one_that_is_written(tmp_path):
    (block,) = blocks(GUIDE, "toml")
    written = new_plugin("mymodel", tmp_path) / "pyproject.toml"

    assert tomllib.loads(block) == tomllib.loads(written.read_text())


def test_links_lead_somewhere():
    for text in (GUIDE, *PAGES.values()):
        headings = {
            re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
            for line in text.splitlines()
            if line.startswith("#")
        }
        for target in re.findall(r"\]\(([^)]+)\)", text):
            file, _, anchor = target.partition("#")
            assert not file or (DOCS / file).exists(), target
            assert file or anchor in headings, target


def commands(text):
    return [
        shlex.split(line, comments=True)
        for block in blocks(text, "sh")
        for line in block.splitlines()
        if line.strip()
    ]


def test_the_commands_of_the_guide_lead_from_nothing_to_a_wheel(tmp_path):
    core = build(ROOT, "wheel", tmp_path / "core")
    run = clean_environment(tmp_path, core, oracle=True)
    folder = tmp_path
    said = {}
    for command, *arguments in commands(GUIDE):
        if command == "cd":
            folder = folder / arguments[0]
            continue
        if command in ("pip", "pytest"):  # no script of their own among the linked packages
            command, arguments = "python", ["-m", command, *arguments]
        if arguments[:2] == ["-m", "pip"]:
            arguments += ["--no-index", "--no-build-isolation"]
        done = run(command, *arguments, cwd=folder, XDG_CACHE_HOME=str(tmp_path / "cache"))
        assert done.returncode == 0, f"{command} {arguments}\n{done.stdout}{done.stderr}"
        said[" ".join([command, *arguments])] = done.stdout

    assert "kit: passed" in said["infer plugins list"]
    assert "problems: 0" in said["infer plugins doctor"]
    assert [wheel.name for wheel in (folder / "dist").iterdir()] == [
        "infer_mymodel-0.1.0-py3-none-any.whl"
    ]


@pytest.mark.parametrize("line", [shlex.join(c) for c in commands(PAGES["security.md"])])
def test_the_commands_of_the_security_page_do_what_it_says(line):
    words = shlex.split(line)
    environment = dict(word.split("=", 1) for word in words if "=" in word)
    arguments = [word for word in words if "=" not in word][1:]
    code = "from infer_core.cli import main; main()"

    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    if "list" in arguments:
        assert re.search(r"^gemma3 .* blocked ", done.stdout, re.MULTILINE)
        assert "INFER_PLUGINS=llama,qwen3 does not list it" in done.stdout


def test_a_blocked_plugin_is_never_imported():
    code = (
        "import sys, infer_core.plugins as p; p.load_registry(environ={'INFER_PLUGINS': 'llama'}); "
        "print(json.dumps(sorted(m for m in sys.modules if m.startswith('infer_'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import json; " + code], capture_output=True, text=True, check=True
    )

    loaded = {name for name in json.loads(done.stdout) if not name.startswith("infer_core")}
    assert loaded == {"infer_llama"}


def test_what_the_security_page_says_of_model_folders_holds_in_the_source():
    sources = {file: file.read_text() for file in (ROOT / "infer_core").rglob("*.py")}
    calls = {
        f"{file.name}: {ast.unparse(node.func)}"
        for file, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
    }

    for word in ("pickle.load", "torch.load", "exec", "eval", "from_pretrained"):
        assert not [call for call in calls if call.split(": ")[1] in (word,)], word
    # the places that import a module by name: the plugin's decoder and the exports of the package
    importers = {call.split(": ")[0] for call in calls if call.endswith("import_module")}
    assert importers == {"decoder.py", "__init__.py"}
