"""Errors of the benchmark's command line, files and engines."""

from infer_core import InferError


class UsageError(InferError):
    """The command line contradicts itself or asks for something that does not exist."""


class ReportError(InferError):
    """A report could not be written or read."""


class EngineUnavailable(InferError):
    """An engine is not installed, or cannot run what was asked of it."""


class NotComparable(InferError):
    """Two reports were not measured under like conditions."""


class WorkerDied(InferError):
    """A worker process ended or hung before it had said everything."""
