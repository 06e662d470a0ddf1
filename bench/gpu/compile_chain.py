"""Compile every kernel of the decode chain for a GPU that is not here; print what it uses.

    python bench/gpu/compile_chain.py CONFIG_FOLDER...

Needs Triton only: the launches run over meta tensors, through a stand-in driver. Printed per
kernel: registers and local-memory bytes (spills) a thread, shared memory, load widths in the PTX.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import chain_model


class Sm90:
    """The driver's answers that compilation asks for."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("meta")


def describe(kernel) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=False
        ).stdout
    numbers = dict(re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage))
    loads = Counter(re.findall(r"ld\.global(?:\.[\w:]+)*?((?:\.v\d)?\.b\d+)", kernel.asm["ptx"]))
    return (
        f"regs {numbers.get('REG')} stack {numbers.get('STACK')} local {numbers.get('LOCAL')} "
        f"shared {kernel.metadata.shared} warps {kernel.metadata.num_warps} loads {dict(loads)}"
    )


def main() -> None:
    triton.runtime.driver.set_active(Sm90())
    original, seen = JITFunction.run, {}

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel.hash not in seen:
            seen[kernel.hash] = kernel
            print(f"{self.fn.__name__:28} {describe(kernel)}", flush=True)
        return kernel

    JITFunction.run = compile_only
    for folder in sys.argv[1:]:
        print(folder)
        chain = chain_model.build(chain_model.read(folder), 2048, device="meta", pdl=True, sms=132)
        chain.step(greedy=True)


if __name__ == "__main__":
    main()
