"""`Manifold`: the primitives a geometry must give, and the methods that follow from them.

Shapes are always ``(*batch, *event)``; `x` is a point, `u` and `v` are tangent vectors at `x`, `a` is any
ambient array, `egrad` a Euclidean gradient. Scalars per point keep the event dimensions as size 1,
``(*batch, 1…)``, so that they broadcast against points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..errors import GeometryError
from . import numerics

__all__ = ["Manifold"]


# The maps of arrays, of this class and of those below.
_MAPS = frozenset(
    ("inner", "norm", "project", "riemannian_gradient", "nearest", "retract", "transport", "retract_and_transport")
    + ("point_defect", "exp", "log", "dist", "parallel_transport", "transport_to")
    + ("horizontal", "align", "alignment", "canonical", "balanced", "act")
)


def _refusing_complex(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def refusing(manifold: Manifold, *arrays: Any, **named: Any) -> Any:
        for array in (*arrays, *named.values()) if named else arrays:
            if array.dtype.is_complex:
                raise GeometryError(
                    f"{name} of {manifold!r} was given an array of {array.dtype}, but points and tangents "
                    "are real; give torch.view_as_real(a), or the real and the imaginary part"
                )
        return function(manifold, *arrays, **named)

    # torch.compile keeps a bounded number of programs per code object, so every map has one of its own.
    refusing.__code__ = refusing.__code__.replace(co_name=name)
    return wraps(function)(refusing)


class Manifold(ABC):
    """A Riemannian manifold, as a value: stateless, hashable, comparable, holding no tensors.

    A subclass is a frozen dataclass that sets `event_ndim` and implements the abstract members; each
    docstring states the law that its member must satisfy, and the conformance suite tests that law.
    """

    event_ndim: int
    """Number of trailing dimensions that make one point."""
    max_tangent_norm: float = 1e4
    """Length ‖u‖ₓ up to which all maps are finite and differentiable. Law: they are. A geometry whose maps overflow before
    (cosh, the exponential of a matrix) says so here, on the class or on an instance."""
    compact: bool = False
    """Whether the manifold is compact. Law: steps of lengths up to 1e30, and 1e100 in float64, end on it then, unless
    `max_tangent_norm` is lowered."""
    unmet_laws: Collection[str] = ()
    """Names of laws of `retract.testing` that the manifold is known to break; `retract.testing.laws` leaves them out."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Make the maps that a subclass defines refuse complex arrays, whose products would lack a conjugate."""
        super().__init_subclass__(**options)
        for name in _MAPS & vars(cls).keys():
            setattr(cls, name, _refusing_complex(name, vars(cls)[name]))

    @abstractmethod
    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Metric ⟨u, v⟩ₓ, (*batch, 1…). Law: symmetric, bilinear, positive on tangent vectors."""

    @abstractmethod
    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """Tangent vector for the ambient array `a`, (*batch, *event). Law: idempotent, identity on tangents."""

    @abstractmethod
    def riemannian_gradient(self, x: Tensor, egrad: Tensor) -> Tensor:
        """Riemannian gradient, (*batch, *event). Law: ⟨gradient, u⟩ₓ equals the dot product of `egrad` and `u`
        for every tangent `u`."""

    @abstractmethod
    def nearest(self, a: Tensor) -> Tensor:
        """Point closest to `a`, (*batch, *event). Law: leaves a point as it is, bitwise."""

    @abstractmethod
    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """Point reached from `x` along `u`, (*batch, *event). Law: ``retract(x, 0)`` is `x` as an array, and the
        map agrees with ``x + u`` to first order."""

    @abstractmethod
    def transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Tangent vector at ``retract(x, u)`` that corresponds to `v`, (*batch, *event). Law: linear in `v`, identity
        at ``u = 0``."""

    @abstractmethod
    def point_defect(self, x: Tensor) -> Tensor:
        """How far `x` is off the manifold, (*batch, 1…), ≥ 0 and 0 on it up to rounding."""

    @abstractmethod
    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Random points of shape ``(*batch, *event)``. Law: deterministic given the generator."""

    def retract_and_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``retract(x, u)`` and ``transport(x, u, v)``, for manifolds that can share the work between them."""
        return self.retract(x, u), self.transport(x, u, v)

    # What follows. None of these is overridden, but `norm`, where no square has to be formed, and `advice`.

    def norm(self, x: Tensor, u: Tensor) -> Tensor:
        """Length √⟨u, u⟩ₓ of `u` in the metric, (*batch, 1…)."""
        return numerics.safe_sqrt(self.inner(x, u, u))

    def tangent_defect(self, x: Tensor, u: Tensor) -> Tensor:
        """Share of `u` that is not tangent at `x`, ‖u − project(x, u)‖ / ‖u‖, (*batch, 1…); 0 for u = 0."""
        size = numerics.norm(u, self.event_ndim)
        off = numerics.norm(u - self.project(x, u), self.event_ndim)
        return torch.where(size > 0, off / torch.where(size > 0, size, 1.0), off)

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Projection of a standard normal array at `x`, (*batch, *event)."""
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return self.project(x, noise)

    def event_error(self, event: Sequence[int]) -> str | None:
        """Why points cannot have the event shape `event`, or None if they can.

        Subclasses with conditions of their own (n ≥ p, say) extend it.
        """
        if len(event) != self.event_ndim:
            return f"a point of {self!r} has {self.event_ndim} dimensions, not {len(event)}"
        if 0 in event:
            return "a point cannot be empty"
        return None

    def advice(self, x: Tensor) -> str:
        """What to do about the array `x`, (*event), that is no point; also why it is none, where the defect does not say that."""
        return "put it there with nearest(), declared parameters with retract.project_(model)"

    def check_point(self, x: Tensor, name: str = "x", tolerance: float | None = None) -> None:
        """Raise `GeometryError` if a row of `x` is off the manifold by more than `tolerance`, by default
        `numerics.tolerance` of its dtype.

        The message names the worst row, its defect and the tolerance.
        """
        error = self.event_error(x.shape[x.ndim - self.event_ndim :] if x.ndim >= self.event_ndim else x.shape)
        if error:
            raise GeometryError(f"{name} of shape {tuple(x.shape)}: {error}")
        limit = numerics.tolerance(x.dtype) if tolerance is None else tolerance
        event = x.shape[x.ndim - self.event_ndim :]
        self._raise_worst(
            self.point_defect(x),
            limit,
            f"{name} is not on {self!r}",
            lambda row: self.advice(x.detach().reshape(-1, *event)[row]),
        )

    def check_tangent(self, x: Tensor, u: Tensor, name: str = "u") -> None:
        """Raise `GeometryError` if a row of `u` is not tangent at `x`, as `check_point` does."""
        defect = self.tangent_defect(x, u)
        limit = numerics.tolerance(u.dtype)
        self._raise_worst(defect, limit, f"{name} is not tangent to {self!r}", lambda _: "make it so with project()")

    def _raise_worst(self, defect: Tensor, limit: float, what: str, remedy: Callable[[int], str]) -> None:
        flat = defect.detach().reshape(-1).nan_to_num(nan=torch.inf, posinf=torch.inf)
        if flat.numel() and flat.max() > limit:
            row = int(flat.argmax())
            raise GeometryError(
                f"{what}: row {row} is off by {float(flat[row]):.2g} (tolerance {limit:.2g}); {remedy(row)}"
            )
