"""Products: a point is made of points of other manifolds."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import GeometryError
from . import numerics
from .base import Manifold
from .geodesic import ExponentialManifold, GeodesicManifold

__all__ = ["ExponentialProduct", "GeodesicProduct", "PlainProduct", "Product"]

Parts: TypeAlias = tuple[tuple[Manifold, tuple[int, ...]], ...]


class Product(Manifold):
    """The product of manifolds, each with the shape of one of its points. A point is an array (*batch, total) of the entries of its
    parts, one part after the other. The metric is the sum, and every map works part by part.

    ``Product(…)`` is a `GeodesicManifold` if all parts are, else an `ExponentialManifold` if all parts are. Where a part is a quotient, functions have to be invariant in that
    part, as on the part alone.

    Example:
        >>> import torch
        >>> from retract.manifolds import Product, Sphere, Stiefel
        >>> product = Product((Sphere(), (3,)), (Stiefel(), (4, 2)))
        >>> x = product.random_point(5, 11)
        >>> [tuple(part.shape) for part in product.unpack(x)]
        [(5, 3), (5, 4, 2)]
        >>> torch.equal(product.pack(*product.unpack(x)), x)
        True

    Raises:
        GeometryError: no parts; a part that is no pair of a manifold and the shape of a point.
    """

    event_ndim = 1

    @property
    @abstractmethod
    def parts(self) -> Parts:
        """Pairs of a manifold and the shape of one of its points."""

    def __new__(cls, *parts: tuple[Manifold, Sequence[int]]) -> Any:
        for number, part in enumerate(parts):
            if not (isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], Manifold)):
                raise GeometryError(
                    f"part {number} of a Product is {part!r}, not a pair of a manifold and the shape of one of its points, as in "
                    "Product((Sphere(), (3,)), (Stiefel(), (5, 2)))"
                )
            error = part[0].event_error(tuple(part[1]))
            if error:
                raise GeometryError(f"part {number} of a Product has shape {tuple(part[1])}: {error}")
        if not parts:
            raise GeometryError(
                "a Product needs at least one part, as in Product((Sphere(), (3,)), (Stiefel(), (5, 2)))"
            )
        for kind, hypothesis in ((GeodesicProduct, GeodesicManifold), (ExponentialProduct, ExponentialManifold)):
            if all(isinstance(manifold, hypothesis) for manifold, _ in parts):
                return object.__new__(kind)
        return object.__new__(PlainProduct)

    def __init__(self, *parts: tuple[Manifold, Sequence[int]]) -> None:
        manifolds = [manifold for manifold, _ in parts]
        values = {
            "parts": tuple((manifold, tuple(shape)) for manifold, shape in parts),
            "max_tangent_norm": min(manifold.max_tangent_norm for manifold in manifolds),
            "compact": all(manifold.compact for manifold in manifolds),
            "injectivity_radius": min(getattr(manifold, "injectivity_radius", math.inf) for manifold in manifolds),
            # NaN in one part is seen if that part sees it.
            "unmet_laws": ("nan_is_no_point",)
            * all("nan_is_no_point" in manifold.unmet_laws for manifold in manifolds),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return Product, self.parts

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.parts))})"

    @property
    def total(self) -> int:
        """The number of entries of a point."""
        return sum(math.prod(shape) for _, shape in self.parts)

    def unpack(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parts of points or tangents, (*batch, total) → (*batch, *event) for each; views of `x` where its layout allows."""
        split = x.split([math.prod(shape) for _, shape in self.parts], -1)
        return tuple(part.reshape(part.shape[:-1] + shape) for part, (_, shape) in zip(split, self.parts, strict=True))

    def pack(self, *parts: Tensor) -> Tensor:
        """The inverse of `unpack`: (*batch, *event) for each part → (*batch, total)."""
        return torch.cat(
            [
                part.reshape(part.shape[: part.ndim - len(shape)] + (math.prod(shape),))
                for part, (_, shape) in zip(parts, self.parts, strict=True)
            ],
            -1,
        )

    def _mapped(self, name: str, *arrays: Tensor) -> list[Any]:
        """What the map `name` of each part makes of its share of the arrays."""
        shares = zip(*map(self.unpack, arrays), strict=True)
        return [getattr(manifold, name)(*share) for (manifold, _), share in zip(self.parts, shares, strict=True)]

    def _scalars(self, name: str, *arrays: Tensor) -> Tensor:
        """Scalars of the parts, side by side, (*batch, parts)."""
        found = zip(self._mapped(name, *arrays), self.parts, strict=True)
        return torch.cat([s.reshape(s.shape[: s.ndim - len(shape)] + (1,)) for s, (_, shape) in found], -1)

    def event_error(self, event: Sequence[int]) -> str | None:
        """As in `Manifold.event_error`, and the size is that of all parts together."""
        error = super().event_error(event)
        if error is None and event[0] != self.total:
            return f"a point of {self!r} has {self.total} entries, those of all parts, not {event[0]}"
        return error

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The sum of the inner products of the parts, (*batch, 1)."""
        return self._scalars("inner", x, u, v).sum(-1, keepdim=True)

    def norm(self, x: Tensor, u: Tensor) -> Tensor:
        """√Σ ‖uᵢ‖², (*batch, 1): as in `Manifold.norm`, from the lengths of the parts."""
        return numerics.length(self._scalars("norm", x, u), 1)

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """Projections of the parts, (*batch, total)."""
        return self.pack(*self._mapped("project", x, a))

    def riemannian_gradient(self, x: Tensor, egrad: Tensor) -> Tensor:
        """Gradients of the parts, (*batch, total)."""
        return self.pack(*self._mapped("riemannian_gradient", x, egrad))

    def nearest(self, a: Tensor) -> Tensor:
        """Nearest points of the parts, (*batch, total)."""
        return self.pack(*self._mapped("nearest", a))

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """Retractions of the parts, (*batch, total)."""
        return self.pack(*self._mapped("retract", x, u))

    def transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Transports of the parts, (*batch, total)."""
        return self.pack(*self._mapped("transport", x, u, v))

    def retract_and_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both, with what the parts share."""
        points, tangents = zip(*self._mapped("retract_and_transport", x, u, v), strict=True)
        return self.pack(*points), self.pack(*tangents)

    def point_defect(self, x: Tensor) -> Tensor:
        """The largest defect of a part, (*batch, 1)."""
        return self._scalars("point_defect", x).amax(-1, keepdim=True)

    def advice(self, x: Tensor) -> str:
        """Which part of `x`, (total,), is farthest off its manifold, and the advice of that."""
        defects = self._scalars("point_defect", x).nan_to_num(nan=torch.inf)
        number = int(defects.argmax())
        manifold = self.parts[number][0]
        return f"part {number}, of {manifold!r}, is; {manifold.advice(self.unpack(x)[number])}"

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Random points of the parts, independent of each other, (*batch, total)."""
        options: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": device}
        drawn = [manifold.random_point(*shape[:-1], *event, **options) for manifold, event in self.parts]
        return self.pack(*drawn)


