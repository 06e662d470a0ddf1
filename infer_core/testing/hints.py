"""Failures that say which hook to look at."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest

from infer_core.errors import InferError
from infer_core.plugin_hooks import exception_text

# field of ModelSpec -> the hook that gave it
HOOK_OF = {
    "architecture": "infer_architectures",
    "shape": "infer_model_shape",
    "attention": "infer_attention_layout",
    "norm": "infer_norm_flavour",
    "kv_cache": "infer_kv_cache_policy",
    "block": "infer_block_layout",
    "weights": "infer_weight_map",
    "bos_token_id": "infer_config_fields (defaults)",
    "eos_token_ids": "infer_config_fields (defaults)",
}


def fail(message: str, *hooks: str) -> NoReturn:
    """Fail the running check; `hooks` are where its reader should look, likeliest first.

    Raises:
        pytest.fail.Exception: always.
    """
    pytest.fail(f"{message}\n  look at: {', '.join(hooks)}", pytrace=False)


@contextmanager
def looking_at(*hooks: str) -> Iterator[None]:
    """Turn an exception of the core into a failure that names `hooks`."""
    try:
        yield
    except InferError as error:
        fail(f"{type(error).__name__}: {error}", *hooks)
    except Exception as error:
        # not the plugin's exception, but a description it gave that cannot be run
        raise AssertionError(f"{exception_text(error)}\n  look at: {', '.join(hooks)}") from error
