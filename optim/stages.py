"""Seams 1 and 2: what happens to a gradient before the rule sees it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..manifolds import ConformalManifold, Euclidean, Manifold, Spherical, numerics
from .options import Options
from .scaled import Scaled

__all__ = ["ambient", "clip", "gradient", "is_penalised", "orthogonality_gradient"]


def ambient(manifold: Manifold, x: Tensor, egrad: Tensor, options: Options, among: Tensor | None = None) -> Tensor:
    """Euclidean gradient after sign, weight decay (Euclidean points) and orthogonality penalty (unit
    directions), (points, n); never written in place. `among` as in `orthogonality_gradient`."""
    if options["maximize"]:
        egrad = -egrad
    if isinstance(manifold, Euclidean):
        return egrad.add(x, alpha=options["weight_decay"]) if options["weight_decay"] else egrad
    if is_penalised(manifold, options):
        assert isinstance(manifold, Spherical)
        return egrad + orthogonality_gradient(manifold, x, options["orthogonality"], among)
    return egrad


def is_penalised(manifold: Manifold, options: Options) -> bool:
    """Whether `ambient` adds the orthogonality penalty, which couples points; flat space has no unit directions."""
    return bool(options["orthogonality"]) and isinstance(manifold, Spherical)


def orthogonality_gradient(manifold: Spherical, x: Tensor, alpha: float, among: Tensor | None = None) -> Tensor:
    """Gradient of (α/2)‖Y Yᵀ − 1‖² with Y the rows of `x` at norm 1, (points, n).

    Where `x` are some of the points only, `among` is Y of all, (all points, n).

    That is 2α (Y Yᵀ Y − Y) in Y (Cho & Lee 2017, §4.2), and its projection over ‖x‖ in `x`. It couples all
    points of one parameter.
    """
    size = numerics.norm(x, 1)
    y = x / size
    every = y if among is None else among
    points, n = every.shape
    cubic = y @ (every.mT @ every) if n < points else (y @ every.mT) @ every
    return manifold.project(x, 2.0 * alpha * (cubic - y)) / size


def gradient(manifold: Manifold, x: Tensor, egrad: Tensor) -> Scaled:
    """Riemannian gradient; on a conformal manifold `egrad` itself with the conformal factor."""
    if isinstance(manifold, ConformalManifold):
        return Scaled(egrad, manifold.conformal_factor(x))
    return Scaled(manifold.riemannian_gradient(x, egrad))


def clip(manifold: Manifold, x: Tensor, gradient: Scaled, options: Options) -> Scaled:
    """`gradient`, no longer than `max_grad_norm` per point in the metric; Euclidean points are not clipped."""
    limit = options["max_grad_norm"]
    if limit is None or isinstance(manifold, Euclidean):
        return gradient
    return gradient.times(torch.clamp(limit / gradient.length(manifold, x), max=1.0))
