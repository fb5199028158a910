"""Every error reptool raises on purpose; each says what was found, where, and what to do."""

from __future__ import annotations


class ReptoolError(Exception):
    """Base class of all errors raised by reptool."""


class InputError(ReptoolError, ValueError):
    """An argument does not fit: what was found, what was expected, what to do."""


class UnsupportedModelError(ReptoolError, TypeError):
    """The object given is not a model reptool can read (ScriptModule, ExportedProgram, quantized, lazy, meta)."""


class VerificationError(ReptoolError):
    """A collapsed region or the whole model does not compute what the original computes."""


class RequirementError(ReptoolError):
    """`require=` asked for something the deployed model does not fulfil."""


class SpecializedError(ReptoolError, RuntimeError):
    """A deployed method was called in a way it was not captured for (another flag or rank)."""


class AbsorbedStateError(ReptoolError, RuntimeError):
    """A checkpoint holds keys of layers that were absorbed by `deploy`; load it before deploying."""
