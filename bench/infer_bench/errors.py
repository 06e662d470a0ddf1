"""Errors of the benchmark's command line and files."""

from infer_core import InferError


class UsageError(InferError):
    """The command line contradicts itself or asks for something that does not exist."""


class ReportError(InferError):
    """A report could not be written."""
