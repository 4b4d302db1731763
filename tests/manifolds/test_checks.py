"""The public checkers tell right from wrong, with numbers."""

from dataclasses import dataclass

import pytest
import torch
from retract.manifolds import PSI, Sphere, Stiefel, checks


@dataclass(frozen=True)
class Off(Sphere):
    """Gradient or retraction wrong by a factor."""

    gradient: float = 1.0
    retraction: float = 1.0

    def riemannian_gradient(self, x, egrad):
        return self.gradient * super().riemannian_gradient(x, egrad)

    def retract(self, x, u):
        return super().retract(x, self.retraction * u)


def test_orders_tell_right_from_wrong(generator, device):
    x = Sphere().random_point(3, 6, generator=generator, dtype=torch.float64, device=device)
    c = torch.randn(3, 6, generator=generator, dtype=torch.float64, device=device)

    def f(y):
        return (c * y).sin().sum()

    assert checks.gradient_order(Sphere(), f, x, generator=generator) == pytest.approx(2, abs=0.02)
    assert checks.gradient_order(Off(gradient=1.01), f, x, generator=generator) < 1.5
    assert checks.retraction_order(Sphere(), x, generator=generator) == pytest.approx(3, abs=0.02)
    assert checks.retraction_order(Off(retraction=0.9), x, generator=generator) == pytest.approx(1, abs=0.02)
    u = Sphere().random_tangent(x, generator=generator)
    assert float(checks.duality_gap(Sphere(), x, c, u).max()) < 1e-14
    assert 1e-5 < float(checks.duality_gap(Off(gradient=1.01), x, c, u).max()) < 0.01


def test_known_orders_of_retractions(generator, device):
    """Addition on PSI and the polar map agree with geodesics to second order, QR on Stiefel to first."""
    for manifold, shape, order in ((PSI(), (3, 5), 3), (Stiefel(), (2, 6, 3), 2)):
        x = manifold.random_point(*shape, generator=generator, dtype=torch.float64, device=device)
        assert checks.retraction_order(manifold, x, generator=generator) == pytest.approx(order, abs=0.03)


def test_order_is_a_slope():
    assert checks.order((1e-3, 1e-2, 1e-1), (1e-6, 1e-4, 1e-2)) == pytest.approx(2)
    assert checks.order((1e-3, 1e-2), (0.0, 0.0)) == float("inf")
