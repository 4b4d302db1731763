"""Linear minimization oracles of the spectral norm: tangent, feasible, and of the largest value, by a bound that is computed here."""

import pytest
import scipy.optimize
import torch
from retract.manifolds import Stiefel, numerics
from retract.optim import lmo
from torch import Tensor

DTYPES = (torch.float64, torch.float32)
# Shape, and the most polar factors that a Gaussian gradient takes.
SHAPES = {(64, 32): 30, (128, 64): 30, (256, 64): 7, (64, 64): 1, (512, 128): 7}


class Counted:
    """Exact polar factors, and how many arrays of them were asked for."""

    def __init__(self):
        self.count = 0

    def __call__(self, a: Tensor) -> Tensor:
        self.count += 1
        left, _, right = numerics.svd(a)
        return left @ right


def normal(generator, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=generator, dtype=dtype)


def nuclear(a: Tensor) -> Tensor:
    return torch.linalg.svdvals(a).sum(-1)


def value(g: Tensor, a: Tensor) -> Tensor:
    return (g.double() * a.double()).sum((-2, -1))


def longest(a: Tensor) -> float:
    return torch.linalg.matrix_norm(a.double(), 2).max().item()


def slack(x: Tensor, a: Tensor) -> float:
    """‖xᵀA + Aᵀx‖ by the root of its size."""
    product = x.double().mT @ a.double()
    return ((product + product.mT).norm(dim=(-2, -1)) / product.shape[-1]).max().item()


def bound(x: Tensor, g: Tensor, a: Tensor) -> Tensor:
    """‖g + xΛ‖_*, which no feasible tangent exceeds for any symmetric Λ, at that of which `a` is the polar factor.

    g + xΛ = a h with symmetric h gives Λ = Ωh − xᵀg and h = aᵀg − ΩΛ for the skew Ω = xᵀa, so (1 + Ω²)Λ = Ωaᵀg − xᵀg.
    """
    x, g, a = x.double(), g.double(), a.double()
    if x.shape[-2] == x.shape[-1]:
        return nuclear(g - x @ numerics.symmetric(x.mT @ g))
    inner = x.mT @ a
    omega = 0.5 * (inner - inner.mT)
    left = torch.eye(x.shape[-1], dtype=x.dtype) + omega @ omega
    return nuclear(g + x @ numerics.symmetric(torch.linalg.pinv(left, rtol=1e-14) @ (omega @ a.mT @ g - x.mT @ g)))


def assert_solved(x: Tensor, g: Tensor, a: Tensor, best: Tensor | float) -> None:
    assert a.dtype == g.dtype
    assert slack(x, a) <= 1e-6
    assert longest(a) <= 1.0 + 1e-6
    assert value(g, a) >= (1.0 - 1e-6) * best


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_stiefel_at_every_scale_of_the_loss(shape, dtype, generator):
    x = Stiefel().random_point(*shape, generator=generator, dtype=dtype)
    g = normal(generator, *shape, dtype=dtype)
    results = []
    for scale in (1.0, 1e-6, 1e6):
        msign = Counted()
        results.append(lmo.stiefel(x, scale * g, msign))
        assert msign.count <= SHAPES[shape]
        assert_solved(x, g, results[-1], bound(x, g, results[-1]))
        torch.testing.assert_close(results[-1], results[0], atol=1e-5 if dtype == torch.float32 else 1e-9, rtol=0)


