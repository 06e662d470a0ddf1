"""One plugin's hooks: checked when loaded, then asked, each answer checked.

pluggy accepts a misspelt hook silently and passes on whatever a hook returns; here both
are errors that name the plugin, the hook, what was got and what was expected.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import pluggy
from pydantic import ValidationError

from infer_core import hookspecs
from infer_core.errors import ConfigError, PluginContractError, PluginError
from infer_core.plugin_status import PluginStatus

HOOKS: dict[str, Callable[..., Any]] = {
    name: spec for name, spec in vars(hookspecs).items() if name.startswith("infer_")
}


class PluginHooks:
    """The hooks of one plugin.

    Each plugin has a pluggy manager of its own, so asking it asks nobody else, and nothing
    odd about one plugin object can reach another.

    Raises:
        PluginContractError: the plugin's hooks do not fit the contract; lists every mistake.
    """

    def __init__(self, plugin: object, status: PluginStatus) -> None:
        self._status = status
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        if mistakes := _mistakes(self._manager, plugin):
            raise PluginContractError(f"{status.label}: {'; '.join(mistakes)}", mend=status.upgrade)
        self._manager.register(plugin, name=status.name)

    def ask(self, hook: str, **arguments: object) -> Any:
        """Call one hook and return its answer, of the type `infer_core.hookspecs` states.

        Raises:
            ConfigError: the plugin refuses the config.
            PluginContractError: the answer is of the wrong type or fails validation.
            PluginError: the hook raised anything else.
        """
        who = f"{self._status.label}: {hook}"
        mend = self._status.upgrade
        try:
            answers = getattr(self._manager.hook, hook)(**arguments)
        except KeyboardInterrupt:
            raise
        except ConfigError as error:
            raise ConfigError(f"{who}: {error}") from error
        except ValidationError as error:
            raise PluginContractError(
                f"{who} built an invalid {error.title}: {validation_text(error)}", mend=mend
            ) from error
        except BaseException as error:  # a stranger's hook may raise anything, SystemExit too
            raise PluginError(f"{who} raised {exception_text(error)}", mend=mend) from error

        answer = answers[0] if answers else None  # pluggy leaves a None out
        expected = get_type_hints(HOOKS[hook])["return"]
        if got := _mismatch(answer, expected):
            raise PluginContractError(
                f"{who} returned {got}, expected {_type_text(expected)}", mend=mend
            )
        return answer


def exception_text(error: BaseException) -> str:
    """An exception in one line: its type and message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def validation_text(error: ValidationError) -> str:
    """One line for a pydantic error: each field, what is wrong with it, what it got."""
    problems = []
    for detail in error.errors(include_url=False):
        field = ".".join(map(str, detail["loc"]))
        got = repr(detail["input"])
        got = got if len(got) <= 60 else got[:57] + "..."
        problems.append(f"{field}: {detail['msg']} (got {got})" if field else detail["msg"])
    return "; ".join(problems)


def _mistakes(manager: pluggy.PluginManager, plugin: object) -> list[str]:
    mistakes, found = [], set()
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            if attribute.startswith("infer_") and inspect.isroutine(getattr(plugin, attribute)):
                mistakes.append(
                    f"{attribute} is not marked @infer_core.hookimpl{_guess(attribute)} "
                    "(names starting with infer_ are hooks; rename a helper)"
                )
                found.add(attribute)
            continue
        hook = options.get("specname") or attribute
        if hook not in HOOKS:
            if not options.get("optionalhook"):
                mistakes.append(f"unknown hook {hook}{_guess(hook)}")
            continue
        found.add(hook)
        if options.get("wrapper") or options.get("hookwrapper"):
            mistakes.append(f"{hook} is a wrapper; the contract takes plain hooks")
        mistakes += _argument_mistakes(hook, getattr(plugin, attribute))
    missing = [hook for hook in HOOKS if hook not in found]
    if missing:
        mistakes.append(f"missing {', '.join(missing)}")
    return mistakes


def _argument_mistakes(hook: str, function: Callable[..., Any]) -> list[str]:
    known = list(inspect.signature(HOOKS[hook]).parameters)
    contract = f"the contract gives {', '.join(known) or 'none'}"
    mistakes = []
    for name, parameter in inspect.signature(function).parameters.items():
        optional = parameter.default is not parameter.empty
        if name in known and (optional or parameter.kind is parameter.KEYWORD_ONLY):
            # pluggy passes neither, so the hook would run on its default, or not at all
            mistakes.append(f"{hook} must take {name!r} as a plain argument without a default")
        elif name not in known and not optional:
            mistakes.append(f"{hook} has an unknown argument {name!r}; {contract}")
    return mistakes


def _guess(name: str) -> str:
    close = [hook for hook in difflib.get_close_matches(name, HOOKS, n=1) if hook != name]
    return f", did you mean {close[0]}?" if close else ""


def _mismatch(answer: object, expected: Any) -> str | None:
    """What was got, in words, when it is not what was expected."""
    if get_origin(expected) is not Sequence:
        return None if isinstance(answer, expected) else _article(answer)
    if not isinstance(answer, list | tuple):
        return _article(answer)
    (item_type,) = get_args(expected)
    for index, item in enumerate(answer):
        if not isinstance(item, item_type):
            return f"a {type(answer).__name__} holding {_article(item)} at [{index}]"
    return None


def _article(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _type_text(expected: Any) -> str:
    if get_origin(expected) is Sequence:
        return f"a list or tuple of {get_args(expected)[0].__name__}"
    return f"a value of type {expected.__name__}"
