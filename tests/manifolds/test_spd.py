"""Symmetric positive definite matrices beyond the laws: accuracy against 50 digits, invariance, what is no point, training."""

import runpy
from pathlib import Path

import pymanopt.manifolds
import pytest
import torch
from retract.errors import GeometryError
from retract.manifolds import SymmetricPositiveDefinite, numerics
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn

SPD = SymmetricPositiveDefinite()
accuracy = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "benchmarks" / "spd_accuracy.py"))
# A relative rounding of the arguments, in the metric: the condition times ε.
ROUNDING = {"near": 10.0, "far": 10.0, "ill": 1e6, "spread": 10.0}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ROUNDING)
def test_never_less_accurate_than_geoopt_and_pymanopt(kind, dtype):
    """Against 50 digits, up to twice what rounding the arguments alone would do."""
    eps = torch.finfo(dtype).eps
    condition = ROUNDING[kind] if dtype == torch.float64 or kind != "ill" else 1e3
    for name, (ours, *others) in accuracy["table"]([dtype], [kind], 5).items():
        assert ours <= max(min(e for e in others if e is not None), 2 * condition * eps), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_distances_of_nearby_matrices_keep_their_digits(dtype):
    """The relative error is a few ε where the matrices agree in half of their digits, and where they are ill-conditioned."""
    for kind, limit in (("near", 1e-14), ("ill", 1e-11)):
        ((_, found),) = [
            item for item in accuracy["table"]([dtype], [kind], 5).items() if item[0] == (str(dtype)[6:], kind, "dist")
        ]
        assert found[0] <= max(limit, 2 * torch.finfo(dtype).eps * (dtype == torch.float32))


def test_against_pymanopt(generator):
    theirs = pymanopt.manifolds.SymmetricPositiveDefinite(4)
    x, y = SPD.random_point(2, 4, 4, generator=generator, dtype=torch.float64)
    u, v, a = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    u, v = SPD.project(x, u), SPD.project(x, v)
    p, q, s, t, e = (each.numpy() for each in (x, y, u, v, a))
    for ours, other in (
        (SPD.retract(x, u), theirs.retraction(p, s)),
        (SPD.exp(x, u), theirs.exp(p, s)),
        (SPD.log(x, y), theirs.log(p, q)),
        (SPD.dist(x, y), theirs.dist(p, q)),
        (SPD.inner(x, u, v), theirs.inner_product(p, s, t)),
        (SPD.norm(x, u), theirs.norm(p, s)),
        (SPD.project(x, a), theirs.projection(p, e)),
        (SPD.riemannian_gradient(x, a), theirs.euclidean_to_riemannian_gradient(p, e)),
    ):
        assert torch.allclose(ours.squeeze(), torch.as_tensor(other, dtype=ours.dtype), rtol=1e-12, atol=1e-12)


def test_maps_do_not_depend_on_the_basis(generator):
    """Points and tangents g x gᵀ, g u gᵀ for invertible g transform alike, under every map."""
    x, y = SPD.random_point(2, 3, 3, generator=generator, dtype=torch.float64)
    u, v, g = (torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    u, v = SPD.project(x, u), SPD.project(x, v)

    def moved(a):
        return numerics.symmetric(g @ a @ g.mT)

    for name, *arguments in (
        ("exp", x, u),
        ("retract", x, u),
        ("log", x, y),
        ("transport", x, u, v),
        ("parallel_transport", x, u, v),
        ("transport_to", x, y, v),
    ):
        function = getattr(SPD, name)
        expected = moved(function(*arguments))
        assert torch.allclose(function(*map(moved, arguments)), expected, rtol=0, atol=1e-11 * expected.norm()), name
    assert torch.allclose(SPD.dist(moved(x), moved(y)), SPD.dist(x, y), rtol=1e-11)


@pytest.mark.slow
def test_derivatives_where_eigenvalues_coincide(generator):
    """First and second ones of all maps of two points, at y = x and at y = 4 x, where all eigenvalues are equal."""
    x = SPD.random_point(2, 2, generator=generator, dtype=torch.float64)
    v = SPD.project(x, torch.randn(2, 2, generator=generator, dtype=torch.float64))
    for y in (x, 4.0 * x):
        for function in (SPD.log, lambda a, b: SPD.dist(a, b).square(), lambda a, b: SPD.transport_to(a, b, v)):

            def at(a, b, function=function):
                return function(numerics.symmetric(a), numerics.symmetric(b))

            inputs = tuple(a.clone().requires_grad_() for a in (x, y))
            assert torch.autograd.gradcheck(at, inputs, check_forward_ad=True, check_undefined_grad=False)
            assert torch.autograd.gradgradcheck(at, inputs, check_fwd_over_rev=True, check_undefined_grad=False)


def test_what_is_no_point_is_said_and_raised(generator):
    """Indefinite and singular matrices and those that are not symmetric are refused; nearest makes points of them."""
    bad = torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.ones(2, 2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    for a, words in zip(bad, (r"from -1 to 3", "eigenvalues", "off by 0.47"), strict=True):
        for dtype in (torch.float64, torch.float32):
            with pytest.raises(GeometryError, match=words):
                SPD.check_point(a.to(dtype))
            SPD.check_point(SPD.nearest(a.to(dtype)), tolerance=1e-6)
    with pytest.raises(GeometryError, match="a square matrix, not 2 × 3"):
        SPD.check_point(torch.ones(2, 3))
    x = SPD.random_point(50, 4, 4, generator=generator)
    mixed = torch.cat([x, -x, torch.full_like(x[:1], torch.nan)])
    placed = SPD.nearest(mixed)
    assert torch.equal(placed[:50], x)
    SPD.check_point(placed[50:100])
    assert placed[100].isnan().all()


@pytest.mark.parametrize("shape", [(3, 3), (1, 3, 3), (2, 3, 3)], ids=str)
def test_the_exponential_of_a_matrix_alone(shape):
    """torch's own is off by 1e-12 to 1e-10 for a single matrix of norm about 0.02."""
    a = numerics.symmetric(torch.linspace(-1.0, 1.0, 9, dtype=torch.float64).view(3, 3)).expand(shape)
    for size in torch.logspace(-4, 1, 61, dtype=torch.float64).tolist():
        values, vectors = torch.linalg.eigh(size * a)
        exact = (vectors * values.exp().unsqueeze(-2)) @ vectors.mT
        assert torch.allclose(numerics.matrix_exp(size * a), exact, rtol=0, atol=1e-14 * float(exact.norm()))


@pytest.mark.parametrize("motion", ["retract", "exp"])
@pytest.mark.parametrize("make", [RiemannianSGD, RiemannianAdam])
def test_optimizers_find_the_mean(make, motion, generator):
    """Of two matrices it is the middle of their geodesic. Moments are carried along, and stay tangent."""
    x, y = SPD.random_point(2, 4, 4, generator=generator, dtype=torch.float64)
    w = nn.Parameter(torch.eye(4, dtype=torch.float64))
    group = {"params": [w], "manifold": SPD, "motion": motion}
    optimizer = make([group], lr=0.1, **({"momentum": 0.5} if make is RiemannianSGD else {}))
    for step in range(200):
        optimizer.zero_grad()
        (SPD.dist(x, w).square() + SPD.dist(y, w).square()).sum().mul(0.5).backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.97**step
        optimizer.step()
    middle = SPD.geodesic(x, SPD.log(x, y), 0.5)
    assert SPD.dist(middle, w.detach()) < (1e-6 if make is RiemannianSGD else 0.05)
    SPD.check_point(w.detach())
