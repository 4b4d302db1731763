"""The references of norm geometry against torch, against closed forms and against their certificates."""

import math

import norm_references as plain
import norm_references_manifold as curved
import pytest
import torch
from norm_references_lmo import frobenius_sphere_lmo, leading_pair, msign, spectral_sphere_lmo, stiefel_lmo

STEPS = 12
RATES = [0.1 * (1 - t / STEPS) for t in range(STEPS)]


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def close(a, b, tolerance=1e-12):
    assert torch.linalg.matrix_norm(a - b) <= tolerance * torch.linalg.matrix_norm(b), (a, b)


def test_msign_is_the_polar_factor_and_zero_at_zero():
    X = randn(7, 4)
    U = msign(X)
    close(U.mT @ U, torch.eye(4, dtype=X.dtype))
    close(U @ U.mT @ X, X)
    assert torch.linalg.eigvalsh(U.mT @ X).min() > 0
    assert not msign(torch.zeros_like(X)).any()
    low = X[:, :2] @ randn(2, 4)
    assert torch.linalg.matrix_rank(msign(low)) == 2
    close(msign(1e9 * low), msign(low), 1e-10)


def test_polar_express_comes_to_msign_and_newton_schulz_to_its_published_band():
    X = msign(randn(24, 16)) @ torch.diag(torch.logspace(-2, 0, 16, dtype=torch.float64)) @ msign(randn(16, 16))
    close(plain.polar_express(X, 12), msign(X), 1e-10)
    band = torch.linalg.svdvals(plain.newton_schulz(X))
    assert 0.6 < band.min() < 0.9 < 1.1 < band.max() < 1.3


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs(shape, adjust, nesterov, monkeypatch):
    """torch's own code, with its cast to bfloat16 left out."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    W, gradients = randn(shape), [randn(shape) for _ in RATES]
    parameter = torch.nn.Parameter(W.clone())
    optimizer = torch.optim.Muon([parameter], weight_decay=0.3, momentum=0.8, nesterov=nesterov, adjust_lr_fn=adjust)
    for eta, G in zip(RATES, gradients, strict=True):
        optimizer.param_groups[0]["lr"], parameter.grad = eta, G
        optimizer.step()
    options = {"beta": 0.8, "nesterov": nesterov, "decay": 0.3, "adjust": adjust}
    close(plain.muon(W, gradients, RATES, sign=plain.newton_schulz, **options)[-1], parameter.detach())


def test_averages_are_torchs():
    W, gradients = randn(3, 5), [randn(3, 5) for _ in RATES]
    for average, make in (
        (plain.adam((0.8, 0.9), 1e-3), lambda p: torch.optim.Adam(p, betas=(0.8, 0.9), eps=1e-3)),
        (plain.heavy_ball(0.7), lambda p: torch.optim.SGD(p, momentum=0.7)),
    ):
        parameter = torch.nn.Parameter(W.clone())
        optimizer = make([parameter])
        for eta, G in zip(RATES, gradients, strict=True):
            optimizer.param_groups[0]["lr"], parameter.grad = eta, G
            optimizer.step()
        close(
            plain.run(W, gradients, RATES, lambda W, G, eta, average=average: W - eta * average(G))[-1],
            parameter.detach(),
        )


@pytest.mark.parametrize("shape", [(12, 6), (8, 5), (9, 7), (8, 8), (7, 7), (5, 9), (6, 1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_maximiser_on_stiefel_is_certified_at_every_scale(shape, scale):
    W, G = msign(randn(shape)), scale * randn(shape)
    best = stiefel_lmo(W, G)
    assert -1e-13 <= best.gap <= 1e-9, best
    assert torch.linalg.matrix_norm(best.A, 2) <= 1 + 1e-12
    tall, A = (W, best.A) if shape[0] >= shape[1] else (W.mT, best.A.mT)
    assert torch.linalg.matrix_norm(tall.mT @ A + A.mT @ tall) < 1e-12
    assert best.value > torch.sum(G * project_shape_project(W, G)) * (1 - 1e-9)


def project_shape_project(W, G):
    """The feasible direction that public code could take: a lower bound of the optimum."""
    A = curved._tangent(W, msign(curved._tangent(W, G)))
    return A / torch.linalg.matrix_norm(A, 2)


def test_the_maximiser_on_stiefel_with_a_spread_spectrum():
    W, spread = msign(randn(16, 8)), torch.diag(torch.logspace(-4, 0, 8, dtype=torch.float64))
    best = stiefel_lmo(W, msign(randn(16, 8)) @ spread @ msign(randn(8, 8)))
    assert best.gap <= 1e-9, best


def test_square_stiefel_has_the_maximiser_in_closed_form():
    W, G = msign(randn(8, 8)), randn(8, 8)
    close(stiefel_lmo(W, G).A, W @ msign(W.mT @ G - G.mT @ W), 1e-9)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
@pytest.mark.parametrize("lmo", [frobenius_sphere_lmo, spectral_sphere_lmo])
def test_maximisers_on_spheres_are_certified(shape, lmo):
    for scale in (1e-6, 1.0, 1e6):
        W, G = randn(shape), scale * randn(shape)
        best = lmo(W, G)
        normal = W if lmo is frobenius_sphere_lmo else leading_pair(W)[1]
        assert abs(best.gap) <= 1e-12, best
        assert torch.linalg.matrix_norm(best.A, 2) <= 1 + 1e-12
        assert abs(torch.sum(normal * best.A)) <= 1e-12


def test_a_square_matrix_may_have_no_tangent_msign():
    """h jumps across zero for some of these: the maximiser is then no msign, and no multiplier alone finds it."""
    least = min(torch.linalg.svdvals(spectral_sphere_lmo(randn(4, 4), randn(4, 4)).A).min().item() for _ in range(20))
    assert least < 0.99


def methods():
    """Each reference with what its iterates keep, which must hold to rounding at every step."""
    radius = (lambda W: torch.linalg.matrix_norm(W)), None
    row = plain.lengths, None
    orthonormal = (lambda W: W.mT @ W), torch.eye(4, dtype=torch.float64)
    one = torch.ones(7, 1, dtype=torch.float64)
    spectral = (lambda W: leading_pair(W)[0]), torch.tensor(math.sqrt(7 / 4), dtype=torch.float64)
    yield "muon_h", plain.muon_h, {}, radius
    yield "adam_h", plain.adam_h, {}, radius
    yield "hyperspherical", plain.hyperspherical_descent, {}, (radius[0], torch.tensor(1.0, dtype=torch.float64))
    yield "hyperspherical rows", plain.hyperspherical_descent, {"by_row": True, "hold": True}, row
    yield "oblique_sgd", plain.oblique_sgd, {}, (row[0], one)
    yield "oblique_adam", plain.oblique_adam, {}, (row[0], one)
    yield "nero", plain.nero, {}, ((lambda W: torch.cat([plain.lengths(W) - 1, W.sum(1, keepdim=True)])), 0 * one[:1])
    yield "rotational adam", plain.rotational, {"decay": 0.1}, row
    yield "rotational momentum", plain.rotational, {"decay": 0.1, "rule": "momentum"}, row
    yield "manifold_muon", curved.manifold_muon, {}, orthonormal
    yield "spel", curved.spel, {}, orthonormal
    yield "intrinsic_muon", curved.intrinsic_muon, {}, orthonormal
    yield "sso", curved.sso, {}, spectral
    yield "muon_sphere", curved.sso, {"exact": False}, spectral
    yield "psi_muon", curved.psi_muon, {}, row


@pytest.mark.parametrize(
    ("name", "method", "options", "kept"), list(methods()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_each_method_keeps_its_manifold_and_descends(name, method, options, kept):
    target = randn(7, 4)
    target = (target - target.mean(1, keepdim=True)) / torch.linalg.matrix_norm(target)
    quantity, value = kept

    def loss(W):
        return -torch.sum(W * target) / torch.linalg.matrix_norm(W)

    def gradients(W):
        W = W.detach().requires_grad_()
        return torch.autograd.grad(loss(W), W)[0]

    iterates = method(randn(7, 4), gradients, RATES, **options)
    value = quantity(iterates[0]) if value is None else value
    for W in iterates:
        assert (quantity(W) - value).abs().max() < 1e-12 * (1 + value.abs().max())
    assert len(iterates) == STEPS + 1
    assert loss(iterates[-1]) < loss(iterates[0]) - 0.01


@pytest.mark.parametrize(
    ("method", "options", "normal"),
    [
        (curved.psi_muon, {}, "rows"),
        (plain.oblique_sgd, {}, "rows"),
        (plain.hyperspherical_descent, {"by_row": True}, "rows"),
        (plain.rotational, {"decay": 0.1, "rule": "momentum", "mean": False}, "rows"),
        (curved.manifold_muon, {}, "symmetric"),
        (curved.spel, {}, "symmetric"),
        (curved.intrinsic_muon, {}, "symmetric"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_projecting_methods_do_not_see_the_normal_part_of_a_gradient(method, options, normal):
    W, G = msign(randn(7, 4)), randn(7, 4)
    S = randn(4, 4)
    part = randn(7, 1) * W if normal == "rows" else W @ (S + S.mT)
    close(method(W, [G + part], [0.1], **options)[1], method(W, [G], [0.1], **options)[1], 1e-7)


@pytest.mark.parametrize(("by_row", "method", "options"), [(True, curved.psi_muon, {}), (False, plain.muon_h, {})])
def test_rescaling_leaves_the_run(by_row, method, options):
    """Rows for PSIMuon, the whole matrix for MuonH, on a loss that does not see the lengths."""
    target = randn(6, 9)
    factors = torch.logspace(-2, 2, 6, dtype=torch.float64)[:, None] if by_row else torch.tensor(30.0)

    def gradients(W):
        W = W.detach().requires_grad_()
        return torch.autograd.grad(
            torch.sum(plain.rows(W) * target).tanh() + torch.sum((plain.rows(W) @ target.mT) ** 2), W
        )[0]

    W = randn(6, 9)
    a, b = method(W, gradients, RATES, **options), method(factors * W, gradients, RATES, **options)
    assert torch.linalg.matrix_norm(plain.rows(a[-1]) - plain.rows(a[0])) > 0.1
    close(plain.rows(b[-1]), plain.rows(a[-1]), 1e-9)


def test_scion_stays_in_its_ball_and_unconstrained_is_muon():
    W, gradients = math.sqrt(7 / 4) * msign(randn(7, 4)), [randn(7, 4) for _ in RATES]
    inside = plain.scion(W, gradients, RATES, rho=1.0)
    assert max(torch.linalg.matrix_norm(W, 2) for W in inside) <= math.sqrt(7 / 4) * (1 + 1e-12)
    free = plain.scion(W, gradients, RATES, rho=1.0, constrained=False)
    close(free[-1], plain.muon(W, gradients, RATES, beta=0.9, nesterov=False)[-1])
    for shape, norm in (("sign", 4 * W.abs().max()), ("row", 2 * plain.lengths(W).max())):
        end = plain.scion(W / norm, gradients, RATES, rho=1.0, shape=shape)[-1]
        assert (4 * end.abs().max() if shape == "sign" else 2 * plain.lengths(end).max()) <= 1 + 1e-12


def test_a_zero_gradient_is_a_still_step():
    for _, method, options, _ in methods():
        W0, W1 = method(randn(7, 4), [torch.zeros(7, 4, dtype=torch.float64)], [0.1], **options)
        close(W1, W0)
