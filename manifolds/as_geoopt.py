"""Our manifolds behind geoopt's interface. Imports geoopt, so only the bridge imports this file."""

from __future__ import annotations

import geoopt
import torch
from torch import Tensor

from .base import Manifold
from .geodesic import ExponentialManifold, GeodesicManifold

__all__ = ["ToGeoopt"]


class ToGeoopt(geoopt.manifolds.Manifold):
    """One of our manifolds for `geoopt.ManifoldParameter`; made by `to_geoopt`.

    `expmap` is the retraction where no exponential is known, as in geoopt itself; `logmap` and `dist`
    raise NotImplementedError where there is no logarithm. geoopt knows no classes: on a quotient
    ``expmap(x, logmap(x, y))`` is the point of `y`, but maybe another representative of it.
    """

    reversible = False

    def __init__(self, manifold: Manifold) -> None:
        super().__init__()
        self.manifold = manifold
        self.ndim = manifold.event_ndim
        self.name = repr(manifold)

    def _reduce(self, scalar: Tensor, keepdim: bool) -> Tensor:
        return scalar if keepdim else scalar.reshape(scalar.shape[: scalar.ndim - self.ndim])

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """Metric; `v` defaults to `u`."""
        return self._reduce(self.manifold.inner(x, u, u if v is None else v), keepdim)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """`Manifold.project`."""
        return self.manifold.project(x, u)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """`Manifold.riemannian_gradient`."""
        return self.manifold.riemannian_gradient(x, u)

    def projx(self, x: Tensor) -> Tensor:
        """`Manifold.nearest`, contiguous: geoopt's products take views of it."""
        return self.manifold.nearest(x).contiguous()

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """`Manifold.retract`."""
        return self.manifold.retract(x, u)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """`exp` where there is one, else `Manifold.retract`."""
        return self.manifold.exp(x, u) if isinstance(self.manifold, ExponentialManifold) else self.retr(x, u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """`GeodesicManifold.log`."""
        return self._geodesic("logmap").log(x, y)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """`GeodesicManifold.dist`."""
        return self._reduce(self._geodesic("dist").dist(x, y), keepdim)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`GeodesicManifold.transport_to` where there is one, else projection at `y`."""
        if isinstance(self.manifold, GeodesicManifold):
            return self.manifold.transport_to(x, y, v)
        return self.manifold.project(y, v)

    def transp_follow_retr(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`Manifold.transport`."""
        return self.manifold.transport(x, u, v)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`GeodesicManifold.parallel_transport` where there is one, else projection."""
        if isinstance(self.manifold, GeodesicManifold):
            return self.manifold.parallel_transport(x, u, v)
        return self.manifold.project(self.expmap(x, u), v)

    def random(
        self, *size: int, dtype: torch.dtype | None = None, device: torch.device | None = None, **kwargs: object
    ) -> Tensor:
        """`Manifold.random_point`."""
        return self.manifold.random_point(*size, dtype=dtype, device=device)

    def _geodesic(self, what: str) -> GeodesicManifold:
        if not isinstance(self.manifold, GeodesicManifold):
            raise NotImplementedError(f"{what}: {self.manifold!r} has no logarithm in closed form")
        return self.manifold

    def _check_point_on_manifold(self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5) -> tuple[bool, str | None]:
        worst = float(self.manifold.point_defect(x).max())
        return worst <= atol, None if worst <= atol else f"point defect {worst:.2g} with {atol=}"

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, ok_point: bool = False, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        worst = float(self.manifold.tangent_defect(x, u).max())
        return worst <= atol, None if worst <= atol else f"tangent defect {worst:.2g} with {atol=}"