def with_spectrum(g: Tensor, singular: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(g, full_matrices=False)
    return left @ (singular.unsqueeze(-1) * right)


@pytest.mark.parametrize("shape", [(64, 32), (96, 64), (256, 64)])
@pytest.mark.parametrize("kind", ["spectrum from 1 to 1e-4", "a quarter of the rank", "rank 1"])
def test_stiefel_and_gradients_that_are_nearly_singular(shape, kind, generator):
    """The minimum of the dual is at a singular matrix there; its value comes from the last polar factor that the solver asks for."""
    x = Stiefel().random_point(*shape, generator=generator, dtype=torch.float64)
    g, p = normal(generator, *shape), shape[-1]
    rank = {"a quarter of the rank": p // 4, "rank 1": 1}.get(kind)
    spectrum = torch.logspace(0, -4, p, dtype=g.dtype)
    g = with_spectrum(g, spectrum) if rank is None else g[:, :rank] @ g[:rank]
    asked = []

    def msign(a: Tensor) -> Tensor:
        asked.append(a)
        return Counted()(a)

    a = lmo.stiefel(x, g, msign)
    assert len(asked) <= 60
    assert_solved(x, g, a, bound_of_last(x, g, asked[-1][:p]))


def bound_of_last(x: Tensor, g: Tensor, top: Tensor) -> Tensor:
    """‖g + xΛ‖_*, which no value exceeds whatever Λ is, at the symmetric part of the upper block skew(xᵀg) + sym(xᵀg) + Λ, which
    the solver has scaled and turned."""
    inner = x.mT @ g
    rest = g - x @ inner
    rest = rest - x @ (x.mT @ rest)
    scale = x.shape[-1] ** 0.5 / torch.hypot(numerics.norm(0.5 * (inner - inner.mT), 2), numerics.norm(rest, 2))
    right = torch.linalg.svd(scale * rest, full_matrices=False)[2]
    multiplier = right.mT @ numerics.symmetric(top) @ right / scale
    return nuclear(g + x @ (multiplier - numerics.symmetric(inner)))


def least_dual(x: Tensor, g: Tensor) -> float:
    """The least ‖g + xΛ‖_* that scipy finds, by tr √(MᵀM + ε²) with smaller and smaller ε."""
    p = x.shape[-1]
    rows, columns = torch.tril_indices(p, p)
    identity = torch.eye(p, dtype=x.dtype)

    def matrix(numbers: Tensor) -> Tensor:
        multiplier = torch.zeros(p, p, dtype=x.dtype).index_put((rows, columns), numbers)
        return g + x @ numerics.symmetric(multiplier)

    def smooth(numbers, eps):
        numbers = torch.tensor(numbers, requires_grad=True)
        loss = nuclear(torch.cat([matrix(numbers), eps * identity]))
        return loss.item(), torch.autograd.grad(loss, numbers)[0].numpy()

    numbers, values = torch.zeros(len(rows), dtype=x.dtype).numpy(), []
    for eps in (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        numbers = scipy.optimize.minimize(smooth, numbers, eps, "BFGS", jac=True, options={"gtol": 1e-9}).x
        values.append(nuclear(matrix(torch.from_numpy(numbers))).item())
    return min(values)


@pytest.mark.parametrize("shape", [(6, 3), (7, 2), (3, 2), (5, 3), (5, 4), (2, 1), (3, 3)])
def test_stiefel_against_a_generic_minimizer(shape, generator):
    """Also where n < 2p, and the nuclear norm has a kink at the minimum."""
    x = Stiefel().random_point(*shape, generator=generator, dtype=torch.float64)
    g = normal(generator, *shape)
    a, best = lmo.stiefel(x, g, Counted()), least_dual(x, g)
    assert_solved(x, g, a, best)
    assert value(g, a) <= best * (1.0 + 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 32), (64, 64), (32, 64), (512, 128), (2, 2), (5, 1)])
@pytest.mark.parametrize("sphere", ["Frobenius", "spectral"])
def test_hyperplane_at_every_scale_of_the_loss(sphere, shape, dtype, generator):
    x, g = normal(generator, *shape, dtype=dtype), normal(generator, *shape, dtype=dtype)
    if sphere == "spectral":
        left, _, right = torch.linalg.svd(x, full_matrices=False)
        x = left[:, :1] @ right[:1]
    farthest = 2.0 * (nuclear(g) / x.norm()).item()
    best = scipy.optimize.minimize_scalar(
        lambda at: nuclear(g.double() + at * x.double()).item(), bounds=(-farthest, farthest), method="bounded"
    ).fun
    results = []
    for scale in (1.0, 1e-6, 1e6):
        msign = Counted()
        a = lmo.hyperplane(x, scale * g, msign)
        assert msign.count <= (12 if min(shape) < 3 else 8)
        assert a.dtype == dtype
        assert (x.double() * a.double()).sum().abs() <= 1e-6 * x.norm()
        assert longest(a) <= 1.0 + 1e-6
        assert best * (1.0 - 1e-6) <= value(g, a) <= best * (1.0 + 1e-6)
        results.append(a)
        torch.testing.assert_close(a, results[0], atol=1e-4, rtol=0)


def test_hyperplane_where_no_polar_factor_is_tangent():
    """h jumps from −1 to 1 at λ = 0, where diag(1, λ) is singular."""
    g = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    x = torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(lmo.hyperplane(x, g, Counted()), g, atol=1e-12, rtol=0)


def stiefel_points(generator, *shape, dtype=torch.float64):
    return Stiefel().random_point(*shape, generator=generator, dtype=dtype)


SOLVERS = [
    pytest.param(lmo.stiefel, stiefel_points, (8, 3), id="stiefel"),
    pytest.param(lmo.stiefel, stiefel_points, (4, 4), id="square"),
    pytest.param(lmo.hyperplane, normal, (8, 3), id="hyperplane"),
    pytest.param(lmo.hyperplane, normal, (3, 8), id="hyperplane, wide"),
]


@pytest.mark.parametrize(("solve", "points", "shape"), SOLVERS)
def test_matrices_of_a_batch_do_not_see_each_other(solve, points, shape, generator):
    x, g = points(generator, 2, 3, *shape), normal(generator, 2, 3, *shape)
    g[0, 1] = g[0, 1, :, :1] @ g[0, 1, :1]  # one that takes longer
    g[1, 2] = 0.0
    together = solve(x, g, Counted())
    assert together.shape == g.shape
    for row in range(2):
        for column in range(3):
            alone = solve(x[row, column], g[row, column], Counted())
            torch.testing.assert_close(together[row, column], alone, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize(("solve", "points", "shape"), SOLVERS)
def test_gradients_without_a_direction(solve, points, shape, dtype, generator):
    """Zero and normal gradients give 0, those that are not finite NaN, and the others of the batch are solved all the same."""
    x = points(generator, 5, *shape).to(dtype)
    g = normal(generator, 5, *shape).to(dtype)
    g[0] = 0.0
    g[1] = 3.0 * x[1]
    g[2, 0, 0], g[3, 1, 2] = torch.inf, torch.nan
    a = solve(x, g, Counted())
    assert a.dtype == dtype
    assert torch.equal(a[0], torch.zeros_like(a[0]))
    if dtype != torch.bfloat16:  # whose points have no orthonormal columns
        assert torch.equal(a[1], torch.zeros_like(a[1]))
    assert a[2:4].isnan().all()
    assert longest(a[4]) == pytest.approx(1.0, abs=max(1e-6, torch.finfo(dtype).eps))
    assert solve(x[:0], g[:0], Counted()).shape == (0, *shape)


def test_stiefel_with_polar_factors_that_are_not_exact(generator):
    """Newton–Schulz in float32: tangent and feasible still, as close to the optimum as it is exact, and it ends."""
    x, g = stiefel_points(generator, 256, 64), normal(generator, 256, 64)
    count = 0

    def msign(a: Tensor) -> Tensor:
        nonlocal count
        count += 1
        q = (a / torch.linalg.matrix_norm(a)).float()
        for _ in range(14):
            q = q @ (1.5 * torch.eye(q.shape[-1]) - 0.5 * q.mT @ q)
        return q.double()

    a = lmo.stiefel(x, g, msign)
    assert count <= 10
    assert slack(x, a) <= 1e-14
    assert longest(a) <= 1.0 + 1e-14
    assert value(g, a) >= (1.0 - 1e-4) * bound(x, g, lmo.stiefel(x, g, Counted()))
