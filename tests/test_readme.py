"""The examples of README.md run as they stand; only the hub they ask is one on loopback."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import FakeHub, Repository
from toy_checkpoint import write_checkpoint

README = (Path(__file__).parents[1] / "README.md").read_text()
INFER = [sys.executable, "-c", "from infer_core.cli import main; main()"]
MODEL = "google/gemma-3-1b-it"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


PYTHON = blocks("python")
COMMANDS = [
    line.partition(" #")[0]
    for block in blocks("bash")
    for line in block.splitlines()
    if line.startswith("infer ") and MODEL in line
]


@pytest.fixture(scope="module")
def environ(tmp_path_factory):
    """A hub with a small model under the README's name, and an empty cache."""
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=16384)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with FakeHub() as hub:
        hub.repositories[MODEL] = Repository(files)
        yield {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path_factory.mktemp("cache")),
            "CUDA_VISIBLE_DEVICES": "",
        }


def run(command, environ, stdin=""):
    done = subprocess.run(command, env=environ, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_were_found():
    assert len(PYTHON) == 1
    assert [command.split()[1] for command in COMMANDS] == ["inspect", "generate", "chat"]


def test_the_python_example_is_five_lines_and_prints_an_answer(environ):
    (code,) = PYTHON
    assert len([line for line in code.splitlines() if line]) <= 5
    assert len(run([sys.executable, "-c", code], environ)) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_the_terminal_examples_run(environ, command):
    stdin = "Hello\n/exit\n" if " chat " in command else ""
    assert len(run([*INFER, *shlex.split(command)[1:]], environ, stdin)) > 20
