"""`infer plugins`: what is installed, whether it works, and how to mend what does not."""

import json
import os
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import infer_core
from infer_core.errors import InferError, PluginError
from infer_core.kit_record import KitRecord, read_record

if TYPE_CHECKING:
    from infer_core.plugin_status import PluginStatus
    from infer_core.plugins import PluginRegistry

plugins = typer.Typer(
    name="plugins",
    help="Show installed architecture plugins and what is wrong with them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@plugins.command("list")
def list_plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List every installed plugin, usable or not; problems do not change the exit code.

    States: ok; conflict (claims a name that another plugin claims too); broken; blocked (left
    out by INFER_PLUGINS or INFER_BLOCK_PLUGINS).

    Keys of --json, which do not change: core_version, warnings and plugins; for each plugin
    name, distribution, version, state, architectures, model_types, reference_models, reason,
    mend, notes and kit (null, or how this version passed the checks of infer_core.testing).
    """
    from infer_core.plugins import load_registry  # costs more than all of `infer --help`

    registry = load_registry()
    if as_json:
        document = {
            "core_version": infer_core.__version__,
            "plugins": [_as_json(status) for status in registry.statuses],
            "warnings": list(registry.warnings),
        }
        print(json.dumps(document, indent=2))
    elif not registry.statuses:
        print(registry.missing_help())
    else:
        _print_table(registry.statuses)


@plugins.command("doctor")
def doctor() -> None:
    """Find what is wrong: load every plugin and build every reference model's specs.

    Prints, for each problem, the traceback where there is one and the command that mends it.
    Exit code 1 if there is a problem, or no plugin at all.
    """
    from infer_core.plugins import load_registry

    # strict would stop at the first question asked, and here the point is to see everything
    registry = load_registry(environ={**os.environ, "INFER_STRICT_PLUGINS": ""})
    if not registry.statuses:
        print(registry.missing_help())
        raise typer.Exit(1)
    problems = list(_problems(registry))
    for who, reason, mend, error in problems:
        print(f"{who}: {reason}")
        theirs = error.__cause__ if isinstance(error, InferError) else error
        if theirs is not None:
            print("".join(traceback.format_exception(theirs)).rstrip())
        print(f"To mend it: {mend}\n" if mend else "")
    notes = [f"{one.label}: {note}" for one in registry.statuses for note in one.notes]
    for line in notes:
        print(f"note: {line}")
    print(f"plugins: {len(registry.statuses)}, problems: {len(problems)}, notes: {len(notes)}")
    if problems:
        raise typer.Exit(1)


@plugins.command("new")
def new(
    family: Annotated[str, typer.Argument(help="Lower-case name, as in infer_FAMILY.")],
    directory: Annotated[
        Path, typer.Option(help="Where to put the folder infer_FAMILY.", show_default="here")
    ] = Path(),
) -> None:
    """Write a complete plugin distribution for a new family, ready to build and to test.

    As generated it describes a small Llama-like toy and passes every check of its own test.
    """
    from infer_core.new_plugin import new_plugin

    folder = new_plugin(family, directory)
    print(f"wrote {folder}; next: cd {folder} && pip install -e '.[test]' && pytest")


Problem = tuple[str, str, str | None, BaseException | None]  # who, reason, mend, error


def _problems(registry: "PluginRegistry") -> Iterator[Problem]:
    for status in registry.statuses:
        if status.state in ("broken", "conflict"):
            yield status.label, status.reason or "", status.mend, status.error
            continue
        for model in status.answer.reference_models if status.answer else ():
            for field, config in (("config", model.config), ("tiny_config", model.tiny_config)):
                try:
                    registry.resolve(config)
                except InferError as error:
                    who = f"{status.label}: {field} of reference model {model.name!r}"
                    reason = error.message if isinstance(error, PluginError) else str(error)
                    yield who, reason, status.upgrade, error


def _as_json(status: "PluginStatus") -> dict[str, Any]:
    answer = status.answer
    return {
        "name": status.name,
        "distribution": status.distribution,
        "version": status.version,
        "state": status.state,
        "architectures": list(answer.architectures) if answer else [],
        "model_types": list(answer.model_types) if answer else [],
        "reference_models": [model.name for model in answer.reference_models] if answer else [],
        "reason": status.reason,
        "mend": status.mend,
        "notes": list(status.notes),
        "kit": asdict(record) if (record := _kit_record(status)) else None,
    }


def _kit_record(status: "PluginStatus") -> KitRecord | None:
    if status.distribution is None or status.version is None:
        return None
    return read_record(status.distribution, status.version)


def _print_table(statuses: tuple["PluginStatus", ...]) -> None:
    """Aligned columns, whole words: for eyes and for grep; what is wrong goes below its row."""
    header = ("plugin", "distribution", "state", "architectures", "reference models")
    rows = [
        (
            status.name,
            f"{status.distribution or '?'} {status.version or ''}".rstrip(),
            status.state,
            ", ".join(status.answer.architectures) if status.answer else "-",
            ", ".join(model.name for model in status.answer.reference_models) or "-"
            if status.answer
            else "-",
        )
        for status in statuses
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return "  ".join(padded).rstrip()

    print(line(header))
    for status, row in zip(statuses, rows, strict=True):
        print(line(row))
        record = _kit_record(status)
        kit = record.badge if record else None
        details = [("reason", status.reason), ("mend", status.mend), ("kit", kit)]
        for name, text in [*details, *(("note", note) for note in status.notes)]:
            if text:
                print(f"    {name}: {text}")
