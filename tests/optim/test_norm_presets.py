"""Every preset of norm geometry against the update of its paper, which `norm_references` has in float64: 50 steps with a schedule."""

import norm_references as methods
import norm_references_manifold as on_manifolds
import pytest
import torch
from retract import optim
from retract.manifolds import PSI, CenteredSphere, Euclidean, Rows, SpectralSphere, Sphere, Stiefel
from retract.optim import Spectral
from torch import nn

STEPS = 50
EXACT = Spectral("svd")
QUINTIC = {"sign": methods.newton_schulz}


def gradient(w):
    """That of a function without any invariance."""
    target = torch.arange(w.numel(), dtype=w.dtype).reshape(w.shape).sin()
    return (w - target) @ torch.diag(torch.linspace(0.2, 2.0, w.shape[1], dtype=w.dtype)) + 0.3 * torch.cos(3 * w)


def rates(lr):
    return [lr * (1.0 - t / STEPS) for t in range(STEPS)]


def start(n, p, seed=0):
    return torch.randn(n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def of_directions(w):
    """The gradient of a function of the directions of the rows."""
    length = w.norm(dim=1, keepdim=True)
    return methods.row_tangent(w / length, gradient(w / length)) / length


def iterates(make, w, lr, manifold=None, rows=None, gradient=gradient):
    """W after each step of a preset."""
    whole = manifold is None or (rows is not None and rows != Rows())
    p = nn.Parameter((w if whole else manifold.nearest(w)).clone())
    group = {"params": [p]} | ({} if manifold is None else {"manifold": manifold, "rows": rows or Rows()})
    optimizer = make([group], lr=lr)
    found = [p.detach().clone()]
    for rate in rates(lr):
        optimizer.param_groups[0]["lr"] = rate
        p.grad = gradient(p.detach())
        optimizer.step()
        found.append(p.detach().clone())
    return found


def agree(ours, theirs, bound=1e-6):
    """At every step; and the run has gone somewhere."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= bound * b.abs().max()
    assert (ours[-1] - ours[0]).norm() > 1e-2 * ours[0].norm()


def of(preset, **options):
    return lambda groups, lr: preset(groups, lr=lr, **options)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon(shape, nesterov, adjust):
    w, options = start(*shape), {"nesterov": nesterov, "weight_decay": 0.1, "adjust_lr_fn": adjust}
    theirs = {"nesterov": nesterov, "decay": 0.1, "adjust": adjust}
    agree(
        iterates(of(optim.Muon, shape=EXACT, **options), w, 0.02),
        methods.muon(w, gradient, rates(0.02), **theirs),
    )
    agree(iterates(of(optim.Muon, **options), w, 0.02), methods.muon(w, gradient, rates(0.02), **theirs, **QUINTIC))


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_h(nesterov):
    w, whole = start(6, 9), Rows.whole()
    ours = iterates(of(optim.MuonH, nesterov=nesterov, shape=(EXACT, optim.Unit())), w, 0.018, PSI(), whole)
    agree(ours, methods.muon_h(w, gradient, rates(0.018), nesterov=nesterov))
    ours = iterates(of(optim.MuonH, nesterov=nesterov), w, 0.018, PSI(), whole)
    agree(ours, methods.muon_h(w, gradient, rates(0.018), nesterov=nesterov, **QUINTIC))


def test_muon_h_at_a_radius():
    """It is reached at the first step, from any start."""
    w = start(6, 9)
    ours = iterates(
        of(optim.MuonH, radius=2.0, shape=(EXACT, optim.Unit())), 2.0 * w / w.norm(), 0.018, PSI(), Rows.whole()
    )
    agree(ours, methods.muon_h(2.0 * w / w.norm(), gradient, rates(0.018)))
    assert all(abs(float(each.norm()) - 2.0) < 1e-12 for each in ours)


def test_muon_h_per_head():
    """One radius and one matrix per block."""
    w = torch.cat([start(3, 9, seed) * (seed + 1) for seed in range(2)])
    ours = iterates(of(optim.MuonH, shape=(EXACT, optim.Unit())), w, 0.018, PSI(), Rows(blocks=2))
    parts = [[each[3 * i : 3 * i + 3] for each in ours] for i in range(2)]
    for i, part in enumerate(parts):
        given = [gradient(each)[3 * i : 3 * i + 3] for each in ours[:-1]]
        agree(part, methods.muon_h(w[3 * i : 3 * i + 3], given, rates(0.018)))


def test_adam_h():
    w = start(6, 9)
    w = w / w.norm()  # ε is in units of R here, and of 1 there
    agree(iterates(of(optim.AdamH), w, 0.018, PSI(), Rows.whole()), methods.adam_h(w, gradient, rates(0.018)))
    w = start(6, 9)
    ours = iterates(of(optim.AdamH, eps=0.0), w, 0.018, PSI(), Rows.whole())
    agree(ours, methods.adam_h(w, gradient, rates(0.018), eps=0.0))


@pytest.mark.parametrize("rows", [Rows.whole(), Rows()], ids=["whole", "rows"])
def test_hyperspherical_descent(rows):
    w, by_row = start(6, 9), rows == Rows()
    unit = Sphere().nearest(w) if by_row else w / w.norm()
    ours = iterates(of(optim.HypersphericalDescent), unit, 0.1, Sphere(), rows)
    agree(ours, methods.hyperspherical_descent(w, gradient, rates(0.1), by_row=by_row))
    agree(
        iterates(of(optim.HypersphericalDescent), w, 0.1, PSI(), rows),
        methods.hyperspherical_descent(w, gradient, rates(0.1), by_row=by_row, hold=True),
    )


def test_oblique_sgd():
    w = start(6, 9)
    agree(iterates(of(optim.ObliqueSGD), w, 0.02, Sphere()), methods.oblique_sgd(w, gradient, rates(0.02)))


def test_oblique_adam():
    w = start(6, 9)
    agree(iterates(of(optim.ObliqueAdam), w, 0.02, Sphere()), methods.oblique_adam(w, gradient, rates(0.02)))


@pytest.mark.parametrize(("shape", "rows"), [((12, 6), Rows()), ((6, 12), Rows.whole(columns=0)), ((6, 6), Rows())])
def test_manifold_muon(shape, rows):
    w = Stiefel().nearest(start(*shape) if shape[0] >= shape[1] else start(*shape).mT)
    w = w if shape[0] >= shape[1] else w.mT.contiguous()
    p = nn.Parameter(w.clone())
    optimizer = optim.ManifoldMuon([{"params": [p], "manifold": Stiefel(), "rows": rows}])
    ours = [w]
    for rate in rates(0.1):
        optimizer.param_groups[0]["lr"] = rate
        p.grad = gradient(p.detach())
        optimizer.step()
        ours.append(p.detach().clone())
    # Step by step: this descent is chaotic, and multiplies a difference by a million within 30 steps.
    for rate, before, after in zip(rates(0.1), ours, ours[1:], strict=False):
        (_, expected) = on_manifolds.manifold_muon(before, [gradient(before)], [rate])
        assert (after - expected).abs().max() <= 1e-6
    assert (ours[-1] - w).norm() > 0.1 * w.norm()


@pytest.mark.parametrize("nesterov", [True, False])
def test_spel(nesterov):
    w = start(9, 6)
    ours = iterates(of(optim.SPEL, shape=EXACT, nesterov=nesterov), w, 0.02, Stiefel())
    agree(ours, on_manifolds.spel(w, gradient, rates(0.02), nesterov=nesterov))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("radius", [1.0, 2.0])
def test_sso(exact, radius):
    w = start(6, 9)
    shape = Spectral("svd", exact=exact)
    ours = iterates(of(optim.SSO, shape=shape), w, 0.02, SpectralSphere(radius))
    agree(ours, on_manifolds.sso(w, gradient, rates(0.02), radius_scale=radius, exact=exact))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_scion(shape):
    w = start(*shape)
    for decay in (0.0, 1.0):
        ours = iterates(of(optim.Scion, shape=EXACT, scale=5.0, weight_decay=decay), w, 0.02)
        agree(ours, methods.scion(w, gradient, rates(0.02), rho=5.0, constrained=decay == 1.0))
    for name, factor in (("sign", 1 / shape[1]), ("row", shape[1] ** -0.5)):
        ours = iterates(of(optim.Scion, shape=name, scale=5.0 * factor, adjust_lr_fn=None), w, 0.02)
        agree(ours, methods.scion(w, gradient, rates(0.02), shape=name, rho=5.0))


def test_nero():
    w = start(6, 9)
    agree(iterates(of(optim.Nero), w, 0.01, CenteredSphere()), methods.nero(w, gradient, rates(0.01)))


@pytest.mark.parametrize("form", ["velocity", "heavy_ball"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_psi_muon(form, nesterov):
    w = start(6, 9) * torch.logspace(-1, 1, 6, dtype=torch.float64).unsqueeze(1)
    make = of(optim.PSIMuon, shape=(EXACT, optim.Tangent()), momentum=0.9, momentum_form=form, nesterov=nesterov)
    ours = iterates(make, w, 0.05, PSI(), gradient=of_directions)
    agree(ours, on_manifolds.psi_muon(w, of_directions, rates(0.05), momentum=0.9, form=form, nesterov=nesterov))


def test_rotational():
    """Published defaults: the angle is that of AdamW at its rate and decay."""
    w = start(6, 9) * torch.logspace(-1, 1, 6, dtype=torch.float64).unsqueeze(1)
    p = nn.Parameter(w.clone())
    optimizer, ours = optim.Rotational([{"params": [p], "manifold": PSI()}], eps=0.0), [w]
    for rate in rates(0.02):
        optimizer.param_groups[0]["lr"] = optim.Rotational.angle(rate, 0.3)
        p.grad = gradient(p.detach())
        optimizer.step()
        ours.append(p.detach().clone())
    agree(ours, methods.rotational(w, gradient, rates(0.02), 0.3, eps=0.0, mean=False))
    (default,) = optim.Rotational([{"params": [p], "manifold": PSI()}]).param_groups
    assert abs(default["lr"] - (2e-5 * 0.1 / 1.9) ** 0.5) < 1e-15


def test_torchs_muon():
    """Equal to torch.optim.Muon but for its bfloat16: in float64 our steps are as far from it as it is from the exact iteration."""
    for shape in ((6, 9), (9, 6)):
        for options in ({}, {"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw"}, {"weight_decay": 0.3}):
            w = start(*shape).float()
            theirs = nn.Parameter(w.clone())
            muon = torch.optim.Muon([theirs], lr=0.02, **options)
            ours = nn.Parameter(w.clone())
            named = {"weight_decay": 0.1, **options}
            optimizer = optim.Muon([ours], lr=0.02, **named)
            for _ in range(10):
                ours.grad = theirs.grad = gradient(theirs.detach())
                muon.step()
                optimizer.step()
            moved = (theirs - w).abs().max()
            assert (ours - theirs).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * moved


def test_adam_moments_per_coordinate_on_flat_space():
    """There every coordinate is a point, and the two kinds of moments are one, bitwise."""
    found = []
    for kind in ("point", "coordinate"):
        p = nn.Parameter(start(3, 4))
        optimizer = optim.RiemannianAdam([p], lr=0.1, second_moment=kind)
        for _ in range(3):
            p.grad = gradient(p.detach())
            optimizer.step()
        found.append(p.detach())
    assert torch.equal(*found)


def test_euclidean_matrices_are_where_nothing_is_declared():
    assert "Euclidean(event_ndim=2)" in repr(optim.Muon([nn.Parameter(start(2, 3))]).paths())
    assert optim.Scion.flat == Euclidean(2)


@pytest.mark.parametrize(
    "name", ["Muon", "MuonH", "AdamH", "PSIMuon", "SPEL", "Scion", "Nero", "Rotational", "ObliqueSGD"]
)
def test_gradients_are_not_written_to(name):
    """Bitwise, also by Nesterov, which public code writes into p.grad."""
    make = getattr(optim, name)
    manifold = {"SPEL": Stiefel(), "Nero": CenteredSphere(), "ObliqueSGD": Sphere()}.get(name, PSI())
    manifold = Euclidean(2) if name in ("Muon", "Scion") else manifold
    p = nn.Parameter(manifold.nearest(start(9, 6)))
    optimizer = make([{"params": [p], "manifold": manifold}])
    for seed in range(2):
        p.grad = start(9, 6, seed=seed + 1)
        before = p.grad.clone()
        optimizer.step()
        assert torch.equal(p.grad, before)
