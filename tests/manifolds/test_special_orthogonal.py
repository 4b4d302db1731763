"""Rotations beyond the laws: logarithms near 0 and near π against 50 digits, pymanopt, determinants, training."""

import math

import mpmath
import numpy as np
import pymanopt.manifolds
import pytest
import torch
from retract.errors import GeometryError
from retract.manifolds import SpecialOrthogonal, SymmetricPositiveDefinite, numerics
from retract.optim import RiemannianAdam, RiemannianSGD
from retract.testing import derivatives, geodesics
from torch import nn

SO = SpecialOrthogonal()
PI = mpmath.pi


def rotation(n, angles, generator):
    """A skew-symmetric matrix with these angles in random planes, and its exponential, both rounded once from 40 digits."""
    frame = torch.randn(n, n, generator=generator, dtype=torch.float64)
    with mpmath.workdps(40):
        q = mpmath.qr(mpmath.matrix(frame.tolist()))[0]
        log, turn = mpmath.matrix(n, n), mpmath.eye(n)
        for i, angle in enumerate(angles):
            j, k = 2 * i, 2 * i + 1
            log[k, j], log[j, k] = angle, -angle
            turn[j, j] = turn[k, k] = mpmath.cos(angle)
            turn[k, j], turn[j, k] = mpmath.sin(angle), -mpmath.sin(angle)
        return [torch.tensor(np.array((q * a * q.T).tolist(), dtype=float)) for a in (log, turn)]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("short", [1e-8, 1e-4, 1.0, 2.0, 3.0, PI - 1e-3, PI - 1e-6, PI - 1e-8, PI - 1e-12], ids=str)
