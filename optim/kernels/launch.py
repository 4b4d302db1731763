"""What a row kernel is told: where the rows lie, and the update as numbers.

A row kernel moves points that are rows of contiguous matrices, one pass over memory, for manifolds that look
locally like the unit sphere. Every backend is one module with the two functions of `Kernel`.

**The table**, int64, (matrices, 8), one row per matrix of points:

=============  ==================================================================================
column         holds
=============  ==================================================================================
`X`            address of the points, (points, n), read and written
`GRADIENT`     address of the Euclidean gradient, (points, n), read only
`VECTOR`       address of the momentum or first moment, (points, n), read and written; 0: there is none
`RADIUS`       address of the norms to hold, (points,), on PSI; 0: none are held
`SQUARE`       address of the second moments, (points,), for Adam; 0: there are none
`GIVEN`        address of the coefficients of a rule, (points, 4), float64; 0: all points have those of the update
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
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ...manifolds import PSI, Manifold, ProjectiveSpace
from ..memory import Memory
from ..options import Options
from ..radius import band
from ..rules import Adam, Coefficients, Rule

__all__ = [
    "COORDINATES",
    "GIVEN",
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
    "is_constant",
    "table_of",
    "update_of",
]

X, GRADIENT, VECTOR, RADIUS, SQUARE, GIVEN, POINTS, COORDINATES = range(8)


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
    given: bool
    """Whether a rule has given each point its coefficients."""
    measures: bool
    """Whether the lengths of the gradients are needed."""
    moving: bool
    """Whether there is a vector."""
    level: bool
    """Whether the step needs no products of rows but their squares: y = X + u, and the vector is not carried."""


class Numbers(NamedTuple):
    """The numbers of a step that all rows have in common; `algebra` says what they mean, `Adam.numbers` the last five."""

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
    "max_point_norm", "maximize",
)  # fmt: skip
"""The options that `update_of` reads."""


def table_of(
    x: Sequence[int],
    gradients: Sequence[int],
    state: Mapping[str, Sequence[int]],
    sizes: Sequence[Sequence[int]],
    rule: Rule,
) -> np.ndarray:
    """The table of points at the addresses `x`, with `gradients`, `state` by name, and points and coordinates in `sizes`."""
    table = np.zeros((len(sizes), COORDINATES + 1), dtype=np.int64)
    table[:, X], table[:, GRADIENT], table[:, POINTS:] = x, gradients, sizes
    columns = {"radius": RADIUS, **dict.fromkeys(rule.vectors[:1], VECTOR)}
    if type(rule) is Adam:
        columns |= dict.fromkeys(rule.scalars, SQUARE)
    for name in columns.keys() & state.keys():
        table[:, columns[name]] = state[name]
    return table


def is_constant(rule: Rule) -> bool:
    """Whether `rule` has one vector at most, and the same coefficients for all points."""
    return not rule.reads_lengths and not rule.scalars and len(rule.vectors) <= 1


def update_of(manifold: Manifold, rule: Rule, options: Options, memory: Memory, moving: bool) -> Update:
    """The options of a group as choices and numbers; `moving`: whether there is a vector."""
    lr, limit = float(options["lr"]), options["max_point_norm"]
    unit, exp, transport = type(manifold) is not PSI, options["motion"] == "exp", options["transport"]
    if transport == "manifold":
        transport = "project" if unit and not exp else "parallel"
    carried = transport != "none" and moving
    held = not unit and options["radius"] == "hold"
    adam = type(rule) is Adam
    given = not adam and not is_constant(rule)
    choices = Choices(
        unit=unit,
        lines=type(manifold) is ProjectiveSpace,
        exp=exp,
        adam=adam,
        inside=options.get("eps_form") == "inside",
        project=carried and transport == "project",
        parallel=carried and transport == "parallel",
        hold=held and lr != 0,
        free=not unit and not held and lr != 0,
        records=held,
        clip=limit is not None,
        given=given,
        measures=adam or limit is not None or (given and rule.reads_lengths),
        moving=moving,
        level=not unit and not exp and not carried,
    )
    options = {**options, "lr": lr}
    coefficients, rest = Coefficients(), (0.0, 0.0, 0.0, 1.0, 0.0)
    if isinstance(rule, Adam) and adam:
        assert memory.step is not None
        beta1, rest = options["betas"][0], rule.numbers(memory.step.item(), options)
        coefficients = Coefficients(beta1, 1.0 - beta1)
    elif not given:
        coefficients = rule(torch.empty(0), memory, options)
    sign, limit = -1.0 if options["maximize"] else 1.0, math.inf if limit is None else limit
    return Update(choices, Numbers(*map(float, (sign, limit, *coefficients, *band(memory.dtype), *rest))))
