"""What a row kernel is told: where the rows lie, and the update as numbers.

A row kernel moves points that are rows of contiguous matrices, one pass over memory, for manifolds that look
locally like the unit sphere. Every backend is one module with the two functions of `Kernel`.

**The table**, int64, (matrices, 7), one row per matrix of points:

=============  ==================================================================================
column         holds
=============  ==================================================================================
`X`            address of the points, (points, n), read and written
`GRADIENT`     address of the Euclidean gradient, (points, n), read only
`VECTOR`       address of the momentum or first moment, (points, n), read and written; 0: there is none
`RADIUS`       address of the norms to hold, (points,), on PSI; 0: none are held
`SQUARE`       address of the second moments, (points,), for Adam; 0: there are none
`POINTS`       number of rows
`COORDINATES`  n
=============  ==================================================================================

Of the matrices of one table, either all have a vector or none; norms and second moments are there wherever the update
reads them. Everything that an address points at is contiguous, row-major and of one dtype, on one device. A held norm of −1
stands for one that this step has to set.

What a backend computes of a row stands in `algebra`; sums are in float32 or better. Nothing may change where a step with a zero
gradient and lr = 0 would change a bit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ...manifolds import PSI, Manifold
from ...manifolds.grassmann import Lines
from ..options import Options
from ..representative import band
from ..rules import Adam, Rule

__all__ = [
    "COORDINATES",
    "GRADIENT",
    "POINTS",
    "RADIUS",
    "READ",
    "SQUARE",
    "VECTOR",
    "Choices",
    "Kernel",
    "Numbers",
    "Update",
    "X",
    "update_of",
]

X, GRADIENT, VECTOR, RADIUS, SQUARE, POINTS, COORDINATES = range(7)


class Choices(NamedTuple):
    """What the algebra of a step is compiled for."""

    unit: bool
    """Unit vectors; otherwise PSI."""
    lines: bool
    """Of which x and −x are the same point."""
    exp: bool
    """The exponential instead of the retraction."""
    adam: bool
    inside: bool
    """Adam's ε under the root."""
    project: bool
    parallel: bool
    """How the vector is carried, if not unchanged."""
    hold: bool
    free: bool
    """How rows of PSI are rescaled."""
    records: bool
    """Whether a norm to hold that is not set yet is set."""
    clip: bool
    moving: bool
    """Whether there is a vector."""
    level: bool
    """Whether the step needs no products of rows but their squares: y = X + u, and the vector is not carried."""


class Numbers(NamedTuple):
    """The numbers of a step that all rows have in common; `algebra` says what they mean."""

    sign: float
    limit: float
    keep: float
    take: float
    along: float
    ahead: float
    low: float
    high: float
    beta2: float
    rest: float
    rate: float
    correction: float
    eps: float


class Update(NamedTuple):
    """One step of all rows of a table."""

    choices: Choices
    numbers: Numbers


class Kernel(Protocol):
    """A backend: a module with these two functions. Tables of one schedule may be one array with new addresses."""

    def schedule(self, table: np.ndarray) -> Any:
        """What the backend wants to keep for tables with these last two columns; made once, handed to every step."""

    def step(self, table: np.ndarray, schedule: Any, update: Update, dtype: torch.dtype, device: torch.device) -> None:
        """One step of every row of `table`, in place; returns when it is done, or queued on the current stream."""


READ = (
    "lr", "momentum", "dampening", "nesterov", "momentum_form", "betas", "eps", "eps_form", "motion", "transport", "radius",
    "max_grad_norm", "maximize",
)  # fmt: skip
"""The options that `update_of` reads."""


def update_of(
    manifold: Manifold, rule: Rule, options: Options, fresh: bool, step: float | None, dtype: torch.dtype, moving: bool
) -> Update:
    """The options of a group as choices and numbers; `fresh` and `step` as in `Memory`, `moving`: whether there is a vector."""
    lr, limit = float(options["lr"]), options["max_grad_norm"]
    unit, exp, transport = type(manifold) is not PSI, options["motion"] == "exp", options["transport"]
    if transport == "manifold":
        transport = "project" if unit and not exp else "parallel"
    carried = transport != "none" and moving
    held = not unit and options["radius"] == "hold"
    choices = Choices(
        unit=unit,
        lines=type(manifold) is Lines,
        exp=exp,
        adam=isinstance(rule, Adam),
        inside=options.get("eps_form") == "inside",
        project=carried and transport == "project",
        parallel=carried and transport == "parallel",
        hold=held and lr != 0,
        free=not unit and not held and lr != 0,
        records=held,
        clip=limit is not None,
        moving=moving,
        level=not unit and not exp and not carried,
    )
    low, high = band(dtype)
    common: dict[str, Any] = {
        "sign": -1.0 if options["maximize"] else 1.0,
        "limit": math.inf if limit is None else float(limit),
        "low": low,
        "high": high,
    }
    if isinstance(rule, Adam):
        beta1, beta2 = options["betas"]
        assert step is not None
        return Update(
            choices,
            Numbers(
                **common,
                keep=beta1,
                take=1.0 - beta1,
                along=0.0,
                ahead=0.0,
                beta2=beta2,
                rest=(1.0 - beta2) ** 0.5,
                rate=lr / (1.0 - beta1**step),
                correction=(1.0 - beta2**step) ** 0.5,
                eps=float(options["eps"]),
            ),
        )
    rho, velocity, nesterov = float(options["momentum"]), options["momentum_form"] == "velocity", options["nesterov"]
    if rho == 0:  # a vector that is there waits, unused
        return Update(choices, Numbers(**common, **_NO_ADAM, keep=1.0, take=0.0, along=0.0, ahead=-lr))
    weight = 1.0 if fresh else 1.0 - float(options["dampening"])
    ahead_by = rho if nesterov else 1.0
    return Update(
        choices,
        Numbers(
            **common,
            **_NO_ADAM,
            keep=rho,
            take=-lr * weight if velocity else weight,
            along=ahead_by if velocity else -lr * ahead_by,
            ahead=-lr if nesterov else 0.0,
        ),
    )


_NO_ADAM: dict[str, Any] = {"beta2": 0.0, "rest": 1.0, "rate": 0.0, "correction": 1.0, "eps": 0.0}
