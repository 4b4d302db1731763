"""Derivatives where formulas divide by 0, beyond what the laws of single manifolds look at."""

import math

import pytest
import torch
from geometries import CASES, Case
from retract.errors import GeometryError
from retract.manifolds import PSI, Euclidean, FixedRank, GeodesicManifold, Grassmann, Sphere, Stiefel, numerics, series
from retract.testing import Law, derivatives, laws

SHAPES = [
    Case("stiefel-square", Stiefel(), (3, 3)),
    Case("stiefel-column", Stiefel(), (4, 1)),
    # Two planes in three dimensions share a line, so that one principal angle is 0.
    Case("grassmann-planes", Grassmann(2), (3, 2)),
    Case("grassmann-column", Grassmann(4), (9, 4)),
]
OF_DERIVATIVES = {law.name for law in vars(derivatives).values() if isinstance(law, Law)}
RUNS = [
    pytest.param(case, law, id=f"{case.id}-{law.name}")
    for case in CASES + SHAPES
    for law in laws(case.manifold)
    if law.name in OF_DERIVATIVES
]


@pytest.mark.long
@pytest.mark.parametrize(("case", "law"), RUNS)
def test_everywhere_and_in_all_modes(case, law, seed, device):
    law.check(case.manifold, case.shape, batch=(2,), seed=seed, device=device, thorough=True)


@pytest.mark.parametrize("case", SHAPES[::2], ids=lambda case: case.id)
def test_square_frames_and_shared_lines(case, seed, device):
    derivatives.first_derivatives_equal_differences.check(case.manifold, case.shape, seed=seed, device=device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("inner", [torch.func.jacfwd, torch.func.jacrev])
@pytest.mark.parametrize("outer", [torch.func.jacfwd, torch.func.jacrev])
@pytest.mark.parametrize("case", [c for c in CASES if isinstance(c.manifold, GeodesicManifold)], ids=lambda c: c.id)
def test_the_hessian_of_squared_lengths_is_twice_the_metric(case, outer, inner, dtype, generator):
    """Of dist(x, ·)² at x, and of ‖·‖² at 0, in every combination of modes."""
    m = case.manifold
    x = m.random_point(*case.shape, generator=generator, dtype=dtype)
    u, v = (m.random_tangent(x, generator=generator) for _ in range(2))
    zero = torch.zeros_like(x)
    for name, at, f in (
        ("dist", x, lambda y: m.dist(x, y).square().sum()),
        ("norm", zero, lambda a: m.norm(x, a).square().sum()),
    ):
        hessian = outer(inner(f))(at).to(dtype)  # torch makes float64 of some single numbers
        found = torch.einsum("i,ij,j", u.flatten(), hessian.reshape(x.numel(), x.numel()), v.flatten())
        assert torch.allclose(found, 2.0 * m.inner(x, u, v).sum(), rtol=2e-4 if dtype == torch.float32 else 1e-10), name


@pytest.mark.parametrize("manifold", [Sphere(), PSI(), Grassmann(1)], ids=repr)
def test_a_point_is_at_distance_0_from_itself(manifold, generator):
    """0, or what stands for it where derivatives can be taken; the slope is the shortest subgradient."""
    x = manifold.random_point(4, 5, generator=generator)
    assert not manifold.dist(x, x).any()
    at = x.clone().requires_grad_()
    assert (manifold.dist(x, at) < 1e-12).all()
    assert (torch.autograd.grad(manifold.dist(x, at).sum(), at)[0].abs() < 1e-12).all()


def test_polar_to_third_order(generator):
    """At a frame, where all singular values are 1, and where they differ, tall and square."""

    def second(a):
        weights = torch.arange(1.0, 1.0 + a.numel(), dtype=a.dtype).view_as(a)
        (slope,) = torch.autograd.grad((weights * numerics.polar(a)).sin().sum(), a, create_graph=True)
        return torch.autograd.grad((slope * weights.cos()).sum(), a, create_graph=True)[0]

    frame = Stiefel().random_point(4, 2, generator=generator, dtype=torch.float64)
    stretch = torch.tensor([[2.0, 0.3], [0.3, 0.8]], dtype=torch.float64)
    for a in (frame, frame @ stretch, stretch):
        a = a.detach().requires_grad_()
        assert torch.autograd.gradgradcheck(numerics.polar, (a,), check_fwd_over_rev=True)
        assert torch.autograd.gradcheck(second, (a,))


def test_values_do_not_depend_on_whether_derivatives_are_wanted(generator):
    """Bitwise for all retractions and `nearest`, within rounding for what goes through the squared angle."""
    for manifold, shape in ((Sphere(), (3, 5)), (PSI(), (3, 5)), (Grassmann(2), (3, 5, 2)), (Stiefel(), (3, 5, 2))):
        x = manifold.random_point(*shape, generator=generator, dtype=torch.float64)
        for length in (0.0, 1e-12, 0.5, 30.0):
            u = length * manifold.random_tangent(x, generator=generator)
            wanted = manifold.retract(x, u), manifold.nearest(x + u), manifold.exp(x, u)
            with torch.no_grad():
                spared = manifold.retract(x, u), manifold.nearest(x + u), manifold.exp(x, u)
            assert torch.equal(wanted[0], spared[0])
            assert torch.equal(wanted[1], spared[1])
            assert (wanted[2] - spared[2]).abs().max() <= 1e-14 * max(1.0, length)


def test_derivatives_that_overflow_leave_the_value():
    smooth = torch.tensor([2.0, torch.inf, torch.nan], requires_grad=True)
    value = numerics.with_value(torch.tensor([1.0, 2.0, 3.0]), 3.0 * smooth)
    assert value.tolist() == [1.0, 2.0, 3.0]
    assert torch.autograd.grad(value.sum(), smooth)[0][0] == 3.0


@pytest.mark.parametrize("order", [0, 1, 2])
def test_circular_functions_of_the_squared_angle(order):
    """Values and two derivatives against fifty terms of the series, from 0 over the seam at 1 to some turns."""
    square = torch.tensor([0.0, 1e-300, 1e-16, 1e-3, 0.999, 1.0, 1.001, 9.0, 40.0], dtype=torch.float64)
    square.requires_grad_()
    (value,) = series.circular(square, order)
    (slope,) = torch.autograd.grad(value.sum(), square, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), square)
    for found, lost in ((value, 0), (slope, 1), (bend, 2)):
        for at, one in zip(square.tolist(), found.tolist(), strict=True):
            terms = [(-1) ** j * math.perm(j, lost) / math.factorial(2 * j + order) for j in range(50)]
            exact = math.fsum(c * at ** (j - lost) for j, c in enumerate(terms) if j >= lost)
            assert one == pytest.approx(exact, abs=1e-12)