def test_logarithms_have_all_digits(n, short, generator):
    """Of one angle, and of that beside an angle of 1."""
    for angles in ([short], [short, 1.0] if n > 3 else [short]):
        log, y = rotation(n, angles, generator)
        found = SO.log(torch.eye(n, dtype=torch.float64), y)
        assert (found - log).norm() <= 1e-14 * log.norm()
        assert math.isclose(SO.dist(torch.eye(n, dtype=torch.float64), y), log.norm(), rel_tol=1e-14)


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_rotations_by_a_half_turn_have_a_logarithm(n, generator):
    """At the cut locus one of the shortest comes out: in planes that are turned by π, in any of the senses."""
    for y in (rotation(n, [PI], generator)[1], torch.diag(torch.tensor([-1.0, -1.0] + [1.0] * (n - 2)).double())):
        x = torch.eye(n, dtype=torch.float64)
        assert math.isclose(SO.dist(x, y), SO.injectivity_radius, rel_tol=1e-6)
        assert (SO.exp(x, SO.log(x, y)) - y).abs().max() < 1e-6
    if n % 2 == 0:
        assert math.isclose(SO.dist(x, -x), math.pi * math.sqrt(n), rel_tol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_against_pymanopt(n, generator):
    """It stores the skew-symmetric matrices of tangents; its polar retraction is ours."""
    theirs = pymanopt.manifolds.SpecialOrthogonalGroup(n, retraction="polar")
    x = SO.random_point(n, n, generator=generator, dtype=torch.float64)
    u, a = (torch.randn(n, n, generator=generator, dtype=torch.float64) for _ in range(2))
    u = SO.project(x, u)
    u = u / SO.norm(x, u)
    y = SO.exp(x, u)
    p, q, s = x.numpy(), y.numpy(), (x.mT @ u).numpy()
    for ours, other in (
        (y, theirs.exp(p, s)),
        (SO.retract(x, u), theirs.retraction(p, s)),
        (x.mT @ SO.log(x, y), theirs.log(p, q)),
        (SO.dist(x, y).squeeze(), theirs.dist(p, q)),
        (SO.norm(x, u).squeeze(), theirs.norm(p, s)),
        (x.mT @ SO.project(x, a), theirs.projection(p, a.numpy())),
    ):
        assert torch.allclose(ours, torch.as_tensor(other, dtype=ours.dtype), rtol=0, atol=1e-13)


def test_reflections_are_no_points(generator):
    """The determinant is seen, said and put right: nearest is the rotation with the largest product with `a`."""
    reflection = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    with pytest.raises(GeometryError, match="row 0 is off by 2 "):
        SO.check_point(reflection)
    with pytest.raises(GeometryError, match="n × n matrix with n ≥ 2, not 3 × 2"):
        SO.check_point(torch.ones(3, 2))
    a = torch.randn(100, 4, 4, generator=generator, dtype=torch.float64)
    assert (torch.linalg.det(a) < 0).any()
    placed = SO.nearest(a)
    SO.check_point(placed)
    others = SO.random_point(100, 100, 4, 4, generator=generator, dtype=torch.float64)
    assert ((a * placed).sum((-1, -2)) > (a * others).sum((-1, -2))).all()
    a = a[torch.linalg.det(a) < 0][:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(numerics.special_polar, (a,), check_forward_ad=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("n", [2, 3, 7, 30])
@torch.no_grad()
def test_retractions_are_polar_factors(n, dtype, generator):
    """To rounding, whatever the length of the tangent, in a batch with shorter ones."""
    x = SO.random_point(3, n, n, generator=generator, dtype=torch.float64)
    u = SO.random_tangent(x, generator=generator)
    u = u / torch.linalg.matrix_norm(u, 2, keepdim=True) * torch.tensor([1e-3, 0.1, 1.0]).view(3, 1, 1)
    for longest in (1e-6, 0.1, 0.7, 1.0, 1.4, 2.0, 2.8, 3.0, 10.0):
        expected = numerics.special_polar(x + longest * u)
        found = SO.retract(x.to(dtype), (longest * u).to(dtype))
        assert (found - expected).abs().max() < 30.0 * max(1.0, longest) * torch.finfo(dtype).eps


def test_random_rotations_are_uniform(generator):
    """The mean of rotations is 0, that of squared traces 1 (Diaconis & Shahshahani 1994), both up to 5 standard errors."""
    x = SO.random_point(20000, 3, 3, generator=generator, dtype=torch.float64)
    SO.check_point(x)
    assert x.mean(0).abs().max() < 5 * (1 / 3 / 20000) ** 0.5
    trace = x.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert abs(trace.square().mean() - 1) < 5 * trace.square().std() / 20000**0.5


@pytest.mark.parametrize("n", [2, 5])
def test_laws_of_other_sizes(n, seed):
    for law in (
        derivatives.first_derivatives_equal_differences,
        geodesics.logarithm_inverts_the_exponential,
        geodesics.parallel_transport_is_isometric,
    ):
        for dtype in (torch.float64, torch.float32):
            law.check(SO, (n, n), dtype=dtype, seed=seed)


@pytest.mark.parametrize("options", [{}, {"motion": "exp", "transport": "parallel"}], ids=str)
@pytest.mark.parametrize("make", [RiemannianSGD, RiemannianAdam])
def test_optimizers_solve_a_procrustes_problem(make, options, generator):
    """The rotation with the largest product with a matrix, whose closed form is `nearest`."""
    target = SO.random_point(4, 4, generator=generator, dtype=torch.float64)
    a = target @ SymmetricPositiveDefinite().random_point(4, 4, generator=generator, dtype=torch.float64)
    w = nn.Parameter(torch.eye(4, dtype=torch.float64))
    momentum = {"momentum": 0.9} if make is RiemannianSGD else {}
    optimizer = make([{"params": [w], "manifold": SO, **options}], lr=0.1, **momentum)
    for step in range(400):
        optimizer.zero_grad()
        (-(a * w).sum()).backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.99**step
        optimizer.step()
    SO.check_point(w.detach())
    assert (SO.nearest(a) - target).abs().max() < 1e-14
    assert (w.detach() - target).abs().max() < (1e-6 if make is RiemannianSGD else 0.05)
