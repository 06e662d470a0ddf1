"""The count of compiled kernels, by Triton's real compiler: it needs no GPU to compile for one."""

import os
import subprocess
import sys

KERNEL = """\
import triton
import triton.language as tl
from infer_bench.compilations import Compilations
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def fill(x_ptr, VALUE: tl.constexpr):
    tl.store(x_ptr, VALUE)


compilations = Compilations()
for value in (1, 2, 2):
    source = ASTSource(fill, signature={"x_ptr": "*i32", "VALUE": "constexpr"},
                       constexprs={(1,): value})
    triton.compile(source, target=GPUTarget("cuda", 90, 32))
print(compilations.num)
"""


def test_kernels_are_counted_when_compiled_and_not_when_found_in_the_cache(tmp_path):
    (tmp_path / "fill.py").write_text(KERNEL)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }

    counts = [
        subprocess.run(
            [sys.executable, tmp_path / "fill.py"],
            env=environment, capture_output=True, text=True, check=True, timeout=120,
        ).stdout
        for _ in ("cold", "warm")
    ]  # fmt: skip

    assert counts == ["2\n", "0\n"]
