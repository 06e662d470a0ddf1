"""Streaming must give the text of a batch decode, and never part of a character."""

import random

import pytest
import tokenizers
from toy_tokenizers import KINDS, TEXT

from infer_core.detokenizer import Detokenizer
from infer_core.tokenizer import Tokenizer

TEXTS = {
    "ascii": TEXT[0],
    "accents": TEXT[1],
    "three-byte-characters": TEXT[2],
    "unseen-characters": "Ωμέγα — שלום, ᚠᚢᚦ!",
    "emoji-of-many-code-points": "a 🙂🏳️‍🌈👩‍👩‍👧‍👦 b",
    "spaces": "  two  and\n\n\ttabs \r\n ",
    "replacement-character-itself": "a\ufffdb\ufffd",
    "control-tokens": "a<eos> b<turn>c <turn>",
    "empty": "",
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def tokenizer(request):
    special = {"bos_token": "<bos>", "eos_token": "<eos>"}
    return Tokenizer(tokenizers.Tokenizer.from_str(request.param()), special)


def stream(tokenizer, tokens, **options):
    detokenizer = Detokenizer(tokenizer, **options)
    return [detokenizer.push(token) for token in tokens] + [detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("skip", [True, False])
def test_the_pieces_are_the_batch_decode_and_whole_characters(tokenizer, text, skip):
    tokens = tokenizer.encode(text)

    pieces = stream(tokenizer, tokens, skip_special_tokens=skip)

    assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=skip)
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


def test_random_text_cut_at_random_streams_to_its_batch_decode(tokenizer):
    random.seed(0)
    alphabet = "aé東🙂 \n" + "ᚠ\u0301"

    for _ in range(50):
        parts = ["".join(random.choices(alphabet, k=random.randint(0, 4))) for _ in range(8)]
        # encoded apart, so that characters meet in ways one encoding never gives
        tokens = [t for part in parts for t in tokenizer.encode(part, add_special_tokens=False)]
        assert "".join(stream(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_text_appears_as_soon_as_its_character_is_complete(tokenizer):
    tokens = tokenizer.encode("x🙂x", add_special_tokens=False)
    texts = [tokenizer.decode(tokens[:n]) for n in range(1, len(tokens) + 1)]

    pieces = stream(tokenizer, tokens)

    for n, text in enumerate(texts, start=1):
        if "\ufffd" not in text:
            assert "".join(pieces[:n]) == text
    assert pieces[-1] == "", "nothing was left for the end"


def byte_tokens(tokenizer, data):
    """Tokens of single bytes: by name where there is byte fallback, else by the alphabet."""
    backend = tokenizer._backend
    if backend.token_to_id("<0x00>") is not None:
        return [backend.token_to_id(f"<0x{byte:02X}>") for byte in data]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these stand for themselves
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable}
    names |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    assert set(names.values()) == set(alphabet)
    return [backend.token_to_id(names[byte]) for byte in data]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff", id="never-in-utf8"),
        pytest.param(b"\xf0\x9f\x99", id="three-of-four"),
        pytest.param(b"\xe6\x9d" * 3, id="restarted"),
        pytest.param(b"\x80" * 40, id="continuation-bytes-only"),
    ],
)
def test_bytes_that_are_no_text_end_as_in_the_batch_decode(tokenizer, data):
    tokens = byte_tokens(tokenizer, data)
    tail = tokenizer.encode("!", add_special_tokens=False)

    for whole in (tokens, tokens + tail):
        assert "".join(stream(tokenizer, whole)) == tokenizer.decode(whole)


def test_a_character_whose_run_of_bytes_turns_bad_is_not_taken_back(tokenizer):
    """Batch decoding may turn the é into U+FFFD as well; a stream has shown it by then."""
    tokens = byte_tokens(tokenizer, "é".encode() + b"\xff")
    tokens += tokenizer.encode("!", add_special_tokens=False)

    text = "".join(stream(tokenizer, tokens))

    assert text.startswith("é\ufffd")
    assert text.endswith("!")


def test_endless_invalid_bytes_are_shown_in_time_in_a_window_that_does_not_grow(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    shown = 0

    for number, token in enumerate(byte_tokens(tokenizer, b"\xff" * 200), start=1):
        shown += len(detokenizer.push(token))
        assert number - shown < 4
        assert len(detokenizer._window) <= 8


def test_ids_without_text_change_nothing(tokenizer):
    beyond = tokenizer.vocab_size + 3
    hello = tokenizer.encode("x 🙂 y", add_special_tokens=False)
    noisy = [token for part in hello for token in (beyond, part, tokenizer.eos_token_id)]

    assert "".join(stream(tokenizer, noisy)) == "".join(stream(tokenizer, hello))
