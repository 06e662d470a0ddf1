import copy
import gc
import json
import math
import weakref

import numpy
import pytest
import torch
import transformers
from toy_checkpoint import write_checkpoint

from infer_core import (
    LLM,
    ChatTemplateError,
    Conversation,
    RequestError,
    SamplingParams,
    TokenizerError,
)

PROMPT = "The quick brown fox"
MESSAGES = [{"role": "user", "content": "Pack my box"}]
SHORT = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(folder, device):
    with LLM(folder, device=device) as llm:
        yield llm


@pytest.fixture(scope="module")
def oracle(folder):
    return (
        transformers.AutoModelForCausalLM.from_pretrained(folder).eval(),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


def oracle_answer(oracle, text, count, **encode):
    """Greedy ids, and the logits before each, by transformers without a cache."""
    model, tokenizer = oracle
    ids = tokenizer(text, return_tensors="pt", **encode)["input_ids"]
    rows = []
    with torch.no_grad():
        for _ in range(count):
            rows.append(model(input_ids=ids, use_cache=False).logits[0, -1])
            ids = torch.cat([ids, rows[-1].argmax().view(1, 1)], dim=1)
    return ids[0, -count:].tolist(), torch.stack(rows)


def test_an_answer_is_that_of_transformers(llm, oracle):
    answer = llm.generate(PROMPT, SHORT)
    tokens, _ = oracle_answer(oracle, PROMPT, 12)

    assert answer.token_ids == tokens
    assert answer.text == oracle[1].decode(tokens, skip_special_tokens=True)
    assert (answer.finish_reason, answer.stop, answer.logprobs) == ("length", None, None)
    assert answer.num_prompt_tokens == len(llm.encode(PROMPT))
    assert answer.ttft_ms > 0
    assert answer.e2e_s > 0
    assert answer.decode_tokens_per_s > 0


def test_text_and_its_ids_give_the_same_answer(llm):
    by_ids = llm.generate(llm.encode(PROMPT), SHORT)
    assert by_ids.token_ids == llm.generate(PROMPT, SHORT).token_ids


@pytest.mark.parametrize("kind", [tuple, numpy.array, torch.tensor])
def test_ids_may_come_in_any_sequence(llm, kind):
    ids = llm.encode(PROMPT)
    assert llm.generate(kind(ids), SHORT).token_ids == llm.generate(ids, SHORT).token_ids


def test_a_list_of_prompts_gives_a_list_in_its_order(llm):
    one, two = llm.generate([PROMPT, llm.encode("Pack")], SHORT)
    assert one.token_ids == llm.generate(PROMPT, SHORT).token_ids
    assert two.token_ids == llm.generate("Pack", SHORT).token_ids


def test_the_pieces_of_a_stream_are_the_text(llm):
    stream = llm.stream(PROMPT, SHORT)
    with pytest.raises(RequestError, match="not complete yet"):
        stream.completion  # noqa: B018

    pieces = list(stream)

    assert len(pieces) > 1
    assert "".join(pieces) == stream.completion.text == llm.generate(PROMPT, SHORT).text


def test_logprobs_are_those_of_the_raw_logits(llm, oracle):
    answer = llm.generate(PROMPT, SamplingParams(max_tokens=6, logprobs=3))
    tokens, rows = oracle_answer(oracle, PROMPT, 6)
    expected = rows.log_softmax(-1)

    assert [each.token_id for each in answer.logprobs] == tokens
    for each, row in zip(answer.logprobs, expected, strict=True):
        top = row.topk(3)
        assert [token for token, _ in each.top] == top.indices.tolist()
        assert [logprob for _, logprob in each.top] == pytest.approx(top.values.tolist(), rel=1e-4)
        assert each.logprob == pytest.approx(each.top[0][1])


@pytest.mark.gpu
def test_logprobs_on_a_gpu_are_as_accurate_as_eager_torch(folder, oracle):
    params = SamplingParams(max_tokens=12, logprobs=100)
    with LLM(folder, device="cuda") as llm:
        ours = llm.generate(PROMPT, params)
    with LLM(folder, device="cpu") as llm:
        reference = llm.generate(PROMPT, params)
        ids = torch.tensor([llm.encode(PROMPT) + reference.token_ids[:-1]])
    assert ours.token_ids == reference.token_ids

    def rows(model):
        with torch.no_grad():
            return model(ids).logits[0, -12:].double().log_softmax(-1)

    eager, truth = rows(oracle[0]), rows(copy.deepcopy(oracle[0]).double())

    def error(answer):
        return max(
            abs(logprob - row[token].item())
            for each, row in zip(answer.logprobs, truth, strict=True)
            for token, logprob in [(each.token_id, each.logprob), *each.top]
        )

    # the rule for every kernel: at most twice what eager torch errs at the same dtype
    rounding = torch.finfo(torch.float32).eps * truth.abs().max().item()
    allowed = 2 * (eager - truth).abs().max().item() + rounding
    assert error(reference) <= allowed
    assert error(ours) <= allowed


def test_logprobs_of_sampled_tokens_ignore_temperature(llm, oracle):
    hot = SamplingParams(max_tokens=1, temperature=50.0, logprobs=0, seed=4)
    answer = llm.generate(PROMPT, hot)
    _, rows = oracle_answer(oracle, PROMPT, 1)

    expected = rows[0].log_softmax(-1)[answer.token_ids[0]].item()
    assert answer.logprobs[0].logprob == pytest.approx(expected, rel=1e-4)
    assert answer.logprobs[0].top == ()
    assert math.isfinite(expected)


def test_a_stop_string_ends_the_answer_early(llm):
    whole = llm.generate(PROMPT, SHORT)
    stop = whole.text[5:8]

    answer = llm.generate(PROMPT, SamplingParams(max_tokens=12, stop=["never seen", stop]))

    assert (answer.finish_reason, answer.stop) == ("stop", stop)
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert len(answer.token_ids) < len(whole.token_ids)
    assert "".join(llm.stream(PROMPT, SamplingParams(max_tokens=12, stop=stop))) == answer.text


def test_a_cancelled_stream_keeps_what_came(llm):
    stream = llm.stream(PROMPT, SHORT)
    first = next(iter(stream))
    stream.cancel()
    answer = stream.read()

    assert answer.finish_reason == "cancelled"
    assert answer.text.startswith(first)
    assert len(answer.token_ids) < 12


@pytest.mark.parametrize("how", ["cancel", "interrupt", "close", "drop"])
def test_after_an_answer_given_up_the_next_is_whole(llm, how):
    whole = llm.generate(PROMPT, SHORT)
    stream = llm.stream(PROMPT, SHORT)
    pieces = iter(stream)
    next(pieces)
    if how == "cancel":
        stream.cancel()
        stream.read()
    elif how == "interrupt":  # Ctrl-C with Python's own handler, while a piece is on its way
        with pytest.raises(KeyboardInterrupt):
            pieces.throw(KeyboardInterrupt)
    elif how == "close":
        stream.close()
        assert list(stream) == []
    del stream, pieces

    assert llm.generate(PROMPT, SHORT).token_ids == whole.token_ids


def test_the_end_token_of_generation_config_ends_the_answer(llm, tmp_path, device):
    tokens = llm.generate(PROMPT, SHORT).token_ids
    end = tokens[4]
    write_checkpoint(tmp_path, generation_config={"eos_token_id": [1, end]})

    with LLM(tmp_path, device=device) as other:
        answer = other.generate(PROMPT, SHORT)

    assert answer.finish_reason == "eos"
    assert answer.token_ids == tokens[: tokens.index(end) + 1]
    assert answer.text == other.tokenizer.decode(answer.token_ids[:-1])


def test_the_model_samples_by_its_generation_config_unless_told(llm, tmp_path, device):
    write_checkpoint(tmp_path, generation_config={"do_sample": True, "temperature": 5.0})

    with LLM(tmp_path, device=device) as sampling:
        greedy = sampling.generate(PROMPT, SamplingParams(temperature=0, max_tokens=12))
        sampled = sampling.generate(PROMPT, SHORT)

    assert greedy.token_ids == llm.generate(PROMPT, SHORT).token_ids
    assert sampled.token_ids != greedy.token_ids
    explicit = SamplingParams(temperature=5.0, max_tokens=12)
    assert sampled.token_ids == llm.generate(PROMPT, explicit).token_ids


def test_chat_is_the_rendered_template_without_a_second_bos(llm, oracle):
    answer = llm.chat(MESSAGES, SHORT)
    text = oracle[1].apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    tokens, _ = oracle_answer(oracle, text, 12, add_special_tokens=False)

    assert answer.token_ids == tokens
    assert llm.encode(text, add_special_tokens=False).count(0) == 1


def test_a_model_without_a_template_says_so(tmp_path):
    write_checkpoint(tmp_path, chat_template=None)
    with (
        LLM(tmp_path, device="cpu") as llm,
        pytest.raises(ChatTemplateError, match="has no chat template"),
    ):
        llm.chat(MESSAGES)


@pytest.mark.parametrize("generation_config", [{}, {"max_new_tokens": 400}], ids=["1024", "400"])
def test_a_length_nobody_asked_for_gives_way_to_the_context(tmp_path, generation_config, device):
    write_checkpoint(tmp_path, generation_config=generation_config)
    with LLM(tmp_path, device=device, max_context=20) as llm:
        answer = llm.generate(list(range(3, 15)))
        assert (answer.finish_reason, len(answer.token_ids)) == ("length", 8)
        with pytest.raises(RequestError, match="12 prompt tokens \\+ 9 new tokens = 21"):
            llm.generate(list(range(3, 15)), SamplingParams(max_tokens=9))


def test_a_prompt_that_fills_the_context_hears_what_can_be_done(llm, folder, device):
    with pytest.raises(RequestError, match=r"shorten the prompt$"):
        llm.generate([5] * 512)
    with (
        LLM(folder, device=device, max_context=64) as small,
        pytest.raises(RequestError, match="shorten the prompt or raise max_context"),
    ):
        small.generate([5] * 64)


def test_an_answer_overtaken_by_another_request_says_so(llm):
    overtaken = iter(llm.stream(PROMPT, SHORT))
    next(overtaken)
    other = llm.generate("Pack", SHORT)

    with pytest.raises(RequestError, match="another request has begun on the same model"):
        next(overtaken)
    assert llm.generate("Pack", SHORT).token_ids == other.token_ids


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        pytest.param("", None, "the prompt is empty", id="empty-text"),
        pytest.param([], None, "the prompt is empty", id="empty-ids"),
        pytest.param([PROMPT, ""], None, "the prompt is empty", id="one-of-a-list"),
        pytest.param([9999], None, "outside the vocabulary", id="foreign-id"),
        pytest.param([5] * 512, None, "512 tokens and the context 512", id="no-room"),
        pytest.param(
            [5] * 500, SamplingParams(max_tokens=20), "500 prompt tokens \\+ 20", id="too-long"
        ),
        pytest.param("a\ud800", None, "lone surrogate", id="not-unicode"),
        pytest.param(MESSAGES, None, "messages with roles are for `chat`", id="messages"),
        pytest.param(MESSAGES[0], None, "expected text or a list of token ids", id="one-message"),
        pytest.param(b"fox", None, "a prompt is b'fox', expected text", id="bytes"),
        pytest.param([5, "fox"], None, "a prompt is 5, expected text", id="id-and-text"),
        pytest.param([5, 1.5], None, r"a prompt is \[5, 1.5\], expected text", id="float"),
        pytest.param(None, None, "a prompt is None, expected text", id="none"),
        pytest.param({"fox"}, None, "a prompt is {'fox'}, expected text", id="set"),
        pytest.param(torch.zeros(2, 3, dtype=torch.int64), None, "is tensor", id="2-d-tensor"),
    ],
)
def test_a_bad_request_is_refused_before_anything_runs(llm, monkeypatch, prompt, params, message):
    monkeypatch.setattr(llm.engine, "stream", None)
    with pytest.raises(RequestError, match=message):
        llm.generate(prompt, params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stop": [""]}, "a stop string is empty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": -1}, "logprobs"),
        ({"top_k": 5}, "temperature is 0"),
    ],
)
def test_parameters_that_contradict_themselves_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "device 'tpu' is unknown"),
        ({"device": "meta"}, "expected cpu, cuda"),
        ({"device": "cuda:99"}, "torch sees"),
        ({"device": "cpu", "max_context": 9999}, "expected 1 to 512"),
        ({"device": "cpu", "revision": "v1"}, "is a folder"),
    ],
)
def test_a_model_that_cannot_be_loaded_so_says_why(folder, arguments, message):
    with pytest.raises(RequestError, match=message):
        LLM(folder, **arguments)


