"""The registry: every manifold that the conformance suite runs. A new manifold is one entry here."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import geoopt
import torch
from retract.manifolds import PSI, Euclidean, Grassmann, Manifold, Sphere, Stiefel, from_geoopt


def identity(x):
    return x


def gram(x):
    """x xᵀ, which knows the subspace and not its basis."""
    x = x if x.ndim > 2 else x.unsqueeze(-1)
    return x @ x.mT


def direction(x):
    return x / x.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Case:
    id: str
    manifold: Manifold
    shape: tuple[int, ...]
    """(*batch, *event) with one batch dimension."""
    off: object
    """One event that is no point, for check_point."""
    known: tuple = ()
    """(method, arguments, result) by hand."""
    invariant: Callable = identity
    """A map that is constant on the classes of a quotient."""
    injectivity: float = math.inf
    repr_evaluates: bool = True
    reach: float = 1e4
    """Up to which ‖u‖ all maps are finite, where the geometry itself does not let them be further."""
    waived: tuple[str, ...] = ()
    """Laws that are known not to hold; the suite tests that none of them does."""


SECOND = "second_derivatives_equal_differences"
# geoopt differentiates its projections through decompositions whose factors it changes in place.
DECOMPOSED = ("steps_are_differentiable", "first_derivatives_equal_differences", SECOND, "derivatives_batch")

X, Y = [1.0, 0.0], [0.0, 1.0]
R2 = 2**-0.5

CASES = [
    Case("euclidean0", Euclidean(0), (3,), float("nan"), known=(("exp", (1.0, 2.0), 3.0),)),
    Case("euclidean1", Euclidean(1), (3, 4), [float("nan"), 0.0], known=(("dist", (X, Y), [2**0.5]),)),
    Case(
        "sphere",
        Sphere(),
        (3, 5),
        [1.0, 1.0],
        injectivity=math.pi,
        known=(
            ("exp", (X, [0.0, math.pi / 2]), Y),
            ("retract", (X, Y), [R2, R2]),
            ("log", (X, Y), [0.0, math.pi / 2]),
            ("dist", (X, [-1.0, 0.0]), [math.pi]),
            ("parallel_transport", (X, [0.0, math.pi / 2], Y), [-1.0, 0.0]),
            ("riemannian_gradient", (X, [3.0, 4.0]), [0.0, 4.0]),
        ),
    ),
    Case(
        "psi",
        PSI(),
        (3, 5),
        [0.0, 0.0],
        invariant=direction,
        injectivity=math.pi,
        known=(
            ("riemannian_gradient", ([2.0, 0.0], [0.0, 3.0]), [0.0, 12.0]),
            ("inner", ([2.0, 0.0], [0.0, 3.0], [0.0, 4.0]), [3.0]),
            ("retract", ([2.0, 0.0], Y), [2.0, 1.0]),
            ("exp", ([2.0, 0.0], [0.0, math.pi]), [0.0, 2.0]),
            ("dist", ([2.0, 0.0], [0.0, 5.0]), [math.pi / 2]),
            ("transport_to", ([2.0, 0.0], [0.0, 6.0], Y), [-3.0, 0.0]),
        ),
    ),
    Case(
        "grassmann1",
        Grassmann(1),
        (3, 5),
        [1.0, 1.0],
        invariant=gram,
        injectivity=math.pi / 2,
        known=(("dist", (X, [-R2, R2]), [math.pi / 4]), ("log", (X, [-R2, -R2]), [0.0, math.pi / 4])),
    ),
    Case(
        "grassmann3",
        Grassmann(3),
        (2, 6, 3),
        torch.eye(6, 3).mul(2).tolist(),
        invariant=gram,
        injectivity=math.pi / 2,
    ),
    Case(
        "grassmann2",
        Grassmann(2),
        (2, 4, 2),
        torch.eye(4, 2).mul(2).tolist(),
        invariant=gram,
        injectivity=math.pi / 2,
        known=(
            (
                "exp",
                ([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0], [math.pi / 2, 0.0]]),
                [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]],
            ),
        ),
    ),
    Case(
        "stiefel",
        Stiefel(),
        (2, 6, 3),
        torch.eye(6, 3).mul(2).tolist(),
        known=(("nearest", ([[2.0], [0.0]],), [[1.0], [0.0]]),),
    ),
    Case(
        "geoopt-lorentz",
        from_geoopt(geoopt.Lorentz()),
        (3, 5),
        [0.5, 1.0, 1.0],
        repr_evaluates=False,
        reach=1.0,  # cosh ‖u‖
        waived=("first_derivatives_equal_differences", SECOND),
    ),
    Case(
        "geoopt-poincare",
        from_geoopt(geoopt.PoincareBall()),
        (3, 5),
        [1.0, 1.0],
        repr_evaluates=False,
        waived=(SECOND, "vmap_and_compile_agree"),
    ),
    Case(
        "geoopt-spd",
        from_geoopt(geoopt.SymmetricPositiveDefinite()),
        (2, 3, 3),
        [[1.0, 2.0], [2.0, 1.0]],
        repr_evaluates=False,
        reach=1.0,  # the exponential of a matrix
        waived=(SECOND, "vmap_and_compile_agree"),
    ),
    Case(
        "geoopt-stiefel",
        from_geoopt(geoopt.EuclideanStiefel()),
        (2, 6, 3),
        torch.eye(6, 3).mul(2).tolist(),
        repr_evaluates=False,
        waived=DECOMPOSED,
    ),
    Case(
        "geoopt-product",
        from_geoopt(geoopt.ProductManifold((geoopt.Sphere(), 4), (geoopt.EuclideanStiefel(), (3, 2)))),
        (2, 10),
        [2.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0],
        repr_evaluates=False,
        waived=DECOMPOSED,
    ),
]
