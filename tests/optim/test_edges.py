"""What a step does at the edges: state that only some have, a rate of 0, antipodes, lengths whose squares do not fit, autograd."""

import itertools

import pytest
import torch
from paths import forget_plans
from retract.manifolds import PSI, Euclidean, Grassmann, Rows, Sphere, Stiefel, numerics
from retract.optim import PSISGD, AdamG, RiemannianAdam, RiemannianSGD, clip_riemannian_norm_
from retract.optim.execution import dispatch as execute
from retract.optim.execution.operands import Arrays, make_operand
from retract.optim.execution.points import PointSet
from retract.optim.rules import Momentum
from torch import nn

PATHS = {
    "reference": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}
MANIFOLDS = [PSI(), Sphere(), Grassmann(1), Euclidean(0), Euclidean(1)]
GUARD = 4096


@pytest.mark.parametrize("loose", [False, True], ids=["in place", "copied"])
@pytest.mark.parametrize("owner", ["first", "last"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)
def test_a_buffer_that_only_one_has(manifold, path, owner, loose):
    """Momentum stops before the second parameter has ever moved: it moves without a buffer, and nothing beside the other's
    buffer is touched."""
    ends = []
    for together in (True, False):
        torch.manual_seed(0)
        some = [nn.Parameter(manifold.random_point(2, 8)), nn.Parameter(manifold.random_point(64, 32))]
        a, b = some
        params = some if owner == "first" else some[::-1]
        groups = [params] if together else [[p] for p in params]
        optimizer = RiemannianSGD([{"params": each, "manifold": manifold, **PATHS[path]} for each in groups], 0.1, 0.9)
        a.grad = torch.randn(2, 8)
        optimizer.step()
        heap = torch.full((GUARD,), 7.0)
        heap[:16] = optimizer.state[a]["momentum_buffer"].flatten()
        optimizer.state[a]["momentum_buffer"] = heap[:16].view(2, 8)
        for _ in range(2):
            for group in optimizer.param_groups:
                group["momentum"] = 0.0
            a.grad, b.grad = torch.randn(2, 8), torch.randn(64, 32)
            if loose:
                a.grad, b.grad = (p.grad.T.contiguous().T for p in some)
            optimizer.step()
        assert (heap[16:] == 7.0).all()
        assert "momentum_buffer" not in optimizer.state[b]
        ends.append([a.detach(), b.detach(), heap[:16]])
    assert all(torch.allclose(ours, alone, rtol=1e-5, atol=1e-6) for ours, alone in zip(*ends, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_a_buffer_that_comes_while_momentum_is_off(path):
    """Somebody puts one into the state: it is carried along from then on."""
    ends = []
    for forget in (False, True):
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(4, 6, dtype=torch.float64))
        optimizer = RiemannianSGD([{"params": [w], "manifold": PSI()}], lr=0.3, transport="project", **PATHS[path])
        for t in range(4):
            if t == 2:
                optimizer.state[w]["momentum_buffer"] = torch.ones_like(w)
                if forget:
                    forget_plans(optimizer)
            w.grad = torch.randn_like(w)
            optimizer.step()
        ends.append(optimizer.state[w]["momentum_buffer"])
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], torch.ones_like(ends[0]))


def test_state_has_no_gaps():
    """A list in which one point set is missing would pair arrays with the wrong points."""
    params = [nn.Parameter(torch.ones(2, 3)) for _ in range(2)]
    sets = [PointSet(str(i), (p,), PSI(), Rows()) for i, p in enumerate(params)]
    options = {"momentum": 0.0, "radius": "hold"}
    operands = [make_operand(its, [p.detach()], {}, Momentum(), options) for its, p in zip(sets, params, strict=True)]
    assert len(Arrays(operands, Momentum()).params) == 2
    with pytest.raises(ValueError, match="some point sets have state that others do not have"):
        Arrays([operands[0], operands[1]._replace(scalars={})], Momentum())


@pytest.mark.parametrize("form", ["velocity", "heavy_ball"])
@pytest.mark.parametrize("motion", ["retract", "exp"])
@pytest.mark.parametrize("manifold", [Sphere(), Grassmann(1), Grassmann(2), Stiefel()], ids=repr)
def test_momentum_at_lr_0_stays_on_the_manifold(manifold, motion, form):
    """The last steps of a cosine schedule; the buffer is not tangent any more, because it is carried unchanged."""
    matrices = manifold.event_ndim == 2
    ends = []
    for name, path in PATHS.items():
        if matrices and name in ("foreach", "fused"):
            continue
        torch.manual_seed(0)
        shape = (3, 6, 2) if matrices else (4, 6)
        w = nn.Parameter(manifold.random_point(*shape, dtype=torch.float64))
        options = {"momentum": 0.9, "momentum_form": form, "motion": motion, "transport": "none"}
        optimizer = RiemannianSGD([{"params": [w], "manifold": manifold}], lr=0.3, **options, **path)
        for t in range(8):
            optimizer.param_groups[0]["lr"] = 0.3 if t < 5 else 0.0
            w.grad = torch.randn_like(w)
            before = w.detach().clone()
            optimizer.step()
        assert manifold.point_defect(w.detach()).max() < 1e-14
        assert torch.equal(w, before) == (form == "heavy_ball")
        ends.append(w.detach())
    assert all(torch.allclose(ours, ends[0], rtol=0, atol=1e-13) for ours in ends)


