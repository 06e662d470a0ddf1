"""Gemma3 models for infer_core."""

__version__ = "0.1.0"
