"""What several kernel files share: argument checks, in words, and two device functions."""

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Tried on an H100, three models: 64, 128 and 256 tokens gain 2 to 6 %; from 384 on, where
# programs come in several rounds, they lose up to 2 %, and so does one row alone. With an MLP of
# one kernel 1,024 tokens of Gemma3 gain nothing (H200).
EARLY_START_TOKENS = range(2, 257)


@cache
def num_multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 4 programs stand in for them in Triton's interpreter."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def shared_memory_bytes(device: torch.device) -> int:
    """Shared memory one program may take: 99 KiB of a consumer GPU, 227 of an H100 or H200."""
    if device.type != "cuda":
        return 227 * 1024
    index = torch.cuda.current_device() if device.index is None else device.index
    # where Triton looks before a launch
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    return int(properties["max_shared_mem"])


def at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    """Widen half precision to float32; float64, the truth of the tests, stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_rows(kernel: str, name: str, x: torch.Tensor, width: int | None = None) -> None:
    """Refuse anything but float rows [num_rows, width] whose elements lie side by side."""
    if x.ndim != 2 or x.stride(1) != 1 or (width is not None and x.shape[1] != width):
        raise ValueError(
            f"{kernel}: {name} must be [num_rows, {'width' if width is None else width}], last "
            f"stride 1; got shape {tuple(x.shape)}, strides {x.stride()}"
        )
    if x.dtype not in DTYPES:
        raise ValueError(f"{kernel}: {name} is {x.dtype}, expected one of {DTYPES}")


def check_tensor(
    kernel: str, name: str, x: torch.Tensor, shape: Sequence[int], dtype: torch.dtype
) -> None:
    """Refuse another shape or dtype, and memory that is not contiguous."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{kernel}: {name} has shape {tuple(x.shape)}, expected {tuple(shape)}")
    if x.dtype != dtype:
        raise ValueError(f"{kernel}: {name} is {x.dtype}, expected {dtype}")
    if not x.is_contiguous():
        raise ValueError(f"{kernel}: {name} must be contiguous; got strides {x.stride()}")


def check_position(kernel: str, name: str, x: torch.Tensor) -> None:
    """Refuse a position that is not an int32 tensor of shape [1]."""
    check_tensor(kernel, name, x, (1,), torch.int32)


def check_cache(
    kernel: str,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
) -> int:
    """Check both halves of one layer's cache; return its capacity in tokens."""
    if k_cache.ndim != 3 or k_cache.shape[1] < 1:
        raise ValueError(
            f"{kernel}: k_cache must be [num_kv_heads, capacity, head_dim], capacity >= 1; "
            f"got shape {tuple(k_cache.shape)}"
        )
    capacity = k_cache.shape[1]
    shape = (num_kv_heads, capacity, head_dim)
    check_tensor(kernel, "k_cache", k_cache, shape, dtype)
    check_tensor(kernel, "v_cache", v_cache, shape, dtype)
    return capacity


def check_heads(
    kernel: str, qkv: torch.Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    """Check that qkv's width is that of its heads and that the heads form equal groups."""
    if num_kv_heads < 1 or num_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"{kernel}: num_heads ({num_heads}) is not a positive multiple of num_kv_heads "
            f"({num_kv_heads})"
        )
    check_rows(kernel, "qkv", qkv, (num_heads + 2 * num_kv_heads) * head_dim)


@cache
def has_tma(device: torch.device) -> bool:
    """Whether tensor descriptors are copies by the GPU's own unit; the interpreter plays it.

    Elsewhere Triton makes plain loads of them, which nothing overlaps and which spill registers.
    """
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def has_wgmma(device: torch.device) -> bool:
    """Whether four warps multiply together there, which Hopper GPUs alone do this way."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device)[0] == 9
        # Gluon's words of before are others
        and tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)
    )


@cache
def has_pdl(device: torch.device) -> bool:
    """Whether the device can start a kernel before its predecessor ends."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def early_start(num_tokens: int, device: torch.device) -> dict[str, bool]:
    """Launch arguments of a kernel that may start before its predecessor ends, and waits for that.

    The predecessor says from when on (`gdc_launch_dependents`); without a word it is when all its
    programs have ended, which still saves part of a launch. Norms and attention say so late,
    products only where a norm follows. A word from any other made 256 tokens up to 3 % slower on
    an H100, presumably as programs that start early gather on the multiprocessors that are free.
    """
    pdl = num_tokens in EARLY_START_TOKENS and has_pdl(device)
    return {"PDL": pdl, "launch_pdl": pdl}


def has_descriptors(*tensors: torch.Tensor) -> bool:
    """Whether tensor cores take the dtype and tensor descriptors the rows of all of them."""
    return has_tma(tensors[0].device) and all(
        t.dtype != torch.float32
        and t.stride(0) * t.element_size() % 16 == 0
        and t.data_ptr() % 16 == 0
        for t in tensors
    )


@triton.jit
def tanh(x):
    """Tanh of a float32 tensor to about two ulp; Triton has no portable one.

    (1 - e) / (1 + e) loses digits where tanh is small, so the Taylor series takes over there
    (its next term is below 1e-8 of the result at 0.45).
    """
    size = tl.abs(x)
    e = tl.exp(-2.0 * size)
    large = (1.0 - e) / (1.0 + e)
    large = tl.where(x < 0, -large, large)
    s = x * x
    series = -1382 / 155925 + s * (21844 / 6081075)
    series = -1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835 + s * series)))
    return tl.where(size < 0.45, x * (1.0 + s * series), large)


@triton.jit
def scale_by_norm_weight(
    normed, weight, weight_offset, DTYPE: tl.constexpr, WEIGHT_IN_FP32: tl.constexpr
):
    """RMSNorm's last step, rounded where the model rounds: before the weight, or only after."""
    if WEIGHT_IN_FP32:
        y = (normed * (weight.to(tl.float32) + weight_offset)).to(DTYPE)
    else:
        y = normed.to(DTYPE) * (weight.to(tl.float32) + weight_offset).to(DTYPE)
    return y
