"""The `infer` command.

`infer --help` and `infer plugins list` start in a fraction of a second: whatever needs torch
is imported inside the command that uses it.
"""

import io
import sys
import warnings
from typing import Annotated

import typer

import infer_core
from infer_core.cli_chat import chat
from infer_core.cli_generate import generate
from infer_core.cli_inspect import inspect
from infer_core.cli_plugins import plugins
from infer_core.cli_tune import tune
from infer_core.errors import InferError

app = typer.Typer(
    name="infer",
    help="Small-model inference: a small core, one plugin per model family.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich costs start-up time
)
app.command()(generate)
app.command()(chat)
app.command()(inspect)
app.command()(tune)
app.add_typer(plugins)


def main() -> None:
    """Run `infer`; an error the user can act on is one message on stderr and exit code 2."""
    warnings.formatwarning = lambda message, *_: f"infer: warning: {message}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="replace")
    try:
        app(prog_name="infer")
    except InferError as error:
        print(f"infer: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"infer-core {infer_core.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print version."),
    ] = False,
) -> None:
    pass
