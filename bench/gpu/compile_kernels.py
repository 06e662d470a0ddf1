"""Compile every shared kernel for an H100 or H200 (sm_90) without a GPU; print what it costs.

    python bench/gpu/compile_kernels.py        exit code 1 if a kernel does not fit or compile

Runs the launchers on meta tensors in the shapes of three published 1B models, bf16, and compiles
each launch as the runtime would specialise it: registers a thread, bytes of spilled registers,
bytes of shared memory (228 KB a multiprocessor, 227 usable by one program).
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from infer_core.kernels.add_rms_norm import add_rms_norm
from infer_core.kernels.attention import prefill_attention
from infer_core.kernels.decode_attention import decode_attention
from infer_core.kernels.embedding import embed
from infer_core.kernels.gated_activation import activation, gated_activation
from infer_core.kernels.qk_norm_rope import qk_norm_rope
from infer_core.kernels.rms_norm import rms_norm
from infer_core.kernels.write_kv import write_kv

TARGET = GPUTarget("cuda", 90, 32)
SHARED_LIMIT = 227 * 1024
DTYPE = torch.bfloat16
CONTEXT = 2048
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Shape:
    """Sizes and flavour of one model, as its config.json states them."""

    label: str
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    act: str = "silu"
    qk_norm: bool = False
    one_plus_weight: bool = False  # weight + 1 in fp32, and a norm on each block's output
    window: int | None = None


SHAPES = (
    Shape("Llama-3.2-1B", 2048, 8192, 32, 8, 64),
    Shape("Qwen3-1.7B", 2048, 6144, 16, 8, 128, qk_norm=True),
    Shape(
        "Gemma3-1B", 1152, 6912, 4, 1, 256, "gelu_tanh", True, one_plus_weight=True, window=512
    ),
)  # fmt: skip


def launch_all(shape: Shape, num_tokens: int) -> None:
    """Call every launcher once, as a model of this shape does; nothing runs on meta tensors."""

    def new(*size: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    heads: dict[str, Any] = {
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
    }
    flavour: dict[str, Any] = {
        "weight_offset": float(shape.one_plus_weight),
        "weight_in_fp32": shape.one_plus_weight,
    }
    x, weight = new(num_tokens, shape.hidden), new(shape.hidden)
    embed(new(num_tokens, dtype=torch.int64), new(128256, shape.hidden), shape.hidden**0.5)
    rms_norm(x, weight, 1e-6, **flavour)
    add_rms_norm(
        x, x, weight, 1e-6, post_weight=weight if shape.one_plus_weight else None, **flavour
    )
    gated_activation(new(num_tokens, 2 * shape.intermediate), shape.act)
    activation(new(num_tokens, shape.intermediate), "gelu")

    qkv = new(num_tokens, (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim)
    start = new(1, dtype=torch.int32)
    table = new(CONTEXT, shape.head_dim // 2, dtype=torch.float32)
    head_weight = new(shape.head_dim) if shape.qk_norm else None
    norm: dict[str, Any] = {
        "q_weight": head_weight,
        "k_weight": head_weight,
        "eps": 1e-6,
        **flavour,
    }
    qk_norm_rope(qkv, table, table, start, **heads, **norm)
    for window in dict.fromkeys((shape.window, None)):
        cache = new(shape.num_kv_heads, window or CONTEXT, shape.head_dim)
        qk_norm_rope(qkv, table, table, start, **heads, **norm, k_cache=cache, v_cache=cache)
        write_kv(qkv, start, cache, cache, **heads)
        layout: dict[str, Any] = {"softmax_scale": shape.head_dim**-0.5, "window": window}
        for logit_softcap in (None, 50.0):
            layout["logit_softcap"] = logit_softcap
            if num_tokens == 1:
                decode_attention(qkv, cache, cache, start, **heads, **layout, max_context=CONTEXT)
            else:
                prefill_attention(qkv, cache, cache, start, **heads, **layout)


def signature(
    kernel: Any, arguments: dict[str, Any]
) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], Any]]:
    """Types, constants and divisibility hints of a launch, as Triton's runtime specialises it."""
    types: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    hints: dict[tuple[int], Any] = {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            types[parameter.name], constants[(index,)] = "constexpr", value
        elif torch.is_tensor(value):
            types[parameter.name] = POINTERS[value.dtype]
            hints[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            types[parameter.name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            types[parameter.name], constants[(index,)] = "constexpr", 1
        else:
            types[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                hints[(index,)] = [["tt.divisibility", 16]]
    return types, constants, hints


def registers_and_spills(ptx: str) -> tuple[int, int]:
    """Registers a thread and bytes spilled (stores and loads), as ptxas reports them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        report = subprocess.run(
            [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", source, "-o", f"{source}.o"],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
    registers = max(int(n) for n in re.findall(r"Used (\d+) registers", report))
    return registers, sum(int(n) for n in re.findall(r"(\d+) bytes spill", report))


class Compiler:
    """Stands in for `JITFunction.run`: compiles a launch instead of starting it."""

    def __init__(self) -> None:
        self.label = ""
        self.seen: set[str] = set()
        self.too_large: list[str] = []

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = [parameter.name for parameter in kernel.params]
        options = {name: kwargs.pop(name) for name in list(kwargs) if name not in names}
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}  # the rest by keyword
        types, constants, hints = signature(kernel, arguments)
        source = ASTSource(kernel, types, constants, hints)
        if source.hash() + str(options) in self.seen:
            return
        self.seen.add(source.hash() + str(options))
        compiled = triton.compile(source, target=TARGET, options=options)
        registers, spills = registers_and_spills(compiled.asm["ptx"])
        shared = compiled.metadata.shared
        flags = {
            name: value
            for name, value in ((kernel.arg_names[i[0]], v) for i, v in constants.items())
            if isinstance(value, (bool, str)) and value is not False
        }
        print(
            f"{self.label:14} {kernel.__name__:28} {compiled.metadata.num_warps:5} {registers:5}"
            f" {spills:7} {shared:7}  {' '.join(f'{n}={v}' for n, v in flags.items())}",
            flush=True,
        )
        if shared > SHARED_LIMIT:
            self.too_large.append(f"{self.label} {kernel.__name__}: {shared} bytes")


def main() -> int:
    """Compile all shapes; return 1 if a kernel needs more shared memory than there is."""
    compiler = Compiler()
    JITFunction.run = lambda kernel, *args, **kwargs: compiler.run(kernel, *args, **kwargs)
    print(f"triton {triton.__version__}, sm_90a, {DTYPE}")
    print(f"{'shape':14} {'kernel':28} warps  regs  spills  shared")
    for shape in SHAPES:
        compiler.label = shape.label
        for num_tokens in (1, 1000):
            launch_all(shape, num_tokens)
    for line in compiler.too_large:
        print(f"needs more than {SHARED_LIMIT} bytes of shared memory: {line}", file=sys.stderr)
    return 1 if compiler.too_large else 0


if __name__ == "__main__":
    sys.exit(main())
