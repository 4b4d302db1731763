"""PSI-SGD and PSI-SGDM: representatives, renormalisation, and the equivariance of Theorem 1."""

import copy

import pytest
import torch
from networks import batches, declare_all, invariant_names, normed_cnn, normed_mlp, train
from optimizers import VARIANTS
from paths import PATHS
from retract import param_groups
from retract.errors import GradientError
from retract.manifolds import PSI, Euclidean, Grassmann, Rows, Sphere, Stiefel
from retract.optim import PSISGD, RiemannianSGD, clip_riemannian_norm_
from torch import nn

RATES = {
    "psi-sgd": 0.1,
    "psi-sgdm": 0.03,
    "psi-sgdm-project": 0.03,
    "psi-sgdm-parallel": 0.03,
    "sgd": 0.03,
    "sgd-exponential": 0.03,
    "adam": 0.01,
}


def rescaled(model, factors):
    """A copy of the network with every invariant row multiplied by its factor."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, factor in factors.items():
            w = twin.get_parameter(name)
            w.mul_(factor.view(-1, *[1] * (w.ndim - 1)).to(w))
    return twin


def random_factors(model):
    """Row factors log-uniform in 1e-4 … 1e4."""
    return {n: 10.0 ** (8 * torch.rand(model.get_parameter(n).shape[0]) - 4) for n in invariant_names(model)}


def directions(model):
    rows = [model.get_parameter(name).detach().flatten(1) for name in invariant_names(model)]
    return [w / w.norm(dim=1, keepdim=True) for w in rows]


@pytest.mark.parametrize("radius", ["hold", "free"])
@pytest.mark.parametrize("method", RATES)
def test_theorem_1(method, radius, device):
    """Loss curves from W and from T_a W agree, and so do the end points; the norms are thrown about mid-run."""
    model = declare_all(normed_cnn(device=device), PSI())
    factors = random_factors(model)
    runs = []
    for start in (model, rescaled(model, factors)):
        net = copy.deepcopy(start)
        optimizer = VARIANTS[method](param_groups(net), lr=RATES[method])
        for group in optimizer.param_groups:
            group["radius"] = radius

        def renormalise(step, optimizer=optimizer):
            # Halfway, "hold" starts over from other norms, and "free" leaves its band.
            if step == 50:
                for p, state in optimizer.state.items():
                    if p.ndim > 1:
                        p.data.mul_(3e4)
                        for name in ("momentum_buffer", "exp_avg"):
                            if name in state:
                                state[name].mul_(3e4)

        losses = train(net, optimizer, batches(100, 16, 1, 6, 6, device=device), renormalise)
        runs.append((losses, directions(net), net))
    (losses, ends, net), (others, other_ends, _) = runs
    assert (losses - others).abs().max() <= 1e-10
    for a, b in zip(ends, other_ends, strict=True):
        assert (a - b).abs().max() <= 1e-9
    for name, a, b in zip(invariant_names(net), directions(model), ends, strict=True):
        assert (a - b).norm() > 1e-2, f"{name} has not moved"


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, RiemannianSGD])
def test_theorem_1_fails_for_plain_sgd(optimizer_class, device):
    model = normed_cnn(device=device)
    curves = []
    for start in (model, rescaled(model, random_factors(model))):
        net = copy.deepcopy(start)
        optimizer = optimizer_class(net.parameters(), lr=0.03, momentum=0.9)
        curves.append(train(net, optimizer, batches(100, 16, 1, 6, 6, device=device)))
    assert (curves[0] - curves[1]).abs().nan_to_num(nan=1.0).max() > 1e-2


def random_gradient_run(steps, device, **options):
    """Weights under gradients that are functions of the direction alone, as those of a BN network are."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(6, 5, dtype=torch.float64, device=device))
    targets = torch.randn(steps, 6, 5, dtype=torch.float64, device=device)
    optimizer = PSISGD([{"params": [w], "manifold": PSI()}], lr=0.5, momentum=0.9, **options)
    norms = []
    for target in targets:
        optimizer.zero_grad()
        (w / w.norm(dim=1, keepdim=True) * target).sum().backward()
        before = w.detach().norm(dim=1)
        optimizer.step()
        norms.append(torch.stack([before, w.detach().norm(dim=1)]))
    return w.detach(), torch.stack(norms)


def test_renormalisation_changes_no_bit_of_the_directions(device, monkeypatch):
    """300 steps that leave a narrow band hundreds of times, against none at all."""
    from retract.optim import update

    monkeypatch.setattr(update, "DEFAULT_BAND", (0.0, float("inf")))
    never, norms = random_gradient_run(300, device, radius="free")
    assert (norms[1:, 0] == norms[:-1, 1]).all()
    monkeypatch.setattr(update, "DEFAULT_BAND", (0.5, 1.5))
    often, norms = random_gradient_run(300, device, radius="free")
    renormalised = int((norms[:, 1] < 0.75 * norms[:, 0]).sum())
    assert renormalised > 200
    exponents = torch.log2((never / often).abs())
    assert torch.equal(exponents, exponents.round())
    assert torch.equal(exponents, exponents[:, :1].expand_as(exponents))
    assert torch.equal(never.sign(), often.sign())


