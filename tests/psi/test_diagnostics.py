"""`psi.Monitor`: its numbers against the definitions, on any optimizer, without touching the run."""

import copy
import csv
import math

import matplotlib
import pytest
import torch
from retract import declare, param_groups, psi
from retract.errors import OptionError
from retract.manifolds import PSI, Grassmann, Rows, Sphere, Stiefel
from retract.optim import PSISGD, RiemannianSGD
from torch import nn


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, eps=1e-30), nn.ReLU(), nn.Linear(8, 3))
    declare(net, "0.weight", PSI())
    return net.double()


def steps(net, optimizer, count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(32, 6, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), (x[:, :3]).argmax(1)).backward()
        optimizer.step()


def test_numbers_are_those_of_the_definitions():
    """PSI-SGD turns by atan(η ‖∇_v‖), exactly; its rows grow by √(1 + η² ‖∇_v‖²) when free."""
    net = network()
    with torch.no_grad():
        net[0].weight.mul_(3.0)
    optimizer = PSISGD(param_groups(net), lr=0.3, radius="free")
    monitor = psi.Monitor(net, optimizer, every=1)
    for _ in range(4):
        w = net[0].weight.detach().clone()
        steps(net, optimizer, 1)
        in_v = w.norm(dim=1) * net[0].weight.grad.norm(dim=1)
        seen = monitor.observations[-1]
        assert seen.points == 8
        assert seen.group == "PSI()"
        assert seen.angular_update_mean == pytest.approx(torch.atan(0.3 * in_v).mean().item(), rel=1e-10)
        assert seen.angular_update_max == pytest.approx(torch.atan(0.3 * in_v).max().item(), rel=1e-10)
        assert seen.gradient == pytest.approx(in_v.square().mean().sqrt().item(), rel=1e-10)
        grown = w.norm(dim=1) * (1 + (0.3 * in_v) ** 2).sqrt()
        norms = (seen.norm_min, seen.norm_median, seen.norm_max)
        assert norms == pytest.approx((grown.min().item(), grown.median().item(), grown.max().item()), rel=1e-10)
        assert seen.leak < 1e-12
    assert [o.step for o in monitor.observations] == [1, 2, 3, 4]


def test_sgd_turns_less_as_rows_grow():
    """With torch's own optimizer; and an eps that is not small against the rows is seen as a leak."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=2.0)
    monitor = psi.Monitor(net, optimizer, every=50)
    steps(net, optimizer, 201)
    first, *_, last = monitor.observations
    assert [o.step for o in monitor.observations] == [1, 51, 101, 151, 201]
    assert last.norm_median > 1.5 * first.norm_median
    assert last.angular_update_mean / last.gradient < 0.5 * first.angular_update_mean / first.gradient
    net[1].eps = 1e-2
    with torch.no_grad():
        net[0].weight.mul_(0.01)
    monitor = psi.Monitor(net, optimizer, every=1)
    steps(net, optimizer, 1)
    assert monitor.observations[0].leak > 0.1 > 1e-10 > last.leak


def test_rows_that_are_renormalized_are_counted():
    net = network()
    with torch.no_grad():
        net[0].weight[:3] *= 9.9e3 / net[0].weight[:3].norm(dim=1, keepdim=True)
    optimizer = PSISGD(param_groups(net), lr=1.0, radius="free")
    monitor = psi.Monitor(net, optimizer, every=5)
    steps(net, optimizer, 101)
    assert sum(o.renormalized for o in monitor.observations) >= 3
    assert all(o.norm_max < 2e4 for o in monitor.observations)


def test_the_run_is_not_touched():
    plain, watched = network(), network()
    watcher = PSISGD(param_groups(watched), lr=0.3, momentum=0.9)
    monitor = psi.Monitor(watched, watcher, every=2)
    steps(plain, PSISGD(param_groups(plain), lr=0.3, momentum=0.9), 5)
    steps(watched, watcher, 5)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), watched.parameters(), strict=True))
    assert len(monitor.observations) == 3
    monitor.close()
    steps(watched, watcher, 4)
    assert len(monitor.observations) == 3


def test_every_manifold_joint_points_and_frozen_ones():
    """Groups are told apart by manifold and cut; a group without gradients is left out."""
    net = nn.ModuleDict(
        {
            "rows": nn.Linear(4, 5),
            "ball": nn.Linear(4, 5, bias=False),
            "frame": nn.Linear(3, 6, bias=False),
            "plane": nn.Linear(2, 6, bias=False),
            "frozen": nn.Linear(4, 5, bias=False),
        }
    ).double()
    declare(net, "rows.weight", PSI(), Rows.whole(), joined=("bias",))
    declare(net, "ball.weight", Sphere())
    declare(net, "frame.weight", Stiefel())
    declare(net, "plane.weight", Grassmann(2))
    declare(net, "frozen.weight", Grassmann(1))
    optimizer = RiemannianSGD(param_groups(net), lr=0.1)
    monitor = psi.Monitor(net, optimizer, every=1)
    before = copy.deepcopy(net)
    for name, p in net.named_parameters():
        p.grad = None if name == "frozen.weight" else torch.randn_like(p)
    optimizer.step()
    seen = {o.group: o for o in monitor.observations}
    assert list(seen) == ["PSI() Rows(dim=0, blocks=1, groups=1)", "Sphere()", "Stiefel()", "Grassmann(2)"]
    assert [o.points for o in seen.values()] == [1, 5, 1, 1]
    assert [math.isnan(o.leak) for o in seen.values()] == [False, True, True, True]
    moved = (net["frame"].weight - before["frame"].weight).norm().item()
    assert seen["Stiefel()"].angular_update_max == pytest.approx(moved)
    assert seen["Sphere()"].norm_max == pytest.approx(1.0)


def test_where_it_goes(tmp_path):
    class Writer:
        def __init__(self):
            self.seen = []

        def add_scalar(self, tag, value, step):
            self.seen.append((tag, value, step))

    net, writer = network(), Writer()
    optimizer = PSISGD(param_groups(net), lr=0.3)
    monitor = psi.Monitor(net, optimizer, every=2, writer=writer)
    steps(net, optimizer, 4)
    assert ("PSI()/angular_update_mean", monitor.observations[1].angular_update_mean, 3) in writer.seen
    assert len(writer.seen) == 2 * 8
    assert monitor.to_dict()[0]["group"] == "PSI()"
    monitor.to_csv(tmp_path / "m.csv")
    with (tmp_path / "m.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["gradient"]) for row in rows] == [o.gradient for o in monitor.observations]
    matplotlib.use("agg")
    figure = monitor.plot()
    assert [len(axis.lines) for axis in figure.axes] == [2, 1, 1, 1]  # crosses where rows came back
    assert list(figure.axes[1].lines[0].get_xdata()) == [1, 3]
    matplotlib.pyplot.close(figure)


def test_bad_input():
    net = network()
    optimizer = PSISGD(param_groups(net))
    with pytest.raises(OptionError, match="every=0: the number of steps from one observation to the next"):
        psi.Monitor(net, optimizer, every=0)
    with pytest.raises(OptionError, match="no declared points to observe"):
        psi.Monitor(nn.Linear(2, 2), optimizer)
