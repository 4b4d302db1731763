"""What users of torch.optim expect of an optimizer, on every manifold."""

import pytest
import torch
from networks import batches, declare_all, normed_cnn, train
from optimizers import OPTIMIZERS
from paths import PATHS
from retract import declare, param_groups
from retract.errors import GradientError
from retract.manifolds import PSI, Euclidean, ExponentialManifold, FixedRank, Grassmann, Sphere, Stiefel
from retract.optim import PSISGD, RiemannianAdam, RiemannianSGD
from torch import nn

MANIFOLDS = [PSI(), Sphere(), Grassmann(1)]


def matrix_problem(manifold, device, dtype=torch.float64):
    w = nn.Parameter(manifold.random_point(5, 6, 2, dtype=dtype, device=device))
    target = torch.randn(5, 6, 2, dtype=dtype, device=device)
    return w, lambda: (w * target).sin().sum()


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_stays_tangent_and_gradients_untouched(name, manifold, device):
    net = declare_all(normed_cnn(device=device), manifold)
    groups = param_groups(net)
    optimizer = OPTIMIZERS[name](groups)
    for x, y in batches(10, 16, 1, 6, 6, device=device):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        grads = {p: p.grad.clone() for p in net.parameters()}
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in grads.items())
        for w in groups[0]["params"]:
            points = w.detach().flatten(1)
            manifold.check_point(points)
            if optimizer.param_groups[0]["transport"] == "none":
                continue  # the paper's heuristic: the one named exception
            for key in ("momentum_buffer", "exp_avg"):
                if key in optimizer.state[w]:
                    manifold.check_tangent(points, optimizer.state[w][key].flatten(1), key)


@pytest.mark.parametrize("manifold", [Stiefel(), Grassmann(2), FixedRank(2, 3)], ids=repr)
@pytest.mark.parametrize("transport", ["manifold", "project"])
@pytest.mark.parametrize("motion", ["retract", "exp"])
def test_matrix_manifolds_train(manifold, motion, transport, device):
    if isinstance(manifold, Stiefel) and (motion, transport) == ("exp", "manifold"):
        transport = "project"  # Stiefel has no parallel transport
    if not isinstance(manifold, ExponentialManifold):
        motion = "retract"
    for make in (RiemannianSGD, RiemannianAdam):
        w, loss = matrix_problem(manifold, device)
        extra = {"momentum": 0.9} if make is RiemannianSGD else {}
        optimizer = make([{"params": [w], "manifold": manifold}], lr=0.05, motion=motion, transport=transport, **extra)
        first = float(loss().detach())
        for _ in range(30):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            manifold.check_point(w.detach())
            key = "exp_avg" if make is RiemannianAdam else "momentum_buffer"
            manifold.check_tangent(w.detach(), optimizer.state[w][key])
        assert float(loss().detach()) < first - 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_none_gradients_and_closure(name, device):
    net = declare_all(normed_cnn(device=device), PSI())
    optimizer = OPTIMIZERS[name](param_groups(net))
    ((x, y),) = batches(1, 16, 1, 6, 6, device=device)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        net[0].weight.grad = None
        return loss

    frozen = net[0].weight.detach().clone()
    first, last = optimizer.step(closure), None
    for _ in range(5):
        last = optimizer.step(closure)
    assert last < first
    assert torch.equal(net[0].weight, frozen)
    assert net[0].weight not in optimizer.state


def test_groups_differ_and_grow(device):
    a, b, c = (nn.Parameter(torch.eye(3, device=device)) for _ in range(3))
    optimizer = RiemannianSGD(
        [{"params": [a], "manifold": Sphere(), "lr": 0.5}, {"params": [b], "weight_decay": 0.1}], lr=0.1
    )
    group = {"params": [c], "manifold": PSI(), "radius": "free"}
    optimizer.add_param_group(group)
    assert isinstance(group["manifold"], PSI), "the caller's dict is not the optimizer's"
    for p in (a, b, c):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.allclose(b, torch.eye(3, device=device) * 0.99 - 0.1)
    assert torch.allclose(c, torch.eye(3, device=device) - 0.1)
    assert torch.allclose(a.norm(dim=1), torch.ones(3, device=device))
    assert [g["manifold"] for g in optimizer.param_groups] == ["Sphere()", "Euclidean(event_ndim=0)", "PSI()"]


