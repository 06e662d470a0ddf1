"""`infer tune` with a timer that knows which tiles it likes; kernels run on a GPU alone."""

import sys
import warnings

import pytest
import torch

from infer_core import cli
from infer_core.device import find_gpu
from infer_core.kernels.chain_types import Tile
from infer_core.model_source import resolve_model
from infer_core.plugins import load_registry
from infer_core.step_timer import StepTimer
from infer_core.tuner import load_tiles, tiles_key

MODEL = "llama-3.2-1b"
LIKED = Tile(4, 8, 2)


class FakeTimer:
    """100 us a step, `gain` fewer with the liked tile; notes what it was made with."""

    gain = 20.0
    arguments: dict = {}

    def __init__(self, spec, **arguments):
        FakeTimer.arguments = arguments

    def __call__(self, tiles):
        return 100.0 - self.gain * (tiles.qkv == LIKED)


@pytest.fixture
def infer(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main() sets it
        monkeypatch.setattr(sys, "argv", ["infer", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return (exit_.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine that seems to have a GPU, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("infer_core.device.find_gpu", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr("infer_core.step_timer.StepTimer", FakeTimer)
    monkeypatch.setattr(FakeTimer, "gain", 20.0)


def kept():
    spec = resolve_model(MODEL, load_registry(), device="cuda", weights=False).spec
    return load_tiles(tiles_key(spec, torch.bfloat16, "Some GPU"))


@pytest.mark.usefixtures("gpu")
def test_tuned_tiles_are_printed_and_kept_for_this_gpu(infer):
    code, out, err = infer("tune", MODEL, "--context", "512")

    assert code == 0
    assert err == "llama-3.2-1b, bfloat16, on Some GPU: timing decode steps, about 60 s at most\n"
    assert "built-in     100.0 us a step\ntuned         80.0 us a step (+25.0% tokens/s)\n" in out
    assert "-> rows 4, warps 8, per_sm 2\nkept in " in out
    assert kept().qkv == LIKED
    assert FakeTimer.arguments["context"] == 512
    assert FakeTimer.arguments["dtype"] == torch.bfloat16


@pytest.mark.usefixtures("gpu")
def test_a_dry_run_keeps_nothing(infer):
    code, out, _ = infer("tune", MODEL, "--dry-run")

    assert code == 0
    assert "tuned         80.0 us" in out
    assert kept() is None


@pytest.mark.usefixtures("gpu")
def test_tiles_kept_before_are_forgotten_once_the_built_in_ones_are_as_fast(infer, monkeypatch):
    infer("tune", MODEL)
    monkeypatch.setattr(FakeTimer, "gain", -5.0)

    code, out, _ = infer("tune", MODEL)

    assert code == 0
    assert "tuned        100.0 us a step (+0.0% tokens/s)\nthe built-in tiles are as fast" in out
    assert kept() is None


@pytest.mark.usefixtures("gpu")
def test_tiles_that_win_by_chance_are_not_kept(infer, monkeypatch):
    times = iter([100.0, *[99.9, 100.1] * 500])  # the first candidate seems faster, once

    monkeypatch.setattr(FakeTimer, "__call__", lambda self, tiles: next(times))

    code, out, _ = infer("tune", MODEL)

    assert code == 0
    assert "the built-in tiles are as fast: nothing to keep: faster in" in out
    assert "of 5 rounds only" in out
    assert kept() is None


@pytest.mark.usefixtures("gpu")
def test_what_cannot_be_tuned_is_refused(infer, monkeypatch):
    code, _, err = infer("tune", MODEL, "--context", "999999")
    assert (code, err) == (2, "infer: error: --context 999999: expected 128 to 131072 tokens\n")

    monkeypatch.setattr("infer_core.memory_claim.free_bytes", lambda device: 10**9)
    code, _, err = infer("tune", MODEL)
    assert code == 2
    assert "with a context of 2048 tokens, needs 2." in err
    assert kept() is None


@pytest.mark.usefixtures("gpu")
def test_a_model_without_fused_kernels_has_nothing_to_tune(infer, monkeypatch):
    real = resolve_model

    def post_norm(*arguments, **options):
        found = real(*arguments, **options)
        norm = found.spec.norm.model_copy(update={"placement": "post"})
        spec = found.spec.model_copy(update={"norm": norm})
        return type(found)(found.name, found.label, found.config, spec, None)

    monkeypatch.setattr("infer_core.model_source.resolve_model", post_norm)

    code, _, err = infer("tune", MODEL)

    assert code == 2
    assert "decodes without the fused kernels (placement=post), so there are no tiles" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so_and_exits_with_2(infer):
    code, out, err = infer("tune", MODEL)

    assert (code, out) == (2, "")
    assert "times kernels on a GPU, and torch sees none here" in err


@pytest.mark.gpu
def test_steps_of_a_real_chain_are_timed():
    from infer_core.chain_tiles import default_tiles
    from infer_core.decode_chain import num_multiprocessors

    device = find_gpu()
    model = resolve_model(MODEL, load_registry(), device="cuda", weights=False)
    layers = {"num_layers": 2}
    spec = model.spec.model_copy(
        update={
            "shape": model.spec.shape.model_copy(update=layers),
            "attention": model.spec.attention[:2],
            "kv_cache": model.spec.kv_cache[:2],
        }
    )

    timer = StepTimer(spec, context=256, dtype=torch.bfloat16, device=device)

    # two layers and the LM head of 0.53 GB: no GPU reads that in 50 us
    assert 50 < timer(default_tiles(spec, num_multiprocessors(device))) < 5000
