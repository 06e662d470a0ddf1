import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

# What surrounds a launch to compile it for a GPU of compute capability 9.0, without one.
COMPILE = """
import json, sys, torch
from unittest import mock
from triton.runtime import driver
from triton.runtime.jit import JITFunction
sys.path.insert(0, "bench/gpu")
from compile_kernels import SHARED_BYTES, Compiler, resources
driver.set_active(Compiler(90))
compiled, run = [], JITFunction.run

def compile_only(self, *args, grid, warmup, **kwargs):
    kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
    used = resources(kernel)
    fits = kernel.metadata.shared <= SHARED_BYTES[90]
    compiled.append((self.fn.__name__, used["LOCAL"] + used["STACK"], fits))
    return kernel

def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, device="meta", dtype=dtype)

with mock.patch.object(JITFunction, "run", compile_only):
    exec(sys.argv[1])
print(json.dumps(compiled))
"""


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU Triton's interpreter runs


@pytest.fixture(
    params=[
        torch.float32,
        torch.float16,
        # Triton's interpreter truncates to bfloat16 where the GPU rounds to nearest.
        pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
    ],
    ids=str,
)
def dtype(request):
    return request.param


@pytest.fixture(autouse=True)
def poison_uninitialised_memory(monkeypatch):
    """Fill fresh buffers with NaN, so that an element the kernel never wrote fails the test."""

    def poisoned(real):
        def fresh(*args, **kwargs):
            buffer = real(*args, **kwargs)
            return buffer.fill_(float("nan")) if buffer.is_floating_point() else buffer

        return fresh

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))


@pytest.fixture(autouse=True)
def same_numbers_every_run():
    torch.manual_seed(0)


@pytest.fixture
def assert_as_accurate_as_eager():
    """Hold a kernel to twice eager torch's error against float64, and a unit of rounding.

    The rest, eps * max, is what rounding the result once may cost each of the two, and
    `allowance` what the hardware's own functions may.
    """

    def check(kernel, eager, truth, allowance=0.0):
        assert kernel.dtype == eager.dtype
        assert kernel.shape == eager.shape == truth.shape
        assert truth.dtype == torch.float64
        assert torch.isfinite(kernel).all()
        eager_error = (eager - truth).abs().max()
        kernel_error = (kernel - truth).abs().max()
        bound = 2 * eager_error + torch.finfo(kernel.dtype).eps * truth.abs().max() + allowance
        assert kernel_error <= bound, f"{kernel_error:.3e} > {bound:.3e} (eager {eager_error:.3e})"

    return check


@pytest.fixture
def softmax_allowance():
    """Give what exp2 in hardware may cost attention whose output is `truth`.

    ex2.approx.ftz.f32 errs by 2**-22.5 of its result (PTX ISA), and so does each weight: in the sum
    of weight * v that is 2**-22.5 of `truth_of_abs`, the same attention over |v|, and in the sum
    of weights 2**-22.5 of `truth`. The interpreter's exp2 is exact.
    """

    def allowance(truth, truth_of_abs):
        bound = 2**-22.5 * float((truth.abs() + truth_of_abs).max())
        return bound if truth.is_cuda else 0.0

    return allowance


@pytest.fixture
def order_allowance():
    """Give what the order of float32 sums in q . k may cost attention whose output is `truth`.

    n additions err like a random walk, by sqrt(n) units of the sum of absolute values (Higham and
    Mary, 2019), and in which order eager torch adds depends on the CPU. A score's error is the
    relative error of its weight, which counts in the sum of weight * v and in the sum of weights.
    """

    def allowance(tokens, heads, softmax_scale, truth, truth_of_abs):
        num_heads, num_kv_heads, head_dim = heads.values()
        sizes = tokens.double().abs().unflatten(1, (-1, head_dim)).transpose(0, 1)
        q, k, _ = sizes.split([num_heads, num_kv_heads, num_kv_heads])
        products = q @ k.repeat_interleave(num_heads // num_kv_heads, 0).transpose(1, 2)
        score_error = 2**-24 * head_dim**0.5 * softmax_scale * float(products.max())
        return score_error * float((truth.abs() + truth_of_abs).max())

    return allowance


@pytest.fixture
def compile_for_hopper(tmp_path):
    """Compile what some code launches; each kernel's name, bytes spilled, and whether it fits.

    For kernels in Gluon, which the interpreter cannot run. `empty` makes tensors to launch with.
    """

    def compiled(code):
        env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        env["TRITON_CACHE_DIR"] = str(tmp_path)
        command = [sys.executable, "-c", COMPILE, code]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return [tuple(kernel) for kernel in json.loads(done.stdout)]

    return compiled
