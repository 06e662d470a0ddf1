import os
import subprocess
import sys

PROGRAM = """
import torch
from infer_bench.read_kernel import read_all, read_all_ref

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
for num_elements in (1, 512, 1003):  # one element, whole programs, a half-empty last program
    data = torch.randint(-(2**31), 2**31 - 1, (num_elements,), dtype=torch.int32, device=device)
    sums = read_all(data, block_size=256, num_warps=4)
    print(num_elements, torch.equal(sums, read_all_ref(data, block_size=256)))
"""


def test_every_element_is_read_once():
    # in a process of its own: Triton decides on import whether it interprets
    import torch

    interpret = "0" if torch.cuda.is_available() else "1"

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": interpret},
    )

    assert done.stdout.splitlines() == ["1 True", "512 True", "1003 True"], done.stderr
