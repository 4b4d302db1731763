"""The update of all optimizers: SGD, Adam, PSI-SGD, PSI-SGDM, SGDG and Adam-G are choices of manifold, rule and options."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..manifolds import Euclidean, ExponentialManifold, GeodesicManifold, Manifold, ScalingQuotient, Spherical, numerics
from .kernels import algebra
from .options import Options
from .rules import Memory, Rule

__all__ = ["ambient", "band", "is_penalised", "orthogonality_gradient", "update"]

# Yi (2022, §6.2) renormalises above 1e4; below 1e-4 a BatchNorm's eps of 1e-5 would start to show. In float16 the
# squares of a row inside the narrower band neither overflow nor vanish.
BAND = {torch.float16: (1e-2, 1e2)}
DEFAULT_BAND = (1e-4, 1e4)
_HOLD, _FREE = SimpleNamespace(hold=True, free=False), SimpleNamespace(hold=False, free=True)


def update(manifold: Manifold, rule: Rule, x: Tensor, egrad: Tensor, memory: Memory, options: Options) -> Tensor:
    """One step of the points `x` with Euclidean gradient `egrad`, both (points, n); returns the new points.

    With γ the Riemannian gradient, shortened to `max_point_norm`, and the `Coefficients` of `rule`

        v ← keep · v + take · γ,    u = along · v + ahead · γ,    y = R(x, u),    v ← T(v),

    where R is the retraction or the exponential, and T the transport. On a scaling quotient x, γ and v are first moved to the
    representative that the option `radius` selects. `memory` is changed in place; `x` and `egrad` are not.
    """
    gradient = manifold.riemannian_gradient(x, ambient(manifold, x, egrad, options))
    if isinstance(manifold, ScalingQuotient):
        scale = _rescaling(manifold.radius(x), memory, options)
        if scale is not None:
            x, gradient = manifold.act(scale, x), manifold.act(scale, gradient)
            memory.vectors = {name: manifold.act(scale, v) for name, v in memory.vectors.items()}
    limit = None if isinstance(manifold, Euclidean) else options["max_point_norm"]
    length: Any = None
    if rule.reads_lengths or limit is not None:
        length = manifold.norm(x, gradient)
    if limit is not None:
        shrink = torch.clamp(limit / length, max=1.0)
        gradient, length = gradient * shrink, length * shrink
    coefficients = rule(length, memory, options)
    step = _times(coefficients.ahead, gradient)
    for name, v in memory.vectors.items():
        keep, take, along = coefficients.of(name)
        v = _sum(_times(keep, v), _times(take, gradient))
        step, memory.vectors[name] = _sum(step, _times(along, v)), v
    return _move(manifold, x, torch.zeros_like(x) if step is None else step, memory, options)


def ambient(manifold: Manifold, x: Tensor, egrad: Tensor, options: Options, among: Tensor | None = None) -> Tensor:
    """The Euclidean gradient after sign, weight decay (Euclidean points) and orthogonality penalty (unit directions),
    (points, n); `egrad` is not written to. `among` as in `orthogonality_gradient`."""
    if options["maximize"]:
        egrad = -egrad
    if isinstance(manifold, Euclidean):
        return egrad.add(x, alpha=options["weight_decay"]) if options["weight_decay"] else egrad
    if is_penalised(manifold, options):
        assert isinstance(manifold, Spherical)
        return egrad + orthogonality_gradient(manifold, x, options["orthogonality"], among)
    return egrad


def is_penalised(manifold: Manifold, options: Options) -> bool:
    """Whether `ambient` adds the orthogonality penalty, which couples points."""
    return bool(options["orthogonality"]) and isinstance(manifold, Spherical)


def orthogonality_gradient(manifold: Spherical, x: Tensor, alpha: float, among: Tensor | None = None) -> Tensor:
    """Gradient of the penalty (α/2)‖Y Yᵀ − 1‖² in `x`, (points, n), where Y are the rows at norm 1.

    In Y it is 2α (Y Yᵀ Y − Y) (Cho & Lee 2017, §4.2), and in `x` the projection of that over ‖x‖. It couples all points of a
    parameter: where `x` has only some of them, `among` is Y of all, (all points, n).
    """
    size = numerics.norm(x, 1)
    y = x / size
    units = y if among is None else among
    points, n = units.shape
    cubic = y @ (units.mT @ units) if n < points else (y @ units.mT) @ units
    return manifold.project(x, 2.0 * alpha * (cubic - y)) / size


def band(dtype: torch.dtype) -> tuple[float, float]:
    """The lowest and the highest norm at which ``"free"`` does not rescale rows of a parameter of `dtype`."""
    return BAND.get(dtype, DEFAULT_BAND)


def _rescaling(radius: Tensor, memory: Memory, options: Options) -> Tensor | None:
    """The factor by which this step rescales rows of norm `radius`, (points, 1), or None for no rescaling.

    The norm of a row has no meaning in the quotient, but the running statistics of the next BatchNorm depend on it, and floating
    point has a limited range. The path in the quotient does not change (Theorem 1 of Yi 2022).

    ``"hold"``: to the norm of the row at its first step, stored in ``memory.scalars["radius"]``. ``"free"``: by a power of two,
    once the norm has left the `band`. The formula is `algebra.rescaling`. Steps with lr = 0 do not rescale.
    """
    held = options["radius"] == "hold"
    if held and "radius" not in memory.scalars:
        memory.scalars["radius"] = radius
        return None
    low, high = band(memory.dtype)
    before = memory.scalars["radius"] if held else radius
    factor: Tensor = algebra.rescaling(
        radius, before, low, high, numerics.root_tiny(radius.dtype), _HOLD if held else _FREE
    )
    lr = options["lr"]
    if isinstance(lr, Tensor):
        return torch.where(lr == 0, 1.0, factor)
    return None if lr == 0 else factor


def _move(manifold: Manifold, x: Tensor, u: Tensor, memory: Memory, options: Options) -> Tensor:
    """The new points, (points, n), after the tangent step `u`; transports ``memory.vectors`` to them."""
    flat = isinstance(manifold, Euclidean)
    motion = "retract" if flat else options["motion"]
    transport = "none" if flat or not memory.vectors else options["transport"]
    if motion == "retract" and transport == "manifold":
        for name, v in memory.vectors.items():
            y, memory.vectors[name] = manifold.retract_and_transport(x, u, v)
        return y
    y = manifold.retract(x, u) if motion == "retract" else _exp(manifold, x, u)
    if transport == "project":
        memory.vectors = {name: manifold.project(y, v) for name, v in memory.vectors.items()}
    elif transport != "none":
        assert isinstance(manifold, GeodesicManifold)
        memory.vectors = {
            name: manifold.parallel_transport(x, u, v) if motion == "exp" else manifold.transport_to(x, y, v)
            for name, v in memory.vectors.items()
        }
    return y


def _exp(manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
    """The exponential followed by `nearest`, since it stays on the manifold only for exactly tangent `u` and in exact
    arithmetic. A point with u = 0 is returned unchanged, as by a retraction."""
    assert isinstance(manifold, ExponentialManifold)
    y = manifold.exp(x, u)
    return numerics.hold_still(u, manifold.nearest(y), y, manifold.event_ndim)


def _times(factor: Any, a: Tensor) -> Tensor | None:
    """factor · a; None for the number 0, since 0 · ∞ would be NaN."""
    if isinstance(factor, (int, float)):
        return None if factor == 0 else a if factor == 1 else a * factor
    return a * factor


def _sum(a: Tensor | None, b: Tensor | None) -> Any:
    return b if a is None else a if b is None else a + b
