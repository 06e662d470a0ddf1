"""Messages to the text of a prompt, by the jinja2 chat template of a checkpoint folder.

A template sees what transformers' `apply_chat_template` shows it: `messages`, `tools`,
`add_generation_prompt`, the special tokens by name and whatever variables of its own the request
sets, all as plain data, in the sandbox of `template_sandbox`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jinja2.meta
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from infer_core.errors import ChatTemplateError, RequestError
from infer_core.json_files import read_json_object
from infer_core.template_sandbox import template_sandbox

ROLES = ("system", "user", "assistant", "tool")
# What the thoughts of a message are called in one API or another.
REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """The chat template of one checkpoint; `sources` maps names (usually `default`) to texts.

    Raises:
        ChatTemplateError: there is no template, or one is not valid jinja2.
    """

    def __init__(
        self, sources: Mapping[str, str], special_tokens: Mapping[str, str], *, origin: str
    ) -> None:
        if not sources:
            raise ChatTemplateError(
                f"{origin} has no chat template, so it is likely no chat model; use plain "
                "generation, or put the model's chat_template.jinja into the folder"
            )
        self._special_tokens = dict(special_tokens)
        self._origin = origin
        environment = template_sandbox()
        try:
            parsed = {name: environment.parse(source) for name, source in sources.items()}
            self._templates = {name: environment.from_string(tree) for name, tree in parsed.items()}
        except TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"the chat template of {origin} is not valid jinja2: line {error.lineno}: "
                f"{error.message}"
            ) from error
        self._variables = {
            name: jinja2.meta.find_undeclared_variables(tree) for name, tree in parsed.items()
        }

    @classmethod
    def load(cls, folder: Path, special_tokens: Mapping[str, str]) -> Self:
        """Read chat_template.jinja, else `chat_template` of tokenizer_config.json.

        Beside the former, additional_chat_templates/NAME.jinja; the latter is a text or a list of
        named ones.
        """
        return cls(_read_sources(folder), special_tokens, origin=str(folder))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Write messages as the model was trained to read them, special tokens included.

        Encode the result with `add_special_tokens=False`. `tools` are JSON schemas of functions;
        `variables` are the template's own, such as `enable_thinking`. A template named `tool_use`
        serves requests with tools.

        Raises:
            RequestError: messages, tools or variables that are malformed, that the template
                refuses, or that it would silently leave out.
            ChatTemplateError: the template tried to leave its sandbox.
        """
        name = self._choose(tools)
        given = dict(variables or {})
        self._refuse_unread(name, {*given, *(["tools"] if tools else [])})
        try:
            return self._templates[name].render(
                {
                    **self._special_tokens,
                    "messages": _checked(messages),
                    "tools": _plain(tools, "tools"),
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                    **{key: _plain(value, key) for key, value in given.items()},
                }
            )
        except SecurityError as error:
            raise ChatTemplateError(
                f"the chat template of {self._origin} did what the sandbox forbids: {error}"
            ) from error
        except RequestError:
            raise
        except Exception as error:  # a stranger's code on a stranger's data may raise anything
            reason = str(error) if isinstance(error, TemplateError) else repr(error)
            raise RequestError(
                f"the chat template of {self._origin} refuses these messages: {reason}"
            ) from error

    def _choose(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        for name in (["tool_use"] if tools is not None else []) + ["default"]:
            if name in self._templates:
                return name
        raise ChatTemplateError(
            f"{self._origin} has chat templates named {sorted(self._templates)}, but none "
            "named default"
        )

    def _refuse_unread(self, name: str, given: set[str]) -> None:
        unread = sorted(given - self._variables[name])
        if unread:
            own = self._variables[name] - {"messages", "add_generation_prompt"}
            raise RequestError(
                f"the chat template of {self._origin} does not read {', '.join(unread)}, so the "
                f"model would not see it; it reads {', '.join(sorted(own)) or 'messages only'}"
            )


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as plain data without null fields, each with a known role.

    Templates take many a wrong role for a right one or leave the message out, without a word.
    As in transformers, null fields are dropped, which templates print as "None", and thoughts get
    the two names that templates read.
    """
    if isinstance(messages, str | Mapping) or not messages:
        raise RequestError(
            f"messages is {messages!r}, expected a list of at least one "
            '{"role": ..., "content": ...}'
        )
    plain = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RequestError(
                f'messages[{index}] is {message!r}, expected {{"role": ..., "content": ...}}'
            )
        role = message.get("role")
        if role not in ROLES:
            raise RequestError(
                f"messages[{index}] has role {role!r}, expected one of {', '.join(ROLES)}"
            )
        fields = {key: value for key, value in message.items() if value is not None}
        if not fields.keys() & {"content", "tool_calls"}:
            raise RequestError(f"messages[{index}] ({role}) has neither content nor tool_calls")
        thoughts = next((fields[name] for name in REASONING if name in fields), None)
        if thoughts is not None:
            fields = {"thinking": thoughts, **fields, "reasoning_content": thoughts}
        plain.append(_plain(fields, f"messages[{index}]"))
    return plain


def _plain(value: Any, where: str) -> Any:
    """Copy JSON-like data; objects with methods have no business in a sandbox."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise RequestError(
        f"{where} is a {type(value).__name__}; chat templates take JSON data only "
        "(text, numbers, true, false, null, lists, objects)"
    )


def _read_sources(folder: Path) -> dict[str, str]:
    sources = {}
    file = folder / "chat_template.jinja"
    files = {"default": file} if file.is_file() else {}
    files |= {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    for name, path in files.items():
        try:
            sources[name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ChatTemplateError(f"{path} cannot be read: {error}") from error
    if sources:
        return sources
    configured = read_json_object(folder / "tokenizer_config.json").get("chat_template")
    if configured is None:
        return {}
    if isinstance(configured, str):
        return {"default": configured}
    try:
        named = {entry["name"]: entry["template"] for entry in configured}
        if all(isinstance(text, str) for item in named.items() for text in item):
            return named
    except (KeyError, TypeError):
        pass  # reported below
    raise ChatTemplateError(
        f"{folder / 'tokenizer_config.json'}: chat_template is neither a text nor a list of "
        '{"name": ..., "template": ...}'
    )
