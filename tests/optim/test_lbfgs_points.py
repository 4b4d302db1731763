"""`RiemannianLBFGS` on joint points and on slices of parameters: the path of parameters that hold these points alone."""

import io

import pytest
import retract
import torch
from retract.manifolds import (
    PSI,
    Euclidean,
    Factors,
    FixedRank,
    Part,
    ProjectiveSpace,
    Rows,
    SpectralSphere,
    Sphere,
    Stiefel,
)
from retract.optim import RiemannianLBFGS
from torch import nn

DTYPES = (torch.float64, torch.float32)
SEARCHES = ("strong_wolfe", None)


def normal(*shape, seed, dtype):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def trained(optimizer, loss, calls=4):
    """The losses of all evaluations."""
    losses = []

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        losses.append(value.item())
        return value

    for _ in range(calls):
        optimizer.step(closure)
    return torch.tensor(losses, dtype=torch.float64)


def check(one, two, loss, dtype, search):
    """The same losses from groups `one` and `two`, by the functions `loss` of either, and from a state that was saved on the way."""
    options = {"line_search_fn": search, "max_iter": 4, "lr": 1.0 if search else 0.1, "history_size": 5}
    optimizers = [RiemannianLBFGS(groups, **options) for groups in (one, two)]
    first = [trained(*each) for each in zip(optimizers, loss, strict=True)]
    file = io.BytesIO()
    torch.save(optimizers[1].state_dict(), file)
    file.seek(0)
    again = RiemannianLBFGS(two, **options)
    again.load_state_dict(torch.load(file, weights_only=True))
    second = [trained(*each, calls=1) for each in zip((optimizers[0], again), loss, strict=True)]
    for a, b in (first, second):
        assert len(a) == len(b)
        assert torch.allclose(a, b, rtol=1e-10 if dtype == torch.float64 else 1e-3, atol=0.0)
    assert second[0][-1] < 0.95 * first[0][0]


def fitted(dtype):
    """W ↦ the error of a layer with rows W."""
    inputs, targets = normal(40, 12, seed=1, dtype=dtype), normal(40, 19, seed=2, dtype=dtype)
    return lambda weight: (
        (torch.tanh(inputs[:, : weight.shape[1]] @ weight.T) - targets[:, : len(weight)]).square().mean()
    )


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("manifold", [PSI(), Sphere(), ProjectiveSpace(), Euclidean(1)], ids=repr)
def test_joint_points(manifold, dtype, search):
    """Weight rows with their bias, next to a weight of their own."""
    start = manifold.nearest(normal(6, 8, seed=3, dtype=dtype))
    whole, weight, bias = (nn.Parameter(a.clone()) for a in (start, start[:, :7], start[:, 7]))
    others = [nn.Parameter(normal(4, 8, seed=4, dtype=dtype)) for _ in range(2)]
    single = [{"params": [whole], "manifold": manifold}, {"params": [others[0]]}]
    joint = [{"params": [weight, bias], "manifold": manifold, "joined": [(weight, bias)]}, {"params": [others[1]]}]
    loss = fitted(dtype)

    def of_joint():
        return loss(torch.cat([torch.cat([weight, bias.unsqueeze(1)], 1), others[1]]))

    check(single, joint, (lambda: loss(torch.cat([whole, others[0]])), of_joint), dtype, search)


class Fused(nn.Module):
    """A weight with two points of 3 rows, two of 4 that lie between each other, and 5 rows that are flat."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(normal(19, 12, seed=3, dtype=dtype))

    def rows(self):
        return self.weight


class Apart(nn.Module):
    """The same as three parameters."""

    def __init__(self, weight):
        super().__init__()
        order = [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 7, 9, 11, 13, *range(14, 19)]
        self.back = sorted(range(19), key=order.__getitem__)
        self.first, self.other, self.rest = (
            nn.Parameter(piece.clone()) for piece in weight.detach()[order].split([6, 8, 5])
        )

    def rows(self):
        return torch.cat([self.first, self.other, self.rest])[self.back]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Stiefel(), SpectralSphere()], ids=repr)
def test_slices(manifold, dtype, search):
    """On vectors a point is its rows, one after the other; on matrices they are its columns."""
    fused = Fused(dtype)
    apart = Apart(fused.weight)
    vectors = manifold.event_ndim == 1
    rows = Rows(blocks=2) if vectors else Rows(blocks=2, columns=0)
    for start, size, between, next_point in ((0, 3, 1, 3), (6, 4, 2, 1)):
        grid = ((size, between),)
        part = Part("weight", 0, start, ((2, next_point),), *((1, grid) if vectors else (grid,)))
        retract.declare(fused, part, manifold)
    for name in ("first", "other"):
        retract.declare(apart, name, manifold, rows)
    for model in (apart, fused):
        retract.project_(model)
    loss = fitted(dtype)
    groups = [retract.param_groups(model) for model in (apart, fused)]
    check(*groups, [lambda model=model: loss(model.rows()) for model in (apart, fused)], dtype, search)
    assert torch.allclose(apart.rows(), fused.rows(), atol=1e-8 if dtype == torch.float64 else 1e-2)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slices_of_two_parameters(dtype, search):
    """Two heads, each a product of 3 columns of one weight with 3 rows of another, as one stack of factors."""
    down, up = normal(7, 6, seed=5, dtype=dtype), normal(6, 12, seed=6, dtype=dtype)
    model = nn.Module()
    model.down, model.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())
    factors = Factors((Part("down", 1, points=2, columns=3),), (Part("up", points=2, columns=3),))
    retract.declare(model, factors, FixedRank(3))
    stack = nn.Parameter(torch.cat([down.unflatten(1, (2, 3)).movedim(1, 0), up.unflatten(0, (2, 3)).mT], 1))
    loss = fitted(dtype)
    single = [{"params": [stack], "manifold": FixedRank(3, 7), "rows": Rows(dim=0)}]
    of_stack = lambda: loss((stack[:, :7] @ stack[:, 7:].mT).sum(0))  # noqa: E731
    check(single, retract.param_groups(model), (of_stack, lambda: loss(model.down @ model.up)), dtype, search)
