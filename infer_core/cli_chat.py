"""`infer chat`: talk with a model; the history stays in its KV cache."""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infer_core.cli_options import (
    Device,
    Dtype,
    MaxTokens,
    MinP,
    Model,
    Quiet,
    RepetitionPenalty,
    Revision,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    hide_progress,
    note,
    plugins_for,
    sampling_params,
    show,
    summary,
)
from infer_core.errors import OutOfMemory, RequestError

if TYPE_CHECKING:
    from infer_core.conversation import Conversation
    from infer_core.llm import LLM
    from infer_core.specs import DType

DEFAULT_CONTEXT = 8192
HELP = """\
/reset        forget the conversation, keep the system prompt
/save [FILE]  write the conversation as JSON
/exit         leave (or Ctrl-D)
Ctrl-C        stop the answer"""


def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    context: Annotated[
        int | None,
        typer.Option(help=f"Longest conversation, in tokens. Default: {DEFAULT_CONTEXT}."),
    ] = None,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="enable_thinking of templates that know it."),
    ] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    quiet: Quiet = False,
) -> None:
    """Talk with a chat model, in turns; /help lists the commands.

    From a pipe, each line is a turn. Answers go to standard output, all else to standard error. A
    sampling option that is not given is that of the model's generation_config.json, else greedy.
    """
    params = sampling_params(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
    )
    with _load(model, revision, device, dtype.value if dtype else None, context, quiet) as llm:
        from infer_core.conversation import Conversation

        variables = None if think is None else {"enable_thinking": think}
        conversation = Conversation(llm, system=system, params=params, variables=variables)
        interactive = sys.stdin.isatty()
        if interactive and not quiet:
            note("type a message; /help lists the commands")
        for line in _lines(interactive):
            try:
                if not _turn(conversation, line, quiet):
                    break
            except (OutOfMemory, RequestError) as error:
                if not interactive:
                    raise
                note(f"error: {error}")
            except KeyboardInterrupt:  # a second Ctrl-C, or one before the answer began
                if not interactive:
                    raise
                note("\nstopped; the last message is not part of the conversation")


def _load(
    model: str,
    revision: str | None,
    device: str | None,
    dtype: "DType | None",
    context: int | None,
    quiet: bool,
) -> "LLM":
    """Load the model; one without tokenizer or chat template fails before weights are read."""
    if quiet:
        hide_progress()
    registry = plugins_for(model)

    from infer_core.device import pick_device
    from infer_core.engine import find_model
    from infer_core.llm import LLM, load_chat_template
    from infer_core.tokenizer import has_tokenizer, no_tokenizer

    device = pick_device(device)
    found = find_model(model, device=device, dtype=dtype, revision=revision, registry=registry)
    load_chat_template(found.name, found.checkpoint, None)
    if not has_tokenizer(found.checkpoint):
        raise no_tokenizer(found.name, found.checkpoint)
    limit = found.spec.shape.max_context
    if not quiet:
        note(f"loading {found.name} ...")
    llm = LLM(
        found,
        device=device,
        dtype=dtype,
        max_context=min(DEFAULT_CONTEXT, limit) if context is None else context,
    )
    if not quiet:
        note(f"loaded in {llm.engine.load_s:.1f} s on {llm.engine.device}")
    return llm


def _lines(interactive: bool) -> Iterator[str]:
    """The lines a user types, or those of a pipe."""
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives input() history and editing)
    while True:
        try:
            yield _typed_line() if interactive else _piped_line()
        except EOFError:
            if interactive:
                print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            note("\n/exit or Ctrl-D leaves")


def _typed_line() -> str:
    if sys.stdout.isatty():
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)  # answers go to a file: the prompt must not
    return input()


def _piped_line() -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"standard input is not UTF-8: byte {line[error.start]:#04x} in a line; convert it "
            "(iconv -t UTF-8)"
        ) from error


def _turn(conversation: "Conversation", line: str, quiet: bool) -> bool:
    """Answer a line or obey its command; False ends the chat."""
    command, _, argument = line.strip().partition(" ")
    if not command:
        return True
    if command == "/exit":
        return False
    if command == "/reset":
        conversation.reset()
        note("the conversation is forgotten")
    elif command == "/save":
        _save(conversation, argument.strip())
    elif command == "/help":
        note(HELP)
    elif command.startswith("/") and command[1:].isalpha():
        raise RequestError(f"there is no command {command}; /help lists those there are")
    else:
        _answer(conversation, line, quiet)
    return True


def _answer(conversation: "Conversation", line: str, quiet: bool) -> None:
    with _on_ctrl_c(conversation.cancel):
        for piece in conversation.say(line):
            show(piece)
    print(flush=True)
    if not quiet and conversation.completion is not None:
        note(summary(conversation.completion))


@contextlib.contextmanager
def _on_ctrl_c(cancel: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C cancels; a second one, while that takes long, interrupts as usual."""

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cancel()

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _save(conversation: "Conversation", name: str) -> None:
    path = Path(name or f"chat-{datetime.now():%Y%m%d-%H%M%S}.json").expanduser()
    text = json.dumps(conversation.messages, ensure_ascii=False, indent=2)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError as error:
        raise RequestError(f"{path} exists; give another name") from error
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()  # no half of it, if the disk is full
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error
    note(f"saved {len(conversation.messages)} messages to {path}")