def test_band_of_the_dtype(device):
    """Rows outside [1e-4, 1e4] come back to norm 1/2 … 1 in the next step, those inside stay."""
    for dtype, low, high in ((torch.float32, 1e-4, 1e4), (torch.float16, 1e-2, 1e2)):
        rows = torch.tensor([1.5 * high, 0.9 * high, 1.0, 1.1 * low, 0.5 * low], device=device).unsqueeze(1)
        w = nn.Parameter((rows * torch.tensor([[0.6, 0.8]], device=device)).to(dtype))
        before = w.detach().float().norm(dim=1)
        optimizer = PSISGD([{"params": [w], "manifold": PSI()}], lr=0.1, radius="free")
        w.grad = torch.zeros_like(w)
        optimizer.step()
        after = w.detach().float().norm(dim=1)
        assert torch.equal(after[1:4], before[1:4])
        assert ((after[[0, 4]] >= 0.5) & (after[[0, 4]] < 1)).all()


def test_hold_is_free_with_constant_norms(device):
    """Loss curves agree; every norm stays within one step's growth of its first."""
    curves, nets = [], []
    for radius in ("hold", "free"):
        net = declare_all(normed_cnn(device=device), PSI())
        optimizer = PSISGD(param_groups(net), lr=0.05, momentum=0.9, radius=radius)
        first = [w.detach().flatten(1).norm(dim=1) for w in map(net.get_parameter, invariant_names(net))]

        def check(step, net=net, first=first, radius=radius, optimizer=optimizer):
            if radius == "hold" and step:
                for name, r0 in zip(invariant_names(net), first, strict=True):
                    w = net.get_parameter(name)
                    growth = optimizer.state[w]["momentum_buffer"].flatten(1).norm(dim=1)
                    assert ((w.detach().flatten(1).norm(dim=1) - r0).abs() <= 1.001 * growth).all()

        curves.append(train(net, optimizer, batches(100, 16, 1, 6, 6, device=device), check))
        nets.append(net)
    assert (curves[0] - curves[1]).abs().max() <= 1e-10
    held, free = ([w.norm() for w in map(net.get_parameter, invariant_names(net))] for net in nets)
    assert all(b > 1.1 * a for a, b in zip(held, free, strict=True)), "the free rows should have grown"


def test_one_step_is_equation_11(device):
    """u ← ρu − η‖w‖²∇L, w ← w + u, with and without momentum, two steps, radius free."""
    w0 = torch.randn(3, 4, dtype=torch.float64, device=device)
    grads = [torch.randn_like(w0) for _ in range(2)]
    for rho in (0.0, 0.9):
        w = nn.Parameter(w0.clone())
        optimizer = PSISGD([{"params": [w], "manifold": PSI()}], lr=0.01, momentum=rho, radius="free")
        expected, u = w0.clone(), torch.zeros_like(w0)
        for grad in grads:
            w.grad = grad.clone()
            optimizer.step()
            u = rho * u - 0.01 * expected.square().sum(1, keepdim=True) * grad
            expected = expected + u
        assert (w.detach() - expected).abs().max() <= 1e-14


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((8, 6), Rows(blocks=4)),
        ((8, 6), Rows.whole()),
        ((4, 6, 3, 3), Rows(dim=1)),
        ((4, 3, 3), Rows(dim=1, groups=2)),
    ],
    ids=str,
)
def test_other_cuts_are_the_same_update_on_rows(shape, rows, device):
    """Blocks, whole tensors and channels of axis 1, against rows of the tensor rearranged by hand."""
    torch.manual_seed(1)
    w = nn.Parameter(torch.randn(shape, dtype=torch.float64, device=device))
    groups = rows.groups

    def by_hand(t):
        if rows.blocks:
            return t.reshape(rows.blocks, -1)
        t = t.reshape(groups, shape[0] // groups, *shape[1:])
        return t.transpose(1, 2).reshape(groups * shape[1], -1)

    twin = nn.Parameter(by_hand(w.detach()).clone())
    ours = PSISGD([{"params": [w], "manifold": PSI(), "rows": rows}], lr=0.01, momentum=0.9)
    theirs = PSISGD([{"params": [twin], "manifold": PSI()}], lr=0.01, momentum=0.9)
    for _ in range(5):
        w.grad = torch.randn_like(w)
        twin.grad = by_hand(w.grad).clone()
        ours.step()
        theirs.step()
        assert torch.allclose(by_hand(w.detach()), twin.detach(), rtol=1e-12, atol=0)
    assert ours.state[w]["momentum_buffer"].shape == w.shape
    radius = ours.state[w]["radius"]
    assert radius.ndim == w.ndim
    assert radius.numel() == twin.shape[0]


def test_channels_last_is_the_same_update_without_a_copy(device):
    torch.manual_seed(1)
    plain = nn.Parameter(torch.randn(4, 3, 3, 3, dtype=torch.float64, device=device))
    last = nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    assert Rows().layout(last, 1).split(last.detach()).data_ptr() == last.data_ptr()
    steps = []
    for w in (plain, last):
        torch.manual_seed(2)
        optimizer = PSISGD([{"params": [w], "manifold": PSI()}], lr=0.01, momentum=0.9)
        for i in range(4):
            grad = torch.randn(4, 3, 3, 3, dtype=torch.float64, device=device)
            w.grad = grad if i % 2 else grad.contiguous(memory_format=torch.channels_last)
            optimizer.step()
        steps.append(w.detach())
        assert optimizer.state[w]["momentum_buffer"].stride() == w.stride()
    assert torch.allclose(*steps, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1)], ids=repr)
