"""Rendering against transformers' `apply_chat_template`, over the published templates."""

import hashlib
import json
from datetime import datetime
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from chat_cases import AGAIN, CONVERSATIONS, OPTIONS, SPECIAL_TOKENS, USER, VARIABLES, WEATHER
from toy_tokenizers import byte_level, write_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from infer_core.chat_template import ChatTemplate
from infer_core.errors import ChatTemplateError, ConfigError, RequestError
from infer_core.tokenizer import Tokenizer

FIXTURES = Path(__file__).parent / "fixtures" / "chat_templates"
# SHA-256 of each file, so that nobody mends what others have published.
PUBLISHED = {
    "gemma3": "7de1c58e208eda46e9c7f86397df37ec49883aeece39fb961e0a6b24088dd3c4",
    "llama3.2": "5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4",
    "qwen3": "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8",
}
REFUSED = object()


@cache
def template(source, **special_tokens):
    return ChatTemplate({"default": source}, special_tokens, origin="a test")


def fixture(name):
    return (FIXTURES / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def transformers_tokenizer():
    backend = tokenizers.Tokenizer.from_str(byte_level())
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL_TOKENS)


def by_transformers(source, messages, **options):
    try:
        return transformers_tokenizer().apply_chat_template(
            messages, chat_template=source, tokenize=False, **options
        )
    except Exception:
        return REFUSED


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_fixtures_are_the_published_texts(name):
    content = (FIXTURES / f"{name}.jinja").read_bytes()
    assert hashlib.sha256(content).hexdigest() == PUBLISHED[name]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize(
    ("name", "variables"),
    [
        pytest.param(name, variables, id="-".join([name, *map(str, variables.values())]))
        for name, choices in VARIABLES.items()
        for variables in choices
    ],
)
def test_a_published_template_renders_as_in_transformers(name, variables, messages, options):
    source = fixture(name)
    ours = template(source, **SPECIAL_TOKENS)
    options = {"add_generation_prompt": True, **options}
    expected = by_transformers(source, messages, **options, **variables)

    if expected is REFUSED or (options.get("tools") and "tools" not in source):
        with pytest.raises(RequestError):
            ours.render(messages, **options, variables=variables)
    else:
        assert ours.render(messages, **options, variables=variables) == expected


CONSTRUCTS = {
    "tojson-options": "{{ {'b': 'é<', 'a': [1]} | tojson(indent=2) }}"
    "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}",
    "loop-controls": "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
    "{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "trimmed-blocks": "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "generation-tag": "{% for m in messages %}<{% generation %}{{ m.content }}{{ loop.index }}"
    "{% set x = 1 %}{% endgeneration %}{{ x }}>{% endfor %}",
    "namespace-and-dict": "{% set n = namespace(a=1) %}{% for i in [1, 2] %}{% set n.a = n.a + i %}"
    "{% endfor %}{{ n.a }}{{ dict(a=1) }}",
    "macro-and-filters": "{% macro f(x) %}[{{ x | trim | upper }}]{% endmacro %}"
    "{{ f(messages[0]['content']) }}{{ messages | map(attribute='role') | join(',') }}",
    "special-tokens": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}",
    "year": "{{ strftime_now('%Y') }}",
    "documents": "{{ documents is none }}{{ tools is none }}",
}


@pytest.mark.parametrize("source", CONSTRUCTS.values(), ids=CONSTRUCTS.keys())
def test_each_construct_renders_as_in_transformers(source):
    messages = [USER, AGAIN]

    rendered = template(source, **SPECIAL_TOKENS).render(messages)

    assert rendered == by_transformers(source, messages, add_generation_prompt=True)


@pytest.mark.parametrize("given", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
def test_thoughts_are_found_by_whatever_name_they_come(given, read):
    messages = [USER, {"role": "assistant", "content": "4", given: "add them"}]
    assert template("{{ messages[1]." + read + " }}").render(messages) == "add them"


def test_the_date_is_that_of_today():
    before = datetime.now()
    rendered = template("{{ strftime_now('%d %b %Y') }}").render([USER])
    days = {day.strftime("%d %b %Y") for day in (before, datetime.now())}

    assert rendered in days


@pytest.mark.parametrize("name", VARIABLES)
def test_a_folder_gives_the_token_ids_of_apply_chat_template(tmp_path, name):
    folder = write_tokenizer(tmp_path, byte_level())
    (folder / "chat_template.jinja").write_text(fixture(name), encoding="utf-8")
    messages, variables = CONVERSATIONS["several-turns"], VARIABLES[name][-1]

    tokenizer = Tokenizer.load(folder)
    text = ChatTemplate.load(folder, tokenizer.special_tokens).render(messages, variables=variables)
    tokens = tokenizer.encode(text, add_special_tokens=False)

    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **variables
    )
    assert tokens == theirs
    assert tokens.count(tokenizer.bos_token_id) == ("bos_token" in fixture(name))


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def configure(folder, chat_template):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": chat_template}))


def test_the_template_file_goes_before_tokenizer_config(folder):
    configure(folder, "from the config")
    assert ChatTemplate.load(folder, {}).render([USER]) == "from the config"

    (folder / "chat_template.jinja").write_text("from the file")
    assert ChatTemplate.load(folder, {}).render([USER]) == "from the file"


