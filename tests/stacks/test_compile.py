"""torch.compile around models and whole training steps: the same run as in eager, on the same manifolds.

`RiemannianOptimizer.step` is a graph break: it runs as it is, on the path that it would take without torch.compile.
"""

import copy

import pytest
import torch
from networks import batches, normed_mlp, points_of
from retract import declare, param_groups
from retract.manifolds import PSI, Grassmann, Sphere, Stiefel
from retract.optim import PSISGD, SGDG, AdamG, RiemannianSGD
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.lr_scheduler import OneCycleLR

STEPS = 6
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)]
CASES = {
    "PSISGD": ((PSI(), PSI()), lambda p: PSISGD(p, momentum=0.9)),
    "SGDG": ((Grassmann(1), Grassmann(1)), lambda p: SGDG(p, lr=0.1)),
    "AdamG": ((Grassmann(1), Grassmann(1)), AdamG),
    "RiemannianSGD": ((Stiefel(), Sphere()), lambda p: RiemannianSGD(p, lr=0.1, momentum=0.9)),
}
# The part of a step behind backward() is a graph of its own, which begins with a loss that has no gradient.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def build(case, device):
    net = normed_mlp(device=device, eps=1e-5)
    manifolds, make = CASES[case]
    for name, manifold in zip(("0.weight", "3.weight"), manifolds, strict=True):
        declare(net, name, manifold)
    return net, make


def whole_step(net, optimizer):
    def step(x, y):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def run(net, optimizer, step, device, graphs=lambda: 0):
    """Losses of a run whose rate and momentum change in every step, and the number of graphs after each."""
    schedule = OneCycleLR(optimizer, 0.1, STEPS + 1)
    losses, counts = [], []
    for x, y in batches(STEPS, 16, 6, classes=4, device=device):
        losses.append(step(x, y))
        schedule.step()
        counts.append(graphs())
        for manifold, points, _ in points_of(net):
            manifold.check_point(points, tolerance=1e-14)
    return torch.stack(losses), counts


def assert_same_run(mine, its, start):
    (net, losses), (twin, others) = mine, its
    assert torch.allclose(losses, others, rtol=1e-10, atol=1e-12)
    for (name, p), q, r in zip(net.named_parameters(), twin.parameters(), start.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-8, atol=1e-10), name
        assert not torch.allclose(p, r, rtol=1e-2), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_a_whole_step_compiled(case, backend, device):
    """With all of zero_grad, forward, backward and step in one function, and no new graph when a scheduler acts."""
    net, make = build(case, device)
    start, twin = copy.deepcopy(net), copy.deepcopy(net)
    optimizer = make(param_groups(net))
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(whole_step(net, optimizer), backend=counter)
    losses, counts = run(net, optimizer, compiled, device, lambda: counter.frame_count)
    assert counts[0] > 0
    assert set(counts) == {counts[0]}, "compiled again"
    other = make(param_groups(twin))
    others, _ = run(twin, other, whole_step(twin, other), device)
    assert_same_run((net, losses), (twin, others), start)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_compiled(backend, device):
    """The wrapper of torch.compile declares what the model in it declares."""
    net, make = build("RiemannianSGD", device)
    start, twin = copy.deepcopy(net), copy.deepcopy(net)
    compiled = torch.compile(net, backend=backend)
    optimizer = make(param_groups(compiled))
    assert [g["manifold"] for g in optimizer.param_groups] == ["Stiefel()", "Sphere()", "Euclidean(event_ndim=0)"]
    losses, _ = run(compiled, optimizer, whole_step(compiled, optimizer), device)
    other = make(param_groups(twin))
    others, _ = run(twin, other, whole_step(twin, other), device)
    assert_same_run((net, losses), (twin, others), start)


def test_step_alone_compiled(device):
    """As in torch's recipe for compiled optimizers; as one graph it is refused, not traced without its table of points."""
    net, make = build("PSISGD", device)
    start, twin = copy.deepcopy(net), copy.deepcopy(net)
    optimizer = make(param_groups(net))
    update = torch.compile(lambda: optimizer.step(), backend="aot_eager")

    def step(x, y):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        update()
        return loss.detach()

    losses, _ = run(net, optimizer, step, device)
    other = make(param_groups(twin))
    others, _ = run(twin, other, whole_step(twin, other), device)
    assert_same_run((net, losses), (twin, others), start)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RiemannianOptimizer.step"):
        torch.compile(lambda: optimizer.step(), backend="aot_eager", fullgraph=True)()
