"""Wheels built from the working tree, and fresh environments that hold nothing else of ours."""

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[str]]


def build(project: Path, target: str, folder: Path) -> Path:
    """Build `wheel` or `sdist` of a project without a network; give the file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


def clean_environment(folder: Path, *wheels: Path, oracle: bool = False) -> Run:
    """Install wheels into a fresh venv; give a function that runs one of its commands there.

    The environment is a venv that sees the third-party packages of this one through links, but
    none of our editable installs. pip checks the dependencies against the linked packages and
    may fetch nothing. Links leave out our own distributions and, without `oracle`, transformers,
    which no user has to have.
    """
    venv.create(folder / "env", symlinks=True)
    (site_packages,) = (folder / "env").glob("lib/python*/site-packages")
    for source in (Path(path) for path in sys.path if Path(path).name == "site-packages"):
        for entry in source.iterdir():
            link = site_packages / entry.name
            ours = entry.name.startswith(("infer_",) if oracle else ("infer_", "transformers"))
            # .pth files would lead back to our editable installs
            if not ours and entry.suffix != ".pth" and not link.exists():
                link.symlink_to(entry)
    hidden = ("PYTHONPATH", "INFER_", "PIP_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}

    def run(
        command: str, *arguments: str, cwd: Path = folder, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(folder / "env" / "bin" / command), *arguments],
            cwd=cwd,
            env={**environment, "OMP_NUM_THREADS": "1", **variables},
            capture_output=True,
            text=True,
        )

    installed = run("python", "-m", "pip", "install", "--no-index", *map(str, wheels))
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return run
