"""Every error reptool raises on purpose; each says what was found, where, and what to do."""

from __future__ import annotations

import sys
import warnings


class ReptoolError(Exception):
    """Base class of all errors raised by reptool."""


class InputError(ReptoolError, ValueError):
    """An argument does not fit: what was found, what was expected, what to do."""


class UnsupportedModelError(ReptoolError, TypeError):
    """The object given is not a model reptool can read (ScriptModule, ExportedProgram, quantized, lazy, meta)."""


class FileError(ReptoolError, OSError):
    """A file cannot be read or written, or is damaged; what was there before is as it was."""


class RecipeError(ReptoolError, ValueError):
    """A recipe is none of reptool's, or does not fit the model: another architecture, other code, other weights."""


class VerificationError(ReptoolError):
    """A collapsed region or the whole model does not compute what the original computes."""


class RegionWarning(UserWarning):
    """A region that was planned failed its check and was left as it was; the rest of the model is deployed."""


class FoldedNormWarning(UserWarning):
    """A deployed model was put into training mode: its folded norms do not normalize by their batch."""


class RuleError(ReptoolError):
    """A rule of the user's own raised, or gave what no rule may give: which rule, where, and what it broke."""


class RequirementError(ReptoolError):
    """`require=` asked for something the deployed model does not fulfil."""


class SpecializedError(ReptoolError, RuntimeError):
    """What was deployed is called or changed in a way it was not captured for (a flag, rank, caller, hook)."""


class AbsorbedStateError(ReptoolError, RuntimeError):
    """A checkpoint holds keys of layers that were absorbed by `deploy`; load it before deploying."""


_BETWEEN = ("reptool.", "torch.", "contextlib")


def warn(message: str, kind: type[Warning]) -> None:
    """Warn the line of the user's code that called reptool."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(_BETWEEN):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, kind, stacklevel=level)
