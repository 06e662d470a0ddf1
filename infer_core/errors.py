"""Errors a user or a plugin author can cause.

Each message says what was got, what was expected and what to do.
"""


class InferError(Exception):
    """Base of every error the command line shows as one message instead of a traceback."""


class UnknownArchitecture(InferError):
    """No usable plugin serves the architecture of a config.json."""


class AmbiguousArchitecture(InferError):
    """Two plugins claim one architecture and `INFER_PREFER` does not say which to take."""


class PluginError(InferError):
    """A plugin could not be loaded or a hook failed; `mend` is the shell command that helps."""

    def __init__(self, message: str, *, mend: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message}. To mend it: {self.mend}" if self.mend else self.message


class PluginContractError(PluginError):
    """A hook returned something other than the contract says."""


class ConfigError(InferError):
    """A config.json is missing, malformed, or holds a field the plugin does not handle."""


class WeightError(InferError):
    """A checkpoint's tensors do not fill the model's parameters exactly."""


class ModelNotFound(InferError):
    """A model argument is no checkpoint folder, installed reference model or hub repository."""


class HubError(InferError):
    """A hub repository cannot be had now: gated, offline, disk full, download broken off."""


class TokenizerError(InferError):
    """A checkpoint's tokenizer is missing or unreadable."""


class ChatTemplateError(InferError):
    """A checkpoint has no chat template, or one that is not a valid template."""


class RequestError(InferError):
    """A request cannot be served: empty prompt, context overflow, bad sampling values."""


class OutOfMemory(InferError):
    """The GPU has less memory left than a model or a request needs; nothing was kept of it."""


class NewPluginError(InferError):
    """`infer plugins new` cannot write what was asked for; nothing was left behind."""
