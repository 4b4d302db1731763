"""What a row kernel is told: where the rows lie, and the update as numbers.

A row kernel moves points that are rows of contiguous matrices, one pass over memory, for manifolds that look
locally like the unit sphere. Every backend is one module with the two functions of `Kernel`, which compute what
stands below; the truth is `step.update`, against which they are tested.

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

**The rows.** Every dot product is over one row x with gradient g and vector v. With `update`'s names, sums in float32
or better:

1. σ = sign, r = max(‖x‖, √tiny), s = 1. On PSI, with λ = r²: `Rescale.HOLD` takes s = radius/r (1 where that is NaN
   or infinite, or r = √tiny); `Rescale.FREE` takes s = 2^−e with r = m 2^e, ½ ≤ m < 1, where r lies outside [low, high]
   and is neither √tiny nor infinite. `HOLD` and `RECORD` store r where the radius is −1, and keep s = 1 there.
2. h = σ g on PSI, with the factor f = λ;  h = σ (g − ⟨x, g⟩ x) and f = 1 on unit vectors.
3. Length of the gradient in the metric: ‖h‖ r on PSI, ‖h‖ on unit vectors. f ← f · min(1, limit/length), NaN
   kept, for a finite limit.
4. `adam`: square ← beta2 · square + (1 − beta2) · (clipped length)², and along = −rate / (√square/correction + eps), or
   −rate / (√(square + eps)/correction) if `inside`.
5. v' = keep · s · v + take · s f h;  u = along · v' + ahead · s f h;  X = s x. Without a vector u = ahead · s f h.
6. y = X + u on PSI, (X + u)/‖X + u‖ on unit vectors (X + u where u = 0). With `exp`: y = cos θ X + (sin θ/θ) u with
   θ = ‖u‖/‖X‖ on PSI, ‖u‖ on unit vectors, there divided by its norm where | ‖y‖ − 1 | > ε (8 + √n) and u ≠ 0.
7. The vector that is stored, on PSI with ⟨a, b⟩ₓ = ⟨a, b⟩/‖X‖²: `Carry.NONE` v'; `Carry.PROJECT` v' − y⟨y, v'⟩/‖y‖²
   (unit vectors: without the division); `Carry.PARALLEL` after `exp` v' − ⟨u, v'⟩ₓ ((1 − cos θ)/θ² u + (sin θ/θ) X), otherwise
   (v' − ⟨z, v'⟩ₓ/(1 + ⟨X, z⟩ₓ) (X + z))/φ with z = φ y, where φ = ‖X‖/‖y‖ on PSI, the sign of ⟨X, y⟩ (1 for 0) on `lines`, 1
   on the sphere; where 1 + ⟨X, z⟩ₓ ≤ ε, so that z = −X up to rounding, (v' − ⟨z, v'⟩ₓ z)/φ.

Steps 5 to 7 are linear in (x, g, v): a kernel needs the dot products and two linear combinations. Nothing may change
where a step with a zero gradient and lr = 0 would change a bit.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ..manifolds import PSI, Manifold
from ..manifolds.grassmann import Lines
from .options import Options
from .representative import band
from .rules import Adam, Rule

__all__ = [
    "COORDINATES",
    "GRADIENT",
    "POINTS",
    "RADIUS",
    "READ",
    "SQUARE",
    "VECTOR",
    "Carry",
    "Kernel",
    "Rescale",
    "Update",
    "X",
    "update_of",
]

X, GRADIENT, VECTOR, RADIUS, SQUARE, POINTS, COORDINATES = range(7)


class Carry(IntEnum):
    """How the vector goes along: unchanged, projected, or along the great circle."""

    NONE = 0
    PROJECT = 1
    PARALLEL = 2


class Rescale(IntEnum):
    """What happens to the norms of the rows; `RECORD` is `HOLD` at lr = 0."""

    NONE = 0
    HOLD = 1
    FREE = 2
    RECORD = 3


class Update(NamedTuple):
    """One step of all rows of a table, as numbers; the module says what they mean."""

    unit: bool
    lines: bool
    exp: bool
    adam: bool
    inside: bool
    carry: int
    rescale: int
    sign: float
    limit: float
    keep: float
    take: float
    along: float
    ahead: float
    low: float
    high: float
    beta2: float
    rate: float
    correction: float
    eps: float


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
    manifold: Manifold, rule: Rule, options: Options, fresh: bool, step: float | None, dtype: torch.dtype
) -> Update:
    """The options of a group as numbers; `fresh` and `step` as in `Memory`."""
    lr = float(options["lr"])
    unit = type(manifold) is not PSI
    exp, transport = options["motion"] == "exp", options["transport"]
    carry = {"none": Carry.NONE, "project": Carry.PROJECT, "parallel": Carry.PARALLEL}.get(
        transport, Carry.PROJECT if unit and not exp else Carry.PARALLEL
    )
    rescale = Rescale.NONE
    if not unit and options["radius"] == "hold":
        rescale = Rescale.HOLD if lr != 0 else Rescale.RECORD
    elif not unit and lr != 0:
        rescale = Rescale.FREE
    limit = options["max_grad_norm"]
    low, high = band(dtype)
    common: dict[str, Any] = {
        "unit": unit,
        "lines": type(manifold) is Lines,
        "exp": exp,
        "carry": int(carry),
        "rescale": int(rescale),
        "sign": -1.0 if options["maximize"] else 1.0,
        "limit": math.inf if limit is None else float(limit),
        "low": low,
        "high": high,
    }
    if isinstance(rule, Adam):
        beta1, beta2 = options["betas"]
        assert step is not None
        return Update(
            **common,
            adam=True,
            inside=options["eps_form"] == "inside",
            keep=beta1,
            take=1.0 - beta1,
            along=0.0,
            ahead=0.0,
            beta2=beta2,
            rate=lr / (1.0 - beta1**step),
            correction=(1.0 - beta2**step) ** 0.5,
            eps=float(options["eps"]),
        )
    rho, velocity, nesterov = float(options["momentum"]), options["momentum_form"] == "velocity", options["nesterov"]
    if rho == 0:  # a vector that is there waits, unused
        return Update(**common, **_NO_ADAM, keep=1.0, take=0.0, along=0.0, ahead=-lr)
    weight = 1.0 if fresh else 1.0 - float(options["dampening"])
    ahead_by = rho if nesterov else 1.0
    return Update(
        **common,
        **_NO_ADAM,
        keep=rho,
        take=-lr * weight if velocity else weight,
        along=ahead_by if velocity else -lr * ahead_by,
        ahead=-lr if nesterov else 0.0,
    )


_NO_ADAM: dict[str, Any] = {
    "adam": False,
    "inside": False,
    "beta2": 0.0,
    "rate": 0.0,
    "correction": 1.0,
    "eps": 0.0,
}
