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
from .shapes import radius_of, shaped

__all__ = ["ambient", "band", "is_penalised", "orthogonality_gradient", "update"]

# Yi (2022, §6.2) renormalises above 1e4; below 1e-4 a BatchNorm's eps of 1e-5 would start to show. In float16 the
# squares of a row inside the narrower band neither overflow nor vanish.
BAND = {torch.float16: (1e-2, 1e2)}
DEFAULT_BAND = (1e-4, 1e4)
_HOLD, _FREE = SimpleNamespace(hold=True, free=False), SimpleNamespace(hold=False, free=True)


def update(manifold: Manifold, rule: Rule, x: Tensor, egrad: Tensor, memory: Memory, options: Options) -> Tensor:
    """One step of the points `x` with Euclidean gradient `egrad`, both (points, n); returns the new points.

    With γ the Riemannian gradient, shortened to `max_point_norm`, and the `Coefficients` of `rule`

        v ← keep · v + take · γ,    u = along · v + ahead · γ,    u ← η s D(u),    y = R(x, u),    v ← T(v),

    where D is the option `shape`, if there is one, which forgets the length of u, R the retraction or the exponential, and T
    the transport. With ``tangent="step"`` or ``"none"`` γ is the Euclidean gradient, on a scaling quotient in units of the
    points' size, and only u is projected, or nothing. On a scaling quotient x, γ and v are first moved to the representative
    that the option `radius` selects. `memory` is changed in place, and so is `x` on Euclidean points, unless autograd records the step; `egrad` is not.
    """
    flat = isinstance(manifold, Euclidean)
    late, shape = not flat and options["tangent"] != "gradient", options["shape"] if manifold.event_ndim else None
    egrad = ambient(manifold, x, egrad, options)
    gradient = egrad * radius_of(manifold, x) if late else manifold.riemannian_gradient(x, egrad)
    if isinstance(manifold, ScalingQuotient):
        scale = _rescaling(manifold.radius(x), memory, options)
        if scale is not None:
            x = manifold.act(scale, x)
            if not late:
                gradient = manifold.act(scale, gradient)
                memory.vectors = {name: manifold.act(scale, v) for name, v in memory.vectors.items()}
    size = radius_of(manifold, x) if late or rule.arrays else 1.0
    gradient, length = _measured(manifold, rule, x, gradient, 1.0 if late else size, late, options)
    # A shape forgets the length of the step. A velocity has the rate inside, which weighs the gradients of a schedule.
    forgets = (shape is not None or rule.averages_steps) and options.get("momentum_form") != "velocity"
    coefficients = rule(length, memory, {**options, "lr": 1.0} if forgets else options)
    terms = [(coefficients.ahead, gradient)]
    for name, v in memory.vectors.items():
        keep, take, along = coefficients.of(name)
        memory.vectors[name] = _averaged(v, keep, take, gradient)
        terms.append((along, memory.vectors[name]))
    step = _combination(*terms)
    step = torch.zeros_like(x) if step is None else step
    if late:
        step = step * size
    if options["tangent"] == "step" or (rule.arrays and options["tangent"] == "gradient"):
        step = manifold.project(x, step)
    if rule.averages_steps:
        step = step * (options["lr"] * rule.steadied(manifold.norm(x, step), memory, options))
    factor: Any = 1.0
    if shape is not None:
        step, factor = shaped(manifold, x, step, memory.matrix, options)
    if flat and options["decoupled_weight_decay"] and options["weight_decay"]:
        kept = 1.0 - options["lr"] * options["weight_decay"]
        x = x * kept if torch.is_grad_enabled() else x.mul_(kept)
    if flat and isinstance(factor, float):
        return torch.add(x, step, alpha=factor) if torch.is_grad_enabled() else x.add_(step, alpha=factor)
    y = _move(manifold, x, step * factor if shape is not None else step, memory, options)
    return _held(manifold, y, memory, options, late) if late or shape is not None else y


