"""Stop strings must be found wherever the text around them is cut."""

import itertools

import pytest

from infer_core.errors import RequestError
from infer_core.stop_strings import StopStrings


def run(stops, pieces):
    stopper = StopStrings(stops)
    shown = "".join(stopper.push(piece) for piece in pieces) + stopper.finish()
    return shown, stopper.found


def every_cut(text):
    """All ways to cut a text into pieces."""
    for cuts in itertools.product([False, True], repeat=max(len(text) - 1, 0)):
        pieces = [text[:1]]
        for cut, char in zip(cuts, text[1:], strict=True):
            if cut:
                pieces.append(char)
            else:
                pieces[-1] += char
        yield pieces


@pytest.mark.parametrize(
    ("stops", "text", "shown", "found"),
    [
        pytest.param([], "abc", "abc", None, id="no-stop-strings"),
        pytest.param(["END"], "a END b", "a ", "END", id="in-the-middle"),
        pytest.param(["END"], "END", "", "END", id="all-of-it"),
        pytest.param(["END"], "a EN", "a EN", None, id="never-completed"),
        pytest.param(["aab"], "aaab", "a", "aab", id="overlaps-itself"),
        pytest.param(["\n\n"], "a\nb\n\nc", "a\nb", "\n\n", id="begins-twice"),
        pytest.param(["abab"], "ababab", "", "abab", id="first-of-two-overlapping"),
        pytest.param(["abcd", "c"], "abcd", "ab", "c", id="one-inside-another"),
        pytest.param(["bc", "abc"], "abcd", "", "abc", id="two-end-together"),
        pytest.param(["abc", "ab"], "xabc", "x", "ab", id="two-begin-together"),
        pytest.param(["xyz", "🙂"], "xy🙂z", "xy", "🙂", id="several"),
    ],
)
def test_the_text_before_a_stop_string_is_the_same_for_every_cut(stops, text, shown, found):
    for pieces in every_cut(text):
        assert run(stops, pieces) == (shown, found), pieces


def test_nothing_is_held_back_that_cannot_begin_a_stop_string():
    stopper = StopStrings(["</answer>"])

    assert stopper.push("some <b> text <") == "some <b> text "
    assert stopper.push("/an") == ""
    assert stopper.push("d") == "</and"


def test_after_a_stop_string_nothing_is_shown():
    stopper = StopStrings(["."])

    assert stopper.push("One. Two") == "One"
    assert stopper.push("Three") == ""
    assert stopper.finish() == ""


@pytest.mark.parametrize("stops", [[""], ["a", ""]])
def test_an_empty_stop_string_is_refused(stops):
    with pytest.raises(RequestError, match="a stop string is empty"):
        StopStrings(stops)


def test_one_string_instead_of_a_list_is_refused():
    with pytest.raises(RequestError, match="expected a list"):
        StopStrings("END")
