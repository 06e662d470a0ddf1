"""Model repositories of the Hugging Face hub: config.json first, then only what a model needs.

Files land in the cache that every tool of the hub shares (`HF_HOME`), in a folder for each commit.
huggingface_hub is imported on first use: it costs more than all of `infer --help`.
"""

import contextlib
import errno
import glob
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from infer_core.errors import HubError, ModelNotFound, WeightError

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXT_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class HubModel:
    """One commit of a repository; `folder` holds its config.json, the rest after `fetch_files`.

    `sizes` maps the repository's files to bytes; None when the hub could not be asked.
    """

    repo_id: str
    revision: str
    commit: str
    folder: Path
    sizes: Mapping[str, int] | None


def is_hub_id(model: str) -> bool:
    """Whether a model argument has the form of a hub id, `org/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model) is not None


def find_hub_model(repo_id: str, revision: str | None = None) -> HubModel:
    """Resolve branch, tag or commit and fetch config.json; from the cache when the hub is away.

    Raises:
        ModelNotFound: no such repository or revision, or it holds no config.json.
        HubError: gated, offline and not cached, disk full, broken off.
    """
    revision = revision or "main"
    info = _repository_info(repo_id, revision)
    from huggingface_hub import hf_hub_download

    with _explained(repo_id, revision):
        # under its own name, not the commit's: the cache then knows it when the hub is away
        path = hf_hub_download(repo_id, CONFIG, revision=revision, local_files_only=info is None)
    folder = Path(path).parent
    sizes = None
    if info is not None:
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return HubModel(repo_id, revision, folder.name, folder, sizes)


def fetch_files(model: HubModel) -> None:
    """Download what of weights, tokenizer and chat template is not in the folder yet.

    Files that are complete are never fetched again, so an interrupted download goes on with the
    file it was at.

    Raises:
        WeightError: the repository has no safetensors.
        HubError: as for `find_hub_model`.
    """
    if model.sizes is None:
        _require_cached(model)
        return
    text = [name for name in model.sizes if any(fnmatch(name, each) for each in TEXT_FILES)]
    wanted = [*text, *_weight_files(model, set(model.sizes))]
    missing = [name for name in wanted if not (model.folder / name).is_file()]
    if not missing:
        return
    _require_space(model, sum(model.sizes[name] for name in missing))
    _download(model, missing)


def _repository_info(repo_id: str, revision: str) -> Any:
    """What the hub says of a repository; None when it cannot be asked."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return None
    no_answer = _transport_error()
    with _explained(repo_id, revision):
        try:
            return HfApi().model_info(
                repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT_S
            )
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            reason = f"it answers {error.response.status_code}"
        except no_answer as error:
            reason = _one_line(error)
    warnings.warn(
        f"the hub at {constants.ENDPOINT} cannot be reached ({reason}); "
        f"looking for {repo_id} in the cache",
        stacklevel=2,
    )
    return None


def _weight_files(model: HubModel, names: set[str]) -> list[str]:
    """The weights among `names`, chosen as `infer_core.checkpoint_index` will choose them."""
    if SINGLE in names:
        return [SINGLE]
    if INDEX in names:
        if not (model.folder / INDEX).is_file():
            _download(model, [INDEX])
        shards = _shards(model.folder / INDEX)
        if absent := sorted(shards - names):
            raise WeightError(
                f"{_label(model)}: {INDEX} names {len(absent)} shards that are not there "
                f"(first: {absent[0]}); try another --revision, or tell its owner"
            )
        return [INDEX, *sorted(shards)]
    found = sorted(name for name in names if fnmatch(name, "*.safetensors") and "/" not in name)
    if len(found) == 1:
        return found
    if found:
        raise WeightError(
            f"{_label(model)} holds {len(found)} safetensors files ({found[0]}, ...) but neither "
            f"{SINGLE} nor {INDEX}: which are the model's is unknown. Download the right ones "
            "into a folder with config.json and give that folder"
        )
    if pickles := sorted(name for name in names if name.endswith(PICKLES)):
        raise WeightError(
            f"{_label(model)} holds pickled weights only ({pickles[0]}); infer reads safetensors "
            "only, since a pickle can run code. Look for a revision or a repository with "
            "safetensors, or convert it with transformers if you trust it: AutoModelForCausalLM"
            f".from_pretrained({model.repo_id!r}, dtype='auto').save_pretrained(folder)"
        )
    raise WeightError(
        f"{_label(model)} holds no safetensors (found: {', '.join(sorted(names)[:3])}); give a "
        "repository in Hugging Face format, or run with random weights where the command has "
        "--weights dummy"
    )