def _measured(
    manifold: Manifold, rule: Rule, x: Tensor, gradient: Tensor, size: Any, late: bool, options: Options
) -> tuple[Tensor, Any]:
    """`gradient`, shortened to `max_point_norm`, and its length per point or, for a rule with `arrays`, per coordinate."""
    limit = None if isinstance(manifold, Euclidean) else options["max_point_norm"]
    length: Any = None
    if (rule.reads_lengths and not rule.arrays) or limit is not None:
        length = numerics.length(gradient, manifold.event_ndim) if late else manifold.norm(x, gradient)
    if limit is not None:
        shrink = torch.clamp(limit / length, max=1.0)
        gradient, length = gradient * shrink, length * shrink
    return gradient, (gradient / size).abs() if rule.arrays else length


def ambient(manifold: Manifold, x: Tensor, egrad: Tensor, options: Options, among: Tensor | None = None) -> Tensor:
    """The Euclidean gradient after sign, weight decay (Euclidean points) and orthogonality penalty (unit directions),
    (points, n); `egrad` is not written to. `among` as in `orthogonality_gradient`."""
    if options["maximize"]:
        egrad = -egrad
    if isinstance(manifold, Euclidean):
        coupled = options["weight_decay"] and not options["decoupled_weight_decay"]
        return egrad.add(x, alpha=options["weight_decay"]) if coupled else egrad
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

    ``"hold"``: to the norm of the row at its first step, stored in ``memory.scalars["radius"]``; a number: to that number,
    which is stored there before the step. ``"free"``: by a power of two, once the norm has left the `band`. The formula is
    `algebra.rescaling`. Steps with lr = 0 do not rescale.
    """
    held = options["radius"] != "free"
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


def _held(manifold: Manifold, y: Tensor, memory: Memory, options: Options, late: bool) -> Tensor:
    """The points `y` of a shaped step, on a scaling quotient at the norm to hold: such steps are defined for a network that may see
    the norm, which other steps restore at the next one."""
    if not isinstance(manifold, ScalingQuotient) or options["radius"] == "free":
        return y
    scale = _rescaling(manifold.radius(y), memory, options)
    if scale is None:
        return y
    if not late:
        memory.vectors = {name: manifold.act(scale, v) for name, v in memory.vectors.items()}
    return manifold.act(scale, y)


def _move(manifold: Manifold, x: Tensor, u: Tensor, memory: Memory, options: Options) -> Tensor:
    """The new points, (points, n), after the tangent step `u`; transports ``memory.vectors`` to them."""
    flat = isinstance(manifold, Euclidean)
    motion = "retract" if flat else options["motion"]
    transport = "none" if flat or not memory.vectors else options["transport"]
    if motion == "retract" and transport == "manifold":
        for name, v in memory.vectors.items():
            y, memory.vectors[name] = manifold.retract_and_transport(x, u, v)
        return y
    if motion == "retract":
        y = manifold.retract(x, u)
    else:
        y = _exp(manifold, x, u) if motion == "exp" else _polar(manifold, x, u)
    if transport == "project" or (motion == "polar" and transport == "manifold"):
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


def _polar(manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
    """The point nearest to x + u, on Stiefel its polar factor: a retraction of second order on embedded manifolds (Absil & Malick
    2012). A point with u = 0 is returned unchanged."""
    moved = x + u
    return numerics.hold_still(u, manifold.nearest(moved), moved, manifold.event_ndim)


def _averaged(v: Tensor, keep: Any, take: Any, gradient: Tensor) -> Tensor:
    """keep · v + take · γ; in place of `v` where both are numbers and nothing is recorded."""
    if torch.is_grad_enabled() or not (isinstance(keep, int | float) and isinstance(take, int | float)) or keep == 0:
        found = _combination((keep, v), (take, gradient))
        return torch.zeros_like(v) if found is None else found
    return v.mul_(keep).add_(gradient, alpha=take) if take else v.mul_(keep)


def _combination(*terms: tuple[Any, Tensor]) -> Tensor | None:
    """The sum of factor · array over `terms`; None if all factors are the number 0, since 0 · ∞ would be NaN."""
    total, own = None, False
    for factor, a in terms:
        number = isinstance(factor, int | float)
        if number and factor == 0:
            continue
        if total is None:
            total, own = (a, False) if number and factor == 1 else (a * factor, True)
        elif number and own and not torch.is_grad_enabled():
            total.add_(a, alpha=factor)
        else:
            total, own = torch.add(total, a, alpha=factor) if number else total + a * factor, True
    return total
