"""`infer generate`: continue a text."""

import dataclasses
import json
import sys
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
from infer_core.errors import RequestError

if TYPE_CHECKING:
    from infer_core.specs import DType


def generate(
    model: Model,
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", help="The text to continue; - reads standard input."),
    ],
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
    logprobs: Annotated[
        int | None,
        typer.Option(help="With --json: also logprobs, and this many likeliest tokens a step."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of text.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Continue a text, token by token (chat models answer in `infer chat`).

    The text goes to standard output as it arrives, everything else to standard error. A sampling
    option that is not given is that of the model's generation_config.json, else greedy.
    """
    if logprobs is not None and not as_json:
        raise RequestError("--logprobs are printed with --json only; add it")
    params = sampling_params(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        logprobs=logprobs,
    )
    text = _standard_input() if prompt == "-" else prompt
    if not text:
        raise RequestError("the prompt is empty; give some text")

    if quiet:
        hide_progress()
    registry = plugins_for(model)

    from infer_core.device import pick_device
    from infer_core.engine import find_model
    from infer_core.llm import LLM
    from infer_core.tokenizer import has_tokenizer, no_tokenizer

    device = pick_device(device)
    dtype_name: DType | None = dtype.value if dtype else None
    found = find_model(model, device=device, dtype=dtype_name, revision=revision, registry=registry)
    if not has_tokenizer(found.checkpoint):  # said before the weights are read
        raise no_tokenizer(found.name, found.checkpoint)
    with LLM(found, device=device, dtype=dtype_name) as llm:
        stream = llm.stream(text, params)
        for piece in stream:
            if not as_json:
                show(piece)
        completion = stream.completion
        if as_json:
            document = {"model": llm.name, "commit": llm.commit, **dataclasses.asdict(completion)}
            print(json.dumps(document))
            return
        print()
        if not quiet:
            note(summary(completion))


def _standard_input() -> str:
    """All of standard input, without the line break that `echo` adds at its end."""
    content = sys.stdin.buffer.read()
    try:
        return content.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"standard input is not UTF-8: byte {content[error.start]:#04x} at offset "
            f"{error.start}; convert it (iconv -t UTF-8)"
        ) from error
