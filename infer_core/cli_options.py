"""Options that several commands share, and what they print beside the answer."""

import os
import re
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer_core.errors import RequestError

if TYPE_CHECKING:
    from infer_core.completion import Completion
    from infer_core.plugins import PluginRegistry
    from infer_core.sampling_params import SamplingParams


class NumberFormat(StrEnum):
    """Number formats of weights and activations."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Checkpoint folder or hub id (org/name).")
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub id. Default: main")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N. Default: the GPU if there is one.")
]
Dtype = Annotated[
    NumberFormat | None,
    typer.Option(help="Default: the checkpoint's on a GPU, float32 on a CPU."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(help="Longest answer. Default: 1024, or what is left of the context."),
]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Keep the k likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Keep this much probability.")]
MinP = Annotated[
    float | None, typer.Option(help="Keep tokens this likely, relative to the likeliest.")
]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 0; 1 is none.")]
Seed = Annotated[int | None, typer.Option(help="Fixes the draws: same seed, same answer.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="A string that ends the answer; repeat for more.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer only.")]


def sampling_params(**options: Any) -> "SamplingParams":
    """Build parameters from the options that were given (those not None).

    Raises:
        RequestError: a value out of range, or a contradiction; names the option.
    """
    from pydantic import ValidationError

    from infer_core.sampling_params import SamplingParams

    given = {name: value for name, value in options.items() if value is not None}
    try:
        return SamplingParams(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = "".join(f"--{part}: ".replace("_", "-") for part in first["loc"][:1])
        if first["type"] == "value_error":  # our own words
            raise RequestError(option + first["msg"].removeprefix("Value error, ")) from error
        raise RequestError(f"{option}{first['msg']}, not {first['input']}") from error


def plugins_for(model: str) -> "PluginRegistry":
    """Load the plugins; a model that cannot exist is told before torch, which takes seconds.

    Raises:
        ModelNotFound: `model` is no folder, no installed reference model and no hub id.
    """
    from infer_core.model_source import check_name
    from infer_core.plugins import load_registry

    registry = load_registry()
    check_name(model, registry)
    return registry


def hide_progress() -> None:
    """Keep the hub's client, if it is imported after this, from drawing progress bars."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def summary(completion: "Completion") -> str:
    """One line on length and speed."""
    ttft = f"TTFT {completion.ttft_ms:.0f} ms"
    if completion.warm_up_s:
        ttft += f" ({1e3 * completion.warm_up_s:.0f} of them warm-up)"
    parts = [f"{len(completion.token_ids)} tokens", ttft]
    if completion.decode_tokens_per_s is not None:
        parts.append(f"{completion.decode_tokens_per_s:.1f} tokens/s")
    prompt = f"prompt {completion.num_prompt_tokens}"
    if completion.num_cached_tokens:
        prompt += f" ({completion.num_cached_tokens} cached)"
    return ", ".join([*parts, prompt, f"ended by {completion.finish_reason}"])


def note(text: str) -> None:
    """Say something beside the answer: on standard error, dimmed on a colour terminal."""
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    print(f"\x1b[2m{text}\x1b[0m" if coloured else text, file=sys.stderr, flush=True)


def show(piece: str) -> None:
    """Print part of an answer at once; a model's control characters never reach a terminal."""
    if sys.stdout.isatty():
        piece = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", piece)
    sys.stdout.write(piece)
    sys.stdout.flush()