def test_hooks_and_named_parameters(device):
    net = declare_all(normed_cnn(device=device), PSI())
    optimizer = PSISGD([{"params": list(net[0].named_parameters()), "manifold": PSI()}], lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    ((x, y),) = batches(1, 16, 1, 6, 6, device=device)
    train(net, optimizer, [(x, y)])
    assert calls == ["pre", "post"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight"]


@pytest.mark.parametrize(
    "make",
    [
        lambda p, lr: RiemannianSGD(p, lr=lr, momentum=0.9, differentiable=True),
        lambda p, lr: RiemannianSGD(p, lr=lr, momentum=0.9, nesterov=True, motion="exp", differentiable=True),
        lambda p, lr: PSISGD(p, lr=lr, momentum=0.9, differentiable=True),
        lambda p, lr: RiemannianAdam(p, lr=lr, differentiable=True),
    ],
    ids=["sgd", "nesterov-exp", "psi-sgdm", "adam"],
)
@pytest.mark.parametrize("manifold", [Euclidean(0), PSI(), Sphere(), Grassmann(1)], ids=repr)
def test_differentiable_steps(make, manifold, device):
    """The derivative of the loss after three steps with respect to lr, against central differences."""
    w0 = manifold.nearest(torch.randn(3, 4, dtype=torch.float64, device=device))
    c = torch.randn(3, 4, dtype=torch.float64, device=device)

    def f(w):
        return (c * w / w.norm(dim=1, keepdim=True)).sin().sum()

    def after(lr):
        start = w0.clone().requires_grad_()
        w = start.clone()
        optimizer = make([{"params": [w], "manifold": manifold}], lr)
        for _ in range(3):
            here = w.clone()
            (w.grad,) = torch.autograd.grad(f(here), here, create_graph=True)
            optimizer.step()
        return f(w)

    lr = torch.tensor(0.05, dtype=torch.float64, device=device, requires_grad=True)
    (slope,) = torch.autograd.grad(after(lr), lr)
    with torch.no_grad():
        up, down = lr + 1e-5, lr - 1e-5
    expected = (after(up.requires_grad_()) - after(down.requires_grad_())) / 2e-5
    assert float(slope) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert abs(float(slope)) > 1e-6


NEUTRAL = {"foreach": False, "fused": False}
EFFECTIVE = {
    "lr": 0.3,
    "momentum": 0.5,
    "dampening": 0.5,
    "weight_decay": 0.5,
    "nesterov": True,
    "momentum_form": "velocity",
    "motion": "exp",
    "transport": "project",
    "max_point_norm": 0.01,
    "orthogonality": 1.0,
    "radius": "free",
    "maximize": True,
    "decoupled_weight_decay": True,
    "tangent": "step",
    "shape": "unit",
    "scale": 2.0,
    "adjust_lr_fn": "match_rms_adamw",
    "betas": (0.5, 0.6),
    "eps": 1.0,
    "eps_form": "inside",
}


NEEDED = {
    "decoupled_weight_decay": {"weight_decay": 0.5},
    "tangent": {"transport": "none"},
    "scale": {"shape": "unit"},
    "adjust_lr_fn": {"shape": "unit"},
}
"""Options without which these have no meaning."""


@pytest.mark.parametrize("optimizer_class", [RiemannianSGD, RiemannianAdam])
def test_every_argument_lands_somewhere(optimizer_class, device):
    """Each option changes the result of a few steps; the neutral ones (paths, capture, graph) change nothing."""

    def run(**options):
        torch.manual_seed(0)
        points = nn.Parameter(Sphere().random_point(3, 4, dtype=torch.float64, device=device))
        rays = nn.Parameter(torch.randn(3, 4, dtype=torch.float64, device=device))
        flat = nn.Parameter(torch.randn(3, 4, dtype=torch.float64, device=device))
        decay = options.pop("weight_decay", 0.0)
        base = {"momentum": 0.9} if optimizer_class is RiemannianSGD else {"eps": 1e-2}
        if options.get("nesterov"):
            base["dampening"] = 0.0
        groups = [
            {"params": [points], "manifold": Sphere()},
            {"params": [rays], "manifold": PSI()},
            {"params": [flat], "weight_decay": decay, "shape": None, "scale": 1.0, "adjust_lr_fn": None},
        ]
        optimizer = optimizer_class(groups, **{"lr": 0.1, **base, **options})
        for t in range(4):
            optimizer.param_groups[0]["lr"] *= 1.0 if t < 2 else 0.5
            for p in (points, rays, flat):
                p.grad = (p.detach() * torch.arange(4, device=device)).cos()
            optimizer.step()
        return torch.cat([points, rays, flat]).detach()

    plain = run()
    names = set(optimizer_class([nn.Parameter(torch.ones(2))]).defaults) - {"differentiable"}
    for name in names:
        if name in NEUTRAL:
            assert torch.allclose(run(**{name: NEUTRAL[name]}), plain, rtol=1e-12), name
        elif name == "capturable":
            assert torch.allclose(run(capturable=True), plain, rtol=1e-6)
        else:
            needed = NEEDED.get(name, {})
            without = run(**needed) if needed else plain
            assert not torch.allclose(run(**needed, **{name: EFFECTIVE[name]}), without, rtol=1e-9), name


def test_a_frozen_part_of_a_joint_point_is_an_error(device):
    layer = nn.Linear(3, 2).to(device)
    declare(layer, "weight", PSI(), joined=("bias",))
    optimizer = PSISGD(param_groups(layer), lr=0.1)
    layer.weight.grad = torch.ones_like(layer.weight)
    before = layer.weight.detach().clone()
    with pytest.raises(GradientError, match=r"weight forms joint points with 1 other .* freeze all parts or none"):
        optimizer.step()
    assert torch.equal(layer.weight, before)


def test_gradients_are_checked_before_the_first_write(device):
    good, bad = (nn.Parameter(torch.randn(3, 2, device=device)) for _ in range(2))
    optimizer = RiemannianSGD([{"params": [good, bad], "names": ["good", "bad"]}], lr=0.1)
    good.grad, bad.grad = torch.ones_like(good), torch.ones_like(bad).to_sparse()
    before = good.detach().clone()
    with pytest.raises(GradientError, match=r"bad has a torch.sparse_coo gradient; these updates need dense ones"):
        optimizer.step()
    assert torch.equal(good, before)


def test_non_finite_gradients_behave_as_in_torch(device):
    """They reach the weight, row by row, and no other row."""
    for manifold in (Euclidean(0), PSI(), Sphere()):
        w = nn.Parameter(manifold.random_point(3, 4, device=device))
        optimizer = RiemannianSGD([{"params": [w], "manifold": manifold}], lr=0.1, momentum=0.9)
        w.grad = torch.ones_like(w)
        w.grad[1, 2] = float("nan")
        optimizer.step()
        assert torch.isnan(w[1]).any()
        assert torch.isfinite(w[[0, 2]]).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_chunks_change_nothing(name, device, monkeypatch):
    """Large tensors are updated a few rows at a time; the result is that of one go, bitwise."""
    from retract.optim.execution import reference

    ends = []
    for size in (2**18, 20):
        monkeypatch.setattr(reference, "CHUNK", size)
        torch.manual_seed(0)
        w = nn.Parameter(Sphere().random_point(11, 8, device=device))
        group = {"params": [w], "manifold": Sphere(), "orthogonality": 0.0, "foreach": False}
        optimizer = OPTIMIZERS[name]([group])
        for _ in range(3):
            w.grad = torch.randn(11, 8, device=device)
            optimizer.step()
        ends.append([w.detach(), *(v for v in optimizer.state[w].values())])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_non_finite_gradients_on_matrices(device):
    for manifold in (Stiefel(), Grassmann(2)):
        for motion in ("retract", "exp"):
            w = nn.Parameter(manifold.random_point(2, 4, 2, device=device))
            optimizer = RiemannianSGD([{"params": [w], "manifold": manifold}], motion=motion, transport="project")
            w.grad = torch.ones_like(w)
            w.grad[1, 0, 0] = float("nan")
            optimizer.step()
            assert torch.isnan(w[1]).any()
            assert torch.isfinite(w[0]).all()


def test_one_element_tensor_rates_of_any_shape(device):
    for shape in ((), (1,), (1, 1, 1)):
        for make in (RiemannianSGD, RiemannianAdam):
            params = [nn.Parameter(torch.ones(s, device=device)) for s in ((), (3,), (2, 2))]
            for p in params:
                p.grad = torch.ones_like(p)
            make(params, lr=torch.full(shape, 0.1)).step()
            assert all(torch.allclose(p, torch.full_like(p, 0.9)) for p in params)


@pytest.mark.parametrize("path", PATHS)
def test_numbers_as_tensors(path, device):
    """An option that is a tensor of one element, of any shape, is the number in it, on every path."""
    for make, options in (
        (RiemannianSGD, {"momentum": 0.875, "dampening": 0.25, "max_point_norm": 0.5, "orthogonality": 0.125}),
        (RiemannianAdam, {"betas": (0.875, 0.75), "eps": 0.25, "max_point_norm": 0.5, "orthogonality": 0.125}),
    ):
        for manifold in (Euclidean(0), PSI(), Sphere()):
            ends = []
            for number in (float, lambda value: torch.full((1, 1), value)):
                its = {k: tuple(map(number, v)) if k == "betas" else number(v) for k, v in options.items()}
                torch.manual_seed(0)
                w = nn.Parameter(Sphere().random_point(3, 4, device=device))
                optimizer = make([{"params": [w], "manifold": manifold}], lr=0.1, **PATHS[path], **its)
                for _ in range(3):
                    w.grad = torch.randn_like(w)
                    optimizer.step()
                ends.append(w.detach())
            assert torch.equal(*ends), manifold


def test_differentiable_is_read_per_group(device):
    w = nn.Parameter(torch.ones(2, 2, device=device))
    optimizer = RiemannianSGD([{"params": [w], "differentiable": True}], lr=0.1)
    w.grad = torch.ones_like(w)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        optimizer.step()
