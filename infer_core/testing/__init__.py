"""The kit a plugin is tested with; three lines give every check of the contract.

    import infer_mine
    from infer_core.testing import PluginContract

    class TestContract(PluginContract):
        plugin = infer_mine

pytest loads `infer_core.testing.pytest_plugin` by itself; torch and transformers are imported only
when a check runs. transformers is the oracle: without it, or for an architecture it does not
know, the checks that need it are skipped and say so.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infer_core.testing.contract import PluginContract

__all__ = ["PluginContract"]


def __getattr__(name: str) -> Any:
    if name == "PluginContract":
        from infer_core.testing.contract import PluginContract

        return PluginContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
