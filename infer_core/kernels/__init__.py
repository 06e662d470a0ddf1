"""Shared Triton kernels, one file each, with the plain-torch reference beside the kernel."""
