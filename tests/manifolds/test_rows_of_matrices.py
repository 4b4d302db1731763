"""`Rows(columns=…)`: the weights of layers as orthonormal matrices, and updates equal to those of the matrices on their own."""

import copy

import pytest
import torch
from retract import declare, param_groups
from retract.errors import GeometryError
from retract.manifolds import PSI, Euclidean, Grassmann, Rows, Sphere, Stiefel
from retract.manifolds.parameters.rows import gather, scatter_
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn

# What is cut, how, and the matrices by hand, n × p.
CASES = {
    "filters of a convolution": ((8, 4, 3, 3), Rows.whole(columns=0), lambda w: [w.flatten(1).mT]),
    "columns of a convolution": ((40, 2, 3, 3), Rows.whole(columns=(1, 2, 3)), lambda w: [w.flatten(1)]),
    "rows of a wide layer": ((3, 10), Rows.whole(columns=0), lambda w: [w.mT]),
    "rows of three heads": ((12, 8), Rows(blocks=3, columns=0), lambda w: [h.mT for h in w.chunk(3)]),
    "filters in groups": ((6, 4, 3), Rows(blocks=2, columns=0), lambda w: [h.flatten(1).mT for h in w.chunk(2)]),
    "rows of stacked experts": ((3, 4, 6), Rows(columns=1), lambda w: [e.mT for e in w]),
    "columns of stacked experts": ((3, 6, 4), Rows(), lambda w: list(w)),
    "output projection by heads": ((8, 2, 3), Rows(dim=1, columns=2), lambda w: list(w.movedim(1, 0))),
    "one matrix per kernel position": (
        (3, 5, 2, 2),
        Rows(dim=(3, 2), columns=0),
        lambda w: [w[:, :, i, j].mT for i in range(2) for j in range(2)],
    ),
    "kernels": ((2, 3, 4, 4), Rows(dim=(0, 1)), lambda w: list(w.flatten(0, 1))),
}
MANIFOLDS = {"Stiefel": lambda p: Stiefel(), "Grassmann": Grassmann}


def points(w, rows):
    return gather([w], [rows.layout(w, 2)]).flatten(0, -3)


@pytest.mark.parametrize("case", CASES)
def test_the_cut_and_back(case):
    shape, rows, by_hand = CASES[case]
    w = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    layout = rows.layout(w, 2)
    assert rows.error(shape, Stiefel()) is None
    x = gather([w], [layout])
    assert x.shape == layout.batch + layout.event
    for mine, its in zip(points(w, rows), by_hand(w), strict=True):
        assert torch.equal(mine, its)
    target = torch.zeros_like(w)
    scatter_(x * 2, [target], [layout])
    assert torch.equal(target, w * 2)
    assert eval(repr(rows)) == rows
    # One number per matrix: as many axes as the parameter, and next to its own entries where whole axes enumerate.
    number = torch.arange(float(torch.Size(layout.batch).numel()))
    stored = number.view(layout.scalar)
    assert stored.ndim == w.ndim
    assert torch.equal(layout.split_scalars(stored).flatten(), number)
    if rows.blocks is None:
        owner = stored.double().expand(shape)
        assert (layout.split(owner) == layout.split_scalars(stored)).all()


def test_channels_last_is_cut_alike():
    w = torch.randn(8, 4, 3, 3)
    rows = Rows.whole(columns=0)
    assert torch.equal(points(w.contiguous(memory_format=torch.channels_last), rows), points(w, rows))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("manifold", MANIFOLDS)
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_in_step_with_the_matrices_themselves(case, manifold, rule):
    """A layer's weight, cut by `Rows`, against one parameter per matrix: 8 steps of each motion, state included."""
    torch.manual_seed(0)
    shape, rows, by_hand = CASES[case]
    kind = {"sgd": RiemannianSGD, "adam": RiemannianAdam}[rule]
    for motion, transport in (("retract", "manifold"), ("exp", "project")):
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))
        its = MANIFOLDS[manifold](by_hand(layer.weight)[0].shape[1])
        declare(layer, "weight", its, rows)
        frames = [nn.Parameter(m.detach().clone()) for m in by_hand(layer.weight)]
        for frame in frames:
            its.check_point(frame.detach())
        options = {"lr": 0.1, "motion": motion, "transport": transport, **({"momentum": 0.9} if rule == "sgd" else {})}
        one = kind(param_groups(layer), **options)
        each = kind([{"params": frames, "manifold": its}], **options)
        for _ in range(8):
            layer.weight.grad = torch.randn_like(layer.weight)
            for frame, grad in zip(frames, by_hand(layer.weight.grad), strict=True):
                frame.grad = grad.clone()
            one.step()
            each.step()
        for mine, frame in zip(by_hand(layer.weight), frames, strict=True):
            assert torch.allclose(mine, frame, atol=1e-12)
        for name, value in one.state[layer.weight].items():
            if name != "step" and value.shape == layer.weight.shape:
                for mine, frame in zip(by_hand(value), frames, strict=True):
                    assert torch.allclose(mine, each.state[frame][name], atol=1e-12), name
            elif name != "step":
                assert torch.allclose(
                    rows.layout(layer.weight, 2).split_scalars(value).flatten(),
                    torch.cat([each.state[frame][name].flatten() for frame in frames]),
                ), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_trains_and_resumes(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(24, 3)).to(
        memory_format=torch.channels_last, dtype=dtype
    )
    declare(net, "0.weight", Stiefel(), Rows.whole(columns=0))
    declare(net, "2.weight", Grassmann(3), Rows.whole(columns=0))

    def run(net, optimizer, steps):
        for step in range(steps):
            torch.manual_seed(step)
            optimizer.zero_grad()
            net(torch.randn(4, 2, 4, 4, dtype=dtype)).square().sum().backward()
            optimizer.step()

    optimizer = RiemannianAdam(param_groups(net), lr=0.05)
    run(net, optimizer, 3)
    twin = copy.deepcopy(net)
    other = RiemannianAdam(param_groups(twin), lr=0.05)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(net, optimizer, 3)
    run(twin, other, 3)
    for mine, its in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, its)
    for weight in (net[0].weight, net[2].weight):
        rows = weight.detach().flatten(1).float()
        assert (rows @ rows.T - torch.eye(len(rows))).abs().max() < (1e-5 if dtype == torch.float32 else 2e-2)


