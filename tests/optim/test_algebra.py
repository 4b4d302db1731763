"""The algebra of a row, formula by formula, against what is written down by hand."""

from types import SimpleNamespace

import pytest
import torch
from retract.optim.kernels import algebra

R = torch.tensor([2.0, 3e5, 4e-6, 1e-200, float("nan")], dtype=torch.float64)


def test_held_norms():
    """Back to the norm that is held; not where none is (−1), nor for a row that counts as zero."""
    hold = SimpleNamespace(hold=True, free=False)
    held = torch.tensor([6.0, -1.0, 1.0, 5.0, 1.0], dtype=torch.float64)
    expected = torch.tensor([3.0, 1.0, 1.0 / 4e-6, 1.0, 1.0], dtype=torch.float64)
    assert torch.allclose(algebra.rescaling(R, held, 1e-4, 1e4, 1e-154, hold), expected, rtol=1e-15)


def test_free_norms():
    """By a power of two, to [½, 1), where the norm has left the band."""
    free = SimpleNamespace(hold=False, free=True)
    factors = algebra.rescaling(R, R, 1e-4, 1e4, 1e-154, free)
    assert factors.tolist()[::3] == [1.0, 1.0]
    assert factors[4] == 1.0
    assert torch.all((R * factors)[1:3] >= 0.5)
    assert torch.all((R * factors)[1:3] < 1.0)
    assert torch.all(factors.log2() == factors.log2().round())


@pytest.mark.parametrize("inside", [False, True])
def test_adam(inside):
    """Kingma & Ba 2015, Algorithm 1, in its third step; inside the root: Cho & Lee 2017, Algorithm 4."""
    length, second = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.tensor([0.3, 0.0], dtype=torch.float64)
    beta1, beta2, lr, eps, t = 0.8, 0.95, 0.1, 1e-3, 3
    v = beta2 * second + (1 - beta2) * length**2
    if inside:
        expected = -lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t) / (v + eps).sqrt()
    else:
        expected = -lr / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)
    numbers = (beta2, (1 - beta2) ** 0.5, lr / (1 - beta1**t), (1 - beta2**t) ** 0.5, eps)
    square, along = algebra.adam(length, second, *numbers, inside)
    assert torch.allclose(square, v, rtol=1e-15)
    assert torch.allclose(along, expected, rtol=1e-14)


def test_lines_have_two_representatives():
    """u = −3 x leads to −x, the same line: a vector v at x is −v there."""
    one = torch.ones(1, dtype=torch.float64)
    choices = SimpleNamespace(unit=True, exp=False, lines=True, project=False, parallel=True)
    k_x, k_u, norm2 = algebra.motion(one, -3.0 * one, 9.0 * one, one, one, 1e-16, choices)
    assert (k_x, k_u) == (0.5, 0.5)
    t_v, t_x, t_u = algebra.carry(
        one, -3 * one, 9 * one, 0 * one, 0 * one, k_x, k_u, norm2, one, 1e-16, 1e-154, choices
    )
    assert (t_v, t_x, t_u) == (-1.0, 0.0, 0.0)


def test_bound_functions_are_others():
    """`bind` leaves torch's functions as they are, and binds those that they call."""
    names = ("sqrt", "sin", "cos", "where", "full_like", "power_below")
    calls = []

    def operation(name):
        return lambda *arguments: calls.append(name) or getattr(algebra, name)(*arguments)

    bound = algebra.bind(algebra.FUNCTIONS, {name: operation(name) for name in names})
    xx, xu, uu = torch.tensor([[1.0], [0.0], [0.04]], dtype=torch.float64)
    choices = SimpleNamespace(unit=True, exp=True)
    ours = bound.motion(xx, xu, uu, xx, xx, 1e-16, choices)
    assert {"sqrt", "sin", "cos", "where", "full_like"} == set(calls)
    count = len(calls)
    assert all(map(torch.equal, ours, algebra.motion(xx, xu, uu, xx, xx, 1e-16, choices)))
    assert len(calls) == count
