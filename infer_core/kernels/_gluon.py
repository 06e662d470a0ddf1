"""Four names of Gluon that differ between Triton 3.6 and 3.9, for the kernels written in it."""

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import shared_memory_descriptor as SharedMemory
from triton.experimental.gluon.language.nvidia.hopper import tma

load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store_tile = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
barrier = getattr(gl, "barrier", None) or gl.thread_barrier
reinterpret = getattr(SharedMemory, "reinterpret", None) or SharedMemory._reinterpret
