"""FixedRank against generic linear algebra, against other libraries' formulas, and what only it promises."""

import itertools
import math

import pymanopt.manifolds as reference
import pytest
import torch
from geometries import CASES
from pairs import hidden, spread
from retract import declare
from retract.errors import GeometryError
from retract.manifolds import FixedRank, Rows, numerics
from retract.optim import RiemannianSGD
from torch import nn

ALL = [(case.manifold, case.shape) for case in CASES if isinstance(case.manifold, FixedRank)]
EXACT = [(manifold, shape) for manifold, shape in ALL if not manifold.damping]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def draw(manifold, shape, generator, tangents=1):
    x = manifold.random_point(*shape, generator=generator)
    return x, *(torch.randn(shape, generator=generator) for _ in range(tangents))


def basis(x):
    return torch.eye(x.numel()).view(-1, *x.shape)


@pytest.mark.parametrize(("manifold", "shape"), ALL, ids=str)
def test_gradient_and_projection_against_the_matrix_of_the_metric(manifold, shape, generator):
    """The gradient solves ⟨·, u⟩ = egrad·u; the projection is the least-squares one off the differential of the action at 1."""
    x, a = draw(manifold, shape, generator)
    units = basis(x)
    metric = manifold.inner(x, units[:, None], units[None]).squeeze(-1, -2)
    gradient = torch.linalg.solve(metric, a.flatten()).view_as(x)
    assert torch.allclose(
        manifold.riemannian_gradient(x, a), gradient, rtol=0, atol=1e-12 * float(gradient.abs().max())
    )
    one = torch.eye(manifold.k)
    vertical = torch.func.jacfwd(lambda g: manifold.act(g, x))(one).flatten(0, 1).flatten(1)
    root = torch.linalg.cholesky(metric).T
    share = torch.linalg.lstsq(root @ vertical, root @ a.flatten()[:, None])[0]
    horizontal = a - (vertical @ share).view_as(x)
    assert torch.allclose(manifold.project(x, a), horizontal, rtol=0, atol=1e-12 * float(horizontal.abs().max()))


