"""What is known of each installed plugin, and which of them the environment asks for."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Self

from infer_core.specs import Architectures

# ok: serves all it claims. conflict: usable, but claims something another plugin claims too.
# broken: could not be loaded. blocked: left out by INFER_PLUGINS or INFER_BLOCK_PLUGINS.
State = Literal["ok", "conflict", "broken", "blocked"]


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """One entry point of the plugin group and how loading it went.

    `reason` and `mend` (a shell command) are set unless all is well; `error` is there when an
    exception was caught, with its traceback; `answer` when the plugin could be asked.
    """

    name: str
    distribution: str | None
    version: str | None
    state: State = "ok"
    reason: str | None = None
    mend: str | None = None
    notes: tuple[str, ...] = ()
    answer: Architectures | None = None
    error: BaseException | None = None

    @property
    def label(self) -> str:
        """How messages name this plugin."""
        installed = f"{self.distribution or 'unknown distribution'} {self.version or ''}".strip()
        return f"plugin {self.name!r} ({installed})"

    @property
    def upgrade(self) -> str:
        """The command that fetches a newer release of this plugin."""
        return f"pip install --upgrade {self.distribution or '<its distribution>'}"


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """The user's choice among installed plugins; every name is an entry-point name.

    `allowed` None means all. A plugin that is both allowed and blocked is blocked. `prefer` lists
    winners, first name first, where two plugins claim the same thing. `strict` turns any
    broken or conflicting plugin into an error, needed or not.
    """

    allowed: tuple[str, ...] | None = None
    blocked: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    strict: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read INFER_PLUGINS, INFER_BLOCK_PLUGINS, INFER_PREFER (comma lists; empty is unset)
        and INFER_STRICT_PLUGINS (1)."""

        def names(variable: str) -> tuple[str, ...]:
            return tuple(filter(None, map(str.strip, environ.get(variable, "").split(","))))

        return cls(
            allowed=names("INFER_PLUGINS") or None,
            blocked=names("INFER_BLOCK_PLUGINS"),
            prefer=names("INFER_PREFER"),
            strict=environ.get("INFER_STRICT_PLUGINS", "").strip() not in ("", "0"),
        )

    def why_blocked(self, name: str) -> str | None:
        """Say which variable leaves a plugin out, or None."""
        if name in self.blocked:
            return f"INFER_BLOCK_PLUGINS={','.join(self.blocked)} leaves it out"
        if self.allowed is not None and name not in self.allowed:
            return f"INFER_PLUGINS={','.join(self.allowed)} does not list it"
        return None

    def preferred(self, claimants: Collection[str]) -> str | None:
        """The claimant INFER_PREFER names first, or None."""
        return next((name for name in self.prefer if name in claimants), None)

    def warnings(self, statuses: Collection[PluginStatus]) -> tuple[str, ...]:
        """Settings that cannot do what they say: names not installed, winners not usable."""
        states = {status.name: status.state for status in statuses}
        found = []
        for variable, names in (
            ("INFER_PLUGINS", self.allowed or ()),
            ("INFER_BLOCK_PLUGINS", self.blocked),
            ("INFER_PREFER", self.prefer),
        ):
            for name in names:
                if name not in states:
                    guess = difflib.get_close_matches(name, states, n=1)
                    found.append(
                        f"{variable} names {name!r}, which is not installed"
                        + (f"; did you mean {guess[0]!r}?" if guess else "")
                        + f" (installed: {', '.join(states) or 'none'})"
                    )
                elif variable == "INFER_PREFER" and states[name] in ("broken", "blocked"):
                    found.append(f"{variable} names {name!r}, which is {states[name]}")
        return tuple(found)
