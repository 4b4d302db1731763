"""The registry: every manifold that the conformance suite runs. A new manifold is one entry here."""

import math
from dataclasses import dataclass

import geoopt
import torch
from retract.manifolds import (
    PSI,
    CenteredSphere,
    Euclidean,
    FixedRank,
    Grassmann,
    Lorentz,
    Manifold,
    PoincareBall,
    Product,
    ProjectiveSpace,
    SpecialOrthogonal,
    SpectralSphere,
    Sphere,
    Stiefel,
    SymmetricPositiveDefinite,
    from_geoopt,
)
from retract.manifolds.full_rank import FullRankFactors


@dataclass(frozen=True)
class Case:
    id: str
    manifold: Manifold
    shape: tuple[int, ...]
    """Of one point."""
    off: object = None
    """A point that is none, for check_point."""
    known: tuple = ()
    """(method, arguments, result) by hand."""


X, Y = [1.0, 0.0], [0.0, 1.0]
ORIGIN = [1.0, 0.0, 0.0]
COLUMN = [[3.0], [4.0], [0.0], [2.0]]
R2 = 2**-0.5
PAIR = [0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 0.0, 3.0]
QUARTER = [[0.0, -1.0], [1.0, 0.0]]
ONE, FOUR = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 4.0]]

CASES = [
    Case("euclidean0", Euclidean(0), (), known=(("exp", (1.0, 2.0), 3.0),)),
    Case("euclidean1", Euclidean(1), (4,), known=(("dist", (X, Y), [2**0.5]),)),
    Case(
        "sphere",
        Sphere(),
        (5,),
        [1.0, 1.0],
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
        "centered-sphere",
        CenteredSphere(),
        (5,),
        [0.6, 0.8, 0.0],
        known=(
            ("nearest", ([1.0, 1.0, 4.0],), [-(6**-0.5), -(6**-0.5), 2 * 6**-0.5]),
            ("project", ([R2, -R2, 0.0], [3.0, 0.0, 0.0]), [0.5, 0.5, -1.0]),
            ("dist", ([R2, -R2, 0.0], [0.0, R2, -R2]), [2 * math.pi / 3]),
        ),
    ),
    Case(
        "spectral-sphere",
        SpectralSphere(),
        (4, 3),
        [[2.0, 0.0], [0.0, 1.0]],
        known=(
            ("nearest", ([[4.0, 0.0], [0.0, 1.0]],), [[1.0, 0.0], [0.0, 0.25]]),
            ("project", ([[1.0, 0.0], [0.0, 0.5]], [[3.0, 1.0], [2.0, 5.0]]), [[0.0, 1.0], [2.0, 5.0]]),
            ("retract", ([[1.0, 0.0], [0.0, 0.5]], [[0.0, 0.0], [0.0, 1.5]]), [[0.5, 0.0], [0.0, 1.0]]),
        ),
    ),
    Case("spectral-sphere-wide", SpectralSphere(2.0), (3, 5), torch.eye(3, 5).tolist()),
    Case(
        "psi",
        PSI(),
        (5,),
        [0.0, 0.0],
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
        "lines",
        ProjectiveSpace(),
        (5,),
        [1.0, 1.0],
        known=(("dist", (X, [-R2, R2]), [math.pi / 4]), ("log", (X, [-R2, -R2]), [0.0, math.pi / 4])),
    ),
    Case("grassmann3", Grassmann(3), (6, 3), torch.eye(6, 3).mul(2).tolist()),
    Case(
        "grassmann2",
        Grassmann(2),
        (4, 2),
        torch.eye(4, 2).mul(2).tolist(),
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
        (6, 3),
        torch.eye(6, 3).mul(2).tolist(),
        known=(("nearest", ([[2.0], [0.0]],), [[1.0], [0.0]]),),
    ),
    Case(
        "fixed-rank1",
        FixedRank(1, 3),
        (5, 1),
        [[1.0], [2.0], [0.0], [0.0], [0.0]],
        known=(
            ("riemannian_gradient", (COLUMN, [[0.0], [8.0], [0.0], [4.0]]), [[0.0], [2.0], [0.0], [0.16]]),
            ("inner", (COLUMN, [[0.0], [1.0], [0.0], [1.0]], [[0.0], [1.0], [0.0], [2.0]]), [[54.0]]),
            ("project", (COLUMN, [[3.0], [4.0], [0.0], [0.0]]), [[1.5], [2.0], [0.0], [1.0]]),
        ),
    ),
    Case(
        "lorentz",
        Lorentz(),
        (5,),
        [0.5, 1.0, 1.0],
        known=(
            ("exp", (ORIGIN, [0.0, 1.0, 0.0]), [math.cosh(1.0), math.sinh(1.0), 0.0]),
            ("retract", (ORIGIN, [0.0, 0.75, 0.0]), [1.25, 0.75, 0.0]),
            ("log", (ORIGIN, [1.25, 0.75, 0.0]), [0.0, math.log(2.0), 0.0]),
            ("dist", ([1.25, 0.75, 0.0], [1.25, -0.75, 0.0]), [2 * math.log(2.0)]),
            ("transport_to", (ORIGIN, [1.25, 0.75, 0.0], [0.0, 4.0, 2.0]), [3.0, 5.0, 2.0]),
            ("riemannian_gradient", ([1.25, 0.75, 0.0], [1.0, 0.0, 2.0]), [0.5625, 0.9375, 2.0]),
            ("project", ([1.25, 0.75, 0.0], [1.0, 0.0, 2.0]), [-0.5625, -0.9375, 2.0]),
        ),
    ),
    Case(
        "lorentz-flatter",
        Lorentz(-0.25),
        (3,),
        [1.0, 1.0],
        known=(("dist", ([2.0, 0.0], [2.5, 1.5]), [2 * math.log(2.0)]),),
    ),
    Case(
        "poincare",
        PoincareBall(),
        (5,),
        [1.0, 1.0],
        known=(
            ("inner", ([0.5, 0.0], [3.0, 0.0], [1.0, 1.0]), [64.0 / 3.0]),
            ("exp", ([0.0, 0.0], [math.log(2.0), 0.0]), [0.6, 0.0]),
            ("retract", ([0.0, 0.0], [0.375, 0.0]), [1.0 / 3.0, 0.0]),
            ("log", ([0.0, 0.0], [0.0, 0.6]), [0.0, math.log(2.0)]),
            ("dist", ([0.6, 0.0], [-0.6, 0.0]), [4 * math.log(2.0)]),
            ("transport_to", ([0.0, 0.0], [0.6, 0.0], [1.0, 2.0]), [0.64, 1.28]),
            ("riemannian_gradient", ([0.6, 0.0], [1.0, 2.0]), [0.1024, 0.2048]),
            ("nearest", ([3.0, 4.0],), [0.6, 0.8]),
        ),
    ),
    Case("poincare-line", PoincareBall(-4.0), (1,), [0.6]),
    Case("fixed-rank3", FixedRank(3, 5), (9, 3), [[1.0, 0.0, 0.0]] * 9),
    Case("fixed-rank2-damped", FixedRank(2, 4, damping=0.1), (7, 2), [[0.0, 0.0]] * 7),
    Case("fixed-rank1-damped", FixedRank(1, 3, damping=0.1), (5, 1), [[0.0]] * 5),
    Case("fixed-rank1-squares", FixedRank(1, 3, degree=2.0), (5, 1), [[1.0], [2.0], [0.0], [0.0], [0.0]]),
    Case("factors", FullRankFactors(2, 4), (7, 2), [[1.0, 0.0]] * 7),
    Case(
        "spd",
        SymmetricPositiveDefinite(),
        (3, 3),
        [[1.0, 2.0], [2.0, 1.0]],
        known=(
            ("dist", (ONE, FOUR), [[math.log(4)]]),
            ("log", (FOUR, ONE), [[0.0, 0.0], [0.0, -4 * math.log(4)]]),
            ("exp", (FOUR, [[0.0, 0.0], [0.0, -4 * math.log(4)]]), ONE),
            ("retract", (FOUR, [[0.0, 2.0], [2.0, 0.0]]), [[1.5, 2.0], [2.0, 6.0]]),
            ("transport_to", (ONE, FOUR, [[1.0, 1.0], [1.0, 1.0]]), [[1.0, 2.0], [2.0, 4.0]]),
            ("inner", (FOUR, FOUR, ONE), [[1.25]]),
        ),
    ),
    Case(
        "rotations3",
        SpecialOrthogonal(),
        (3, 3),
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
        known=(
            ("dist", (ONE, QUARTER), [[math.pi / 2**0.5]]),
            ("log", (ONE, QUARTER), [[0.0, -math.pi / 2], [math.pi / 2, 0.0]]),
            ("exp", (QUARTER, [[-math.pi, 0.0], [0.0, -math.pi]]), [[0.0, 1.0], [-1.0, 0.0]]),
            ("nearest", ([[0.0, 2.0], [1.0, 0.0]],), [[0.0, 1.0], [-1.0, 0.0]]),
            ("retract", (ONE, [[0.0, -1.0], [1.0, 0.0]]), [[R2, -R2], [R2, R2]]),
        ),
    ),
    Case("rotations4", SpecialOrthogonal(), (4, 4), torch.eye(4).flip(0)[[1, 0, 2, 3]].tolist()),
    Case(
        "product",
        Product((Sphere(), (3,)), (SymmetricPositiveDefinite(), (2, 2)), (Euclidean(0), ())),
        (8,),
        [0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 5.0],
        known=(
            ("inner", ([1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 1.0, 5.0], PAIR, PAIR), [4.0 + 0.25 + 9.0]),
            (
                "dist",
                ([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 5.0], [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 2.0]),
                [math.hypot(math.pi / 2, 3)],
            ),
        ),
    ),
    Case(
        "product-frames",
        Product((Sphere(), (3,)), (Stiefel(), (3, 2))),
        (9,),
        [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0],
    ),
    Case("product-spectral", Product((SpectralSphere(), (3, 2)), (Sphere(), (2,))), (8,), [1.0] * 8),
    Case("geoopt-lorentz", from_geoopt(geoopt.Lorentz()), (5,), [0.5, 1.0, 1.0]),
    Case("geoopt-poincare", from_geoopt(geoopt.PoincareBall()), (5,), [1.0, 1.0]),
    Case("geoopt-spd", from_geoopt(geoopt.SymmetricPositiveDefinite()), (3, 3), [[1.0, 2.0], [2.0, 1.0]]),
    Case("geoopt-stiefel", from_geoopt(geoopt.EuclideanStiefel()), (6, 3), torch.eye(6, 3).mul(2).tolist()),
    Case(
        "geoopt-product",
        from_geoopt(geoopt.ProductManifold((geoopt.Sphere(), 4), (geoopt.EuclideanStiefel(), (3, 2)))),
        (10,),
        [2.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0],
    ),
]