@pytest.mark.parametrize("k", [1, 3])
def test_against_manopts_formulas(k, generator):
    """fixedrankfactory_2factors_preconditioned: its metric, egrad2rgrad and projection, with L = B and R = Aᵀ."""
    manifold = FixedRank(k, 5)
    x, u, v = draw(manifold, (9, k), generator, 2)
    (left, right), (u_left, u_right), (v_left, v_right) = map(manifold.split, (x, u, v))
    ltl, rtr = left.T @ left, right.T @ right
    inner = torch.trace(rtr @ (u_left.T @ v_left)) + torch.trace(ltl @ (u_right.T @ v_right))
    assert float(manifold.inner(x, u, v)) == pytest.approx(float(inner), rel=1e-12)
    gradient = torch.cat([u_left @ torch.linalg.inv(rtr), u_right @ torch.linalg.inv(ltl)])
    assert torch.allclose(manifold.riemannian_gradient(x, u), gradient, rtol=1e-11)
    turn = 0.5 * (u_right.T @ right @ torch.linalg.inv(rtr) - torch.linalg.inv(ltl) @ left.T @ u_left)
    projected = torch.cat([u_left + left @ turn, u_right - right @ turn.T])
    assert torch.allclose(manifold.project(x, u), projected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_the_product_against_pymanopt(k, generator):
    """Tangents of the product B A are those of the embedded manifold, and its gradient is the embedded one with the part in
    both spans counted twice."""
    n, m = 6, 5
    manifold, theirs = FixedRank(k, n), reference.FixedRankEmbedded(n, m, k)
    x = manifold.random_point(n + m, k, generator=generator)
    b, a = manifold.split(x)
    g = torch.randn(n, m, generator=generator)  # the gradient of a function of the product
    direction = manifold.riemannian_gradient(x, torch.cat([g @ a, g.T @ b]))
    u_b, u_a = manifold.split(direction)
    moved = u_b @ a.T + b @ u_a.T
    left, singular, right = torch.linalg.svd(b @ a.T)
    point = left[:, :k].numpy(), singular[:k].numpy(), right[:k].numpy()

    def project(ambient):
        up, middle, vp = theirs.projection(point, ambient.numpy())
        u, _, vt = point
        return torch.from_numpy(u @ middle @ vt + up @ vt + u @ vp.T)

    assert torch.allclose(project(moved), moved, rtol=0, atol=1e-12)
    twice = left[:, :k] @ left[:, :k].T @ g @ right[:k].T @ right[:k]
    assert torch.allclose(moved, project(g) + twice, rtol=0, atol=1e-12)
    assert float(manifold.inner(x, direction, direction)) == pytest.approx(float((g * moved).sum()), rel=1e-12)


def euclidean_gradient(loss, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


def test_one_hidden_relu_layer_has_path_sgds_gradient(generator):
    """κ of a weight is the sum over all paths through it of the product of the squares of their other weights (Neyshabur,
    Salakhutdinov & Srebro 2015, eq. 8 with p = 2); Path-SGD divides the gradient by it."""
    x, loss = hidden(torch.relu, 7, generator)
    egrad = euclidean_gradient(loss, x)
    kappa = torch.zeros_like(x)
    for unit, entry, exit in itertools.product(range(7), range(4), range(4, 6)):
        kappa[unit, entry] += x[unit, exit] ** 2
        kappa[unit, exit] += x[unit, entry] ** 2
    manifold = FixedRank(1, 4)
    gradient = manifold.riemannian_gradient(x, egrad)
    assert (gradient - egrad / kappa).abs().max() < 1e-12 * gradient.abs().max()
    manifold.check_tangent(x, gradient)


@pytest.mark.parametrize(("degree", "activation"), [(2.0, lambda a: torch.relu(a) ** 2), (3.0, lambda a: a**3)])
def test_activations_of_another_degree(degree, activation, generator):
    """The network does not change under the group, its gradient is horizontal, and for p = 2 the metric is the length of what
    u and v change in v ⊗ u ⊗ u across themselves."""
    x, loss = hidden(activation, 5, generator)
    manifold = FixedRank(1, 4, degree=degree)
    g = manifold.random_group_element(x, generator=generator)
    assert float(loss(manifold.act(g, x))) == pytest.approx(float(loss(x)), rel=1e-10)
    manifold.check_tangent(x, manifold.riemannian_gradient(x, euclidean_gradient(loss, x)))
    u, v = x[0, :4, 0], x[0, 4:, 0]
    along_u, along_v = torch.randn(4, generator=generator), torch.randn(2, generator=generator)
    across_u, across_v = along_u - u * (u @ along_u) / (u @ u), along_v - v * (v @ along_v) / (v @ v)
    for xi in (torch.cat([across_u, 0 * v]), torch.cat([0 * u, across_v])):
        expected = manifold.norm(x[0], xi[:, None])
        if degree == 2:
            _, tensor = torch.func.jvp(lambda z: torch.einsum("i,j,k", z[4:], z[:4], z[:4]), (x[0, :, 0],), (xi,))
            assert float(expected) == pytest.approx(float(tensor.norm()), rel=1e-12)


def test_the_direction_of_preconditioned_adapters(generator):
    """(∇_B L (A Aᵀ)⁻¹, (BᵀB)⁻¹ ∇_A L) of Zhang & Pilanci 2024, as in peft, for LoRA's B (out × r) and A (r × in)."""
    down, up = nn.Linear(12, 4, bias=False), nn.Linear(4, 9, bias=False)
    (up(down(torch.randn(30, 12, generator=generator))).tanh() - 0.3).square().mean().backward()
    a, b = down.weight, up.weight
    x, egrad = torch.cat([b, a.T]).detach(), torch.cat([b.grad, a.grad.T])
    to_b, to_a = FixedRank(4, 9).split(FixedRank(4, 9).riemannian_gradient(x, egrad))
    assert (to_b - b.grad @ torch.linalg.inv(a @ a.T)).abs().max() < 1e-10
    assert (to_a.T - torch.linalg.inv(b.T @ b) @ a.grad).abs().max() < 1e-10


@pytest.mark.parametrize(("manifold", "shape"), ALL, ids=str)
def test_representatives(manifold, shape, generator):
    """balanced has equal Grams (‖u‖² = p ‖v‖²) and the least squares of its class, and leaves what is balanced; align undoes
    retract, whatever the representative."""
    x = manifold.random_point(6, *shape, generator=generator)
    even = manifold.balanced(x)
    b, a = manifold.split(even)
    assert torch.allclose(b.mT @ b, manifold.degree * a.mT @ a, rtol=0, atol=1e-12 * float(even.abs().max()) ** 2)
    assert torch.allclose(manifold.balanced(even), even, rtol=0, atol=1e-12)
    assert manifold.same_point(x, even).all()
    for _ in range(5):
        near = manifold.act(
            torch.eye(manifold.k) + 0.1 * torch.randn(6, manifold.k, manifold.k, generator=generator), even
        )
        assert (near.square().sum((1, 2)) > even.square().sum((1, 2)) - 1e-12).all()
    u = manifold.project(x, torch.randn(x.shape, generator=generator))
    undamped = FixedRank(manifold.k, manifold.n, degree=manifold.degree)
    u = 0.3 * undamped.project(x, u) / undamped.norm(x, u)
    y = manifold.retract(x, u)
    other = manifold.act(manifold.random_group_element(x, generator=generator), y)
    assert torch.allclose(manifold.align(x, other), y, rtol=0, atol=1e-9)
    assert not manifold.same_point(x, other).any()
    assert torch.equal(manifold.align(y, y), y)


def test_nearest_of_the_balanced_ones(generator):
    manifold = FixedRank(3, 5)
    x = manifold.random_point(9, 3, generator=generator)
    even = manifold.balanced(x)
    for _ in range(20):
        turned = even @ numerics.positive_qr(torch.randn(3, 3, generator=generator))
        assert (turned - x).norm() >= (even - x).norm()


DAMPED = FixedRank(3, 6, damping=1e-2)


def adapter(generator):
    """The start of an adapter, B = 0 beside a random A, and a least-squares loss with an optimum of rank 2."""
    a = torch.rand(8, 3, generator=generator) * 2 - 1
    target = 0.3 * torch.randn(6, 2, generator=generator) @ torch.randn(2, 8, generator=generator)

    def loss(x):
        b, c = DAMPED.split(x)
        return 0.5 * (b @ c.T - target).square().sum()

    return torch.cat([torch.zeros(6, 3), a]), loss


@pytest.mark.parametrize("lr", [1e-3, 1e-2, 0.1, 0.5])
def test_first_steps_from_zero_are_as_long_as_the_rate_says(lr, generator):
    """From B = 0 with damping: finite, and A moves by less than the rate says, from the second step on, where a damping relative
    to BᵀB alone moves it by ten times its length at any rate. The loss falls at every step."""
    start, loss = adapter(generator)
    DAMPED.check_point(start)
    w = nn.Parameter(start.clone())
    optimizer, losses = RiemannianSGD([{"params": [w], "manifold": DAMPED}], lr=lr), []
    for step in range(60):
        optimizer.zero_grad()
        value = loss(w)
        value.backward()
        before = w.detach().clone()
        optimizer.step()
        losses.append(float(value.detach()))
        if step < 5:
            moved = DAMPED.split(w.detach() - before)[1].norm() / DAMPED.split(before)[1].norm()
            assert moved < 10 * lr
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


def test_derivatives_of_the_damped_projection(generator):
    """To second order, of arrays that are not tangent."""
    manifold = FixedRank(2, 3, damping=0.1)
    arrays = [a.requires_grad_() for a in draw(manifold, (5, 2), generator)]
    assert torch.autograd.gradcheck(manifold.project, arrays)
    assert torch.autograd.gradgradcheck(manifold.project, arrays)


def test_what_damping_leaves_of_invariance(generator):
    """Exact under orthogonal R; near balanced factors of the order of the damping under others."""
    x, u = draw(DAMPED, (14, 3), generator)
    x = DAMPED.balanced(x)
    turn, stretch = numerics.positive_qr(torch.randn(3, 3, generator=generator)), spread(3, 2.0, generator)
    gaps = {}
    for damping in (1e-2, 1e-4):
        m = FixedRank(3, 6, damping=damping)
        length = m.norm(x, u)
        assert float(m.norm(m.act(turn, x), m.act(turn, u))) == pytest.approx(float(length), rel=1e-12)
        gaps[damping] = float((m.norm(m.act(stretch, x), m.act(stretch, u)) / length - 1).abs())
    assert 1e-5 < gaps[1e-2] < 1e-2
    assert gaps[1e-4] == pytest.approx(1e-2 * gaps[1e-2], rel=0.1)


@pytest.mark.parametrize("k", [1, 3])
def test_zero_factors_are_points_only_with_damping(k, generator):
    damped, exact = FixedRank(k, 5, damping=0.1), FixedRank(k, 5)
    x = exact.random_point(4, 9, k, generator=generator)
    x[2, :5] = 0
    damped.check_point(x)
    u = damped.riemannian_gradient(x, damped.project(x, torch.randn(x.shape, generator=generator)))
    assert torch.isfinite(damped.transport(x, u, u)).all()
    assert torch.isfinite(damped.norm(x, u)).all()
    with pytest.raises(
        GeometryError, match=r"row 2 is off by inf .* factor B has rank .* value 0 beside 0; .*damping=1e-2"
    ):
        exact.check_point(x)
    x[2] = 0
    with pytest.raises(GeometryError, match=r"row 2 is off by inf .* rank below \d, .*; re-initialize it$"):
        damped.check_point(x)


def test_a_layer_whose_factors_lack_rank_is_refused(generator):
    """With the name, the point, the factor and its smallest singular value; nothing changes."""
    layer = nn.Module()
    layer.pairs = nn.Parameter(torch.randn(5, 9, 2, generator=generator))
    with torch.no_grad():
        layer.pairs[3, 4:, 1] = 2 * layer.pairs[3, 4:, 0]
    before = layer.pairs.detach().clone()
    with pytest.raises(
        GeometryError, match=r"pairs is not on .*: row 3 is off .* factor A .* smallest singular value \S+ beside 5"
    ):
        declare(layer, "pairs", FixedRank(2, 4), Rows())
    assert torch.equal(layer.pairs, before)
    declare(layer, "pairs", FixedRank(2, 4, damping=0.01), Rows())
    assert torch.equal(layer.pairs, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedRank(0), "k=0 is not an integer ≥ 1"),
        (lambda: FixedRank(True), "k=True is not an integer"),
        (lambda: FixedRank(2, 0), "n=0 is not an integer ≥ 1"),
        (lambda: FixedRank(2, 4, damping=1.0), r"damping=1.0 is not a number in \[0, 1\)"),
        (lambda: FixedRank(2, 4, damping=-0.1), r"damping=-0.1 is not"),
        (lambda: FixedRank(2, 4, damping="0.1"), r"damping='0.1' is not a number"),
        (lambda: FixedRank(2, 4, damping=math.nan), r"damping=nan is not"),
        (lambda: FixedRank(1, 4, degree=0), r"degree=0 is not a number in \(0, inf\)"),
        (lambda: FixedRank(2, 4, degree=2), r"degree=2.0 with k=2: .* k is 1"),
        (lambda: FixedRank(2).check_point(torch.ones(6, 2)), r"FixedRank\(k=2\) does not know .* FixedRank\(2, n=…\)"),
        (lambda: FixedRank(2, 4).check_point(torch.ones(5, 2)), r"needs n, m ≥ 2; not 5 × 2"),
        (lambda: FixedRank(2, 4).check_point(torch.ones(9, 3)), r"\(n \+ m\) × 2, .* not 9 × 3"),
        (lambda: FixedRank(3, 2).check_point(torch.ones(9, 3)), r"needs n, m ≥ 3"),
    ],
    ids=range(13),
)  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(GeometryError, match=message):
        make()


