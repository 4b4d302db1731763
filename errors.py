"""The exceptions of the library. Each says what is wrong, why, and what to do about it.

Every class also derives from the built-in that `torch.optim` raises in the like case, so that an
``except ValueError`` written for torch keeps working.
"""

from __future__ import annotations

__all__ = [
    "DeclarationError",
    "GeometryError",
    "GradientError",
    "LawError",
    "MissingExtraError",
    "OptionError",
    "RetractError",
    "StateError",
    "StepError",
    "install",
]


class RetractError(Exception):
    """Base class of everything the library raises on its own account."""


class GeometryError(RetractError, ValueError):
    """A shape, point or tangent vector that does not fit its manifold."""


class LawError(RetractError, AssertionError):
    """A law of `retract.testing` that a manifold does not satisfy: which one, by how much, and at which input."""


class DeclarationError(RetractError, ValueError):
    """A declaration that cannot be made, or that no longer matches its module."""


class OptionError(RetractError, ValueError):
    """An optimizer option outside its interval, or one that cannot be honoured."""


class GradientError(RetractError, RuntimeError):
    """A gradient that the update is not defined for (sparse, part of a point missing)."""


class StateError(RetractError, ValueError):
    """A state_dict that belongs to another geometry."""


class StepError(RetractError, RuntimeError):
    """A step that broke off after its first write; the message names the parameters that have moved."""


class MissingExtraError(RetractError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


def install(extra: str) -> str:
    """The command that installs an extra, for messages."""
    return f"pip install '.[{extra}]' in a checkout of retract"
