"""Encoding and decoding against transformers, on tokenizers trained here."""

import json

import pytest
import tokenizers
from toy_tokenizers import KINDS, TEXT, byte_level, write_tokenizer
from transformers import AutoTokenizer

from infer_core.errors import ConfigError, RequestError, TokenizerError
from infer_core.tokenizer import Tokenizer

TEXTS = {
    "trained": TEXT[1],
    "empty": "",
    "unseen-characters": "Ωμέγα 🙂🏳️‍🌈 \u200b \x00",
    "spaces": "  two  and\n\n\ttabs \r\n",
    "control-tokens-inside": "a<eos> b<turn>c",
    "starts-with-bos": "<bos>hello",
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def folder(request, tmp_path):
    return write_tokenizer(tmp_path, request.param())


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_encode_equals_transformers_except_for_a_second_bos(folder, text):
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)

    bare = theirs.encode(text, add_special_tokens=False)
    whole = theirs.encode(text)

    assert ours.encode(text, add_special_tokens=False) == bare
    assert ours.encode(text) == (whole[1:] if text.startswith("<bos>") else whole)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("skip", [True, False])
def test_decode_equals_transformers(folder, text, skip):
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    tokens = theirs.encode(text)

    assert ours.decode(tokens, skip_special_tokens=skip) == theirs.decode(
        tokens, skip_special_tokens=skip
    )


def test_bos_never_comes_twice(folder):
    tokenizer = Tokenizer.load(folder)

    for text in ("hello", "<bos>hello", "<bos><bos>hello"):
        assert tokenizer.encode(text).count(tokenizer.bos_token_id) == 1


def test_the_truncation_and_padding_of_training_do_not_apply(tmp_path):
    backend = tokenizers.Tokenizer.from_str(byte_level())
    backend.enable_truncation(max_length=4)
    backend.enable_padding(length=4)

    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, backend.to_str()))

    assert len(tokenizer.encode(TEXT[0])) > 4
    assert len(tokenizer.encode("a")) == 2


@pytest.mark.parametrize(
    ("config", "legacy"),
    [
        pytest.param({"pad_token": "<turn>"}, None, id="texts"),
        pytest.param(
            {"bos_token": {"__type": "AddedToken", "content": "<turn>"}}, None, id="objects"
        ),
        pytest.param({"bos_token": None}, None, id="no-bos"),
        pytest.param({"boi_token": "<turn>", "add_bos_token": True}, None, id="of-the-model"),
        pytest.param({"extra_special_tokens": {"image_token": "<turn>"}}, None, id="extra"),
        pytest.param({"extra_special_tokens": ["<turn>"]}, None, id="extra-without-names"),
        pytest.param(
            {}, {"bos_token": {"content": "<turn>"}, "pad_token": "<eos>"}, id="older-file"
        ),
        pytest.param(
            {"added_tokens_decoder": {}}, {"bos_token": "<turn>"}, id="older-file-overruled"
        ),
    ],
)
def test_special_tokens_are_those_of_transformers(tmp_path, config, legacy):
    folder = write_tokenizer(tmp_path, byte_level(), **config)
    if legacy is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(legacy))

    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)

    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_id == theirs.eos_token_id


def test_tokenizer_json_alone_is_enough(tmp_path):
    (tmp_path / "tokenizer.json").write_text(byte_level(), encoding="utf-8")

    tokenizer = Tokenizer.load(tmp_path)

    assert tokenizer.decode(tokenizer.encode("fox")) == "fox"
    assert tokenizer.special_tokens == {}
    assert tokenizer.bos_token_id is None


def test_ids_a_padded_vocabulary_adds_have_no_text(folder):
    tokenizer = Tokenizer.load(folder)
    beyond = tokenizer.vocab_size

    assert not tokenizer.has_text(beyond)
    assert tokenizer.has_text(beyond - 1)
    assert tokenizer.decode([beyond, *tokenizer.encode("fox"), beyond + 7]) == "fox"


def test_control_tokens_have_text_only_when_shown(folder):
    tokenizer = Tokenizer.load(folder)

    assert not tokenizer.has_text(tokenizer.eos_token_id)
    assert tokenizer.has_text(tokenizer.eos_token_id, skip_special_tokens=False)


def test_a_folder_without_tokenizer_json_names_what_it_has(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")

    with pytest.raises(TokenizerError, match=r"no tokenizer\.json \(found: tokenizer\.model\)"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "Nonsense"}}'])
def test_a_broken_tokenizer_json_is_an_error_with_its_path(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read by tokenizers"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe{}"])
def test_a_broken_tokenizer_config_is_an_error_with_its_path(tmp_path, content):
    folder = write_tokenizer(tmp_path, byte_level())
    (folder / "tokenizer_config.json").write_bytes(content)

    with pytest.raises(ConfigError, match=r"tokenizer_config\.json"):
        Tokenizer.load(folder)


def test_a_lone_surrogate_is_refused_with_its_place(folder):
    with pytest.raises(RequestError, match=r"surrogate '\\udc80' at character 2"):
        Tokenizer.load(folder).encode("ab\udc80")