@pytest.mark.parametrize("transport", ["manifold", "project", "parallel", "none"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_step_to_the_antipode(dtype, path, transport):
    """A radial gradient overshoots along the row itself. What is orthogonal to the row is carried unchanged, up to the length
    of the row."""
    w = nn.Parameter(torch.tensor([[1.0, 0, 0], [1, 2, 3], [0.3, -0.7, 1.1]], dtype=dtype))
    optimizer = RiemannianSGD([{"params": [w], "manifold": PSI()}], 1.0, 0.9, transport=transport, **PATHS[path])
    across = torch.tensor([[0, 0.1, 0], [0, 0, 0], [0.7, 0.3, 0]], dtype=dtype)
    optimizer.state[w] |= {"momentum_buffer": across.clone(), "radius": w.detach().norm(dim=1, keepdim=True)}
    x = w.detach().clone()
    w.grad = torch.stack([3 * x[0], 0 * x[1], 3 * x[2] / x[2].square().sum()]) - 0.9 * across / x.square().sum(1, True)
    optimizer.step()
    assert torch.allclose(w[[0, 2]], -2 * x[[0, 2]], rtol=1e-5, atol=1e-6)
    w.grad = torch.full_like(w, 0.1)
    optimizer.step()
    assert torch.isfinite(w).all()
    assert optimizer.state[w]["momentum_buffer"].norm(dim=1).max() < 10


@pytest.mark.parametrize("manifold", [PSI(), Sphere()], ids=repr)
def test_transport_to_the_antipode(manifold):
    x = manifold.random_point(5, 6, dtype=torch.float64)
    v = manifold.random_tangent(x)
    scale = 2.0 if manifold == PSI() else 1.0
    assert torch.allclose(manifold.transport_to(x, -scale * x, v), scale * v, rtol=1e-13, atol=1e-14)
    beside = manifold.retract(-scale * x, 1e-3 * manifold.random_tangent(x))
    carried = manifold.transport_to(x, beside, v)
    assert torch.allclose(manifold.norm(beside, carried), manifold.norm(x, v), rtol=1e-9)


METHODS = {
    "psi-sgdm": lambda g, **k: PSISGD(g, lr=0.1, momentum=0.9, **k),
    "clipped": lambda g, **k: PSISGD(g, lr=0.1, max_point_norm=0.3, **k),
    "adam": lambda g, **k: RiemannianAdam(g, lr=0.05, **k),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", METHODS)
def test_rows_of_every_norm_train_alike(name, path):
    """Theorem 1 in float32, on a loss that sees directions only: its gradient at a·w is 1/a of that at w."""
    generator = torch.Generator().manual_seed(0)
    start, target = (torch.randn(6, 9, generator=generator, dtype=torch.float64) for _ in range(2))

    def run(a, dtype, **how):
        w = nn.Parameter((a * start).to(dtype))
        optimizer = METHODS[name]([{"params": [w], "manifold": PSI()}], **how)
        for _ in range(20):
            x = w.detach().double()
            size = x.norm(dim=1, keepdim=True)
            y = x / size
            g = target * (1 - (y * target).tanh() ** 2)
            w.grad = ((g - y * (y * g).sum(1, keepdim=True)) / size).to(dtype)
            optimizer.step()
        return w.detach().double() / w.detach().double().norm(dim=1, keepdim=True)

    exact = run(1.0, torch.float64, foreach=False)
    for a in (1e-15, 1e-10, 1e-6, 1e6, 1e10, 1e15):
        assert (run(a, torch.float32, **PATHS[path]) - exact).abs().max() < 2e-6, a
        if path != "fused":
            assert (run(a, torch.bfloat16, **PATHS[path]) - exact).abs().max() < 0.1, a


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("manifold", [Sphere(), Grassmann(1)], ids=repr)
def test_gradients_of_every_length_keep_rows_on_the_sphere(manifold, path):
    """Squares of 1e20 overflow in float32, and a row over an infinite norm is 0."""
    makes = {
        "momentum": lambda g: RiemannianSGD(g, lr=0.1, momentum=0.9),
        "plain": lambda g: RiemannianSGD(g, lr=0.1),
        "clipped": lambda g: RiemannianSGD(g, lr=0.1, momentum=0.9, max_point_norm=0.3),
        "adam": lambda g: RiemannianAdam(g, lr=0.1, max_point_norm=0.3),
        "adamg": lambda g: AdamG(g, lr=0.1, orthogonality=0.0),
    }
    for (name, make), scale in itertools.product(makes.items(), (1e-30, 1e-22, 1e18, 1e20, 1e25)):
        ends = []
        for dtype, way in ((torch.float64, {"foreach": False}), (torch.float32, PATHS[path])):
            torch.manual_seed(0)
            w = nn.Parameter(manifold.random_point(5, 12, dtype=torch.float64).to(dtype))
            optimizer = make([{"params": [w], "manifold": manifold, **way}])
            for _ in range(4):
                w.grad = (scale * torch.randn(5, 12, dtype=torch.float64)).to(dtype)
                optimizer.step()
            ends.append(w.detach().double())
        assert (ends[1] - ends[0]).abs().max() < 1e-6, (name, scale)


def test_norms_over_the_whole_range():
    a = torch.randn(7, 50, dtype=torch.float64) * torch.tensor([[1e-36], [1e-22], [0.0], [1.0], [1e19], [1e30], [1e37]])
    for rows in (a, a[2:4], a[:0], a[[3]]):
        exact = rows.norm(dim=1, keepdim=True)
        assert ((numerics.norm(rows.float(), 1) - exact).abs() <= 1e-6 * exact).all()
        assert (
            (torch.vmap(lambda row: numerics.norm(row, 1))(rows.float()) - exact).abs() <= 1e-6 * exact
        ).all() or not len(rows)
    x = a.float().requires_grad_()
    numerics.norm(x, 1).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[2] == 0).all()


def test_clipping_all_gradients_at_every_norm():
    start, target = torch.randn(6, 9, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    want = float((start.norm(dim=1) * target.norm(dim=1)).norm())
    for a in (1e-12, 1e-8, 1.0, 1e8, 1e12):
        w = nn.Parameter((a * start).float())
        optimizer = PSISGD([{"params": [w], "manifold": PSI()}])
        w.grad = (target / a).float()
        assert float(clip_riemannian_norm_(optimizer, 1e9)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", [12, 5000])
@pytest.mark.parametrize("manifold", [Sphere(), Grassmann(1)], ids=repr)
def test_gradients_that_are_nearly_radial(manifold, n, path):
    """What a projection leaves of them is rounding, which Adam brings to the length of a step."""
    w = nn.Parameter(manifold.random_point(4, n))
    optimizer = RiemannianAdam([{"params": [w], "manifold": manifold}], lr=0.1, **PATHS[path])
    for share in (1e-6, 1e-7, 1e-6):
        w.grad = w.detach() + share * torch.randn(4, n) / n**0.5
        optimizer.step()
        assert manifold.point_defect(w.detach()).max() < 2e-6


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)
def test_versions_of_all_that_is_written(manifold, path):
    """In place and copied, whatever lies otherwise: the gradient, the state, the parameter."""
    makes = (lambda g: RiemannianSGD(g, lr=0.1, momentum=0.9), lambda g: RiemannianAdam(g, lr=0.1))
    for make, first in itertools.product(makes, (0, 1)):
        w = nn.Parameter(manifold.random_point(4, 6))
        optimizer = make([{"params": [w], "manifold": manifold, **PATHS[path]}])
        for t in range(4):
            w.grad = torch.randn(4, 6) if t % 2 == first else torch.randn(6, 4).T
            written = [w, *(v for k, v in optimizer.state[w].items() if k not in ("step", "radius"))] if t else [w]
            before = [each._version for each in written]
            optimizer.step()
            assert all(each._version > was for each, was in zip(written, before, strict=True)), t


def test_the_band_follows_the_parameter(monkeypatch):
    """Also of rows that are copied to float32 for the kernel."""
    seen = []

    class Stub:
        @staticmethod
        def schedule(table):
            return None

        @staticmethod
        def step(table, schedule, update, dtype, device):
            seen.append((update.numbers.low, update.numbers.high))

    monkeypatch.setattr(execute, "kernel_for", lambda *_: Stub)
    for dtype, band in ((torch.float16, (1e-2, 1e2)), (torch.bfloat16, (1e-4, 1e4))):
        for joined in (False, True):
            w, b = nn.Parameter(torch.randn(4, 3).to(dtype)), nn.Parameter(torch.randn(4).to(dtype))
            group = {"params": [w, b], "joined": [(w, b)]} if joined else {"params": [w]}
            optimizer = PSISGD([{**group, "manifold": PSI(), "rows": Rows()}], lr=0.1, radius="free", fused=True)
            w.grad, b.grad = torch.zeros_like(w), torch.zeros_like(b)
            seen.clear()
            optimizer.step()
            assert seen == [band]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_flat_parameters_in_half_precision_move(momentum, dtype, path):
    """All of them: torch's fused kernel on a CPU leaves them where they are."""
    w = nn.Parameter(torch.randn(20, 40).to(dtype))
    optimizer = RiemannianSGD([w], lr=0.1, momentum=momentum, **PATHS[path])
    x, w.grad = w.detach().clone(), torch.randn(20, 40).to(dtype)
    optimizer.step()
    assert torch.equal(w, (x.float() - 0.1 * w.grad.float()).to(dtype))


@pytest.mark.parametrize("path", ["reference", "foreach", "default"])  # Triton's is in triton_rows.py
@pytest.mark.parametrize("optimizer", [RiemannianAdam, RiemannianSGD])
def test_vectors_that_float16_does_not_reach_stay_finite(optimizer, path):
    """A row of norm 450 and a gradient of norm 1 on PSI have a Riemannian gradient of 2e5, and float16 ends at 65504."""
    options = {"momentum": 0.9} if optimizer is RiemannianSGD else {"betas": (0.5, 0.9)}
    w = nn.Parameter(torch.tensor([[450.0, 0.0], [0.0, -450.0]]).half())
    its = optimizer([{"params": [w], "manifold": PSI(), **PATHS[path]}], lr=1e-3, **options)
    for lr in (1e-3, 0.0, 1e-3):
        its.param_groups[0]["lr"] = lr
        before, w.grad = w.detach().clone(), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).half()
        its.step()
        (vector,) = (v for v in its.state[w].values() if v.shape == w.shape)
        assert vector.abs().amax(1).tolist() == [65504.0, 65504.0]
        assert torch.isfinite(w).all()
        assert lr > 0 or torch.equal(w, before)


@pytest.mark.parametrize("manifold", [Sphere(), Grassmann(1)], ids=repr)
def test_gradients_that_are_almost_normal(manifold):
    """x and g all but cancel in the step; what rounding leaves of it must not take the row off the sphere."""
    for name, path in PATHS.items():
        for dtype, motion, momentum in itertools.product(
            (torch.float32, torch.float64), ("retract", "exp"), (0.0, 0.9)
        ):
            for scale in (1e2, 1e6, 1e10):
                torch.manual_seed(0)
                w = nn.Parameter(manifold.random_point(16, 32, dtype=dtype))
                group = {"params": [w], "manifold": manifold, **path}
                optimizer = RiemannianSGD([group], lr=0.1, momentum=momentum, motion=motion)
                for _ in range(3):
                    w.grad = scale * w.detach() + 0.1 * torch.randn_like(w)
                    optimizer.step()
                defect = manifold.point_defect(w.detach()).max()
                assert defect < 64 * torch.finfo(dtype).eps, (name, dtype, motion, momentum, scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rows_outside_the_band_come_back(dtype):
    """By a power of two, on every path."""
    for path in PATHS.values():
        w = nn.Parameter(torch.tensor([[3e5, 4e5], [3e-6, 4e-6], [3.0, 4.0]], dtype=dtype))
        optimizer = PSISGD([{"params": [w], "manifold": PSI(), **path}], lr=1e-30, radius="free")
        w.grad = torch.ones_like(w) * 1e-12
        optimizer.step()
        norms = w.detach().norm(dim=1)
        assert torch.all((norms >= 0.5) & (norms <= 5.0))


@pytest.mark.parametrize("manifold", [Sphere(), PSI()], ids=repr)
def test_transport_beside_the_antipode_is_isometric(manifold):
    generator = torch.Generator().manual_seed(0)
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 5e-3)):
        for beside in (3e-3, 1e-3, 3e-4):
            x = manifold.random_point(200, 6, generator=generator, dtype=torch.float64)
            u = manifold.random_tangent(x, generator=generator)
            y = manifold.exp(x, u / manifold.norm(x, u) * (torch.pi - beside)).to(dtype)
            x = x.to(dtype)
            v = manifold.random_tangent(x, generator=generator)
            lengths = manifold.norm(y, manifold.transport_to(x, y, v)) / manifold.norm(x, v)
            assert (lengths - 1.0).abs().max() < bound


@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1), Euclidean(1)], ids=repr)
def test_lengths_of_tangents_whose_squares_overflow_or_vanish(manifold):
    x = manifold.random_point(4, 6)
    u = manifold.random_tangent(x)
    u = u / manifold.norm(x, u)
    for length in (1e-25, 1e25):
        assert torch.allclose(manifold.norm(x, length * u), torch.full((4, 1), length), rtol=1e-5)
