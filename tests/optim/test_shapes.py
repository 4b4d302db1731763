"""The seam of shapes: what they are, on which points, in which stacks, and what is refused."""

import pytest
import torch
from retract import declare, param_groups
from retract.errors import GeometryError, OptionError, StateError
from retract.manifolds import PSI, Euclidean, FixedRank, Grassmann, Rows, Sphere, Stiefel
from retract.optim import (
    AdamH,
    Muon,
    MuonH,
    PSIMuon,
    RiemannianAdam,
    RiemannianSGD,
    Rotational,
    Row,
    Scion,
    Shape,
    Spectral,
    msign,
)
from retract.optim.execution import reference
from torch import nn

EXACT = Spectral("svd")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def stepped(w, manifold=None, rows=None, make=RiemannianSGD, steps=1, **options):
    """A parameter after steps with fixed gradients."""
    p = nn.Parameter(w.clone())
    group = {"params": [p]} | ({} if manifold is None else {"manifold": manifold, "rows": rows or Rows()})
    optimizer = make([group], **{"lr": 0.1, **options})
    for seed in range(steps):
        p.grad = normal(*w.shape, seed=seed + 1).to(w.dtype)
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (2, 7, 4), (4, 64)])
def test_iterations_are_what_polynomials_of_singular_values_say(shape):
    """Also where products are taken on the smaller side first."""
    a = normal(*shape)
    left, singular, right = torch.linalg.svd(a, full_matrices=False)
    for coefficients in ([msign.QUINTIC], msign.POLAR_EXPRESS):
        for steps in (1, 3, 5, 9):
            value = singular / singular.norm(dim=-1, keepdim=True)
            for step in range(steps):
                b1, b3, b5 = coefficients[min(step, len(coefficients) - 1)]
                value = b1 * value + b3 * value**3 + b5 * value**5
            expected = left @ (value.unsqueeze(-1) * right)
            assert (msign.iterated(a, coefficients, steps) - expected).abs().max() < 1e-12


def test_published_errors():
    """Quintic steps leave singular values of a Gaussian matrix in [0.68, 1.13] (Jordan 2024); eight steps of the Polar Express
    are exact from 1e-3 of the largest on (Amsel et al. 2025)."""
    values = torch.linalg.svdvals(msign.iterated(normal(64, 32), [msign.QUINTIC], 5))
    assert values.min() > 0.65
    assert values.max() < 1.2
    left, _, right = torch.linalg.svd(normal(32, 32))
    a = left @ torch.diag(torch.logspace(0, -3, 32, dtype=torch.float64)) @ right
    assert (msign.iterated(a, msign.POLAR_EXPRESS, 10) - left @ right).abs().max() < 1e-6


def test_rank_deficient_and_zero_matrices():
    a = normal(6, 2) @ normal(2, 5, seed=1)
    left, _, right = torch.linalg.svd(a)
    expected = left[:, :2] @ right[:2]
    assert (msign.exact(a) - expected).abs().max() < 1e-12
    assert (msign.iterated(a, msign.POLAR_EXPRESS, 10) - expected).abs().max() < 1e-6
    for shape in (Spectral(), Spectral("polar_express"), EXACT):
        assert not shape.msign(torch.zeros(2, 3, 4)).any()


@pytest.mark.parametrize(
    "shape", ["unit", "row", "sign", "spectral", EXACT, ("spectral", "tangent"), Spectral(exact=True)]
)
@pytest.mark.parametrize("manifold", [Euclidean(2), Stiefel(), PSI(), Sphere()], ids=repr)
def test_zero_gradients_are_still_steps_and_others_spread(manifold, shape):
    """Bitwise, also at lr = 0; a gradient that is not finite makes the point NaN, and no other matrix."""
    if isinstance(shape, Spectral) and shape.exact and manifold == Euclidean(2):
        pytest.skip("no solver")
    whole = Rows() if manifold.event_ndim == 2 else Rows(blocks=2)
    w = normal(2, 4, 3) if manifold.event_ndim == 2 else normal(8, 3)
    layout = whole.layout(w, manifold.event_ndim)
    layout.write(w, manifold.nearest(layout.split(w)))
    p = nn.Parameter(w.clone())
    optimizer = RiemannianSGD([{"params": [p], "manifold": manifold, "rows": whole}], lr=0.1, momentum=0.9, shape=shape)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p, w)
    optimizer.param_groups[0]["lr"] = 0.0
    p.grad = normal(*w.shape, seed=3)
    optimizer.step()
    assert torch.equal(p, w)
    optimizer.param_groups[0]["lr"] = 0.1
    p.grad[0, 0] = torch.nan
    optimizer.step()
    first, second = layout.split(p.detach())
    assert first.isnan().any()
    assert second.isfinite().all()
    assert not torch.equal(second, layout.split(w)[1])


