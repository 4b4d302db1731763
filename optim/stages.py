"""The ambient stages: changes of the Euclidean gradient before it becomes Riemannian."""

from __future__ import annotations

from torch import Tensor

from ..manifolds import Euclidean, Manifold, Spherical, numerics
from .options import Options

__all__ = ["ambient", "is_penalised", "orthogonality_gradient"]


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
