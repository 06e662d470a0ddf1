"""Command line of infer-bench: the options, and nothing that makes `--help` slow.

Importing this module imports neither torch nor pydantic; what a command needs is imported when
it runs.
"""

import signal
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infer_bench.cli_reports import DEFAULT_FOLDER, add_report_commands, exit_code_of
from infer_bench.errors import UsageError

if TYPE_CHECKING:
    from infer_bench.backend import Backend
    from infer_bench.session import MakeLauncher

AD_HOC = "One ad-hoc case instead of fixed configs"
GATE = "Baselines and the gate"


class Suite(StrEnum):
    """Sets of configs, from fast to complete."""

    quick = "quick"
    standard = "standard"
    full = "full"


class NumberFormat(StrEnum):
    """Number formats of weights and activations."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Weights(StrEnum):
    """Where weights come from."""

    auto = "auto"
    dummy = "dummy"


class Isolation(StrEnum):
    """What has a process of its own."""

    cell = "cell"
    model = "model"


def main() -> None:
    """Run infer-bench."""
    # a run that is told to end keeps its finished rows, as after Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.formatwarning = lambda message, *_: f"infer-bench: warning: {message}\n"
    make_app()()


def make_app(
    backend: "Backend | None" = None, make_launcher: "MakeLauncher | None" = None
) -> typer.Typer:
    """Build the command; tests bring their own machine, and their own way to start jobs."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    add_report_commands(app)

    @app.callback(invoke_without_command=True)
    def bench(
        context: typer.Context,
        suite: Annotated[
            Suite | None,
            typer.Option(
                help="quick: short, medium; standard: also prefill, decode, sampled; "
                "full: all seven configs. Without any choice of configs: quick."
            ),
        ] = None,
        config: Annotated[
            list[str] | None,
            typer.Option(help="Single configs by name; comma-separated or repeated for more."),
        ] = None,
        model: Annotated[
            list[str] | None,
            typer.Option(
                help="Checkpoint folder, hub id (org/name) or reference model (see `infer plugins "
                "list`); repeat for more. Without it, the reference models of every installed "
                "plugin."
            ),
        ] = None,
        revision: Annotated[
            str | None, typer.Option(help="Branch, tag or commit of a hub id. Default: main")
        ] = None,
        engine: Annotated[
            list[str] | None,
            typer.Option(
                help="infer, transformers, transformers-static, vllm or an installed one; comma-"
                "separated or repeated for several side by side. Default: infer"
            ),
        ] = None,
        prompt_tokens: Annotated[
            int | None,
            typer.Option(min=1, help="Length of the prompt. Default: 256", rich_help_panel=AD_HOC),
        ] = None,
        max_new_tokens: Annotated[
            int | None,
            typer.Option(min=1, help="Tokens to generate. Default: 256", rich_help_panel=AD_HOC),
        ] = None,
        temperature: Annotated[
            float | None,
            typer.Option(min=0, help="0, the default, is greedy.", rich_help_panel=AD_HOC),
        ] = None,
        top_k: Annotated[
            int | None,
            typer.Option(min=1, help="Keep the k likeliest tokens.", rich_help_panel=AD_HOC),
        ] = None,
        top_p: Annotated[
            float | None, typer.Option(help="Keep this much probability.", rich_help_panel=AD_HOC)
        ] = None,
        min_p: Annotated[
            float | None,
            typer.Option(
                help="Keep tokens this likely, relative to the likeliest.", rich_help_panel=AD_HOC
            ),
        ] = None,
        repetition_penalty: Annotated[
            float | None,
            typer.Option(help="Above 0; 1, the default, is none.", rich_help_panel=AD_HOC),
        ] = None,
        seed: Annotated[
            int, typer.Option(min=0, max=2**63 - 1, help="Fixes prompts and draws.")
        ] = 42,
        warmup: Annotated[
            int, typer.Option(min=0, help="Untimed runs, at least; up to 3 more until stable.")
        ] = 2,
        trials: Annotated[
            int, typer.Option(min=1, help="Timed runs, at least; medians are shown.")
        ] = 3,
        max_trials: Annotated[
            int, typer.Option(min=1, help="Timed runs, at most, while they scatter.")
        ] = 9,
        dtype: Annotated[
            NumberFormat | None,
            typer.Option(help="Default: the model's own; float32 for tiny models."),
        ] = None,
        device: Annotated[
            str | None, typer.Option(help="cpu, cuda or cuda:N. Default: the GPU if there is one.")
        ] = None,
        weights: Annotated[
            Weights, typer.Option(help="auto: the checkpoint where there is one; dummy: random.")
        ] = Weights.auto,
        kv_cache: Annotated[
            bool, typer.Option(help="Cache keys and values, or recompute the prefix each step.")
        ] = True,
        save: Annotated[bool, typer.Option("--save/--no-save", help="Keep a JSON report.")] = True,
        output_dir: Annotated[
            Path | None, typer.Option(help=f"Folder for reports. Default: {DEFAULT_FOLDER}")
        ] = None,
        json: Annotated[
            bool, typer.Option("--json", help="Print the report as JSON instead of tables.")
        ] = False,
        isolation: Annotated[
            Isolation,
            typer.Option(
                help="A process for every cell, or one for all cells of a model on an engine: "
                "faster where loading or compiling takes long."
            ),
        ] = Isolation.cell,
        timeout: Annotated[
            float, typer.Option(min=1, max=1e6, help="Seconds after which a cell has failed.")
        ] = 600.0,
        resume: Annotated[
            bool, typer.Option("--resume", help="Go on with the last interrupted run like this.")
        ] = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Show the plan and the memory it will take.")
        ] = False,
        save_baseline: Annotated[
            str | None,
            typer.Option(metavar="NAME", help="Keep the report by a name.", rich_help_panel=GATE),
        ] = None,
        baseline: Annotated[
            str | None,
            typer.Option(metavar="NAME", help="Compare with that report.", rich_help_panel=GATE),
        ] = None,
        max_regress: Annotated[
            str, typer.Option(help="How much worse is too much.", rich_help_panel=GATE)
        ] = "5%",
        metric: Annotated[
            list[str] | None,
            typer.Option(
                help="What is compared, comma-separated or repeated. Default: e2e_tokens_per_s "
                "and step_p50_ms",
                rich_help_panel=GATE,
            ),
        ] = None,
        force: Annotated[
            bool,
            typer.Option(
                "--force", help="Compare unlike reports all the same.", rich_help_panel=GATE
            ),
        ] = False,
    ) -> None:
        """Measure generation speed and memory of every installed model architecture.

        Exit codes: 0 all rows ok; 1 some row failed or is invalid; 2 usage, or no plugin;
        3 slower than the baseline; 4 baseline not comparable; 130 interrupted, finished rows
        are kept.
        """
        if context.invoked_subcommand is not None:
            return
        ad_hoc = {
            "prompt_tokens": prompt_tokens,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
        }

        def run() -> int:
            from infer_bench import choices
            from infer_bench.backend import Backend
            from infer_bench.gate import Gate
            from infer_bench.session import Request, own_processes, run_session

            if resume and not save:
                raise UsageError("--resume reads and writes a folder of reports; drop --no-save")
            if not save and output_dir is not None:
                raise UsageError("--no-save writes no report, so --output-dir has no use; drop one")
            if revision is not None and len(model or ()) != 1:
                raise UsageError("--revision needs exactly one --model, a hub id; give that")
            chosen, cases = choices.cases(
                suite.value if suite else None,
                config or [],
                {name: value for name, value in ad_hoc.items() if value is not None},
            )
            request = Request(
                suite=chosen,
                cases=cases,
                models=tuple(model or ()),
                revision=revision,
                engines=choices.engines(engine),
                settings=choices.settings(
                    seed=seed,
                    warmup=warmup,
                    trials=trials,
                    max_trials=max_trials,
                    dtype=dtype.value if dtype else None,
                    weights=weights.value,
                    kv_cache=kv_cache,
                    isolation=isolation.value,
                    timeout_s=timeout,
                ),
                device=device,
                output_dir=(output_dir or DEFAULT_FOLDER) if save else None,
                json=json,
                resume=resume,
                dry_run=dry_run,
                gate=Gate(
                    save_as=save_baseline,
                    against=baseline,
                    metrics=choices.metrics(metric),
                    max_regress=choices.percent(max_regress),
                    force=force,
                ),
            )
            return run_session(request, backend or Backend(), make_launcher or own_processes)

        raise typer.Exit(exit_code_of(run))

    return app
