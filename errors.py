"""The exceptions of the library. A message says what is wrong, why, and what to do.

Every class also derives from the built-in exception that `torch.optim` raises in a similar case, so that an
``except ValueError`` written for torch still works.
"""

from __future__ import annotations

__all__ = [
    "DeclarationError",
    "GeometryError",
    "GradientError",
    "LawError",
    "MissingExtraError",
    "OptionError",
    "ProblemError",
    "RetractError",
    "StateError",
    "StepError",
    "install",
]


class RetractError(Exception):
    """Base class of all exceptions of the library."""


class GeometryError(RetractError, ValueError):
    """A shape, point or tangent vector does not fit its manifold."""


class LawError(RetractError, AssertionError):
    """A manifold does not satisfy a law of `retract.testing`; the message has the law, the error and the input."""


class DeclarationError(RetractError, ValueError):
    """A declaration cannot be made, or no longer matches its module."""


class OptionError(RetractError, ValueError):
    """An option of an optimizer is outside its interval, or not supported."""


class ProblemError(RetractError, ValueError):
    """A function that cannot be minimized: not finite at the start, no real number, without a gradient."""


class GradientError(RetractError, RuntimeError):
    """A gradient without a defined update (sparse, part of a point missing)."""


class StateError(RetractError, ValueError):
    """State or a state_dict does not fit the optimizer: another geometry, rule, shape or parameter."""


class StepError(RetractError, RuntimeError):
    """A step failed after its first write; the message names the parameters that have moved."""


class MissingExtraError(RetractError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


def install(extra: str) -> str:
    """The command that installs an extra, for messages."""
    return f"pip install '.[{extra}]' in a checkout of retract"
