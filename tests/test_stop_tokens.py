"""EOS is named in three files, as one id or as a list."""

import json

import pytest

from infer_core.errors import ConfigError
from infer_core.stop_tokens import stop_token_ids


def checkpoint(folder, eos):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    return folder


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer_eos", "expected"),
    [
        pytest.param(2, 2, 2, (2,), id="all-agree"),
        pytest.param([128001, 128008, 128009], None, 128009, (128001, 128008, 128009), id="list"),
        pytest.param(1, [1, 106], 1, (1, 106), id="only-generation-config-ends-the-turn"),
        pytest.param(None, None, 7, (7,), id="tokenizer-only"),
        pytest.param(0, [], None, (0,), id="token-zero"),
        pytest.param(None, None, None, (), id="none-at-all"),
    ],
)
def test_every_source_counts_once(tmp_path, config, generation, tokenizer_eos, expected):
    folder = checkpoint(tmp_path, generation)

    assert stop_token_ids({"eos_token_id": config}, folder, tokenizer_eos=tokenizer_eos) == expected


def test_a_missing_generation_config_and_a_missing_folder_are_fine(tmp_path):
    assert stop_token_ids({"eos_token_id": 3}, tmp_path) == (3,)
    assert stop_token_ids({"eos_token_id": 3}, None) == (3,)


@pytest.mark.parametrize("eos", ["</s>", [1, "2"], True, -1, 1.0, {"id": 1}])
def test_a_value_that_is_no_id_is_an_error_naming_its_file(tmp_path, eos):
    with pytest.raises(ConfigError, match=r"generation_config\.json: eos_token_id is"):
        stop_token_ids({}, checkpoint(tmp_path, eos))

    with pytest.raises(ConfigError, match=r"^config\.json: eos_token_id is"):
        stop_token_ids({"eos_token_id": eos}, None)