def test_matrices_of_blocks_heads_and_experts():
    """One matrix per block on PSI and on Euclidean(2), in any memory order; all rows together for points that are rows."""
    w, g = normal(6, 4), normal(6, 4, seed=1)
    parts = [EXACT.msign(-each) for each in g.split(2)]
    assert torch.allclose(stepped(w, Euclidean(2), Rows(blocks=3), shape=EXACT), w + 0.1 * torch.cat(parts))
    sizes = torch.cat([each.norm().expand(2, 4) for each in w.split(2)])
    moved = w + 0.1 * sizes * torch.cat(parts)
    moved = moved * sizes / torch.cat([each.norm().expand(2, 4) for each in moved.split(2)])
    for order in (w, w.mT.contiguous().mT):
        assert torch.allclose(stepped(order, PSI(), Rows(blocks=3), shape=EXACT), moved)
    experts, h = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    expected = experts + 0.1 * EXACT.msign(-h)
    assert torch.allclose(stepped(experts, Euclidean(2), shape=EXACT), expected)
    ratio = experts.flatten(1).norm(dim=1).view(3, 1, 1)
    expected = experts + 0.1 * ratio * EXACT.msign(-h)
    expected = expected * ratio / expected.flatten(1).norm(dim=1).view(3, 1, 1)
    assert torch.allclose(stepped(experts, PSI(), Rows(blocks=3), shape=EXACT), expected)
    rows = Sphere().nearest(w)
    tangent = Sphere().project(rows, EXACT.msign(-Sphere().project(rows, g)))
    expected = Sphere().nearest(rows + 0.1 * tangent)
    assert torch.allclose(stepped(rows, Sphere(), shape=(EXACT, "tangent")), expected)


def test_filters_of_a_convolution_are_one_matrix():
    w, g = normal(6, 2, 3, 3), normal(6, 2, 3, 3, seed=1)
    step = EXACT.msign(-g.flatten(1)).reshape(w.shape)
    for order in (w, w.to(memory_format=torch.channels_last)):
        found = stepped(order, Euclidean(2), Rows.whole(columns=(1, 2, 3)), shape=EXACT)
        assert torch.allclose(found, w + 0.1 * step)
    size = w.norm()
    moved = w + 0.1 * size * step
    for order in (w, w.to(memory_format=torch.channels_last)):
        assert torch.allclose(stepped(order, PSI(), Rows.whole(), shape=EXACT), moved * size / moved.norm())


@pytest.mark.parametrize("make", [Muon, MuonH, AdamH, Rotational, PSIMuon])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_stacks_of_equal_matrices_are_the_matrices_alone(make, dtype, monkeypatch):
    """Bitwise in their order, with matrices of other shapes between them and one without a gradient at first."""
    manifold = Euclidean(2) if make is Muon else PSI()
    rows = Rows.whole() if make in (MuonH, AdamH) else Rows()

    def run(stack):
        monkeypatch.setattr(reference, "STACK", stack)
        params = [
            nn.Parameter(normal(*shape, seed=i).to(dtype)) for i, shape in enumerate([(4, 6), (6, 4), (4, 6), (4, 6)])
        ]
        optimizer = make([{"params": params, "manifold": manifold, "rows": rows}], lr=0.05)
        for step in range(3):
            for i, p in enumerate(params):
                p.grad = normal(*p.shape, seed=10 * step + i).to(dtype) if step or i != 2 else None
            optimizer.step()
        return params, optimizer.state_dict()["state"]

    together, state = run(10**6)
    alone, other = run(1)
    bound = 1e-12 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 1e-2
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a, b, rtol=bound, atol=bound)
    for key, entry in state.items():
        assert entry.keys() == other[key].keys()
        for name, value in entry.items():
            assert torch.allclose(value.double(), other[key][name].double(), rtol=bound, atol=bound), name


