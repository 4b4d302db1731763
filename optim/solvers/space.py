"""The product of the manifolds of several arrays, as one space: a point is a list of arrays, and so is a tangent vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...manifolds import ConformalManifold, EmbeddedManifold, Euclidean, FixedRank, Manifold, SpectralSphere

__all__ = ["Arrays", "Space", "as_rows", "combined"]

Arrays = list[Tensor]
"""A point or a tangent vector of a product: one array, (*batch, *event), per manifold. In a stack each has one more dimension, in
front."""


class Space:
    """The product of `manifolds`, over all points of every array: ⟨u, v⟩ is the sum of the inner products of all points.

    Stacks of k tangent vectors have arrays (k, *batch, *event); all maps of a manifold broadcast over them.
    """

    def __init__(self, manifolds: Sequence[Manifold]) -> None:
        self.manifolds = list(manifolds)
        self._dots = [isinstance(m, EmbeddedManifold | Euclidean) for m in self.manifolds]
        self.flat = all(isinstance(m, Euclidean) for m in self.manifolds)
        """Whether all points are in flat space, where tangents stay as they are."""
        self.scale = 1.0
        """The length of a way that is neither short nor long: 1 on curved manifolds; in flat space, where lengths have units, that of
        the start."""
        self.reach = min([1.0, *(m.radius for m in self.manifolds if isinstance(m, SpectralSphere))])
        """The smallest radius of a manifold on which tangents are projected, by which ways are short or long."""
        self._projects = [isinstance(m, Euclidean) or _projects(m) for m in self.manifolds]
        self.projects = all(self._projects)
        """Whether tangents are transported by projections at the new point, which change them by a share of the square of the way."""

    def each(self, name: str, *arrays: Arrays) -> Arrays:
        """The method `name` of every manifold, of its arrays."""
        return [getattr(m, name)(*own) for m, *own in zip(self.manifolds, *arrays, strict=True)]

    def inner(self, x: Arrays, u: Arrays, v: Arrays) -> Tensor:
        """⟨u, v⟩ₓ, a tensor without dimensions."""
        return _total(
            torch.dot(b.reshape(-1), c.reshape(-1)) if dot else m.inner(a, b, c).sum()
            for m, dot, a, b, c in zip(self.manifolds, self._dots, x, u, v, strict=True)
        )

    def table(self, x: Arrays, u: Arrays, v: Arrays) -> Tensor:
        """The inner products of all tangents of a stack `u` with all of a stack `v`, (k, l)."""
        return _total(
            as_rows(b if dot else _lowered(m, a, b)) @ as_rows(c).T
            for m, dot, a, b, c in zip(self.manifolds, self._dots, x, u, v, strict=True)
        )

    def products(self, x: Arrays, u: Arrays, v: Arrays) -> Tensor:
        """The inner products of all tangents of a stack `u` with `v`, (k,)."""
        return _total(
            as_rows(b) @ c.reshape(-1) if dot else as_rows(m.inner(a, b, c)).sum(1)
            for m, dot, a, b, c in zip(self.manifolds, self._dots, x, u, v, strict=True)
        )

    def moved(self, x: Arrays, u: Arrays, d: Arrays) -> tuple[Arrays, Arrays]:
        """y = retract(x, u), and `d` for products with tangents there: transported, or as it is where that would be a projection,
        orthogonal in the metric, which does not change them."""
        both = [
            (m.retract(a, b), c) if projects or isinstance(m, FixedRank) else m.retract_and_transport(a, b, c)
            for m, projects, a, b, c in zip(self.manifolds, self._projects, x, u, d, strict=True)
        ]
        return [y for y, _ in both], [c for _, c in both]

    def carried(self, x: Arrays, u: Arrays, y: Arrays, v: Arrays) -> Arrays:
        """The tangent `v` at x, or a stack of them, transported to y = retract(x, u)."""
        return [
            m.project(b, c) if projects else m.transport(a, along, c)
            for m, projects, a, along, b, c in zip(self.manifolds, self._projects, x, u, y, v, strict=True)
        ]


def _projects(manifold: Manifold) -> bool:
    """Whether the transport of `manifold` is the projection at the new point, which is at hand."""
    own = type(manifold)
    return (
        own.transport is EmbeddedManifold.transport
        and own.retract_and_transport is EmbeddedManifold.retract_and_transport
    )


def _total(products: Iterator[Tensor]) -> Tensor:
    """The sum of the products of each array, on the device of the first."""
    first = next(products)
    return sum((one.to(first.device) for one in products), first)


def _lowered(manifold: Manifold, x: Tensor, stack: Tensor) -> Tensor:
    """The arrays whose dot products with tangents at `x` are the inner products with those of a stack."""
    if isinstance(manifold, ConformalManifold):
        return stack / manifold.conformal_factor(x)
    with torch.enable_grad():  # inner products are linear, and their derivative is that array
        v = torch.zeros_like(stack, requires_grad=True)
        return torch.autograd.grad(manifold.inner(x, stack, v).sum(), v)[0]


def as_rows(stack: Tensor) -> Tensor:
    """The arrays of a stack as rows, also those without dimensions."""
    return stack.flatten(1) if stack.ndim > 1 else stack.unsqueeze(1)


def combined(*terms: tuple[float, Arrays]) -> Arrays:
    """The sum of factor · arrays over `terms`."""
    (first, arrays), *rest = terms
    total = [first * a for a in arrays]
    for factor, others in rest:
        total = [a.add(b, alpha=factor) for a, b in zip(total, others, strict=True)]
    return total
