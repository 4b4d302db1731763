"""What happens to a Euclidean gradient before the update makes it Riemannian."""

from __future__ import annotations

from torch import Tensor

from ..manifolds import Euclidean, Manifold, Spherical, numerics
from .options import Options

__all__ = ["ambient", "is_penalised", "orthogonality_gradient"]


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
