"""`infer inspect`: what a model is and how much memory it needs, without loading it."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer_core.cli_options import NumberFormat, Revision
from infer_core.errors import RequestError

if TYPE_CHECKING:
    from infer_core.model_source import ResolvedModel


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Checkpoint folder, hub id (org/name) or reference model."
        ),
    ],
    revision: Revision = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens the KV cache is to hold. Default: 4096, or the most.")
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Sequences to hold KV caches of (an engine runs one).")
    ] = 1,
    dtype: Annotated[NumberFormat | None, typer.Option(help="Default: the checkpoint's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show sizes, plugin and memory of a model; needs no GPU and downloads no weights."""
    from infer_core.model_source import resolve_model
    from infer_core.plugins import load_registry

    # "cuda": a reference model's published configuration, not the tiny one
    found = resolve_model(model, load_registry(), device="cuda", revision=revision, weights=False)
    limit = found.spec.shape.max_context
    if context is not None and not 1 <= context <= limit:
        raise RequestError(f"--context {context}: {found.name} takes 1 to {limit} tokens")
    dtype_name = dtype.value if dtype else found.spec.shape.dtype
    facts = _facts(found, context or min(4096, limit), batch, dtype_name)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)


def _facts(found: "ResolvedModel", context: int, batch: int, dtype: Any) -> dict[str, Any]:
    from infer_core.engine import PREFILL_CHUNK
    from infer_core.memory import memory_need

    spec, shape = found.spec, found.spec.shape
    need = memory_need(spec, context=context, batch=batch, dtype=dtype, prefill_chunk=PREFILL_CHUNK)
    windows = [layer.window for layer in spec.attention]
    return {
        "model": found.name,
        "hub_id": found.hub_id,
        "commit": found.commit,
        "architecture": spec.architecture,
        "plugin": spec.plugin,
        "distribution": spec.distribution,
        "plugin_version": spec.plugin_version,
        "num_layers": shape.num_layers,
        "num_window_layers": sum(window is not None for window in windows),
        "window": max((window for window in windows if window is not None), default=None),
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_heads": spec.attention[0].num_heads,
        "num_kv_heads": spec.attention[0].num_kv_heads,
        "head_dim": spec.attention[0].head_dim,
        "vocab_size": shape.vocab_size,
        "tied_embeddings": shape.tied_embeddings,
        "max_context": shape.max_context,
        "num_parameters": need.num_parameters,
        "dtype": dtype,
        "context": context,
        "batch": batch,
        "kv_cache_tokens": need.context,
        "weight_bytes": need.weight_bytes,
        "kv_cache_bytes": need.kv_cache_bytes,
        "workspace_bytes": need.workspace_bytes,
        "total_bytes": need.total_bytes,
    }


def _print(facts: dict[str, Any]) -> None:
    from infer_core.memory import format_bytes

    commit = f"{facts['hub_id']} at {facts['commit'][:12]}" if facts["commit"] else "local"
    plugin = f"{facts['plugin']} ({facts['distribution']} {facts['plugin_version']})"
    layers = f"{facts['num_layers']}"
    if facts["num_window_layers"]:
        layers += f", {facts['num_window_layers']} of them see {facts['window']} tokens"
    heads = (
        f"{facts['num_heads']} query, {facts['num_kv_heads']} key/value, {facts['head_dim']} wide"
    )
    tied = "tied" if facts["tied_embeddings"] else "untied"
    mlp, vocab = facts["intermediate_size"], facts["vocab_size"]
    cached = f"{facts['batch']} x " if facts["batch"] > 1 else ""
    cached += f"{facts['kv_cache_tokens']}"
    rows = [
        ("model", facts["model"]),
        ("source", commit),
        ("architecture", facts["architecture"]),
        ("plugin", plugin),
        ("layers", layers),
        ("sizes", f"hidden {facts['hidden_size']}, MLP {mlp}, vocabulary {vocab} ({tied})"),
        ("heads", heads),
        ("longest context", f"{facts['max_context']} tokens"),
        ("parameters", f"{facts['num_parameters'] / 1e6:.1f} million, {facts['dtype']}"),
        ("weights", format_bytes(facts["weight_bytes"])),
        ("KV cache", f"{format_bytes(facts['kv_cache_bytes'])} for {cached} tokens"),
        ("workspace", format_bytes(facts["workspace_bytes"])),
        (
            "together",
            f"{format_bytes(facts['total_bytes'])} at the peak, CUDA's own memory left out",
        ),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
