"""The machine and software a run was made with, and nothing about its user."""

import getpass
import platform
import re
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from pydantic import Field

from infer_bench.record import Record, quantity
from infer_core.hookspecs import GROUP

ENGINE_GROUP = "infer_bench.engines"
NOBODY = ("", "root", "localhost")  # names that say nothing about anybody
PEERS = ("transformers", "vllm")  # what the engines that come with this package run on


class Gpu(Record):
    """The accelerator of a run."""

    name: str
    compute_capability: str
    num_sms: int
    memory_bytes: int = quantity("bytes", "total device memory")
    driver: str | None


class Environment(Record):
    """Hardware and versions; no user name, host name or path."""

    gpu: Gpu | None
    operating_system: str
    machine: str
    num_cpu_threads: int = quantity("threads", "threads torch computes with")
    python: str
    torch: str
    triton: str | None
    cuda: str | None
    infer_core: str
    plugins: dict[str, str]
    other_engines: dict[str, str] = Field(
        default={}, description="versions of the distributions that other engines come from"
    )
    git_revision: str | None

    @property
    def revision(self) -> str | None:
        """The commit measured, short, and whether the working tree differed from it."""
        if self.git_revision is None:
            return None
        commit, _, changes = self.git_revision.partition("+")
        return f"revision {commit[:12]}{' and uncommitted changes' if changes else ''}"


def read_environment(device: str) -> Environment:
    """Describe this machine; `device` says whether a GPU takes part."""
    import torch

    return Environment(
        gpu=_gpu(device) if device.startswith("cuda") else None,
        operating_system=platform.system(),
        machine=platform.machine(),
        num_cpu_threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        cuda=torch.version.cuda,
        infer_core=_version("infer-core") or "unknown",
        plugins=_versions(GROUP),
        other_engines=_versions(ENGINE_GROUP)
        | {name: found for name in PEERS if (found := _version(name)) is not None},
        git_revision=_git_revision(),
    )


def without_paths(text: str) -> str:
    """Leave out of a message whose machine it is from; reports are published.

    Absolute paths keep their last part, home folders become `~`, user and host `<user>`, `<host>`.
    """
    text = text.replace("file://", "")
    home = str(Path.home())
    if home != "/":
        text = re.sub(rf"{re.escape(home)}(?![\w-])", "~", text)
    text = re.sub(r"(?<![\w.])/(?:home|Users)/[^\s/'\"`:;,()]+", "~", text)
    text = re.sub(r"(?<![\w/:.~])~?/(?:[^\s/'\"`:;,()]+/)+([^\s/'\"`:;,()]*)", r".../\1", text)
    for name, instead in _own_names():
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", instead, text)
    return text


def _own_names() -> tuple[tuple[str, str], ...]:
    """Pair the names of this machine and its user with what stands for them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        user = ""
    host = socket.gethostname()
    names = ((host, "<host>"), (host.partition(".")[0], "<host>"), (user, "<user>"))
    return tuple(pair for pair in names if pair[0] not in NOBODY)


def _gpu(device: str) -> Gpu:
    import torch

    facts = torch.cuda.get_device_properties(device)
    index = torch.device(device).index
    return Gpu(
        name=facts.name,
        compute_capability=f"{facts.major}.{facts.minor}",
        num_sms=facts.multi_processor_count,
        memory_bytes=facts.total_memory,
        driver=_driver(torch.cuda.current_device() if index is None else index),
    )


def _driver(index: int) -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = _output(*query)
    lines = answer.splitlines() if answer else []
    # one driver serves every GPU of a machine, so a masked index still finds it
    return lines[min(index, len(lines) - 1)].strip() if lines else None


def _versions(group: str) -> dict[str, str]:
    """Map each distribution with an entry point in the group to its version."""
    found = {}
    for entry in metadata.entry_points(group=group):
        if entry.dist is not None:
            found[entry.dist.name] = entry.dist.version
    return dict(sorted(found.items()))


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        module = sys.modules.get(distribution)
        version = getattr(module, "__version__", None)
        return str(version) if version else None


def _git_revision() -> str | None:
    """Give the commit this file is tracked in, '+changes' appended when the tree differs."""
    here = Path(__file__).resolve()
    # an installed copy may lie inside somebody else's repository: only a tracked file counts
    if _output("git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name) is None:
        return None
    revision = _output("git", "-C", str(here.parent), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(here.parent), "status", "--porcelain", "-uno")
    return f"{revision}+changes" if revision and changes else revision


def _output(*command: str) -> str | None:
    """Run a command; None when it is missing, fails or takes over five seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
