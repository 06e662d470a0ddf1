"""Token ids to text while they arrive, never showing part of a character.

A token may end inside a UTF-8 character, and decoders look at neighbours (spaces, runs of byte
tokens), so text is decoded in a window and shown once later tokens cannot change it.
`tokenizers.decoders.DecodeStream` raises when a run of byte tokens turns out not to be UTF-8, and
cannot be asked for what it still holds; hence this.
"""

from infer_core.tokenizer import Tokenizer

# A UTF-8 character is at most 4 bytes, so an unfinished one is at most 3 tokens old. One that is
# still unfinished after this many can never be finished.
MAX_TOKENS_OF_A_CHARACTER = 4


class Detokenizer:
    """Streams the text of one answer: `push` every token, then `finish` once.

    The pieces together equal `tokenizer.decode` of all tokens wherever their bytes are UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        # The window: tokens from the last but one border between whole characters. The first
        # `_num_context` are shown already and only give the others their context.
        self._window: list[int] = []
        self._num_context = 0
        self._num_shown = 0  # characters of the window's text that were shown
        self._num_waiting = 0  # tokens since text was last shown

    def push(self, token: int) -> str:
        """Take the next token and return the text that has become final, often one word."""
        if not self._tokenizer.has_text(token, skip_special_tokens=self._skip_special_tokens):
            return ""
        self._window.append(token)
        self._num_waiting += 1
        text = self._decode(self._window)
        whole = text.rstrip("\ufffd")
        if len(whole) == len(text) or self._num_waiting >= MAX_TOKENS_OF_A_CHARACTER:
            return self._show_all(text)
        if len(whole) > self._num_shown:
            piece, self._num_shown = whole[self._num_shown :], len(whole)
            self._num_waiting = 1  # this token begins the unfinished character
            return piece
        return ""

    def finish(self) -> str:
        """Return what was held back: the U+FFFD of a character that never got its last byte."""
        return self._show_all(self._decode(self._window))

    def _show_all(self, text: str) -> str:
        piece = text[self._num_shown :]
        self._window = self._window[self._num_context :]
        self._num_context = len(self._window)
        self._num_shown = len(self._decode(self._window))
        self._num_waiting = 0
        return piece

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=self._skip_special_tokens)
