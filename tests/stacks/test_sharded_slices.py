"""Slices of parameters that are sharded by FSDP2: two processes against one, and the state that both can load."""

import random

import pytest
import retract
import torch
from processes import together
from retract.manifolds import PSI, Factors, FixedRank, Part
from retract.manifolds.parameters.shards import Cut
from retract.optim import RiemannianAdam, RiemannianSGD
from retract.optim.execution import sliced
from retract.optim.execution.divided import _place
from slices import declared_network
from torch import nn

STEPS = 4
MAKES = {
    "SGD": lambda groups: RiemannianSGD(groups, lr=0.05),
    "momentum": lambda groups: RiemannianSGD(groups, lr=0.02, momentum=0.9, transport="project"),
    "Adam": lambda groups: RiemannianAdam(groups, lr=0.01),
}


def full(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def run(make, model, steps_of=lambda work: work(), dtype=torch.float64):
    """Weights, state and the results of `steps_of` after some steps."""
    x, y = torch.randn(2, 5, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    optimizer, counts = make(retract.param_groups(model)), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        counts.append(steps_of(optimizer.step))
    found = {name: full(p.detach()) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        found |= {f"{name} {key}": full(value) for key, value in optimizer.state[p].items()}
    return found, counts


def counted(work):
    """The collectives of a step, and the numbers that one process sends in those of slices."""
    from torch.distributed.tensor.debug import CommDebugMode

    sent, exchange = [], sliced.exchange
    sliced.exchange = lambda messages: sent.append(sum(len(numbers) for _, numbers in messages)) or exchange(messages)
    try:
        with CommDebugMode() as talk:
            work()
    finally:
        sliced.exchange = exchange
    return talk.get_total_counts(), sum(sent)


class Adapted(nn.Module):
    """Pairs whose Grams can be summed, and of which a point is torn; slices on PSI; and a rest."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 3, bias=False), nn.Linear(3, 8, bias=False)
        self.value, self.out = nn.Linear(8, 11), nn.Linear(6, 8)

    def forward(self, x):
        return self.down(self.up(x)) + self.out(torch.tanh(self.value(x)[..., 5:])) + self.value(x)[..., :1]


def adapted_network():
    torch.manual_seed(0)
    model = Adapted().double()
    retract.declare(model, Factors((Part("down.weight", 1),), (Part("up.weight"),)), FixedRank(3))
    retract.declare(model, Part("value.weight", points=3), PSI())
    return model


NETWORKS = {"summed": declared_network, "torn, and a rest": adapted_network}


def sharded(rank, world, dtype):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, found = init_device_mesh("cpu", (world,)), {}
    for kind, network in NETWORKS.items():
        for name, make in MAKES.items():
            model = network().to(dtype)
            fully_shard(model, mesh=mesh)
            found[f"{kind} {name}"] = run(make, model, counted, dtype)
    return found


@pytest.mark.parametrize(
    ("world", "dtype"),
    [
        (2, torch.float64),
        pytest.param(3, torch.float64, marks=pytest.mark.slow),
        pytest.param(2, torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_processes_step_as_one_with_at_most_two_collectives_per_group(world, dtype):
    """Of pairs they exchange Grams: no more numbers than two of them for a step, and two for the second."""
    found = together(world, sharded, world, dtype)
    for kind, network in NETWORKS.items():
        start = dict(network().to(dtype).named_parameters())
        for name, make in MAKES.items():
            exact, _ = run(make, network().to(dtype), dtype=dtype)
            for result, counts in (each[f"{kind} {name}"] for each in found):
                assert result.keys() == exact.keys()
                bound = 1e-12 if dtype == torch.float64 else 1e-4
                for key, value in exact.items():
                    assert result[key].shape == value.shape
                    gap = (result[key] - value).abs().max()
                    assert gap <= bound * max(1.0, float(value.abs().max())), (kind, name, key)
                assert all(not torch.equal(result[key], p) for key, p in start.items())
                assert max(count for count, _ in counts) <= 2
                if kind == "summed":
                    grams = 2 * (2 * 2 * 4**2 + 16)  # of four heads of 4 and 16 units, two factors each
                    assert max(sent for _, sent in counts) <= 4 * grams * (8 // dtype.itemsize)


def test_slices_of_all_shards_are_all_slices():
    """Random grids and cuts: the points in the shards of all processes together are those of the parameter, and a grid is refused
    where some process would have some columns of a point and not all."""
    draw, refused = random.Random(0), 0
    for _ in range(500):
        height, width, size = draw.randrange(1, 13), draw.randrange(1, 7), draw.randrange(1, 5)
        w = torch.arange(1.0, height * width + 1).view(height, width)
        dim, k = draw.randrange(2), draw.randrange(1, 4)
        rows = draw.choice([(), ((2, draw.randrange(1, 5)),)])
        points = draw.choice([None, ((draw.randrange(1, 4), draw.randrange(1, 6)),)])
        try:
            grid = Part("w", dim, draw.randrange(3), points, k, rows).grid(w.shape, k)
            grid.mask()
        except retract.errors.GeometryError:
            continue
        run = -(-height // size)
        cuts = [Cut(0, height, size, rank, None) for rank in range(size)]
        places = [_place(grid, cut) for cut in cuts]
        owners = grid.split((torch.arange(height) // run).unsqueeze(1).expand(height, width).contiguous())
        torn = dim == 0 and any(len(each.unique()) > 1 for each in owners)
        assert [place is None for place in places] == [torn] * size
        refused += torn
        if torn:
            continue
        total = torch.zeros(grid.points)
        for place, cut in zip(places, cuts, strict=True):
            local = cut.local(w).clone()
            if place.last > place.first and local.numel():
                total[place.first : place.last] += place.grid.split(local).flatten(1).sum(1)
        assert torch.equal(total, grid.split(w).flatten(1).sum(1))
    assert 20 < refused < 400
