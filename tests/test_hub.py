"""Hub ids, against a hub on loopback and with the real client, in a process of its own."""

import json
import os
import subprocess
import sys

import pytest
import torch
from fake_hub import COMMIT, FakeHub, Repository
from safetensors.torch import save

CONFIG = {
    "architectures": ["ToyForCausalLM"],
    "model_type": "toy",
    "width": 8,
    "eos_token_id": 1,
}
WEIGHTS = save({"embed.weight": torch.zeros(2000, 8)})
INDEX = {
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
}
PROGRAM = """
import json, sys
from infer_core import InferError
from infer_core.model_source import resolve_model
from infer_core.plugins import load_registry
try:
    found = resolve_model(sys.argv[1], load_registry(), device="cpu", **json.loads(sys.argv[2]))
except InferError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
else:
    files = sorted(str(path.relative_to(found.checkpoint)) for path in found.checkpoint.rglob("*"))
    print(json.dumps({"name": found.name, "label": found.label, "hub_id": found.hub_id,
                      "commit": found.commit, "files": files}))
"""


# The same for loading, on a GPU with 1,000 bytes.
TINY_GPU = """
import json
import infer_core.memory_claim
from infer_core import InferError
from infer_core.engine import find_model
infer_core.memory_claim.free_bytes = lambda device: 1000
try:
    find_model("toys/one", device="cpu", dtype=None)
except InferError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


def as_json(document):
    return json.dumps(document).encode()


def checkpoint(**files):
    """Files of a small repository; `model__safetensors=None` leaves one out."""
    standard = {"config.json": as_json(CONFIG), "model.safetensors": WEIGHTS}
    named = {name.replace("__", "."): content for name, content in files.items()}
    return {name: text for name, text in (standard | named).items() if text is not None}


COMMANDS = """
import contextlib, io, json, sys
from infer_core.cli import main
for arguments in json.loads(sys.argv[1]):
    out, err, sys.argv = io.StringIO(), io.StringIO(), ["infer", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as exit:
            code = exit.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture
def hub():
    with FakeHub() as running:
        yield running


@pytest.fixture
def environ(hub, tmp_path, make_plugin):
    """Variables for a process that finds the toy plugin, the hub and an empty cache."""
    make_plugin("toy")
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": make_plugin.path[0],
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture
def resolve(environ):
    """Resolve a model in a fresh process: `resolve("toys/one", offline=True, revision="v1")`."""

    def run(
        model="toys/one",
        *,
        command=(sys.executable, "-c", PROGRAM),
        offline=False,
        endpoint=None,
        token=None,
        home=None,
        **options,
    ):
        changes = {
            "HF_HUB_OFFLINE": "1" if offline else None,
            "HF_ENDPOINT": endpoint,
            "HF_TOKEN": token,
            "HF_HOME": str(home) if home else None,
        }
        done = subprocess.run(
            [*command, model, json.dumps(options)] if command[-1] == PROGRAM else command,
            env=environ | {name: value for name, value in changes.items() if value is not None},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) | {"stderr": done.stderr}

    return run


def refused(answer, error, *phrases):
    """Check the kind of an error and that it is one line which says these things."""
    assert answer["error"] == error, answer
    assert "\n" not in answer["message"]
    for phrase in phrases:
        assert phrase in answer["message"]


def test_a_hub_id_is_fetched_with_only_the_needed_files_and_works_offline_afterwards(hub, resolve):
    text_files = {
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{ }",
        "generation_config.json": b"{  }",
        "chat_template.jinja": b"hello",
    }
    needless = {
        "pytorch_model.bin": b"pickle",
        "README.md": b"#",
        "original/model.safetensors": b"x",
    }
    hub.repositories["toys/one"] = Repository(checkpoint() | text_files | needless)

    answer = resolve()

    assert answer["files"] == sorted(["config.json", "model.safetensors", *text_files])
    assert (answer["name"], answer["label"]) == ("toys/one", "one")
    assert (answer["hub_id"], answer["commit"]) == ("toys/one", COMMIT)
    assert hub.requests[0][1] == "/api/models/toys/one/revision/main"

    del hub.requests[:]
    again = resolve()
    assert again["files"] == answer["files"]
    assert [
        path for method, path, _ in hub.requests if method == "GET" and "/api/" not in path
    ] == []

    del hub.requests[:]
    offline = resolve(offline=True)
    assert (offline["commit"], offline["files"]) == (COMMIT, answer["files"])
    assert hub.requests == []


def test_shards_are_those_of_the_index(hub, resolve):
    shards = dict.fromkeys(INDEX["weight_map"].values(), WEIGHTS)
    files = checkpoint(model__safetensors=None) | shards | {"other.safetensors": WEIGHTS}
    hub.repositories["toys/one"] = Repository(
        files | {"model.safetensors.index.json": as_json(INDEX)}, revisions=("v1",)
    )

    answer = resolve(revision="v1")

    assert answer["files"] == sorted(
        ["config.json", "model.safetensors.index.json", *INDEX["weight_map"].values()]
    )


def test_without_weights_only_the_config_is_fetched(hub, resolve):
    hub.repositories["toys/one"] = Repository(checkpoint())
    assert resolve(weights=False)["files"] == ["config.json"]


def test_a_gated_repository_names_its_licence_page_and_the_token(hub, resolve):
    hub.repositories["toys/one"] = Repository(checkpoint(), gated=True)
    page = f"{hub.url}/toys/one"

    without = resolve()
    refused(
        without, "HubError", f"gated: accept its licence on {page}", "hf auth login", "HF_TOKEN"
    )
    refused(resolve(token="hf_x"), "HubError", f"licence on {page} with the account of your token")


def test_an_unknown_repository_or_revision_says_which(hub, resolve):
    hub.repositories["toys/one"] = Repository(checkpoint())

    refused(resolve("toys/none"), "ModelNotFound", "no model repository 'toys/none'", "spelling")
    refused(resolve(revision="v9"), "ModelNotFound", "toys/one has no revision 'v9'", "/tree/main")


def test_offline_and_not_cached_says_how_to_get_it(hub, resolve):
    hub.repositories["toys/one"] = Repository(checkpoint())

    refused(resolve(offline=True), "HubError", "not in the cache", "unset HF_HUB_OFFLINE")
    assert hub.requests == []

    resolve(weights=False)
    refused(resolve(offline=True), "HubError", "only partly in the cache", "unset HF_HUB_OFFLINE")


def test_an_unreachable_hub_serves_from_the_cache_or_says_what_to_check(hub, resolve):
    hub.repositories["toys/one"] = Repository(checkpoint())
    nowhere = "http://127.0.0.1:9"  # the discard port, where nobody listens

    refused(resolve(endpoint=nowhere), "HubError", "not in the cache", "check the network")
    resolve()
    cached = resolve(endpoint=nowhere)
    assert cached["commit"] == COMMIT
    assert "cannot be reached" in cached["stderr"]
    hub.repositories["toys/one"].status = 503
    assert "it answers 503" in resolve()["stderr"]


def test_a_private_repository_opens_with_its_token_and_with_no_other(hub, resolve):
    hub.repositories["toys/one"] = Repository(checkpoint(), token="hf_mine")

    refused(resolve(), "ModelNotFound", "is private and needs a token", "HF_TOKEN")
    refused(resolve(token="hf_old"), "HubError", "your token is refused", "hf auth login")
    assert hub.downloads("model.safetensors") == []
    assert "model.safetensors" in resolve(token="hf_mine")["files"]


def test_a_hub_that_forbids_says_to_log_in(hub, resolve):
    hub.repositories["toys/one"] = Repository(checkpoint(), status=403)
    refused(resolve(token="hf_old"), "HubError", "your token is refused: log in")
    refused(resolve(), "HubError", "; log in with `hf auth login` or set HF_TOKEN")


def test_without_a_plugin_no_weights_are_fetched_and_the_plugin_is_named(hub, resolve):
    config = CONFIG | {"architectures": ["OtherForCausalLM"], "model_type": "other"}
    hub.repositories["toys/one"] = Repository(checkpoint(config__json=as_json(config)))

    refused(resolve(), "UnknownArchitecture", "'OtherForCausalLM'", "pip install infer-other")
    assert hub.downloads("model.safetensors") == []


def test_a_pickle_only_repository_is_refused_before_its_download(hub, resolve):
    files = checkpoint(model__safetensors=None, pytorch_model__bin=b"pickle")
    hub.repositories["toys/one"] = Repository(files)

    refused(resolve(), "WeightError", "pickled weights only (pytorch_model.bin)", "safetensors")
    assert hub.downloads("pytorch_model.bin") == []


@pytest.mark.parametrize(
    ("files", "error", "phrase"),
    [
        pytest.param(
            {"model.gguf": b"GGUF"}, "ModelNotFound", "has no config.json", id="no-config"
        ),
        pytest.param(
            {"config.json": as_json(CONFIG), "model.gguf": b"GGUF"},
            "WeightError",
            "holds no safetensors",
            id="no-weights",
        ),
        pytest.param(
            {"config.json": as_json(CONFIG), "a.safetensors": b"a", "b.safetensors": b"b"},
            "WeightError",
            "holds 2 safetensors files",
            id="ambiguous-weights",
        ),
        pytest.param(
            {"config.json": as_json(CONFIG), "model.safetensors.index.json": as_json(INDEX)},
            "WeightError",
            "names 2 shards that are not there",
            id="shards-not-there",
        ),
        pytest.param(
            {"config.json": as_json(CONFIG), "model.safetensors.index.json": b"[1]"},
            "WeightError",
            "is no index of safetensors",
            id="malformed-index",
        ),
    ],
)
def test_a_repository_that_is_no_checkpoint_is_refused(hub, resolve, files, error, phrase):
    hub.repositories["toys/one"] = Repository(files)
    refused(resolve(), error, phrase)


def test_too_little_disk_space_is_said_before_the_download(hub, resolve):
    hub.repositories["toys/one"] = Repository(
        checkpoint(), claimed_sizes={"model.safetensors": 10**18}
    )

    refused(resolve(), "HubError", "not enough disk space", "1000000000.00 GB", "HF_HOME")
    assert hub.downloads("model.safetensors") == []


def test_too_little_gpu_memory_is_said_before_the_download(hub, resolve):
    hub.repositories["toys/one"] = Repository(checkpoint())

    answer = resolve(command=(sys.executable, "-c", TINY_GPU))

    refused(answer, "OutOfMemory", "ToyForCausalLM in float32", "are free", "weights")
    assert hub.downloads("config.json") != []
    assert hub.downloads("model.safetensors") == []


def test_a_disk_that_fills_up_during_the_download_is_named(hub, resolve, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        # 64,000 bytes of weights by the listing's word 1, so that only the write itself can fail
        big = save({"embed.weight": torch.zeros(40_000, 8)})
        hub.repositories["toys/one"] = Repository(
            checkpoint(model__safetensors=big), claimed_sizes={"model.safetensors": 1}
        )
        refused(resolve(home=small), "HubError", "not enough disk space", "did not fit", "HF_HOME")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_connection_that_breaks_is_taken_up_where_it_was(hub, resolve):
    weights = bytes(30 * 2**20)  # the client writes pieces of 10 MiB; it breaks in the second
    hub.repositories["toys/one"] = Repository(
        checkpoint(model__safetensors=weights), cuts={"model.safetensors": 1}
    )

    assert "model.safetensors" in resolve()["files"]
    assert hub.downloads("model.safetensors") == [None, f"bytes={10 * 2**20}-"]


def test_a_download_that_broke_off_goes_on_with_the_file_it_was_at(hub, resolve):
    first, second = INDEX["weight_map"].values()
    shards = {
        first: WEIGHTS,
        second: b"2" + WEIGHTS,
        "model.safetensors.index.json": as_json(INDEX),
    }
    repository = Repository(checkpoint(model__safetensors=None) | shards, shortened={second})
    hub.repositories["toys/one"] = repository

    broken = resolve()
    refused(broken, "HubError", "broke off (Consistency check failed", "run again to go on")
    assert "force_download" not in broken["message"]
    repository.shortened.clear()
    assert second in resolve()["files"]
    assert (len(hub.downloads(first)), len(hub.downloads(second))) == (1, 2)


@pytest.mark.parametrize("command", [["generate", "-q"], ["chat"], ["inspect"]], ids=" ".join)
def test_on_the_command_line_each_failure_is_one_line_and_exit_code_2(
    hub, environ, tmp_path, command
):
    other = CONFIG | {"architectures": ["OtherForCausalLM"], "model_type": "other"}
    cut = Repository(checkpoint(), shortened={"config.json", "model.safetensors"})
    hub.repositories |= {
        "toys/gated": Repository(checkpoint(), gated=True),
        "toys/forbidden": Repository(checkpoint(), status=403),
        "toys/no-config": Repository({"model.gguf": b"GGUF"}),
        "toys/no-plugin": Repository(checkpoint(config__json=as_json(other))),
        "toys/cut": cut,
    }
    failures = {
        "toys/gated": "is gated",
        "toys/none": "has no model repository",
        "toys/forbidden": "hub refuses",
        "toys/no-config": "has no config.json",
        "toys/no-plugin": "no installed plugin serves",
        "toys/cut": "broke off",
    }
    if command != ["inspect"]:  # which looks at no weights
        pickled = checkpoint(model__safetensors=None, pytorch_model__bin=b"pickle")
        hub.repositories["toys/pickled"] = Repository(pickled)
        failures["toys/pickled"] = "holds pickled weights only"
        huge = {"model.safetensors": 10**18}
        hub.repositories["toys/huge"] = Repository(checkpoint(), claimed_sizes=huge)
        failures["toys/huge"] = "not enough disk space"
    prompt = ["hi"] if command[0] == "generate" else []
    lines = [[command[0], model, *prompt, *command[1:]] for model in failures]

    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(lines)],
        env=environ,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    answers = map(json.loads, done.stdout.splitlines())
    for phrase, (code, out, err) in zip(failures.values(), answers, strict=True):
        *progress, message = err.splitlines()
        assert (code, out) == (2, "")
        assert message.startswith("infer: error: "), err
        assert phrase in message
        assert all("Fetching" in line or not line for line in progress), progress
        assert "-q" not in command or progress == []
    assert list((tmp_path / "hf").rglob("snapshots/*/*.safetensors")) == []


@pytest.mark.parametrize(
    ("model", "options", "error", "phrase"),
    [
        ("./nowhere", {}, "ModelNotFound", "neither a folder with a checkpoint, nor a hub id"),
        ("nowhere", {}, "ModelNotFound", "toy-tiny"),
        ("toy-tiny", {"revision": "v1"}, "RequestError", "leave it out"),
        (".", {"revision": "v1"}, "RequestError", "is a folder; leave it out"),
    ],
)
def test_what_is_no_hub_id_never_asks_the_hub(hub, resolve, model, options, error, phrase):
    refused(resolve(model, **options), error, phrase)
    assert hub.requests == []


def test_the_benchmark_reports_the_commit(hub, resolve):
    hub.repositories["toys/one"] = Repository(checkpoint(), revisions=("v1",))
    program = "from infer_bench.cli import main; main()"
    sizes = "--prompt-tokens 4 --max-new-tokens 2 --warmup 0 --trials 1 --weights dummy"
    options = "--model toys/one --revision v1 --device cpu --no-save --json"

    report = resolve(command=[sys.executable, "-c", program, *f"{options} {sizes}".split()])

    (model,), (row,) = report["models"], report["rows"]
    assert (model["hub_id"], model["commit"]) == ("toys/one", COMMIT)
    assert row["loaded"]["tiny"] is False
    assert hub.downloads("model.safetensors") == []

    command = [sys.executable, "-c", program, *f"{options} {sizes}".split()]
    warned = resolve(command=command, endpoint="http://127.0.0.1:9")["stderr"]
    lines = [line for line in warned.splitlines() if "cannot be reached" in line]
    assert lines
    assert all(line.startswith("infer-bench: warning: the hub at ") for line in lines)