@dataclass(frozen=True, repr=False, init=False)
class PlainProduct(Product):
    """A product with a part that has no geodesics in closed form; made by `Product`."""

    parts: Parts = ()


@dataclass(frozen=True, repr=False, init=False)
class ExponentialProduct(Product, ExponentialManifold):
    """A product of manifolds with geodesics in closed form; made by `Product`."""

    parts: Parts = ()

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """Exponentials of the parts, (*batch, total)."""
        return self.pack(*self._mapped("exp", x, u))


@dataclass(frozen=True, repr=False, init=False)
class GeodesicProduct(Product, GeodesicManifold):
    """A product of manifolds with geodesics, logarithms and parallel transport in closed form; made by `Product`."""

    parts: Parts = ()

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """Exponentials of the parts, (*batch, total)."""
        return self.pack(*self._mapped("exp", x, u))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithms of the parts, (*batch, total)."""
        return self.pack(*self._mapped("log", x, y))

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """√Σ distᵢ², (*batch, 1)."""
        return numerics.length(self._scalars("dist", x, y), 1)

    def parallel_transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Parallel transport in the parts, (*batch, total)."""
        return self.pack(*self._mapped("parallel_transport", x, u, v))

    def transport_to(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Transport along the geodesics of the parts, (*batch, total)."""
        return self.pack(*self._mapped("transport_to", x, y, v))
