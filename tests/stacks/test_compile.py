"""torch.compile around the network and around the whole training step."""

import pytest
import torch
from networks import batches, normed_mlp
from retract import declare, declared, param_groups
from retract.manifolds import PSI, Grassmann, Sphere, Stiefel
from retract.optim import PSISGD, SGDG, AdamG, RiemannianSGD
from torch import nn

OPTIMIZERS = {
    "psi-sgdm": (lambda p: PSISGD(p, lr=0.1, momentum=0.9), PSI()),
    "sgdg": (lambda p: SGDG(p), Grassmann(1)),
    "adamg": (lambda p: AdamG(p), Grassmann(1)),
    "sphere": (lambda p: RiemannianSGD(p, lr=0.1, momentum=0.9), Sphere()),
    "stiefel": (lambda p: RiemannianSGD(p, lr=0.1, momentum=0.9), Stiefel()),
}
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(name, device):
    make, manifold = OPTIMIZERS[name]
    net = normed_mlp(eps=1e-5, dtype=torch.float32, device=device)
    declare(net, "0.weight", manifold)
    optimizer = make(param_groups(net, euclidean={"lr": 0.05}))
    return net, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)


def run(net, optimizer, scheduler, device, wrap=lambda step: step):
    def whole_step(x, y):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    step, losses = wrap(whole_step), []
    for x, y in batches(10, 32, 6, classes=4, dtype=torch.float32, device=device):
        losses.append(step(x, y))
        scheduler.step()
    return torch.stack(losses)


def check(nets, losses, name, tolerance):
    compiled, eager = nets
    assert torch.allclose(*losses, rtol=0, atol=tolerance)
    for p, q in zip(compiled.parameters(), eager.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=tolerance)
    _, manifold = OPTIMIZERS[name]
    defects = [float(manifold.point_defect(net.get_parameter("0.weight").detach()).max()) for net in nets]
    assert defects[0] <= max(2 * defects[1], 1e-6)


# Dynamo looks at the gradient of the loss where it resumes after `backward`.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_training_step_is_the_eager_one(name, backend, device):
    """Forward, backward and step in one function, to rounding, with the points as well on their manifold; a rate that a
    scheduler changes compiles nothing again."""
    compiled, eager = build(name, device), build(name, device)
    with torch._dynamo.config.patch(error_on_recompile=True):
        losses = run(*compiled, device, lambda step: torch.compile(step, backend=backend))
    assert compiled[1].param_groups[0]["lr"] < 0.5 * compiled[1].defaults["lr"], "the schedule was followed"
    check((compiled[0], eager[0]), (losses, run(*eager, device)), name, 0.0 if backend == "aot_eager" else 1e-5)


@pytest.mark.parametrize("name", ["psi-sgdm", "stiefel"])
def test_a_compiled_network_keeps_its_declarations(name, device):
    """Compiled in place or wrapped, before the optimizer is built: the declared points are found, and move as ever."""
    make, _ = OPTIMIZERS[name]
    eager = build(name, device)
    expected = run(*eager, device)
    for wrap in (
        lambda net: net.compile(backend="aot_eager") or net,
        lambda net: torch.compile(net, backend="aot_eager"),
    ):
        torch._dynamo.reset()
        net = wrap(build(name, device)[0])
        assert [key.removeprefix("_orig_mod.") for key in declared(net)] == ["0.weight"]
        optimizer = make(param_groups(net, euclidean={"lr": 0.05}))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        losses = run(net, optimizer, scheduler, device)
        inner = getattr(net, "_orig_mod", net)
        check((inner, eager[0]), (losses, expected), name, 0.0)


def test_the_update_is_never_traced(device):
    """A compiled `step` runs as it is; who forbids graph breaks hears of it, and nothing has moved."""
    net, optimizer, _ = build("sphere", device)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = net[0].weight.detach().clone()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"RiemannianOptimizer\.step"):
        torch.compile(lambda: optimizer.step(), backend="eager", fullgraph=True)()
    assert torch.equal(net[0].weight, before)
    torch.compile(optimizer.step, backend="eager")()
    Sphere().check_point(net[0].weight.detach())
    assert not torch.equal(net[0].weight, before)
