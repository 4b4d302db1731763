"""The bridge to geoopt, in both directions; geoopt is imported when the bridge is used, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import GeometryError
from . import numerics
from .base import Manifold
from .geodesic import ExponentialManifold

if TYPE_CHECKING:
    import geoopt

__all__ = ["FromGeoopt", "from_geoopt", "to_geoopt"]

# Found by running the conformance laws on geoopt 0.5.1; the tests run them again and expect each refusal to be deserved.
_REFUSED = {
    "CanonicalStiefel": "its projection is not idempotent and its retraction does not agree with x + u to first order; "
    "use geoopt.EuclideanStiefel, or retract's Stiefel",
    "BirkhoffPolytope": "its gradient is not dual to its metric, and its projection is not idempotent",
    "BoundedDomain": "its points are complex; retract's manifolds are real",
    "UpperHalf": "its points are complex; retract's manifolds are real",
    "Scaled": "its retraction rescales the step, so it does not agree with x + u to first order, and it cannot be "
    "pickled; use the manifold inside it and scale the learning rate",
}

# The laws that geoopt 0.5.1 breaks in one of these, or in a product with one, at some points at least.
_FIRST, _SECOND = "first_derivatives_equal_differences", "second_derivatives_equal_differences"
_UNMET = {
    "EuclideanStiefel": (
        # Projections are differentiated through decompositions whose factors are changed in place, and raise for NaN.
        *("steps_are_differentiable", _FIRST, _SECOND, "derivatives_batch", "nan_is_no_point"),
        # torch.linalg.matrix_exp of a small matrix alone is off by 1e-10, in a batch it is not.
        *("batch_equals_loop", "geodesics_take_many_times"),
    ),
    "Lorentz": (_FIRST, _SECOND, "transport_is_a_vector_transport"),  # along short steps with an error of 1e-9
    "PoincareBall": (_SECOND, "vmap_and_compile_agree"),
    "SymmetricPositiveDefinite": (
        *("steps_are_differentiable", _FIRST, _SECOND),  # NaN where eigenvalues coincide up to rounding, as at u = 0
        *("vmap_and_compile_agree", "nan_is_no_point"),
    ),
}
_MAX_TANGENT_NORM = {"Lorentz": 1.0, "SymmetricPositiveDefinite": 1.0}  # cosh ‖u‖, the exponential of a matrix


def from_geoopt(manifold: geoopt.Manifold) -> Manifold:
    """The geoopt manifold as one of ours, for our optimizers and `declare`.

    Derivatives are geoopt's: which of the laws of `retract.testing` do not hold for them, `Manifold.unmet_laws` says.

    Example:
        >>> import geoopt
        >>> from_geoopt(geoopt.PoincareBall()).event_ndim
        1

    Raises:
        GeometryError: a manifold whose metric or retraction breaks the laws of `Manifold`, also inside a product; a learnable
            curvature.
    """
    from .as_geoopt import ToGeoopt

    if isinstance(manifold, ToGeoopt):
        return manifold.manifold
    for part in manifold.modules():
        reason = _REFUSED.get(type(part).__name__)
        if reason and type(part).__module__.startswith("geoopt."):
            raise GeometryError(f"geoopt's {type(part).__name__} is refused: {reason}")
    learnable = [name for name, parameter in manifold.named_parameters() if parameter.requires_grad]
    if learnable:
        raise GeometryError(
            f"{manifold} learns {', '.join(learnable)}: the metric would change under the optimizer's state; fix it "
            "with requires_grad_(False)"
        )
    return FromGeoopt(manifold)


def to_geoopt(manifold: Manifold) -> geoopt.Manifold:
    """Our manifold as a geoopt one, for `geoopt.ManifoldParameter` and geoopt's optimizers and samplers.

    Example:
        >>> import geoopt, retract
        >>> sphere = to_geoopt(retract.manifolds.Sphere())
        >>> w = geoopt.ManifoldParameter(sphere.random(3, 5), manifold=sphere)
    """
    from .as_geoopt import ToGeoopt

    return manifold.manifold if isinstance(manifold, FromGeoopt) else ToGeoopt(manifold)


class FromGeoopt(ExponentialManifold):
    """A geoopt manifold behind our interface, comparable by value; made by `from_geoopt`."""

    def __init__(self, manifold: geoopt.Manifold) -> None:
        self.manifold = manifold
        self.event_ndim = manifold.ndim
        parts = [type(part).__name__ for part in manifold.modules()]
        self.unmet_laws = ("repr_evaluates", *(law for part in parts for law in _UNMET.get(part, ())))
        self.max_tangent_norm = min(_MAX_TANGENT_NORM.get(part, Manifold.max_tangent_norm) for part in parts)

    def _key(self) -> tuple[Any, ...]:
        state = {**dict(self.manifold.named_parameters()), **dict(self.manifold.named_buffers())}
        values = tuple((name, tuple(value.detach().reshape(-1).tolist())) for name, value in sorted(state.items()))
        return type(self.manifold), str(self.manifold), values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FromGeoopt) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"from_geoopt({self.manifold})"

    def event_error(self, event: Any) -> str | None:
        """As in `Manifold.event_error`, and what geoopt itself says of the shape."""
        return super().event_error(event) or self.manifold._check_shape(tuple(event), "point")[1]

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """geoopt's `inner`, (*batch, 1…)."""
        x, u, v = torch.broadcast_tensors(x, u, v)
        value = self.manifold.inner(x, u, v, keepdim=True)
        return value.reshape(x.shape[: x.ndim - self.event_ndim] + (1,) * self.event_ndim)

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """geoopt's `proju`, (*batch, *event)."""
        return self.manifold.proju(*torch.broadcast_tensors(x, a))

    def riemannian_gradient(self, x: Tensor, egrad: Tensor) -> Tensor:
        """geoopt's `egrad2rgrad`, (*batch, *event), on a copy: some of them write to their input."""
        x, egrad = torch.broadcast_tensors(x, egrad)
        return self.manifold.egrad2rgrad(x, egrad.clone())

    def nearest(self, a: Tensor) -> Tensor:
        """geoopt's `projx`, (*batch, *event); points stay as they are, bitwise."""
        placed = self.manifold.projx(a)
        gap = numerics.norm(a - placed, self.event_ndim) / numerics.norm(a, self.event_ndim).clamp(min=1.0)
        return numerics.settle(a, gap, placed, a.shape[-self.event_ndim :].numel() if self.event_ndim else 1)

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """geoopt's `retr`, (*batch, *event)."""
        return numerics.hold_still(u, self.manifold.retr(x, u), x + u, self.event_ndim)

    def transport(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """geoopt's `transp_follow_retr`, (*batch, *event)."""
        return self.manifold.transp_follow_retr(*torch.broadcast_tensors(x, u, v))

    def retract_and_transport(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """geoopt's `retr_transp`, with the point as `retract` gives it."""
        y, moved = self.manifold.retr_transp(x, u, v)
        return numerics.hold_still(u, y, x + u, self.event_ndim), moved

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """geoopt's `expmap`, (*batch, *event)."""
        return numerics.hold_still(u, self.manifold.expmap(x, u), x + u, self.event_ndim)

    def point_defect(self, x: Tensor) -> Tensor:
        """‖x − projx(x)‖, (*batch, 1…)."""
        return numerics.norm(x - self.manifold.projx(x), self.event_ndim)

    def random_point(
        self,
        *shape: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """geoopt's `random`, or a random step from its origin where it has none.

        geoopt draws from the global generator, in float32: seeded here and put back after, and projected
        in the dtype asked for.
        """
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device if generator else None))
        dtype = dtype or torch.get_default_dtype()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                x = self.manifold.random(*shape)
            except NotImplementedError:
                origin = self.manifold.origin(*shape)
                x = self.manifold.retr(origin, self.manifold.proju(origin, torch.randn(*shape) / shape[-1] ** 0.5))
        return self.manifold.projx(x.to(device=device, dtype=dtype))
