"""Tiles measured on this GPU, kept in the user's cache folder; the defaults hold without them.

A file a key: GPU, shapes, dtype, and the versions of Triton and of the kernels. Its name is a hash,
its content the key and the tiles, so that a reader sees what they are for. A file that cannot be
used is ignored, with a warning: tiles change speed, never results.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton

import infer_core
from infer_core.chain_tiles import ChainTiles
from infer_core.kernels.chain_types import AttentionTile, Tile
from infer_core.specs import ModelSpec
from infer_core.user_cache import cache_folder, write_whole

ROUNDS = 5  # of a comparison

# (rows, warps, per_sm) and (elements, warps): what won or came close on an H200, widths 1152-8192
LINEAR = tuple(
    Tile(*numbers)
    for numbers in (
        (2, 8, 4), (2, 4, 4), (4, 4, 4), (8, 4, 2), (4, 8, 2), (8, 8, 2), (8, 8, 1), (2, 8, 2),
        (1, 8, 4), (1, 4, 4),
    )
)  # fmt: skip
CANDIDATES: dict[str, tuple[Tile | AttentionTile, ...]] = {
    "attention": (AttentionTile(8192, 4), AttentionTile(16384, 4), AttentionTile(16384, 8)),
    "attn_out": LINEAR[3:8],
    "gate_up": LINEAR[:5],
    "mlp_out": (*LINEAR[7:], LINEAR[0]),
    "qkv": LINEAR[1:5],
    "lm_head": (Tile(8, 4, 4), Tile(4, 2, 8)),
}


def tiles_key(spec: ModelSpec, dtype: torch.dtype, gpu: str) -> dict[str, Any]:
    """Say what the best tiles depend on; never the model's name."""
    return {
        "gpu": gpu,
        "dtype": str(dtype),
        "triton": triton.__version__,
        "infer_core": infer_core.__version__,
        "hidden_size": spec.shape.hidden_size,
        "intermediate_size": spec.shape.intermediate_size,
        "vocab_size": spec.shape.vocab_size,
        "gated": spec.block.gated,
        "norms": spec.norm.placement,
        "heads": sorted({(a.num_heads, a.num_kv_heads, a.head_dim) for a in spec.attention}),
    }


def load_tiles(key: dict[str, Any], folder: Path | None = None) -> ChainTiles | None:
    """Return the tiles kept for `key`, or None; a file that cannot be read is a warning."""
    path = _path(key, folder)
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text())["tiles"]
        kinds = {field.name for field in fields(ChainTiles)}
        if set(stored) != kinds:
            raise ValueError(f"kinds {sorted(stored)}, expected {sorted(kinds)}")
        tiles: dict[str, Any] = {
            kind: (AttentionTile if kind == "attention" else Tile)(**_numbers(values))
            for kind, values in stored.items()
        }
        return ChainTiles(**tiles)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"ignoring tiles in {path}: {error!r}; delete the file or tune again", stacklevel=2
        )
        return None


def save_tiles(key: dict[str, Any], tiles: ChainTiles, folder: Path | None = None) -> Path:
    """Keep `tiles` for `key`; a reader sees the old file or the new one, never a part."""
    path = _path(key, folder)
    write_whole(path, json.dumps({"key": key, "tiles": asdict(tiles)}, indent=1))
    return path


def forget_tiles(key: dict[str, Any], folder: Path | None = None) -> None:
    """Keep no tiles for `key` any more."""
    _path(key, folder).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Times of a step with the built-in and with the tuned tiles, in turns.

    `rounds`: (built-in, tuned) of each round.
    """

    tiles: ChainTiles
    rounds: tuple[tuple[float, float], ...]

    @property
    def built_in_time(self) -> float:
        """The median of the rounds."""
        return median(before for before, _ in self.rounds)

    @property
    def tuned_time(self) -> float:
        """The median of the rounds."""
        return median(after for _, after in self.rounds)

    @property
    def gain(self) -> float:
        """By which part more steps fit in a second: the median of the rounds."""
        return median(before / after for before, after in self.rounds) - 1

    @property
    def wins(self) -> int:
        """Rounds that the tuned tiles won; all of them by chance once in 32 times."""
        return sum(after < before for before, after in self.rounds)


def compare(
    built_in: ChainTiles, measure: Callable[[ChainTiles], float], *, budget_s: float
) -> Comparison:
    """Tune, then time what came of it and the built-in tiles once more, in turns.

    The times met while tuning are the least of many, so that luck makes them look better; and a
    GPU that gets warmer slows down whatever comes second, so that each comes first in its turn.
    """
    tiles, _ = tune(built_in, measure, budget_s=budget_s)
    if tiles == built_in:
        return Comparison(tiles, ((measure(built_in),) * 2,))
    rounds = []
    for index in range(ROUNDS):
        if index % 2 == 0:
            before, after = measure(built_in), measure(tiles)
        else:
            after, before = measure(tiles), measure(built_in)
        rounds.append((before, after))
    return Comparison(tiles, tuple(rounds))


def tune(
    start: ChainTiles, measure: Callable[[ChainTiles], float], *, budget_s: float = 60.0
) -> tuple[ChainTiles, float]:
    """Try the candidates of one kind after another, keeping what is faster; (tiles, time).

    `measure` times a whole step, compilation excluded, in any unit, and may raise RuntimeError for
    tiles that do not fit the GPU. Trials stop when `budget_s` is over.
    """
    until = time.monotonic() + budget_s
    best, best_time = start, measure(start)
    for kind, candidates in CANDIDATES.items():
        for candidate in candidates:
            if time.monotonic() > until:
                return best, best_time
            change: dict[str, Any] = {kind: candidate}
            trial = replace(best, **change)
            if trial == best:
                continue
            try:
                trial_time = measure(trial)
            except RuntimeError:  # too many registers or too much shared memory for this GPU
                continue
            if trial_time < best_time:
                best, best_time = trial, trial_time
    return best, best_time


def _numbers(values: dict[str, Any]) -> dict[str, int]:
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}, expected a positive integer")
    return values


def _path(key: dict[str, Any], folder: Path | None) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return (folder or cache_folder("tiles")) / f"{digest[:16]}.json"
