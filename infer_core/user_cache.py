"""Small files kept in the user's cache folder; losing one costs time, never results."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Where files of this kind lie: `$XDG_CACHE_HOME/infer-core/NAME`, else under `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "infer-core" / name


def write_whole(path: Path, text: str) -> None:
    """Write a file that readers see whole or not at all, in a folder made if need be.

    Raises:
        OSError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # some file systems find out only now that they are full
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