@pytest.mark.parametrize("shape", [(400, 500), (650, 390), (600, 1250)])
@pytest.mark.parametrize("recorded", [False, True])
def test_large_matrices_are_multiplied_by_blocks(shape, recorded):
    """Symmetric products are formed by blocks from 384 on; the sides are no multiples of a block."""
    a = normal(*shape)
    x = a.mT if shape[0] > shape[1] else a
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    expected = x.mT if shape[0] > shape[1] else x
    found = Spectral().msign(a.requires_grad_(recorded))
    assert torch.allclose(found, expected, rtol=0.0, atol=1e-9)
    if recorded:
        with torch.no_grad():
            direction = normal(*shape, seed=1)
            ahead, behind = (Spectral().msign(a + t * direction) for t in (1e-6, -1e-6))
        weights = normal(*shape, seed=2)
        slope = ((ahead - behind) * weights).sum() / 2e-6
        (gradient,) = torch.autograd.grad((found * weights).sum(), a)
        assert torch.allclose((gradient * direction).sum(), slope, rtol=1e-5)


def test_a_shape_of_ones_own():
    class Half(Shape):
        def __call__(self, points, a):
            assert points.matrix == (2, 3)
            return 0.5 * a.sign()

    w = normal(2, 3)
    assert torch.equal(stepped(w, Euclidean(2), shape=Half()), w - 0.05 * normal(2, 3, seed=1).sign())


MATRIX = {"params": [nn.Parameter(torch.eye(3, 4))]}
BAD = [
    ({**MATRIX}, {"shape": "spectral"}, "in flat space every coordinate is a point there. Declare matrices with Euclidean"),
    ({**MATRIX, "manifold": Euclidean(1)}, {"shape": ("unit", "elsewhere")}, "'elsewhere'"),
    ({"params": [nn.Parameter(torch.ones(4))], "manifold": PSI(), "rows": Rows.whole()}, {"shape": "spectral"}, "needs matrices"),
    ({"params": [nn.Parameter(torch.ones(4, 1))], "manifold": FixedRank(1, 2)}, {"shape": "row"}, "are not orthonormal"),
    ({**MATRIX, "manifold": Euclidean(2)}, {"shape": Spectral(exact=True)}, "no solver for tangent matrices of Euclidean"),
    ({**MATRIX, "manifold": PSI()}, {"shape": Spectral(exact=True)}, "rows of a matrix"),
    ({**MATRIX, "manifold": PSI()}, {"shape": "spectral", "fused": True}, "spectral is a shape"),
    ({**MATRIX, "manifold": PSI()}, {"shape": "spectral", "foreach": True}, "spectral is a shape"),
    ({**MATRIX, "manifold": PSI()}, {"tangent": "step"}, "set transport='none'"),
    ({**MATRIX, "manifold": PSI()}, {"tangent": "step", "transport": "none", "fused": True}, "tangent='step'"),
    ({"params": [nn.Parameter(torch.eye(4, 2))], "manifold": Grassmann(2)}, {"shape": "sign"}, "would depend on the frame"),
    ({**MATRIX, "manifold": PSI()}, {"scale": 2.0}, "shape is None; change lr instead"),
    ({**MATRIX, "manifold": PSI()}, {"motion": "polar"}, "is not embedded; use motion='retract'"),
    ({"params": [nn.Parameter(torch.ones(4))], "manifold": PSI(), "rows": Rows.whole()},
     {"shape": "unit", "adjust_lr_fn": "original"}, "function of the sides of a matrix"),
    ({**MATRIX, "manifold": PSI()}, {"momentum": 0.9, "momentum_form": "ema", "dampening": 0.5}, "dampened by the momentum"),
]  # fmt: skip


