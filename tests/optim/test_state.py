"""State: resuming, pickling, and what `load_state_dict` takes and refuses."""

import copy
import io
import pickle

import pytest
import torch
from networks import batches, normed_cnn, train
from optimizers import OPTIMIZERS
from retract import declare, param_groups
from retract.errors import StateError
from retract.manifolds import PSI, Grassmann, Sphere
from retract.optim import PSISGD, RiemannianAdam, RiemannianSGD
from torch import nn


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_mid_run_is_bitwise(name, dtype, device):
    """Through bytes, under weights_only=True, into a new process's objects."""

    def build():
        net = normed_cnn(eps=1e-5, device=device, dtype=dtype)
        declare(net, "0.weight", PSI())
        declare(net, "3.weight", Grassmann(1) if "g" in name else PSI())
        return net, OPTIMIZERS[name](param_groups(net))

    data = list(batches(8, 16, 1, 6, 6, dtype=dtype, device=device))
    net, optimizer = build()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    train(net, optimizer, data[:4], lambda step: schedule.step() if step else None)
    buffer = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict(), schedule.state_dict()], buffer)
    losses = train(net, optimizer, data[4:], lambda step: schedule.step())

    twin, other = build()
    schedule = torch.optim.lr_scheduler.StepLR(other, 3, 0.5)
    buffer.seek(0)
    for target, state in zip((twin, other, schedule), torch.load(buffer, weights_only=True), strict=True):
        target.load_state_dict(state)
    assert torch.equal(train(twin, other, data[4:], lambda step: schedule.step()), losses)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    for group in other.param_groups:
        for p in group["params"]:
            for key, value in other.state[p].items():
                if key != "step" and value.shape == p.shape:
                    assert value.dtype == p.dtype, key
                else:
                    assert value.dtype == (torch.float64 if key != "step" and dtype == torch.float64 else torch.float32)


def test_pickle_and_deepcopy_keep_the_geometry(device):
    w = nn.Parameter(Sphere().random_point(5, 6, device=device))
    optimizer = RiemannianSGD([{"params": [w], "manifold": Sphere()}], lr=0.1, momentum=0.9)
    w.sum().backward()
    optimizer.step()
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        (p,) = twin.param_groups[0]["params"]
        p.grad = w.grad.clone()
        twin.step()
        Sphere().check_point(p.detach().flatten(1))
        assert repr(twin) == repr(optimizer)


def test_state_dict_of_another_geometry_is_refused(device):
    def make(manifold):
        w = nn.Parameter(torch.ones(3, 2, device=device) / 2**0.5)
        w.grad = torch.ones_like(w)
        return RiemannianSGD([{"params": [w], "manifold": manifold}], lr=0.1, momentum=0.9)

    psi = make(PSI())
    psi.step()
    before = copy.deepcopy(psi.state_dict())
    with pytest.raises(StateError, match=r"saved with manifold 'Sphere\(\)', this group has 'PSI\(\)'"):
        psi.load_state_dict(make(Sphere()).state_dict())
    assert str(psi.state_dict()) == str(before)
    torch_state = torch.optim.SGD([nn.Parameter(torch.ones(3, 2))], lr=0.1).state_dict()
    with pytest.raises(StateError, match="Euclidean"):
        psi.load_state_dict(torch_state)
    flat = RiemannianSGD([nn.Parameter(torch.ones(3, 2))], lr=0.3)
    flat.load_state_dict(torch_state)
    assert flat.param_groups[0]["lr"] == 0.1


def test_torch_states_load_and_other_rules_are_refused(device):
    """On Euclidean groups a checkpoint of torch.optim goes on; one of another rule is refused, nothing changed."""
    for ours, theirs in ((RiemannianSGD, torch.optim.SGD), (RiemannianAdam, torch.optim.Adam)):
        weights = []
        for switch in (False, True):
            torch.manual_seed(0)
            w = nn.Parameter(torch.randn(4, 3, dtype=torch.float64, device=device))
            extra = {"momentum": 0.9} if ours is RiemannianSGD else {}
            optimizer = theirs([w], lr=0.1, **extra)
            for t in range(10):
                if switch and t == 5:
                    state = optimizer.state_dict()
                    optimizer = ours([w], lr=0.7)
                    optimizer.load_state_dict(state)
                    optimizer.load_state_dict(optimizer.state_dict())
                optimizer.zero_grad()
                w.sin().square().sum().backward()
                optimizer.step()
            weights.append(w.detach())
        assert torch.allclose(*weights, rtol=1e-12)
    w = nn.Parameter(torch.ones(2, 2, device=device))
    sgd, adam = RiemannianSGD([w], lr=0.3), RiemannianAdam([w])
    with pytest.raises(StateError, match="of another rule: RiemannianSGD needs momentum"):
        sgd.load_state_dict(adam.state_dict())
    with pytest.raises(StateError, match="of another rule: RiemannianAdam needs betas"):
        adam.load_state_dict(torch.optim.Adam([w], amsgrad=True).state_dict())
    with pytest.raises(StateError, match="has 1 groups, this optimizer 2"):
        RiemannianSGD([{"params": [w]}, {"params": [nn.Parameter(torch.ones(1))]}]).load_state_dict(sgd.state_dict())
    state = sgd.state_dict()
    state["param_groups"][0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr=-1.0 is outside"):
        sgd.load_state_dict(state)
    assert sgd.param_groups[0]["lr"] == 0.3


def test_joint_points_are_part_of_the_geometry(device):
    def make(joined):
        layer = nn.Linear(3, 2).to(device)
        declare(layer, "weight", PSI(), joined=joined)
        return PSISGD(param_groups(layer), lr=0.1)

    with_bias = make(("bias",)).state_dict()
    with_bias["param_groups"] *= 2  # without the join the bias is in a group of its own
    for group in with_bias["param_groups"]:
        group.pop("names", None)
    with pytest.raises(StateError, match=r"saved with joined '0\+1', this group has ''"):
        make(()).load_state_dict(with_bias)
    make(("bias",)).load_state_dict(make(("bias",)).state_dict())


def test_momentum_switched_off_and_on_again(device):
    """The buffer that waits is still a tangent vector at the point: rescaled and transported along."""
    ends = []
    for scale in (1.0, 9990.0):
        torch.manual_seed(1)
        w = nn.Parameter(scale * torch.randn(4, 3, dtype=torch.float64, device=device))
        optimizer = PSISGD([{"params": [w], "manifold": PSI()}], lr=0.3, momentum=0.9, radius="free")
        c = torch.randn(4, 3, dtype=torch.float64, device=device)
        for t in range(9):
            optimizer.param_groups[0]["momentum"] = 0.0 if 2 <= t < 7 else 0.9
            optimizer.zero_grad()
            (c * w / w.norm(dim=1, keepdim=True)).sin().sum().backward()
            optimizer.step()
        ends.append(w.detach() / w.detach().norm(dim=1, keepdim=True))
    assert (ends[0] - ends[1]).abs().max() <= 1e-12
    w = nn.Parameter(Sphere().random_point(4, 3, dtype=torch.float64, device=device))
    optimizer = RiemannianSGD([{"params": [w], "manifold": Sphere()}], lr=0.3, momentum=0.9)
    for t in range(9):
        optimizer.param_groups[0]["momentum"] = 0.9 if t < 3 else 0.0
        w.grad = torch.randn_like(w)
        optimizer.step()
    Sphere().check_tangent(w.detach(), optimizer.state[w]["momentum_buffer"])
