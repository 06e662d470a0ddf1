"""What pytest loads by itself: a fixture, a marker, and the verdict `infer plugins list` shows.

Light: it imports neither torch nor the contract. A verdict is written only when every check of
a `PluginContract` ran for an installed plugin and none failed; a failure takes it back.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

import infer_core
from infer_core.kit_record import KitRecord, remove_record, write_record
from infer_core.testing.installed import installed_as

if TYPE_CHECKING:
    from infer_core.testing.case import ContractCase

PROPERTY = "infer_core_kit"


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of checks that need a GPU, and collect verdicts in the main process."""
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")
    if not hasattr(config, "workerinput"):  # under pytest-xdist the controller sees every report
        config.pluginmanager.register(_Verdicts(), "infer_core_kit_verdicts")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note on each check which plugin it is about, and how many checks its class has."""
    classes: dict[type, list[pytest.Item]] = defaultdict(list)
    for item in items:
        cls = getattr(item, "cls", None)
        if cls is not None and getattr(cls, "is_plugin_contract", False):
            classes[cls].append(item)
    for cls, checks in classes.items():
        found = installed_as(getattr(cls.plugin, "__name__", ""))  # type: ignore[attr-defined]
        if found is None:
            continue
        note = json.dumps(
            {
                "distribution": found.distribution,
                "version": found.version,
                "class": f"{cls.__module__}.{cls.__qualname__}",
                "names": cls.check_names(),  # type: ignore[attr-defined]
                "count": len(checks),
            }
        )
        for item in checks:
            item.user_properties.append((PROPERTY, note))


@pytest.fixture(scope="class")
def contract_case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "ContractCase":
    """One config of the plugin under test, with its specs, checkpoint and engines."""
    from infer_core.testing.case import ContractCase

    contract = request.cls
    config = contract.configs()[request.param]
    return ContractCase(contract.plugin, config, tmp_path_factory.mktemp("checkpoint"))


@dataclass(slots=True)
class _Class:
    """What one contract class has reported so far."""

    names: set[str]
    count: int
    passed: dict[str, str] = field(default_factory=dict)  # check -> its name without parameters
    skipped: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    @property
    def complete(self) -> bool:
        ran = {**self.passed, **self.skipped}
        return not self.failed and len(ran) == self.count and self.names <= set(ran.values())


class _Verdicts:
    """Collects the reports of contract classes and writes or removes records at the end."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], dict[str, _Class]] = defaultdict(dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        note = next((value for name, value in report.user_properties if name == PROPERTY), None)
        if note is None:
            return
        about: dict[str, Any] = json.loads(str(note))
        classes = self._found[about["distribution"], about["version"]]
        verdict = classes.setdefault(about["class"], _Class(set(about["names"]), about["count"]))
        name = report.nodeid.rsplit("::", 1)[-1].partition("[")[0]
        if report.failed:
            verdict.failed = True
        elif report.skipped:
            verdict.skipped[report.nodeid] = name
        elif report.when == "call":
            verdict.passed[report.nodeid] = name

    def pytest_sessionfinish(self) -> None:
        for (distribution, version), classes in self._found.items():
            verdicts = classes.values()
            if all(verdict.complete for verdict in verdicts):
                write_record(
                    KitRecord(
                        distribution=distribution,
                        version=version,
                        core_version=infer_core.__version__,
                        passed=sum(len(verdict.passed) for verdict in verdicts),
                        skipped=sum(len(verdict.skipped) for verdict in verdicts),
                    )
                )
            elif any(verdict.failed for verdict in verdicts):
                remove_record(distribution, version)
