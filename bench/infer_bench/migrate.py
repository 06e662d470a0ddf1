"""Bring the JSON of an older report up to the current schema; what it did not know stays None."""

from typing import Any

from infer_bench.report import SCHEMA_VERSION


def migrate(data: dict[str, Any]) -> dict[str, Any]:
    """Give the same report in the current schema.

    Raises:
        KeyError, TypeError: it is not what its schema_version says.
        ValueError: no such schema version, or one this program is too old for.
    """
    version = data.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"schema_version is {version!r}, expected 1 to {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {version} is newer than this infer-bench, which knows up to "
            f"{SCHEMA_VERSION}; upgrade: pip install --upgrade infer-core"
        )
    return _from_version_1(data) if version == 1 else data


def _from_version_1(data: dict[str, Any]) -> dict[str, Any]:
    """One engine, and facts of a loaded model stood with the model instead of the row.

    Its warm_up_s counted engine set-up alone, so it says nothing about today's wall time.
    """
    loaded = {model["name"]: model["loaded"] for model in data["models"]}
    bandwidth = data["read_bandwidth_bytes_per_s"]
    settings = data["settings"]
    # exactly so many runs, all models in one process, no limit of time
    fixed = {
        "max_warmup": settings["warmup"],
        "max_trials": settings["trials"],
        "isolation": "model",
        "timeout_s": 1e9,
    }
    return {
        **{name: value for name, value in data.items() if name != "read_bandwidth_bytes_per_s"},
        "schema_version": 2,
        "engines": ["infer"],
        "settings": settings | fixed,
        "ceilings": bandwidth and {"read_bandwidth_bytes_per_s": bandwidth},
        "models": [
            {name: value for name, value in model.items() if name != "loaded"}
            for model in data["models"]
        ],
        "rows": [_row_from_version_1(row, loaded[row["model"]]) for row in data["rows"]],
    }


def _row_from_version_1(row: dict[str, Any], loaded: dict[str, Any] | None) -> dict[str, Any]:
    metrics = row["metrics"]
    if metrics is not None:
        metrics = {name: value for name, value in metrics.items() if name != "warm_up_s"}
        steps = sum(len(sample["step_ms"]) for sample in row["samples"])
        metrics |= {"num_trials": len(row["samples"]), "num_steps": steps}
    return {**row, "engine": "infer", "loaded": loaded, "metrics": metrics}
