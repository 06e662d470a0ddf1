"""Two small tokenizers, trained here, of the kinds the published models use."""

import json
from functools import cache

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs!",
    "Être ou ne pas être, voilà la question; naïve Größe, Übermut, ça va?",
    "東京都に住んでいます。今日は天気がいいですね。",
    "def add(a, b):\n    return a + b  # spaces   and\ttabs\r\n",
] * 3
CONTROL_TOKENS = ["<bos>", "<eos>", "<turn>"]


def add_bos(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos> $B",
        special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))],
    )
    return tokenizer


@cache
def byte_level():
    """Byte-level BPE, as Llama 3 and Qwen have: a token may hold parts of two characters."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return add_bos(tokenizer).to_str()


@cache
def byte_fallback():
    """Character BPE with a token for each byte, as Gemma has."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[*CONTROL_TOKENS, "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    content["model"]["byte_fallback"] = True
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return add_bos(tokenizer).to_str()


@cache
def stripping():
    """Like `byte_fallback`, and the decoder strips the first space, as Llama 2 has."""
    tokenizer = tokenizers.Tokenizer.from_str(byte_fallback())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return tokenizer.to_str()


KINDS = {"byte-level": byte_level, "byte-fallback": byte_fallback, "stripping": stripping}


def write_tokenizer(folder, text, **config):
    """Write tokenizer.json and a tokenizer_config.json with `config`."""
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
    } | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
