"""Compile the kernels of a model for a GPU that is not here, and print what each uses.

    python bench/gpu/compile_kernels.py [CONFIG_JSON ...] [--capability 90] [--sms 132]

For every config.json given, or every installed reference model, over meta tensors in bf16: one
fused decode step, greedy and with every kind of sampling; prefills of a few lengths, fresh and
continued; one step of the plain kernels. Compiled for a GPU of that compute capability with the
built-in tiles of `--sms` multiprocessors. Printed per kernel: registers and local-memory bytes
(spills) a thread, shared memory, warps. Needs Triton and the plugins, no GPU; exits 1 if a kernel
needs more shared memory than a program gets there.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from infer_core import ModelSpec
from infer_core.chain_tiles import default_tiles
from infer_core.decode_chain import DecodeChain
from infer_core.decoder import Decoder, Piece
from infer_core.kv_cache import KVCache
from infer_core.ops import TRITON
from infer_core.parameters import model_parameters
from infer_core.plugins import load_registry
from infer_core.sampling import Sampler, kind_of
from infer_core.sampling_params import SamplingParams

# a program's shared memory by compute capability, CUDA C++ programming guide
SHARED_BYTES = {
    80: 163 << 10,
    86: 99 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    120: 99 << 10,
}
CONTEXT = 2048
PROMPTS = (16, 64, 128, 256, 1024)
SIZED = ("kernels.linear", "kernels.qkv_linear", "kernels.attention")
STEPS = (
    SamplingParams(),
    SamplingParams(repetition_penalty=1.1),
    SamplingParams(temperature=0.8, top_k=50),
    SamplingParams(temperature=0.8, top_k=50, top_p=0.9, min_p=0.1, repetition_penalty=1.1),
    SamplingParams(temperature=0.8),
    SamplingParams(temperature=0.8, top_k=500, top_p=0.9, min_p=0.1, repetition_penalty=1.1),
)


class Compiler:
    """A driver that answers what compilation asks, and launches nothing."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def resources(kernel: Any) -> dict[str, int]:
    """Registers, stack and local bytes a thread, as the disassembler tells them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}


def compile_model(spec: ModelSpec, capability: int, num_sms: int) -> list[tuple[str, Any]]:
    """Compile every kernel of decode and prefill, each once."""
    empty = {"device": "meta", "dtype": torch.bfloat16}
    parameters = {n: torch.empty(p.shape, **empty) for n, p in model_parameters(spec).items()}
    cache = KVCache(spec, context=CONTEXT, **empty)
    compiled: dict[str, tuple[str, Any]] = {}
    original = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.setdefault(kernel.hash, (self.fn.__name__, kernel))
        return kernel

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "run", compile_only))
        sizes = {"num_multiprocessors": num_sms, "shared_memory_bytes": SHARED_BYTES[capability]}
        for name, size in sizes.items():
            for module in SIZED:
                stack.enter_context(mock.patch(f"infer_core.{module}.{name}", return_value=size))
        name = "infer_core.kernels._common.has_tma"
        stack.enter_context(mock.patch(name, return_value=capability >= 90))
        name = "infer_core.kernels._common.has_pdl"
        stack.enter_context(mock.patch(name, return_value=capability >= 90))
        for module in ("mlp", "attention"):
            name = f"infer_core.kernels.{module}.has_wgmma"
            stack.enter_context(mock.patch(name, return_value=capability == 90))
        for module in ("decode_chain", "kernels.mlp", "kernels.split_attention"):
            name = f"infer_core.{module}.num_multiprocessors"
            stack.enter_context(mock.patch(name, return_value=num_sms))
        decoder = Decoder(spec, parameters, context=CONTEXT, ops=TRITON)
        chain = DecodeChain(
            spec,
            parameters,
            decoder.rope,
            list(zip(cache.keys, cache.values, strict=True)),
            max_context=CONTEXT,
            sampler=Sampler(spec.shape.vocab_size, max_new_tokens=1, device="meta").state,
            pdl=capability >= 90,
            tiles=default_tiles(spec, num_sms),
        )
        for params in STEPS:
            chain.step(kind_of(params))
        at = torch.empty(1, dtype=torch.int32, device="meta")
        for num_tokens in PROMPTS:
            tokens = torch.empty(num_tokens, dtype=torch.int64, device="meta")
            for is_fresh in (True, False):
                normed = decoder.hidden(tokens, Piece(cache, at, at, True, is_fresh, at))
        chain.finish_prefill(normed[0])
        decoder.forward(tokens[:1], cache, at, is_prefill=False)
    return list(compiled.values())


def main() -> int:
    """Compile what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--capability", type=int, choices=SHARED_BYTES, default=90)
    parser.add_argument("--sms", type=int, default=132)
    arguments = parser.parse_args()
    registry = load_registry()
    models = [(path.stem, json.loads(path.read_text())) for path in arguments.configs]
    models = models or [(m.name, m.config) for _, m in registry.reference_models()]
    triton.runtime.driver.set_active(Compiler(arguments.capability))
    failed = 0
    print(
        f"triton {triton.__version__}, sm_{arguments.capability}, bfloat16, "
        f"{arguments.sms} multiprocessors"
    )
    for name, config in models:
        for function, kernel in compile_model(
            registry.resolve(config), arguments.capability, arguments.sms
        ):
            used, meta = resources(kernel), kernel.metadata
            fits = meta.shared <= SHARED_BYTES[arguments.capability]
            failed += not fits
            print(
                f"{name:22} {function:26} warps {meta.num_warps} registers {used['REG']:3} "
                f"local {used['LOCAL'] + used['STACK']:4} shared {meta.shared:6}"
                f"{'' if fits else '  DOES NOT FIT'}"
            )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
