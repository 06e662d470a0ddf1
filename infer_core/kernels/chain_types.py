"""Values the kernels of the decode chain take: how to normalise, how to tile; and their checks."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Norm:
    """`x / sqrt(mean(x**2) + eps) * (weight + weight_offset)`, rounded before or after."""

    eps: float
    weight_offset: float = 0.0
    weight_in_fp32: bool = False


@dataclass(frozen=True, slots=True)
class Tile:
    """How a matrix is cut: rows a tile, warps a program, programs per multiprocessor."""

    rows: int
    warps: int
    per_sm: int


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """Elements of K a program takes at a time, and its warps."""

    elements: int
    warps: int


def check_vectors(
    kernel: str, dtype: torch.dtype, size: int, **vectors: torch.Tensor | None
) -> None:
    """Raise ValueError unless each vector given is contiguous [size] of that dtype."""
    for name, vector in vectors.items():
        if vector is None:
            continue
        if vector.shape != (size,) or vector.dtype != dtype or not vector.is_contiguous():
            raise ValueError(
                f"{kernel}: {name} must be contiguous [{size}] {dtype}; got "
                f"{tuple(vector.shape)} {vector.dtype}, strides {vector.stride()}"
            )