def test_one_large_matrix_is_not_torn_apart():
    """The reference path works on rows of vectors a few at a time; the rows of a matrix belong together."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.linalg.qr(torch.randn(2100, 130))[0])
    batched = nn.Parameter(w.detach()[None].clone())
    optimizer = RiemannianSGD([{"params": [w, batched], "manifold": Stiefel()}], lr=0.1)
    w.grad = torch.randn_like(w)
    batched.grad = w.grad[None].clone()
    optimizer.step()
    assert torch.allclose(w, batched[0], atol=1e-6)


def test_words_of_states_saved_before_there_were_columns():
    assert Rows.whole() == Rows(blocks=1)
    assert Rows.whole(columns=(1, 2)) == Rows(blocks=1, columns=(1, 2))
    assert repr(Rows()) == "Rows(dim=0, blocks=None, groups=1)"
    assert repr(Rows(blocks=2)) == "Rows(dim=0, blocks=2, groups=1)"
    assert repr(Rows(blocks=2, columns=0)) == "Rows(dim=0, blocks=2, groups=1, columns=0)"


def test_what_is_wrong_names_what_would_do():
    wide, heads, conv, experts = nn.Linear(10, 3), nn.Linear(8, 8), nn.Conv2d(4, 8, 3), nn.Module()
    experts.weight = nn.Parameter(torch.randn(3, 4, 6))
    tall = nn.Conv2d(2, 40, 3)
    for layer, rows in (
        (wide, Rows()),
        (heads, Rows(blocks=2)),
        (experts, Rows()),
        (tall, Rows.whole(columns=0)),
        (conv, Rows.whole(columns=(1, 2, 3))),
    ):
        with pytest.raises(GeometryError, match=r"n ≥ p .*; transpose it: (Rows\(.*\)) does that") as caught:
            declare(layer, "weight", Stiefel(), rows)
        offered = str(caught.value).partition("transpose it: ")[2].removesuffix(" does that")
        declare(layer, "weight", Stiefel(), eval(offered))
    with pytest.raises(GeometryError, match="does not give shape .* columns=… selects the dimensions of its columns"):
        declare(conv, "weight", Stiefel(), Rows.whole())
    with pytest.raises(GeometryError, match="has columns, and Sphere"):
        declare(conv, "weight", Sphere(), Rows.whole(columns=0))
    with pytest.raises(GeometryError, match="has a dimension that shape"):
        declare(wide, "weight", Stiefel(), Rows.whole(columns=2))
    with pytest.raises(GeometryError, match="points or columns, not both"):
        Rows(columns=0)
    with pytest.raises(GeometryError, match="points or columns, not both"):
        Rows(dim=1, groups=2, columns=0)
    with pytest.raises(GeometryError, match="columns is one dimension or several"):
        Rows.whole(columns=())
    with pytest.raises(GeometryError, match="columns is one non-negative dimension"):
        Rows.whole(columns=-1)


@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Euclidean(1)], ids=repr)
@pytest.mark.parametrize("dim", [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), 2, (2, 1, 0)], ids=str)
def test_vectors_enumerated_by_any_dims(dim, manifold):
    """Against the same vectors as rows of a matrix; scalars per point are next to their points."""
    torch.manual_seed(0)
    dims = (dim,) if isinstance(dim, int) else dim
    shape = (3, 4, 2, 5)
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    declare(layer, "weight", manifold, Rows(dim=dim))

    def by_hand(w):
        return w.movedim(tuple(sorted(dims)), tuple(range(len(dims)))).flatten(len(dims)).flatten(0, len(dims) - 1)

    rows = nn.Parameter(by_hand(layer.weight).detach().clone())
    one = RiemannianAdam(param_groups(layer), lr=0.1)
    two = RiemannianAdam([{"params": [rows], "manifold": manifold}], lr=0.1)
    for _ in range(5):
        layer.weight.grad = torch.randn_like(layer.weight)
        rows.grad = by_hand(layer.weight.grad).clone()
        one.step()
        two.step()
    assert torch.allclose(by_hand(layer.weight), rows, atol=1e-12)
    for name, value in one.state[layer.weight].items():
        if name != "step":
            assert value.ndim == 4
            assert torch.allclose(by_hand(value.expand(shape)), two.state[rows][name].expand(rows.shape), atol=1e-12), (
                name
            )
