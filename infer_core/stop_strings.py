"""Find stop strings in text that arrives in pieces, wherever the pieces are cut."""

from collections.abc import Sequence

from infer_core.errors import RequestError


class StopStrings:
    """Passes text through until a stop string occurs; that string and all after it are dropped.

    Text that may be the beginning of a stop string is held back until it is decided. `found` is
    the stop string met, or None.

    Raises:
        RequestError: a stop string is empty, which would stop before the first token.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise RequestError(f"stop is the string {stops!r}, expected a list of strings")
        if "" in stops:
            raise RequestError("a stop string is empty; leave it out, or give its text")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take the next piece and return the text now known to come before any stop string."""
        if self.found is not None:
            return ""
        text = self._held + text
        begins = {stop: text.find(stop) for stop in self._stops if stop in text}
        if begins:
            # The first to be complete, as if each character had come alone: what is shown must
            # not depend on the cuts. Of two that end together, the one that began first.
            self.found = min(begins, key=lambda stop: (begins[stop] + len(stop), begins[stop]))
            self._held = ""
            return text[: begins[self.found]]
        num_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        """Return what was held back: the beginning of a stop string that never came whole."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
