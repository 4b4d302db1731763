"""The arguments of a row kernel: a table of addresses, and the update as choices and numbers.

A row kernel moves points that are rows of contiguous matrices, in one pass over memory: one for manifolds that are locally
isometric to the unit sphere, and one for hyperbolic space. A backend is a module with the two functions of `Kernel`.

**The table**, int64, (matrices, 8), one row per matrix of points:

==============  ==================================================================================
column          holds
==============  ==================================================================================
`X`             address of the points, (points, n), read and written
`GRADIENT`      address of the Euclidean gradient, (points, n), read only
`VECTOR`        address of the momentum or first moment, (points, n), read and written; 0: none
`RADIUS`        address of the norms to hold, (points,), on PSI; 0: none
`SQUARE`        address of the second moments, (points,), for Adam; 0: none
`COEFFICIENTS`  address of a rule's coefficients per point, (points, 4), float64; 0: those of the update for all points
`POINTS`        number of rows
`COORDINATES`   n
==============  ==================================================================================

Either all matrices of a table have a vector or none; norms and second moments exist wherever the update reads them. All
arrays are contiguous, row-major and of one dtype, on one device. A held norm of −1 is to be set by this step.

The formulas are in `algebra` and `hyperbolic`; sums are in float32 or better. A step with lr = 0 and a zero gradient must not change a bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ...manifolds import Hyperbolic, Spherical
from ..options import Options
from ..rules import Adam, Coefficients, Memory, Rule
from ..update import band

__all__ = [
    "COEFFICIENTS",
    "COORDINATES",
    "GRADIENT",
    "POINTS",
    "RADIUS",
    "SQUARE",
    "VECTOR",
    "Choices",
    "HyperbolicChoices",
    "HyperbolicNumbers",
    "HyperbolicUpdate",
    "Kernel",
    "Numbers",
    "Update",
    "X",
    "hyperbolic_update_of",
    "is_constant",
    "table_of",
    "update_of",
]

X, GRADIENT, VECTOR, RADIUS, SQUARE, COEFFICIENTS, POINTS, COORDINATES = range(8)


class Choices(NamedTuple):
    """The constants that the algebra of a step is compiled for."""

    unit: bool
    """Whether points are unit vectors; otherwise they are on PSI."""
    lines: bool
    """Whether x and −x are the same point."""
    exp: bool
    """Whether the motion is the exponential; otherwise the retraction."""
    adam: bool
    inside: bool
    """Whether Adam's ε is under the root."""
    project: bool
    parallel: bool
    """The transport of the vector; it is left unchanged where both are False."""
    hold: bool
    free: bool
    """The rescaling of rows of PSI."""
    store_radius: bool
    """Whether the norm of a row is stored at its first step."""
    clip: bool
    per_point: bool
    """Whether each point has its own coefficients, from a user's rule."""
    measures: bool
    """Whether the lengths of the gradients are needed."""
    moving: bool
    """Whether a vector is stored with each point."""
    additive: bool
    """Whether the step is y = X + u with the vector left unchanged, which needs no dot products but squares."""


class Numbers(NamedTuple):
    """The numbers of a step, the same for all rows; see `algebra` for their meaning, `AdamFactors` for the last five."""

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


class HyperbolicChoices(NamedTuple):
    """What `Choices` is for hyperbolic rows; the fields of a name have the same meaning."""

    sheet: bool
    """Whether points are on the hyperboloid; otherwise they are in the ball."""
    exp: bool
    adam: bool
    inside: bool
    project: bool
    parallel: bool
    clip: bool
    moving: bool


class HyperbolicNumbers(NamedTuple):
    """What `Numbers` is for hyperbolic rows."""

    sign: float
    limit: float
    keep: float
    take: float
    along: float
    ahead: float
    unit: float
    """R²."""
    longest: float
    """The longest step of the exponential."""
    beta2: float
    rest: float
    rate: float
    correction: float
    eps: float


class Update(NamedTuple):
    """One step of all rows of a table."""

    choices: Choices
    numbers: Numbers


class HyperbolicUpdate(NamedTuple):
    """One step of all hyperbolic rows of a table."""

    choices: HyperbolicChoices
    numbers: HyperbolicNumbers


