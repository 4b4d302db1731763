"""Equivalent factors train alike: Theorem 1 of Yi 2022 for FixedRank."""

import pytest
import torch
from pairs import hidden, spread
from retract.errors import OptionError
from retract.manifolds import FixedRank
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn

METHODS = {
    "sgd": lambda p: RiemannianSGD(p, lr=0.05),
    "momentum": lambda p: RiemannianSGD(p, lr=0.02, momentum=0.9),
    "momentum, projected": lambda p: RiemannianSGD(p, lr=0.02, momentum=0.9, nesterov=True, transport="project"),
    "momentum, carried unchanged": lambda p: RiemannianSGD(p, lr=0.02, momentum=0.9, transport="none"),
    "adam": lambda p: RiemannianAdam(p, lr=0.02),
    "adam, carried unchanged": lambda p: RiemannianAdam(p, lr=0.02, transport="none"),
}
PAIRS = {
    "product": (FixedRank(3, 5), None),
    "relu": (FixedRank(1, 4), torch.relu),
    "relu²": (FixedRank(1, 4, degree=2.0), lambda a: torch.relu(a).square()),
}


def curve(make, manifold, start, loss):
    w, losses = nn.Parameter(start.clone()), []
    optimizer = make([{"params": [w], "manifold": manifold}])
    for _ in range(100):
        optimizer.zero_grad()
        value = loss(w)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    assert (w.detach() - start).flatten(1).norm(dim=1).min() > 1e-3 * start.norm()
    return torch.stack(losses)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_equivalent_factors_train_alike(pair, generator):
    """Losses from (B, A) and (B R, R⁻¹A) with R of condition up to 1e4 are equal. Torch's SGD is
    the control."""
    manifold, activation = PAIRS[pair]
    if activation is None:
        start = 0.6 * manifold.random_point(2, 9, 3, generator=generator, dtype=torch.float64)
        data, targets = (torch.randn(2, 40, s, generator=generator, dtype=torch.float64) for s in (4, 5))
        elements = torch.stack([spread(3, condition, generator) for condition in (1e4, 30.0)])

        def loss(x):
            b, a = manifold.split(x)
            return ((data @ a @ b.mT).tanh() - targets).square().mean()

    else:
        start, loss = hidden(activation, 6, generator)
        start = 0.7 * start
        elements = torch.logspace(-2, 2, 6, dtype=torch.float64).view(6, 1, 1) ** (1 / manifold.degree)
    moved = manifold.act(elements, start)
    for name, make in METHODS.items():
        one, other = (curve(make, manifold, at, loss) for at in (start, moved))
        assert one[-1] < one[0] - 0.01, name
        assert (one - other).abs().max() < 1e-10, name

    def plain(at):
        w = nn.Parameter(at.clone())
        optimizer = torch.optim.SGD([w], lr=0.02)
        for _ in range(20):
            optimizer.zero_grad()
            loss(w).backward()
            optimizer.step()
        return loss(w).detach()

    assert not (plain(start) - plain(moved)).abs() < 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"motion": "exp"}, "has no exponential map; use motion='retract'"),
        ({"transport": "parallel"}, "has no parallel transport; use transport='project'"),
        ({"weight_decay": 0.1}, "does not regularize"),
        ({"foreach": True}, "foreach"),
    ],
    ids=str,
)
def test_options_that_cannot_be_honoured(options, message):
    with pytest.raises(OptionError, match=message):
        RiemannianSGD(
            [{"params": [nn.Parameter(torch.randn(4, 9, 2))], "manifold": FixedRank(2, 4)}], lr=0.1, **options
        )
