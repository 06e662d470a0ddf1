"""Which plugin answers for which name, and what happens when two want the same one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from infer_core.plugin_status import PluginSettings, PluginStatus

Kind = Literal["architecture", "model_type", "reference model"]


class Claims:
    """What the usable plugins claim, each name settled by INFER_PREFER where there are two."""

    def __init__(self, statuses: Sequence[PluginStatus], settings: PluginSettings) -> None:
        self._settings = settings
        self._claimants: dict[tuple[Kind, str], list[str]] = {}
        for status in statuses:
            if status.answer is None:
                continue
            names: dict[Kind, list[str]] = {
                "architecture": list(status.answer.architectures),
                "model_type": list(status.answer.model_types),
                "reference model": [model.name for model in status.answer.reference_models],
            }
            for kind, of_kind in names.items():
                for name in dict.fromkeys(of_kind):
                    self._claimants.setdefault((kind, name), []).append(status.name)

    def claimed(self, kind: Kind, name: str) -> bool:
        """Whether any plugin claims this name."""
        return (kind, name) in self._claimants

    def names(self, kind: Kind) -> list[str]:
        """Every claimed name of one kind, sorted."""
        return sorted(name for of_kind, name in self._claimants if of_kind == kind)

    def winner(self, kind: Kind, name: str) -> str | None:
        """The only claimant, or the one INFER_PREFER names; None when neither settles it."""
        claimants = self._claimants[kind, name]
        return claimants[0] if len(claimants) == 1 else self._settings.preferred(claimants)

    def conflict(self, kind: Kind, name: str) -> tuple[str, str]:
        """Message and mending command for a name without a winner."""
        claimants = self._claimants[kind, name]
        return (
            f"plugins {' and '.join(map(repr, claimants))} claim the same {kind} {name!r}",
            " or ".join(f"export INFER_PREFER={one}" for one in claimants),
        )

    def mark(self, status: PluginStatus) -> PluginStatus:
        """The status with what other plugins claim too: a conflict, or a note when settled."""
        reasons, notes, mend = [], list(status.notes), status.mend
        for (kind, name), claimants in self._claimants.items():
            if status.name not in claimants or len(claimants) == 1:
                continue
            winner = self.winner(kind, name)
            if winner is None:
                reason, mend = self.conflict(kind, name)
                reasons.append(reason)
            elif winner != status.name:
                notes.append(f"{kind} {name!r} is left to {winner!r} (INFER_PREFER)")
        if reasons:
            status = replace(status, state="conflict", reason="; ".join(reasons), mend=mend)
        return replace(status, notes=tuple(notes))