def test_values_and_names():
    """Equal values have equal names, which groups and checkpoints are compared by."""
    assert repr(FixedRank(1, 4, degree=1)) == "FixedRank(k=1, n=4)"
    assert repr(FixedRank(1, 4, 0, 2)) == repr(FixedRank(1, 4, 0.0, 2.0)) == "FixedRank(k=1, n=4, degree=2.0)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_factors_that_are_singular_up_to_rounding_take_finite_steps(dtype, generator):
    """Their Grams have no Cholesky factor; those of the other points in the batch are not touched."""
    manifold = FixedRank(3, 6)
    x, egrad = (a.to(dtype) for a in draw(manifold, (4, 11, 3), generator))
    expected = manifold.riemannian_gradient(x, egrad)
    x[1, :6, 2] = x[1, :6, 0] - x[1, :6, 1]
    gradient = manifold.riemannian_gradient(x, egrad)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(manifold.project(x, egrad)).all()
    assert torch.equal(gradient[[0, 2, 3]], expected[[0, 2, 3]])
    for k in (1, 3):
        zero = FixedRank(k, 6).riemannian_gradient(torch.zeros(11, k, dtype=dtype), torch.zeros(11, k, dtype=dtype))
        assert not zero.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lengths_whose_squares_do_not_fit(dtype, generator):
    for manifold, shape in ALL:
        x, u = (a.to(dtype) for a in draw(manifold, shape, generator))
        length = manifold.norm(x, u)
        for size in (1e25, 1e-25):
            assert torch.allclose(manifold.norm(x, size * u) / size, length, rtol=1e-5)
