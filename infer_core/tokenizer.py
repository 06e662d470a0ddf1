"""Text to token ids and back, by the tokenizer.json of a checkpoint folder."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tokenizers

from infer_core.errors import RequestError, TokenizerError
from infer_core.json_files import read_json_object

TOKENIZER = "tokenizer.json"
_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A `tokenizers.Tokenizer` with the checkpoint's named special tokens.

    `special_tokens` maps names such as `bos_token` to the token's text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
        # A tokenizer.json may carry the truncation and padding of its training.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special_ids = {
            token for token, added in backend.get_added_tokens_decoder().items() if added.special
        }
        self.special_tokens = dict(special_tokens)
        self.bos_token_id = self._id_of("bos_token")
        self.eos_token_id = self._id_of("eos_token")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read tokenizer.json, and the special tokens' names from tokenizer_config.json.

        Raises:
            TokenizerError: tokenizer.json is missing or not one `tokenizers` can read.
            ConfigError: tokenizer_config.json or special_tokens_map.json is not a JSON object.
        """
        path = folder / TOKENIZER
        if not has_tokenizer(folder):
            raise no_tokenizer(str(folder), folder)
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception for whatever it cannot read
            raise TokenizerError(
                f"{path} cannot be read by tokenizers {tokenizers.__version__}: {error}; fetch "
                "the file again, or upgrade tokenizers"
            ) from error
        return cls(backend, _special_tokens(folder))

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; a model's vocabulary may be padded beyond it."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Encode text, with the BOS (or whatever else) tokenizer.json puts around it.

        A text that itself begins with BOS, as a rendered chat does, keeps a single one.

        Raises:
            RequestError: the text holds a lone surrogate, so it is not Unicode text.
        """
        if (found := _SURROGATE.search(text)) is not None:  # tokenizers would say "must be str"
            raise RequestError(
                f"the text is not valid Unicode: lone surrogate {found[0]!r} at character "
                f"{found.start()}; decode its bytes with errors='replace'"
            )
        ids = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        while len(ids) > 1 and ids[0] == ids[1] == self.bos_token_id:
            del ids[0]
        return list(ids)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode ids; bytes that are not UTF-8 become U+FFFD, ids without a token nothing."""
        return self._backend.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def has_text(self, token: int, *, skip_special_tokens: bool = True) -> bool:
        """Whether an id shows up in decoded text: it is a token, and not a skipped one."""
        if skip_special_tokens and token in self._special_ids:
            return False
        return self._backend.id_to_token(token) is not None

    def _id_of(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._backend.token_to_id(text)


def has_tokenizer(folder: Path | None) -> bool:
    """Whether a model, which has a checkpoint folder or not, has a tokenizer."""
    return folder is not None and (folder / TOKENIZER).is_file()


def no_tokenizer(name: str, folder: Path | None) -> TokenizerError:
    """Make the error of a model that takes token ids only."""
    if folder is None:
        return TokenizerError(
            f"{name} is a reference model: random weights and no tokenizer. Give token ids, or "
            "the checkpoint's folder or hub id instead"
        )
    others = sorted(file.name for file in folder.glob("*token*") if file.is_file())
    return TokenizerError(
        f"{name} has no {TOKENIZER} (found: {', '.join(others) or 'no other'}); other formats are "
        "not read. Give token ids instead of text, or save one with "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def _special_tokens(folder: Path) -> dict[str, str]:
    """Named special tokens as transformers resolves them: bos_token and whatever else is `*_token`.

    special_tokens_map.json is the older place and holds only where tokenizer_config.json does
    not list its added tokens.
    """
    config = read_json_object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_json_object(folder / "special_tokens_map.json")
    named = {name: token for name, token in config.items() if name.endswith("_token")}
    if isinstance(extra := config.get("extra_special_tokens"), dict):  # a list has no names
        named |= extra
    return {name: text for name, token in named.items() if (text := _text(token)) is not None}


def _text(token: Any) -> str | None:
    """The text of a token, which the files give as a string or as an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