class Kernel(Protocol):
    """A backend: a module with these two functions. The tables of a schedule may be one array with changing addresses."""

    def schedule(self, table: np.ndarray) -> Any:
        """What the backend prepares once for all tables with these last two columns; passed to every step."""

    def step(self, table: np.ndarray, schedule: Any, update: Any, dtype: torch.dtype, device: torch.device) -> None:
        """One step of every row of `table`, in place; returns when it is done or queued on the current stream."""


def table_of(sizes: Sequence[Sequence[int]], addresses: Mapping[str, Sequence[int]], rule: Rule) -> np.ndarray:
    """The table of matrices with `sizes` (points, coordinates) and the `addresses` of state, by name; the addresses of points
    and gradients are left at 0, since they change between steps."""
    table = np.zeros((len(sizes), COORDINATES + 1), dtype=np.int64)
    table[:, POINTS:] = sizes
    columns = {"radius": RADIUS, **dict.fromkeys(rule.vectors[:1], VECTOR)}
    if type(rule) is Adam:
        columns |= dict.fromkeys(rule.scalars, SQUARE)
    for name in columns.keys() & addresses.keys():
        table[:, columns[name]] = addresses[name]
    return table


def is_constant(rule: Rule) -> bool:
    """Whether `rule` has at most one vector, and the same coefficients for all points."""
    return not rule.reads_lengths and not rule.scalars and len(rule.vectors) <= 1


def update_of(manifold: Spherical, rule: Rule, options: Options, memory: Memory, moving: bool) -> Update:
    """The options of a group as choices and numbers, for a `manifold` with row kernels; `moving` as in `Choices`."""
    lr, exp, transport = float(options["lr"]), options["motion"] == "exp", options["transport"]
    unit = manifold.row_kernel != "rays"
    if transport == "manifold":
        transport = "project" if unit and not exp else "parallel"
    transported = transport != "none" and moving
    held = not unit and options["radius"] != "free"
    adam, clip = type(rule) is Adam, options["max_point_norm"] is not None
    per_point = not adam and not is_constant(rule)
    choices = Choices(
        unit=unit,
        lines=manifold.row_kernel == "lines",
        exp=exp,
        adam=adam,
        inside=options.get("eps_form") == "inside",
        project=transported and transport == "project",
        parallel=transported and transport == "parallel",
        hold=held and lr != 0,
        free=not unit and not held and lr != 0,
        store_radius=held,
        clip=clip,
        per_point=per_point,
        measures=adam or clip or (per_point and rule.reads_lengths),
        moving=moving,
        additive=not unit and not exp and not transported,
    )
    return Update(choices, Numbers(*_numbers(rule, options, memory, *band(memory.dtype))))


def hyperbolic_update_of(
    manifold: Hyperbolic, rule: Rule, options: Options, memory: Memory, moving: bool
) -> HyperbolicUpdate:
    """As `update_of`, for hyperbolic rows."""
    transport, adam = options["transport"], type(rule) is Adam
    transported = transport != "none" and moving
    choices = HyperbolicChoices(
        sheet=manifold.row_kernel == "sheet",
        exp=options["motion"] == "exp",
        adam=adam,
        inside=options.get("eps_form") == "inside",
        project=transported and transport == "project",
        parallel=transported and transport != "project",
        clip=options["max_point_norm"] is not None,
        moving=moving,
    )
    longest = manifold.longest_step(memory.dtype)
    return HyperbolicUpdate(choices, HyperbolicNumbers(*_numbers(rule, options, memory, manifold.radius**2, longest)))


def _numbers(rule: Rule, options: Options, memory: Memory, *own: float) -> list[float]:
    """The numbers of a step in their order, with those of a geometry, its `own`, before those of Adam."""
    options = {**options, "lr": float(options["lr"])}
    limit, coefficients, rest = options["max_point_norm"], Coefficients(), (0.0, 0.0, 0.0, 1.0, 0.0)
    if isinstance(rule, Adam) and type(rule) is Adam:
        assert memory.step is not None
        beta1, rest = options["betas"][0], rule.factors(memory.step.item(), options)
        coefficients = Coefficients(beta1, 1.0 - beta1)
    elif is_constant(rule):
        coefficients = rule(torch.empty(0), memory, options)
    sign, limit = -1.0 if options["maximize"] else 1.0, math.inf if limit is None else limit
    return [*map(float, (sign, limit, *coefficients, *own, *rest))]