def test_a_reference_model_takes_ids_only():
    with LLM("llama-3.2-1b", device="cpu", max_context=64) as llm:
        assert len(llm.generate([1, 2, 3], SamplingParams(max_tokens=4)).token_ids) == 4
        with pytest.raises(TokenizerError, match="reference model: random weights"):
            llm.generate("hello")
        with pytest.raises(RequestError, match="stop strings need text"):
            llm.generate([1], SamplingParams(stop="x"))
        with pytest.raises(ChatTemplateError, match="reference model"):
            llm.chat(MESSAGES)


def test_a_malformed_tokenizer_fails_before_the_weights_are_read(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": "nothing"}))
    (tmp_path / "model.safetensors").write_bytes(b"never looked at")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        LLM(tmp_path, device="cpu")


def test_closing_frees_the_weights_and_ends_service(folder, device):
    with LLM(folder, device=device) as llm:
        llm.generate(PROMPT, SHORT)
        unfinished = llm.stream(PROMPT, SHORT)
        next(iter(unfinished))
        weights = weakref.ref(llm.engine.parameters["embed"])
    gc.collect()

    assert weights() is None
    with pytest.raises(RequestError, match="not complete"):
        unfinished.read()
    with pytest.raises(RequestError, match="is closed"):
        llm.generate(PROMPT)
    llm.close()


def test_a_closed_stream_keeps_nothing_of_its_request(folder):
    with LLM(folder, device="cpu") as llm:
        stream = llm.stream(PROMPT, SHORT)
        next(iter(stream))
        request = weakref.ref(iter(stream))

        stream.close()

        assert request() is None  # a generator that is gone holds no session
        assert list(stream) == []
        with pytest.raises(RequestError, match="not complete"):
            stream.read()


@pytest.mark.gpu
def test_closing_gives_the_gpu_memory_back(folder):
    def use():
        with LLM(folder) as llm:
            assert llm.engine.device.type == "cuda"
            llm.generate([PROMPT, PROMPT * 30], SHORT)
            llm.generate(PROMPT, SamplingParams(temperature=1.0, top_p=0.9, max_tokens=5))
            conversation = Conversation(llm, params=SHORT)
            list(conversation.say("Pack my box"))
            list(conversation.say("And then?"))
            unfinished = llm.stream(PROMPT, SHORT)
            next(iter(unfinished))
            used = torch.cuda.memory_allocated()
        return used, unfinished

    use()  # what torch keeps as long as the process runs: a cuBLAS workspace a stream
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    used, _unfinished = use()

    assert used > allocated
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.memory_reserved() <= reserved
