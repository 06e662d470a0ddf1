"""`infer generate`, `infer chat` and `infer inspect` as a user meets them."""

import dataclasses
import io
import json
import os
import pty
import resource
import select
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub, Repository
from toy_checkpoint import write_checkpoint

from infer_core import LLM, SamplingParams, cli
from infer_core.cli_options import summary
from infer_core.engine import Engine

LONG = 4000  # tokens: a tiny model takes seconds for them, so that there is time to interrupt

INFER = [sys.executable, "-c", "from infer_core.cli import main; main()"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-chat")
    write_checkpoint(folder, max_position_embeddings=2 * LONG)
    return str(folder)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, device="cpu") as llm:
        yield llm


@pytest.fixture
def infer(monkeypatch, capsys):
    """Run `infer` in this process: `infer("generate", ...)` -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main() sets it

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["infer", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return (exit_.value.code or 0, *capsys.readouterr())

    return run


class Terminal:
    """A command in a pseudo-terminal: what it shows, and keys to send."""

    def __init__(self, *arguments, stdout=None, **environ):
        self._main, child = pty.openpty()
        self._process = subprocess.Popen(
            [*INFER, *arguments],
            stdin=child,
            stdout=child if stdout is None else stdout,
            stderr=child,
            start_new_session=True,
            preexec_fn=lambda: _own_terminal(0),
            env={**os.environ, "TERM": "xterm", "CUDA_VISIBLE_DEVICES": "", **environ},
        )
        os.close(child)
        self.shown, self._seen = "", 0

    def wait_for(self, text, timeout=60):
        """Read until this was shown after what the last call waited for."""
        deadline = time.monotonic() + timeout
        while (found := self.shown.find(text, self._seen)) < 0:
            ready, _, _ = select.select([self._main], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"waited for {text!r}, saw {self.shown[self._seen :]!r}"
            try:
                piece = os.read(self._main, 65536).decode("utf-8", "replace")
            except OSError:  # the other side is closed
                piece = ""
            assert piece, f"ended; waited for {text!r}, saw {self.shown[self._seen :]!r}"
            self.shown += piece
        self._seen = found + len(text)

    def wait_for_more(self):
        """Read until anything was shown after what the last call waited for."""
        while len(self.shown) == self._seen:
            ready, _, _ = select.select([self._main], [], [], 60)
            assert ready, "nothing more was shown"
            self.shown += os.read(self._main, 65536).decode("utf-8", "replace")

    def send(self, keys):
        os.write(self._main, keys.encode())

    def press_until(self, keys, text):
        """Press `keys` once a second until `text` is shown, as a user would.

        Python's readline shows its prompt a moment before it listens: a key in between is lost.
        """
        for _ in range(60):
            self.send(keys)
            try:
                return self.wait_for(text, timeout=1)
            except AssertionError:
                assert self._process.poll() is None, "the program has ended"
        raise AssertionError(f"{text!r} was never shown, but {self.shown[self._seen :]!r}")

    def exit_code(self):
        try:
            while os.read(self._main, 65536):
                pass
        except OSError:
            pass
        return self._process.wait(timeout=30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._main)


def _own_terminal(descriptor):
    import fcntl
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


def test_generate_prints_the_text_and_says_how_fast(infer, folder, llm):
    code, out, err = infer("generate", folder, "The quick", "--max-tokens", "9", "--device", "cpu")

    answer = llm.generate("The quick", SamplingParams(max_tokens=9))
    assert (code, out) == (0, answer.text + "\n")
    assert err.startswith("9 tokens, TTFT ")
    assert "tokens/s" in err
    assert err.endswith("ended by length\n")


def test_quiet_leaves_only_the_text(infer, folder):
    _, out, err = infer("generate", folder, "The quick", "--max-tokens", "9", "-q")
    assert out
    assert err == ""


def test_generate_reads_standard_input_and_drops_the_line_break_of_echo(infer, folder):
    piped = infer("generate", folder, "-", "--max-tokens", "9", "-q", stdin=b"The quick\n")
    assert piped == infer("generate", folder, "The quick", "--max-tokens", "9", "-q")


def test_json_holds_the_whole_completion(infer, folder, llm):
    options = ["--json", "--max-tokens", "5", "--logprobs", "2", "--stop", "never seen"]
    _, out, err = infer("generate", folder, "The quick", *options)

    document = json.loads(out)
    answer = llm.generate("The quick", SamplingParams(max_tokens=5))
    assert (document["text"], document["token_ids"]) == (answer.text, answer.token_ids)
    assert document["finish_reason"] == "length"
    assert len(document["logprobs"]) == 5
    assert document["commit"] is None
    assert err == ""


def test_sampling_options_reach_the_model(infer, folder, llm):
    options = {"temperature": 5.0, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "seed": 3}
    options |= {"repetition_penalty": 1.3, "max_tokens": 12}
    flags = [
        text for name, v in options.items() for text in (f"--{name.replace('_', '-')}", str(v))
    ]

    _, out, _ = infer("generate", folder, "The quick", "-q", *flags)

    assert out == llm.generate("The quick", SamplingParams(**options)).text + "\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        pytest.param(["{}", ""], b"", "the prompt is empty", id="empty"),
        pytest.param(["{}", "-"], b"\n", "the prompt is empty", id="empty-input"),
        pytest.param(["{}", "-"], b"ab\xff", "byte 0xff at offset 2", id="not-utf-8"),
        pytest.param(["{}", "fox " * 9000], b"", "leaves no room", id="beyond-the-context"),
        pytest.param(["{}", "hi", "--max-tokens", "99999"], b"", "99999 new tokens", id="too-long"),
        pytest.param(["{}", "hi", "--top-k", "5"], b"", "temperature is 0", id="contradiction"),
        pytest.param(
            ["{}", "hi", "--top-p", "2"],
            b"",
            "--top-p: Input should be less than or equal to 1, not 2.0",
            id="out-of-range",
        ),
        pytest.param(["{}", "hi", "--stop", ""], b"", "--stop: a stop string", id="empty-stop"),
        pytest.param(["{}", "hi", "--logprobs", "1"], b"", "with --json only", id="logprobs"),
        pytest.param(["nowhere", "hi"], b"", "nor a hub id", id="unknown-model"),
        pytest.param(["llama-3.2-1b", "hi"], b"", "random weights", id="reference-model"),
        pytest.param(["{}", "hi", "--device", "tpu"], b"", "'tpu' is unknown", id="device"),
        pytest.param(["{}", "hi", "--revision", "v1"], b"", "is a folder", id="revision"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(infer, folder, arguments, stdin, message):
    code, out, err = infer(
        "generate", *(each.replace("{}", folder) for each in arguments), stdin=stdin
    )

    assert (code, out) == (2, "")
    assert err.startswith("infer: error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    "arguments", [["hi", "--temperature", "-1"], ["-"]], ids=["parameters", "empty-input"]
)
def test_bad_input_is_found_before_the_model_is_loaded(infer, folder, monkeypatch, arguments):
    monkeypatch.setattr(Engine, "load", None)
    assert infer("generate", folder, *arguments)[0] == 2


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_help_says_what_an_option_that_is_not_given_means(infer, command):
    _, out, _ = infer(command, "--help")
    assert "that of the model's generation_config.json, else greedy" in " ".join(out.split())


def test_the_summary_tells_warming_up_from_waiting(llm):
    answer = llm.generate("The quick", SamplingParams(max_tokens=2))
    cold = dataclasses.replace(answer, ttft_ms=1234.0, warm_up_s=1.2)

    assert "TTFT 1234 ms (1200 of them warm-up), " in summary(cold)
    assert "warm-up" not in summary(answer)


def test_an_output_that_is_not_unicode_shows_what_it_can(folder, llm):
    command = [*INFER, "generate", folder, "The quick", "--max-tokens", "9", "-q"]
    environ = {**os.environ, "PYTHONIOENCODING": "ascii", "CUDA_VISIBLE_DEVICES": ""}
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    document = subprocess.check_output([*command, "--json"], env=environ)

    text = llm.generate("The quick", SamplingParams(max_tokens=9)).text
    assert not text.isascii()
    assert shown == "".join(char if char.isascii() else "?" for char in text) + "\n"
    assert json.loads(document)["text"] == text


@pytest.mark.parametrize("chosen", ["folder", "reference-model"])
def test_a_model_without_a_tokenizer_fails_before_weights_are_read(
    infer, tmp_path, monkeypatch, chosen
):
    write_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "tokenizer.model")
    monkeypatch.setattr(Engine, "load", None)
    model = {"folder": str(tmp_path), "reference-model": "llama-3.2-1b"}[chosen]

    code, _, err = infer("generate", model, "hi", "--device", "cpu")

    message = {"folder": "found: tokenizer.model", "reference-model": "no tokenizer"}[chosen]
    assert code == 2
    assert message in err


def test_a_reader_that_has_seen_enough_is_no_error(folder):
    command = [*INFER, "generate", folder, "The", "--max-tokens"]
    with subprocess.Popen(
        [*command, str(LONG)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(3)
        process.stdout.close()
        assert process.stderr.read() == b""


def test_chat_answers_each_line_of_a_pipe(infer, folder, llm):
    lines = b"Pack my box\n\nAnd then?\n/reset\nPack my box\n/exit\nnever read\n"
    code, out, err = infer(
        "chat", folder, "--max-tokens", "8", "--system", "Be brief.", stdin=lines
    )

    system = [{"role": "system", "content": "Be brief."}]
    first = llm.chat(
        [*system, {"role": "user", "content": "Pack my box"}], SamplingParams(max_tokens=8)
    )
    assert code == 0
    assert out.startswith(first.text + "\n")
    assert out.endswith(first.text + "\n")
    assert err.count("TTFT") == 3
    assert err.count("cached)") == 2  # the second turn, and the system prompt after the reset
    assert "the conversation is forgotten" in err


def test_chat_saves_the_conversation_once(infer, folder, tmp_path):
    path = tmp_path / "talk.json"
    lines = f"Pack my box\n/save {path}\n".encode()

    assert infer("chat", folder, "--max-tokens", "4", "-q", stdin=lines)[0] == 0
    messages = json.loads(path.read_text())
    assert [message["role"] for message in messages] == ["user", "assistant"]
    code, _, err = infer("chat", folder, "--max-tokens", "4", "-q", stdin=lines)
    assert code == 2
    assert "exists; give another name" in err


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("talk.json", id="full"),
        pytest.param("nowhere/talk.json", id="no-folder"),
        pytest.param("a-file/talk.json", id="below-a-file"),
    ],
)
def test_a_conversation_that_cannot_be_saved_leaves_no_file(folder, tmp_path, name):
    (tmp_path / "a-file").touch()

    def fill_the_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    done = subprocess.run(
        [*INFER, "chat", folder, "--max-tokens", "4", "-q", "--device", "cpu"],
        input=f"Pack my box\n/save {tmp_path / name}\n".encode(),
        preexec_fn=fill_the_disk,
        capture_output=True,
    )

    assert done.returncode == 2
    assert b"talk.json cannot be written" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["a-file"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        pytest.param([], b"\xff\n", "not UTF-8", id="not-utf-8"),
        pytest.param([], b"/restart\n", "no command /restart", id="unknown-command"),
        pytest.param([], b"fox " * 9000, "leaves no room", id="beyond-the-context"),
        pytest.param(["--context", "99999"], b"", "expected 1 to 8000", id="context"),
        pytest.param(["--min-p", "0.1"], b"", "temperature is 0", id="contradiction"),
        pytest.param(["--no-think"], b"hi\n", "does not read enable_thinking", id="no-thinking"),
    ],
)
def test_bad_input_to_a_chat_is_one_line_and_exit_code_2(infer, folder, arguments, stdin, message):
    code, out, err = infer("chat", folder, "-q", *arguments, stdin=stdin)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize("missing", ["chat_template.jinja", "tokenizer.json"])
def test_chat_without_all_it_needs_fails_before_weights_are_read(
    infer, tmp_path, monkeypatch, missing
):
    write_checkpoint(tmp_path)
    (tmp_path / missing).unlink()
    monkeypatch.setattr(Engine, "load", None)
    code, _, err = infer("chat", str(tmp_path))
    assert code == 2
    assert f"has no {missing.partition('.')[0].replace('_', ' ')}" in err


def test_in_a_terminal_ctrl_c_stops_the_answer_and_not_the_program(folder):
    with Terminal("chat", folder, "--max-tokens", str(LONG), NO_COLOR="1") as terminal:
        terminal.wait_for("> ")
        terminal.send("Pack my box\n")
        terminal.wait_for("Pack my box\r\n")
        terminal.wait_for_more()  # the answer has begun
        terminal.send("\x03")
        terminal.wait_for("ended by cancelled")
        terminal.wait_for("> ")
        terminal.press_until("\x03", "/exit or Ctrl-D leaves")
        terminal.send("/restart\n")
        terminal.wait_for("there is no command /restart")
        terminal.send("/reset\n")
        terminal.wait_for("forgotten")
        terminal.send("/exit\n")
        assert terminal.exit_code() == 0
        assert "Traceback" not in terminal.shown
        assert "\x1b[2m" not in terminal.shown


def test_in_a_terminal_notes_are_dimmed_and_ctrl_d_leaves(folder):
    with Terminal("chat", folder, "--max-tokens", "3", NO_COLOR="") as terminal:
        terminal.wait_for("\x1b[2mloaded in")
        terminal.wait_for("> ")
        terminal.send("\x04")
        assert terminal.exit_code() == 0


def test_in_a_terminal_with_redirected_output_only_answers_are_in_the_file(folder, tmp_path, llm):
    path = tmp_path / "answers"
    options = ["--max-tokens", "5", "--device", "cpu"]
    with path.open("wb") as file, Terminal("chat", folder, *options, stdout=file) as terminal:
        terminal.wait_for("> ")
        terminal.send("Pack my box\n")
        terminal.wait_for("TTFT")
        terminal.send("\x04")
        assert terminal.exit_code() == 0
    answer = llm.chat([{"role": "user", "content": "Pack my box"}], SamplingParams(max_tokens=5))
    assert path.read_text() == answer.text + "\n"


def test_inspect_agrees_with_the_loaded_model(infer, folder, llm):
    code, out, _ = infer("inspect", folder, "--context", "64", "--dtype", "float32", "--json")

    facts = json.loads(out)
    generation = llm.engine.generate([5, 6, 7], max_new_tokens=61)
    assert code == 0
    assert facts["weight_bytes"] == llm.engine.weight_bytes
    assert facts["kv_cache_bytes"] == generation.kv_cache_bytes
    assert facts["num_parameters"] * 4 == facts["weight_bytes"]
    assert facts["total_bytes"] > facts["weight_bytes"] + facts["kv_cache_bytes"]
    assert (facts["plugin"], facts["distribution"]) == ("llama", "infer-llama")


def test_inspect_shows_a_reference_model_in_its_published_size(infer):
    code, out, _ = infer("inspect", "gemma3-1b", "--context", "8192")
    lines = dict(line.split("  ", 1) for line in out.splitlines())

    assert code == 0
    assert lines["parameters"].strip() == "999.9 million, bfloat16"
    assert lines["layers"].strip() == "26, 22 of them see 512 tokens"
    # 4 full layers of 8192 tokens and 22 rings of 512, K and V, 1 head of 256, 2 bytes
    expected = 2 * 256 * 2 * (4 * 8192 + 22 * 512) / 1e6
    assert lines["KV cache"].strip() == f"{expected:.1f} MB for 8192 tokens"


def test_inspect_predicts_the_caches_of_a_batch_in_their_bucket(infer):
    def facts(*options):
        code, out, _ = infer("inspect", "gemma3-1b", "--context", "1088", "--json", *options)
        assert code == 0
        return json.loads(out)

    one, four = facts(), facts("--batch", "4")

    assert (one["batch"], one["context"], one["kv_cache_tokens"]) == (1, 1088, 1280)
    assert four["kv_cache_bytes"] == 4 * one["kv_cache_bytes"]
    assert four["total_bytes"] == sum(
        four[part] for part in ("weight_bytes", "kv_cache_bytes", "workspace_bytes")
    )


def test_inspect_refuses_a_context_beyond_the_model(infer, folder):
    code, _, err = infer("inspect", folder, "--context", "99999")
    assert code == 2
    assert "takes 1 to 8000 tokens" in err


def test_inspect_downloads_no_weights(folder, tmp_path):
    with FakeHub() as hub:
        config = Path(folder, "config.json").read_bytes()
        files = {"config.json": config, "model.safetensors": b"never fetched"}
        hub.repositories["toys/one"] = Repository(files)
        done = subprocess.run(
            [*INFER, "inspect", "toys/one", "--json"],
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["commit"] == COMMIT
        assert hub.downloads("model.safetensors") == []
