import json
from dataclasses import replace

import pytest
import torch
from toy_specs import toy_spec

from infer_core.chain_tiles import default_tiles
from infer_core.kernels.chain_types import Tile
from infer_core.tuner import compare, load_tiles, save_tiles, tiles_key, tune

TILES = default_tiles(toy_spec(), num_sms=4)


def key(**changes):
    return {**tiles_key(toy_spec(), torch.bfloat16, "some GPU"), **changes}


def test_tiles_come_back_as_they_were_saved(tmp_path):
    save_tiles(key(), TILES, tmp_path)

    assert load_tiles(key(), tmp_path) == TILES
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize("change", [{"gpu": "another GPU"}, {"infer_core": "0.0.1"}])
def test_tiles_of_another_gpu_or_release_are_not_found(tmp_path, change):
    save_tiles(key(**change), TILES, tmp_path)

    assert load_tiles(key(**change), tmp_path) == TILES
    assert load_tiles(key(), tmp_path) is None


def test_the_key_depends_on_the_shape_alone_and_not_on_the_name():
    spec = toy_spec()
    renamed = spec.model_copy(update={"architecture": "OtherForCausalLM"})

    assert tiles_key(renamed, torch.bfloat16, "g") == tiles_key(spec, torch.bfloat16, "g")
    assert tiles_key(toy_spec(gated=False), torch.bfloat16, "g") != key(gpu="g")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"tiles": {}}',
        json.dumps({"tiles": {"qkv": 1}}),
    ],
    ids=["empty", "a-list", "no-kinds", "one-kind"],
)
def test_a_corrupt_file_is_ignored_with_a_warning(tmp_path, content):
    save_tiles(key(), TILES, tmp_path).write_text(content)

    with pytest.warns(UserWarning, match="ignoring tiles in .*delete the file or tune again"):
        assert load_tiles(key(), tmp_path) is None


def test_a_tile_that_is_no_number_is_ignored_with_a_warning(tmp_path):
    path = save_tiles(key(), TILES, tmp_path)
    path.write_text(path.read_text().replace('"warps": 4', '"warps": -4'))

    with pytest.warns(UserWarning, match="warps is -4, expected a positive integer"):
        assert load_tiles(key(), tmp_path) is None


def test_tuning_keeps_what_is_faster_and_skips_what_does_not_fit():
    wanted = Tile(4, 8, 2)

    def measure(tiles):
        if tiles.gate_up == Tile(4, 4, 4):
            raise RuntimeError("out of resources")
        return 10.0 - (tiles.attn_out == wanted) - 2 * (tiles.qkv == wanted)

    tiles, time = tune(TILES, measure)

    assert (tiles.attn_out, tiles.qkv, time) == (wanted, wanted, 7.0)


def test_a_gpu_that_slows_down_is_not_held_against_the_tuned_tiles():
    wanted, calls = Tile(4, 8, 2), []

    def measure(tiles):
        calls.append(tiles)
        return 10.0 - (tiles.qkv == wanted) + 0.01 * len(calls)

    result = compare(TILES, measure, budget_s=60.0)

    assert result.tiles.qkv == wanted
    assert (result.wins, len(result.rounds)) == (5, 5)
    firsts = [tiles == TILES for tiles in calls[-10::2]]
    assert firsts == [True, False, True, False, True]
    assert result.gain == pytest.approx(result.built_in_time / result.tuned_time - 1, rel=0.02)


def test_built_in_tiles_that_nothing_beats_are_timed_once_more_alone():
    result = compare(TILES, lambda tiles: 7.0, budget_s=60.0)

    assert (result.tiles, result.rounds, result.wins) == (TILES, ((7.0, 7.0),), 0)


def test_tuning_without_time_keeps_the_start():
    assert tune(TILES, lambda tiles: 1.0, budget_s=0.0) == (TILES, 1.0)


def test_default_tiles_of_a_tiny_model_are_whole():
    for kind in ("qkv", "attn_out", "gate_up", "mlp_out", "lm_head"):
        tile = getattr(TILES, kind)
        assert tile.rows >= 1
        assert tile.rows & (tile.rows - 1) == 0
    assert replace(TILES) == TILES