def test_antipodes_and_right_angles_carry_vectors_unchanged(generator):
    """Where all great circles are as short, a tangent is carried as it is: finite, isometric, tangent there."""
    x = Sphere().random_point(4, 5, generator=generator, dtype=torch.float64)
    v = Sphere().random_tangent(x, generator=generator)
    for manifold, y in ((Sphere(), -x), (PSI(), -3.0 * x)):
        scale = y.norm(dim=-1, keepdim=True)
        assert torch.allclose(manifold.transport_to(x, y, v), scale * v, rtol=0, atol=1e-14)
    across = Sphere().nearest(v)
    carried = Grassmann(1).transport_to(x, across, v)
    Grassmann(1).check_tangent(across, carried)
    assert torch.allclose(carried.norm(dim=-1), v.norm(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (Stiefel(), (5, 2)),
        (Grassmann(2), (5, 2)),
        (FixedRank(2, 3), (5, 2)),
        (Sphere(), (5,)),
        (PSI(), (5,)),
        (Euclidean(0), ()),
    ],
    ids=str,
)
def test_random_points_in_half_precision_are_those_of_float32_rounded(manifold, shape, dtype):
    half, full = (
        manifold.random_point(*shape, generator=torch.Generator().manual_seed(3), dtype=t)
        for t in (dtype, torch.float32)
    )
    assert half.shape == shape
    assert torch.equal(half, full.to(dtype))
    with pytest.raises(GeometryError, match=r"real coordinates, not torch.complex64"):
        manifold.random_point(*shape, dtype=torch.complex64)