def test_joint_points_are_one_longer_row(manifold, device):
    """A weight row and its bias move as the row with the bias as one more coordinate."""
    torch.manual_seed(1)
    whole = nn.Parameter(manifold.nearest(torch.randn(4, 6, dtype=torch.float64, device=device)))
    weight, bias = nn.Parameter(whole.detach()[:, :5].clone()), nn.Parameter(whole.detach()[:, 5].clone())
    options = {"lr": 0.05, "momentum": 0.9, "max_point_norm": 0.7, "transport": "project"}
    joint = RiemannianSGD([{"params": [weight, bias], "manifold": manifold, "joined": [(weight, bias)]}], **options)
    single = RiemannianSGD([{"params": [whole], "manifold": manifold}], **options)
    for _ in range(6):
        whole.grad = torch.randn_like(whole)
        weight.grad, bias.grad = whole.grad[:, :5].clone(), whole.grad[:, 5].clone()
        single.step()
        joint.step()
        assert torch.allclose(torch.cat([weight, bias.unsqueeze(1)], 1), whole, rtol=1e-12, atol=1e-14)
    assert joint.state[bias]["momentum_buffer"].shape == bias.shape


@pytest.mark.parametrize("radius", ["hold", "free"])
@pytest.mark.parametrize("path", PATHS)
def test_a_row_that_becomes_zero_goes_on_along_its_momentum(path, radius, device):
    """As when weights are pruned under a running optimizer: no factor back to a norm that is out of reach."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(4, 8, device=device))
    optimizer = PSISGD([{"params": [w], "manifold": PSI()}], lr=0.1, momentum=0.9, radius=radius, **PATHS[path])
    for step in range(4):
        w.grad = torch.randn_like(w)
        if step == 3:
            with torch.no_grad():
                w[1] = 0.0
            momentum = optimizer.state[w]["momentum_buffer"][1].clone()
        optimizer.step()
    assert torch.allclose(w[1], 0.9 * momentum)
    assert w.detach()[[0, 2, 3]].norm(dim=1).min() > 0.5


def test_lengths_of_gradients_that_are_nan(device):
    """In flat space and on manifolds, where a projection makes NaN of infinite ones."""
    for manifold in (Euclidean(0), PSI(), Sphere(), Stiefel()):
        w = nn.Parameter(manifold.random_point(5, 3, device=device))
        optimizer = RiemannianSGD([{"params": [w], "manifold": manifold}], lr=0.1)
        for value in (torch.nan, torch.inf):
            w.grad = torch.ones_like(w)
            w.grad[1, 2] = value
            with pytest.raises(GradientError, match="the length of the gradient is (nan|inf)"):
                clip_riemannian_norm_(optimizer, 1.0, error_if_nonfinite=True)


def test_clip_grad_norm_is_blind_to_the_representative(device):
    model = declare_all(normed_mlp(device=device), PSI())
    lengths = []
    for start in (model, rescaled(model, random_factors(model))):
        net = copy.deepcopy(start)
        optimizer = PSISGD(param_groups(net), lr=0.1)
        ((x, y),) = batches(1, 16, 6, classes=4, device=device)
        nn.functional.cross_entropy(net(x), y).backward()
        lengths.append(clip_riemannian_norm_(optimizer, 0.01))
        assert clip_riemannian_norm_(optimizer, 1.0) == pytest.approx(0.01, rel=1e-3)
    assert float(lengths[0]) == pytest.approx(float(lengths[1]), rel=1e-10)
    assert float(lengths[0]) > 0.02