@pytest.mark.parametrize(("group", "options", "message"), BAD, ids=[case[2][:20] for case in BAD])
def test_what_is_refused(group, options, message):
    with pytest.raises(OptionError, match=message):
        RiemannianSGD([group], lr=0.1, **options)
    optimizer = RiemannianSGD([{**group, "manifold": group.get("manifold", Euclidean(0))}], lr=0.1)
    optimizer.param_groups[0].update(options)
    before = group["params"][0].detach().clone()
    group["params"][0].grad = torch.ones_like(before)
    with pytest.raises(OptionError, match=message):
        optimizer.step()
    assert torch.equal(group["params"][0], before)


def test_bad_values_of_spectral():
    for options in ({"method": "qr"}, {"steps": 0}, {"coefficients": (1.0, 2.0)}):
        with pytest.raises(OptionError, match=next(iter(options))):
            Spectral(**options)


@pytest.mark.parametrize("make", [Muon, Scion])
def test_what_is_no_matrix(make):
    for p in (torch.ones(3), torch.ones(2, 3, 4)):
        with pytest.raises(GeometryError, match="is no matrix, and .* give it to another optimizer, or declare"):
            make([nn.Parameter(p)])
    layer = nn.Linear(3, 2)
    declare(layer, "weight", Euclidean(2))
    with pytest.raises(GeometryError, match="bias of shape"):
        make(param_groups(layer))
    make(param_groups(layer)[:1])


def test_shapes_in_checkpoints():
    """They are text there; a run goes on bitwise with the same shape, and is refused with another."""
    w = normal(4, 6)

    def make(shape):
        p = nn.Parameter(w.clone())
        return p, RiemannianSGD([{"params": [p], "manifold": Euclidean(2)}], lr=0.1, momentum=0.9, shape=shape)

    p, optimizer = make("spectral")
    p.grad = normal(4, 6, seed=1)
    optimizer.step()
    saved = optimizer.state_dict()
    assert isinstance(saved["param_groups"][0]["shape"], str)
    q, other = make(Spectral())
    with torch.no_grad():
        q.copy_(p)
    other.load_state_dict(saved)
    q.grad = p.grad
    other.step()
    optimizer.step()
    assert torch.equal(p, q)
    for shape in (None, "row", Spectral(steps=6)):
        with pytest.raises(StateError, match="was saved with shape Spectral"):
            make(shape)[1].load_state_dict(saved)
    # One from before the option: the shape of this optimizer stays.
    del saved["param_groups"][0]["shape"]
    other.load_state_dict(saved)
    assert other.param_groups[0]["shape"] == (Spectral(),)


def test_decoupled_decay_is_that_of_adamw():
    w = normal(3, 4)
    ours, theirs = (nn.Parameter(w.clone()) for _ in range(2))
    optimizer = RiemannianAdam([ours], lr=0.1, weight_decay=0.3, decoupled_weight_decay=True, foreach=False)
    other = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.3, foreach=False)
    for seed in range(3):
        ours.grad = theirs.grad = normal(3, 4, seed=seed)
        optimizer.step()
        other.step()
    assert torch.equal(ours, theirs)
    found = stepped(w, Euclidean(2), weight_decay=0.3, decoupled_weight_decay=True)
    assert torch.allclose(found, 0.97 * w - 0.1 * normal(3, 4, seed=1))


def test_the_polar_motion_is_the_nearest_point():
    w = Stiefel().nearest(normal(5, 3))
    step = -0.1 * Stiefel().project(w, normal(5, 3, seed=1))
    assert torch.allclose(stepped(w, Stiefel(), motion="polar"), Stiefel().nearest(w + step))
    w = Grassmann(3).nearest(w)
    step = -0.1 * Grassmann(3).project(w, normal(5, 3, seed=1))
    assert torch.allclose(stepped(w, Grassmann(3), motion="polar"), Grassmann(3).nearest(w + step))


def test_a_radius_as_a_number_on_every_path():
    for options in ({"foreach": False}, {"foreach": True}, {}):
        found = stepped(normal(3, 4), PSI(), radius=2.0, lr=1e-8, steps=2, **options)
        assert torch.allclose(found.norm(dim=1), torch.full((3,), 2.0, dtype=torch.float64))


def test_rows_of_length_one():
    found = Row()(type("P", (), {"matrices": lambda self, a: a})(), normal(3, 4))
    assert torch.allclose(found.norm(dim=1), torch.ones(3, dtype=torch.float64))
