"""Shared Triton kernels, one file each, with the plain-torch reference beside the kernel.

Import a launcher or its reference from its file, `from infer_core.kernels.rms_norm import
rms_norm, rms_norm_ref`; both keep the same contract. A launcher reads nothing back from the
device and its grid follows from shapes alone, so every launch can be captured in a CUDA graph:
positions are int32 tensors of shape [1] on the device.

Layouts shared by all files (batch is 1):
    qkv       [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]: all query heads, all key
              heads, all value heads; rows may be strided, the last stride is 1
    k_cache,  [num_kv_heads, capacity, head_dim], contiguous; the token at position p lives in
    v_cache   slot p % capacity, so a ring and a full cache are read by one formula
"""