@pytest.mark.parametrize("as_files", [False, True])
def test_a_template_named_tool_use_serves_requests_with_tools(folder, as_files):
    if as_files:
        (folder / "chat_template.jinja").write_text("plain")
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools | length }}")
    else:
        named = {"default": "plain", "tool_use": "{{ tools | length }}"}
        configure(folder, [{"name": n, "template": t} for n, t in named.items()])

    chat_template = ChatTemplate.load(folder, {})

    assert chat_template.render([USER]) == "plain"
    assert chat_template.render([USER], tools=[WEATHER]) == "1"
    assert chat_template.render([USER], tools=[]) == "0"


def test_named_templates_without_a_default_are_an_error(folder):
    configure(folder, [{"name": "rag", "template": "x"}])

    with pytest.raises(ChatTemplateError, match=r"named \['rag'\], but none named default"):
        ChatTemplate.load(folder, {}).render([USER])


def test_a_folder_without_a_template_says_so(folder):
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        ChatTemplate.load(folder, {})


@pytest.mark.parametrize("value", [7, {"default": "x"}, [{"name": "default"}], ["x"], [[]]])
def test_a_chat_template_of_the_wrong_shape_is_an_error(folder, value):
    configure(folder, value)

    with pytest.raises(
        ChatTemplateError, match=r"tokenizer_config\.json: chat_template is neither"
    ):
        ChatTemplate.load(folder, {})


def test_a_broken_tokenizer_config_is_an_error(folder):
    (folder / "tokenizer_config.json").write_text("{")

    with pytest.raises(ConfigError, match=r"tokenizer_config\.json cannot be read"):
        ChatTemplate.load(folder, {})


def test_a_template_file_that_is_no_utf8_is_an_error(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff")

    with pytest.raises(ChatTemplateError, match=r"chat_template\.jinja cannot be read"):
        ChatTemplate.load(folder, {})


@pytest.mark.parametrize(
    "source", ["a\n{% if %}", "a\n{{ x", "a\n{% nonsense %}", "a\n{{ 1 | no }}"]
)
def test_an_invalid_template_is_an_error_with_its_line(source):
    with pytest.raises(ChatTemplateError, match="is not valid jinja2: line 2: "):
        template(source)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        pytest.param([], "expected a list of at least one", id="no-messages"),
        pytest.param("hello", "expected a list of at least one", id="a-text"),
        pytest.param(dict(USER), "expected a list of at least one", id="one-message"),
        pytest.param([USER, "hello"], r"messages\[1\] is 'hello'", id="text-as-a-message"),
        pytest.param(
            [USER, {"role": "bot", "content": ""}],
            r"messages\[1\] has role 'bot', expected one of system, user, assistant, tool",
            id="unknown-role",
        ),
        pytest.param([{"content": "x"}], r"messages\[0\] has role None", id="no-role"),
        pytest.param([{"role": ["user"], "content": "x"}], r"has role \['user'\]", id="role-list"),
        pytest.param(
            [{"role": "user", "content": None}], "neither content nor tool_calls", id="no-content"
        ),
        pytest.param(
            [{"role": "user", "content": [{"type": "text", "text": b"x"}]}],
            r"messages\[0\]\.content\[0\]\.text is a bytes",
            id="bytes-inside",
        ),
    ],
)
def test_bad_messages_are_refused_by_place_and_value(messages, complaint):
    with pytest.raises(RequestError, match=complaint):
        template("{{ messages }}").render(messages)


def test_what_a_template_raises_is_passed_on():
    source = "{{ raise_exception('roles must alternate') }}"

    with pytest.raises(RequestError, match="refuses these messages: roles must alternate"):
        template(source).render([USER])


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{{ messages[9].content.x }}", "{{ 'a' + 1 }}"])
def test_a_template_that_fails_is_a_request_error(source):
    with pytest.raises(RequestError, match="refuses these messages"):
        template(source).render([USER])


def test_what_a_template_would_leave_out_is_refused():
    chat_template = template("{% if thinking_on %}t{% endif %}{{ messages[0].content }}")

    with pytest.raises(RequestError, match=r"does not read enable_thinking, .* reads thinking_on"):
        chat_template.render([USER], variables={"enable_thinking": True})
    with pytest.raises(RequestError, match="does not read tools"):
        chat_template.render([USER], tools=[WEATHER])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{{ range(10**9) | length }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source):
    messages = [dict(USER)]

    with pytest.raises((ChatTemplateError, RequestError)):
        template(source).render(messages)
    assert messages == [USER]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("escape", ["messages.append(1)", "raise_exception.__globals__['json']"])
def test_a_published_template_runs_in_the_sandbox(name, escape):
    spoilt = fixture(name) + "{{ " + escape + " }}"

    with pytest.raises(ChatTemplateError, match="did what the sandbox forbids"):
        template(spoilt, **SPECIAL_TOKENS).render([USER])


def test_a_template_sees_nothing_of_python_behind_its_data():
    source = (
        "{{ raise_exception.__globals__ }}{{ messages.__class__ }}{{ '{0.__class__}'.format(1) }}"
    )

    assert template(source).render([USER]) == ""