def _shards(index: Path) -> set[str]:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return {str(shard) for shard in shards}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightError(
            f"{index} is no index of safetensors ({error}); fetch it again"
        ) from error


def _download(model: HubModel, names: list[str]) -> None:
    from huggingface_hub import snapshot_download

    with _explained(model.repo_id, model.revision):
        snapshot_download(
            model.repo_id,
            revision=model.commit,
            allow_patterns=[glob.escape(name) for name in names],
        )


def _require_cached(model: HubModel) -> None:
    here = {path.name for path in model.folder.iterdir() if path.is_file()}
    try:
        complete = all((model.folder / name).is_file() for name in _weight_files(model, here))
    except WeightError:
        complete = False
    if not complete:
        raise HubError(
            f"{_label(model)} is only partly in the cache ({model.folder}) and the hub cannot be "
            f"asked for the rest; {_go_online()}"
        )


def _require_space(model: HubModel, needed: int) -> None:
    """Fail before the first byte rather than at the last one."""
    free = shutil.disk_usage(model.folder).free
    if needed > free:
        raise _disk_full(f"{_label(model)} needs {_gb(needed)}, free are {_gb(free)}")


def _label(model: HubModel) -> str:
    return f"{model.repo_id}@{model.revision}"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _disk_full(what: str) -> HubError:
    from huggingface_hub import constants

    return HubError(
        f"not enough disk space in the hub cache {constants.HF_HUB_CACHE}: {what}. Free some "
        "(`hf cache ls` shows what lies there), or set HF_HOME to a larger disk; files that are "
        "complete are kept"
    )


def _go_online() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "unset HF_HUB_OFFLINE to download it, or give a checkpoint folder"
    return "check the network (and HTTPS_PROXY, HF_ENDPOINT), or give a checkpoint folder"


@contextlib.contextmanager
def _explained(repo_id: str, revision: str) -> Iterator[None]:
    """Turn whatever the hub's client raises into one line that says what to do.

    The order matters: gated is a kind of not found, and both are HTTP errors and OSErrors.
    """
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{repo_id}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as error:
        how = " with the account of your token" if get_token() else f", then {log_in}"
        raise HubError(
            f"{repo_id} is gated: accept its licence on {page}{how}, and run again"
        ) from error
    except errors.RepositoryNotFoundError as error:
        private = "your token does not reach" if get_token() else "needs a token:"
        raise ModelNotFound(
            f"{constants.ENDPOINT} has no model repository {repo_id!r}, or it is private and "
            f"{private} {'it' if get_token() else log_in}; check the spelling"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(
            f"{repo_id} has no revision {revision!r}; its branches, tags and commits are on "
            f"{page}/tree/main"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__
        because = f" ({_one_line(cause)})" if isinstance(cause, errors.HfHubHTTPError) else ""
        raise HubError(
            f"{repo_id}@{revision} is not in the cache ({constants.HF_HUB_CACHE}) and the hub "
            f"cannot be asked{because}; {_go_online()}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelNotFound(
            f"{repo_id}@{revision} has no {CONFIG}, so it is no checkpoint in Hugging Face format; "
            f"its files are on {page}/tree/main"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "try again later"
        if status in (401, 403):
            remedy = f"your token is refused: {log_in}" if get_token() else log_in
        raise HubError(
            f"the hub refuses {repo_id}@{revision}: {_one_line(error)}; {remedy}"
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFound(f"{repo_id!r} is no hub id: {_one_line(error)}") from error
    except _transport_error() as error:
        raise _broken_off(repo_id, error) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(f"{repo_id} did not fit") from error
        if error.errno is not None:
            raise HubError(
                f"cannot write to the hub cache {constants.HF_HUB_CACHE}: {_one_line(error)}; "
                "set HF_HOME to a folder that can be written"
            ) from error
        raise _broken_off(repo_id, error) from error  # a file shorter than announced


def _broken_off(repo_id: str, error: BaseException) -> HubError:
    return HubError(
        # the client goes on with advice for those who call it
        f"the download of {repo_id} broke off ({_one_line(error).partition('. ')[0]}); run again "
        "to go on: files that are complete are kept"
    )


def _transport_error() -> type[Exception]:
    """The base of connection errors: httpx's under huggingface_hub 1, httpx2's under 2."""
    from huggingface_hub.errors import HfHubHTTPError

    bases = (base for base in HfHubHTTPError.__mro__ if base.__module__.startswith("httpx"))
    found: type[Exception] = next(bases)
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
