"""What the checks compare, and how they say where two things part."""

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from infer_core.testing.hints import fail

if TYPE_CHECKING:
    import torch

    from infer_core.specs import ModelSpec

LOGIT_TOLERANCE = 1e-4  # of the largest logit, fp32 against fp32


def same_tokens(got: list[int], expected: list[int], other: str, *hooks: str) -> None:
    """Fail unless both continued the prompt alike; `other` names what `expected` comes from."""
    if got == expected:
        return
    pairs = zip(got, expected, strict=True)
    step = next(number for number, (mine, theirs) in enumerate(pairs) if mine != theirs)
    fail(
        f"tokens differ from {other} at new token {step}: {got[step]} instead of {expected[step]}",
        *hooks,
    )


def fail_parity(errors: list[float], spec: "ModelSpec") -> None:
    """Say where logits first go wrong, and which hooks have a say there."""
    first = next(row for row, error in enumerate(errors) if not error <= LOGIT_TOLERANCE)
    message = (
        f"logits differ from transformers by {max(errors):.2e} of the largest (allowed "
        f"{LOGIT_TOLERANCE:.0e}), first at position {first}"
    )
    windows = {layer.window for layer in spec.attention if layer.window is not None}
    if first == 0:
        # over one token attention gives back its value, whatever RoPE, scale, q/k norm or window
        fail(
            message,
            "infer_norm_flavour",
            "infer_block_layout",
            "infer_weight_map (part)",
            "infer_attention_layout (biases)",
        )
    elif first in windows:
        fail(
            message + ", which is a window's length",
            "infer_attention_layout (window of each layer)",
            "infer_kv_cache_policy",
        )
    else:
        fail(
            message,
            "infer_attention_layout (rope, softmax_scale, qk_norm, window, logit_softcap)",
            "infer_norm_flavour (q/k norm)",
        )


def relative_error(logits: "torch.Tensor", truth: "torch.Tensor") -> float:
    """Relative L2 error over all rows."""
    return float((logits.double() - truth.double()).norm() / truth.double().norm())


def import_alone(module: str) -> tuple[float, list[str]]:
    """Import a module in a fresh interpreter: its own seconds, and the heavy modules it loads."""
    code = (
        "import sys, time, json, importlib, infer_core, infer_core.hookspecs\n"
        "began = time.perf_counter()\n"
        f"importlib.import_module({module!r})\n"
        "seconds = time.perf_counter() - began\n"
        "print(json.dumps([seconds, sorted({'torch', 'triton'} & sys.modules.keys())]))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        fail(f"importing {module} alone fails:\n{done.stderr.strip()}", "the entry module")
    seconds, heavy = json.loads(done.stdout.splitlines()[-1])
    return seconds, heavy
