"""One plugin's hooks: checked when loaded, then asked, each answer checked.

pluggy accepts a misspelt hook silently and passes on whatever a hook returns; here both
are errors that name the plugin, the hook, what was got and what was expected.
"""

import difflib
import inspect
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

import pluggy
from pydantic import ValidationError

from infer_core import hookspecs
from infer_core.errors import ConfigError, PluginContractError, PluginError
from infer_core.plugin_status import PluginStatus


class PluginHooks:
    """The hooks of one plugin; `deprecations` says which of them a later core will not know.

    `contract` is the module with the hook specs. A hook marked `warn_on_impl` there need not be
    implemented; where `REPLACED_BY` names its successor it answers for that, as it did before.

    Each plugin has a pluggy manager of its own, so asking it asks nobody else, and nothing
    odd about one plugin object can reach another.

    Raises:
        PluginContractError: the plugin's hooks do not fit the contract; lists every mistake.
    """

    def __init__(
        self, plugin: object, status: PluginStatus, contract: ModuleType = hookspecs
    ) -> None:
        self._status = status
        self._contract = _Contract(contract)
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(contract)
        if mistakes := _mistakes(self._manager, plugin, self._contract):
            raise PluginContractError(f"{status.label}: {'; '.join(mistakes)}", mend=status.upgrade)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._manager.register(plugin, name=status.name)
        self.deprecations = tuple(str(warning.message) for warning in caught)
        for message in self.deprecations:  # said again in the status, where users look
            warnings.warn(f"{status.label}: {message}", DeprecationWarning, stacklevel=2)

    def ask(self, hook: str, **arguments: object) -> Any:
        """Call one hook and return its answer, of the type `infer_core.hookspecs` states.

        Raises:
            ConfigError: the plugin refuses the config.
            PluginContractError: the answer is of the wrong type or fails validation.
            PluginError: the hook raised anything else.
        """
        old = self._contract.predecessor(hook)
        if old is not None and not getattr(self._manager.hook, hook).get_hookimpls():
            hook = old
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
        expected = get_type_hints(self._contract.hooks[hook])["return"]
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


class _Contract:
    """The hook specs of a module: all of them, those a plugin must implement, and successors."""

    def __init__(self, module: ModuleType) -> None:
        self.hooks: dict[str, Callable[..., Any]] = {
            name: spec for name, spec in vars(module).items() if name.startswith("infer_")
        }
        self._replaced_by: dict[str, str] = module.REPLACED_BY
        self._deprecated = {
            name
            for name, spec in self.hooks.items()
            if getattr(spec, f"{hookspecs.PROJECT}_spec")["warn_on_impl"] is not None
        }

    def missing(self, found: set[str]) -> list[str]:
        """Hooks a plugin has to have and does not."""
        return [
            hook
            for hook in self.hooks
            if not {hook, self.predecessor(hook)} & found and hook not in self._deprecated
        ]

    def predecessor(self, hook: str) -> str | None:
        """The deprecated hook that this one replaces, if any."""
        return next((old for old, new in self._replaced_by.items() if new == hook), None)


def _mistakes(manager: pluggy.PluginManager, plugin: object, contract: _Contract) -> list[str]:
    mistakes, found = [], set()
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            if attribute.startswith("infer_") and inspect.isroutine(getattr(plugin, attribute)):
                mistakes.append(
                    f"{attribute} is not marked @infer_core.hookimpl"
                    f"{_guess(attribute, contract)} "
                    "(names starting with infer_ are hooks; rename a helper)"
                )
                found.add(attribute)
            continue
        hook = options.get("specname") or attribute
        if hook not in contract.hooks:
            if not options.get("optionalhook"):
                mistakes.append(f"unknown hook {hook}{_guess(hook, contract)}")
            continue
        found.add(hook)
        if options.get("wrapper") or options.get("hookwrapper"):
            mistakes.append(f"{hook} is a wrapper; the contract takes plain hooks")
        mistakes += _argument_mistakes(hook, getattr(plugin, attribute), contract)
    if missing := contract.missing(found):
        mistakes.append(f"missing {', '.join(missing)}")
    return mistakes


def _argument_mistakes(hook: str, function: Callable[..., Any], contract: _Contract) -> list[str]:
    known = list(inspect.signature(contract.hooks[hook]).parameters)
    given = f"the contract gives {', '.join(known) or 'none'}"
    mistakes = []
    for name, parameter in inspect.signature(function).parameters.items():
        optional = parameter.default is not parameter.empty
        if name in known and (optional or parameter.kind is parameter.KEYWORD_ONLY):
            # pluggy passes neither, so the hook would run on its default, or not at all
            mistakes.append(f"{hook} must take {name!r} as a plain argument without a default")
        elif name not in known and not optional:
            mistakes.append(f"{hook} has an unknown argument {name!r}; {given}")
    return mistakes


def _guess(name: str, contract: _Contract) -> str:
    close = [hook for hook in difflib.get_close_matches(name, contract.hooks, n=1) if hook != name]
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
