"""A conversation: the KV cache keeps the history, and no token shows it."""

from pathlib import Path

import pytest
from toy_checkpoint import write_checkpoint

from infer_core import LLM, Conversation, RequestError, SamplingParams

SHORT = SamplingParams(max_tokens=10, logprobs=3)
TEMPLATES = Path(__file__).parent / "fixtures" / "chat_templates"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(folder, device):
    with LLM(folder, device=device) as llm:
        yield llm


@pytest.fixture(scope="module")
def other(folder, device):
    """The same model with a cache of its own."""
    with LLM(folder, device=device) as llm:
        yield llm


def say(conversation, text):
    answer = "".join(conversation.say(text))
    assert answer == conversation.completion.text
    return conversation.completion


def logprobs(completion):
    return [logprob for each in completion.logprobs for _, logprob in each.top]


def test_each_turn_runs_only_what_is_new_and_answers_as_if_all_ran(llm, other):
    conversation = Conversation(llm, system="Be brief.", params=SHORT)
    ids, text = [], ""
    for message in ["Pack my box", "naïve Größe", "東京都に", "the fox"]:
        before = conversation.messages
        completion = say(conversation, message)

        rendered = llm.chat_template.render([*before, {"role": "user", "content": message}])
        assert rendered.startswith(text)
        prompt = [*ids, *llm.encode(rendered[len(text) :], add_special_tokens=False)]
        fresh = other.generate(prompt, SHORT)
        assert completion.token_ids == fresh.token_ids
        assert logprobs(completion) == pytest.approx(logprobs(fresh), rel=1e-4)
        assert completion.num_prompt_tokens == len(prompt)
        if ids:  # all but the last answer's last token, whose keys nobody had needed yet
            assert completion.num_cached_tokens == len(ids) - 1
        ids, text = [*prompt, *completion.token_ids], rendered + completion.text

    assert [each["role"] for each in conversation.messages] == ["system"] + 4 * [
        "user",
        "assistant",
    ]


@pytest.mark.parametrize("file", sorted(TEMPLATES.glob("*.jinja")), ids=lambda file: file.stem)
def test_the_published_templates_keep_their_history_in_the_cache(tmp_path, file, device):
    write_checkpoint(tmp_path, chat_template=file.read_text(), max_position_embeddings=2048)
    with LLM(tmp_path, device=device) as llm:
        conversation = Conversation(llm, params=SHORT)
        first = say(conversation, "Pack my box")
        second = say(conversation, "And then?")

    # at least what came before the first answer; templates may trim the answer itself
    assert second.num_cached_tokens >= first.num_prompt_tokens - 1
    assert second.num_prompt_tokens > second.num_cached_tokens


def test_reset_forgets_all_but_the_system_prompt(llm):
    conversation = Conversation(llm, system="Be brief.", params=SHORT)
    first = say(conversation, "Pack my box")
    say(conversation, "More")
    conversation.reset()

    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    again = say(conversation, "Pack my box")
    assert again.token_ids == first.token_ids


def test_a_cancelled_answer_stays_as_far_as_it_came(llm):
    conversation = Conversation(llm, params=SHORT)
    pieces = conversation.say("Pack my box")
    next(pieces)
    conversation.cancel()
    list(pieces)

    assert conversation.completion.finish_reason == "cancelled"
    assert conversation.messages[-1] == {
        "role": "assistant",
        "content": conversation.completion.text,
    }
    assert say(conversation, "Go on").num_cached_tokens > 0


def test_a_stop_string_is_no_part_of_the_history(llm):
    text = say(Conversation(llm, params=SHORT), "Pack my box").text
    params = SamplingParams(max_tokens=10, stop=text[3:5])
    conversation = Conversation(llm, params=params)
    assert say(conversation, "Pack my box").finish_reason == "stop"

    assert conversation.messages[-1]["content"] == text[: text.index(text[3:5])]
    say(conversation, "Go on")
    assert len(conversation.messages) == 4


def test_a_turn_that_fails_leaves_no_trace(llm):
    conversation = Conversation(llm, params=SHORT)
    say(conversation, "Pack my box")
    before = list(conversation.messages)

    for text, message in [("  ", "is empty"), ("fox " * 600, "leaves no room")]:
        with pytest.raises(RequestError, match=message):
            list(conversation.say(text))
    assert conversation.messages == before
    say(conversation, "Go on")


def test_an_answer_is_cut_to_the_room_that_the_history_leaves(folder, device):
    with LLM(folder, device=device, max_context=64) as llm:
        conversation = Conversation(llm, params=SamplingParams(max_tokens=60))
        answer = say(conversation, "Pack my box")
        assert answer.num_prompt_tokens + len(answer.token_ids) == 64
        with pytest.raises(RequestError, match="reset it"):
            conversation.say("More")
