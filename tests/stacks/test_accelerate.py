"""What Accelerate does to an optimizer: wraps it, loads its own state into it, skips steps, scales, replaces parameters."""

import pickle

import pytest
import torch
from networks import batches, declare_all, normed_mlp, train
from optimizers import OPTIMIZERS
from retract import declare, optim, param_groups
from retract.errors import DeclarationError, OptionError, StateError
from retract.manifolds import PSI, Sphere
from retract.optim import PSISGD, RiemannianSGD
from torch import nn

accelerate = pytest.importorskip("accelerate")

DATA = list(batches(6, 16, 6, classes=4))


@pytest.fixture(autouse=True)
def accelerator():
    """A fresh one: its state is global. Its seed is saved and restored with the rest."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def build(name="sgd", manifold=PSI()):
    net = declare_all(normed_mlp(eps=1e-5), manifold)
    return net, OPTIMIZERS[name](param_groups(net))


def same(net, twin):
    return all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))


def follow(accelerator, net, optimizer, data, schedule=None):
    losses = []
    for x, y in data:
        with accelerator.accumulate(net):
            loss = nn.functional.cross_entropy(net(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        if schedule is not None:
            schedule.step()
    return torch.stack(losses)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_preparing_changes_nothing(name, accelerator):
    """Before the first step and in the middle of a run, where it loads the optimizer's state into itself."""
    net, optimizer = build(name)
    losses = train(net, optimizer, DATA)
    twin, other = build(name)
    before = str(other.state_dict())
    twin, wrapped = accelerator.prepare(twin, other)
    assert str(wrapped.state_dict()) == before
    followed = follow(accelerator, twin, wrapped, DATA[:3])
    twin, wrapped = accelerate.Accelerator(cpu=True).prepare(twin, other)
    assert torch.equal(torch.cat([followed, follow(accelerator, twin, wrapped, DATA[3:])]), losses)
    assert same(net, twin)
    assert [group["manifold"] for group in wrapped.param_groups] == ["PSI()", "Euclidean(event_ndim=0)"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saved_states_go_on(name, tmp_path):
    """With a schedule; another geometry refuses the state."""

    def prepared(manifold=PSI()):
        one = accelerate.Accelerator(cpu=True)
        net, optimizer = build(name, manifold)
        return one, *one.prepare(net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5))

    one, net, optimizer, schedule = prepared()
    whole = follow(one, net, optimizer, DATA, schedule)
    one, twin, optimizer, schedule = prepared()
    half = follow(one, twin, optimizer, DATA[:3], schedule)
    one.save_state(tmp_path)
    one, twin, optimizer, schedule = prepared()
    one.load_state(tmp_path)
    assert torch.equal(torch.cat([half, follow(one, twin, optimizer, DATA[3:], schedule)]), whole)
    assert same(net, twin)
    one, *_ = prepared(Sphere())
    with pytest.raises(DeclarationError, match="moving the rows of 0.weight may invalidate running statistics"):
        one.load_state(tmp_path)


def test_accumulation_is_the_plain_one(accelerator):
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=3)
    net, optimizer = build()
    for i, (x, y) in enumerate(DATA):
        (nn.functional.cross_entropy(net(x), y) / 3).backward()
        if i % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    twin, wrapped = accelerator.prepare(*build())
    follow(accelerator, twin, wrapped, DATA)
    assert same(net, twin)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_scaler_skips_a_step_without_a_trace(name, accelerator):
    """Scaled by a power of two, and with gradients that overflow once, the run is the plain one without that step."""
    net, optimizer = build(name)
    train(net, optimizer, DATA)
    twin, other = build(name)
    schedule = torch.optim.lr_scheduler.ConstantLR(other, 1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    wrapped = accelerate.optimizer.AcceleratedOptimizer(other, scaler=scaler)
    wrapped_schedule = accelerate.scheduler.AcceleratedScheduler(schedule, wrapped)
    for i, (x, y) in enumerate(DATA):
        for overflow in (True, False) if i == 2 else (False,):
            wrapped.zero_grad()
            loss = nn.functional.cross_entropy(twin(x), y)
            scaler.scale(loss).backward()
            if overflow:
                twin[0].weight.grad[1, 2] = float("inf")
            before = str(other.state_dict()), [p.detach().clone() for p in twin.parameters()]
            wrapped.step()
            wrapped_schedule.step()
            assert wrapped.step_was_skipped == overflow
            if overflow:
                assert str(other.state_dict()) == before[0]
                assert all(torch.equal(p, q) for p, q in zip(twin.parameters(), before[1], strict=True))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
    assert schedule.last_epoch == len(DATA)


def test_replaced_parameters_are_not_silently_frozen(accelerator):
    """What Accelerate does for FSDP2 and XLA: new parameters in the same groups, of which no geometry is known."""
    net, optimizer = build()
    _, wrapped = accelerator.prepare(net, optimizer)
    train(net, optimizer, DATA[:2])
    before = net[0].weight.detach().clone()
    new = {p: nn.Parameter(p.detach().clone()) for p in net.parameters()}
    for p in new.values():
        p.grad = torch.ones_like(p)
    wrapped._switch_parameters({net[3].weight: new[net[3].weight]})
    with pytest.raises(StateError, match=r"parameter 1 of a group, .*\(4, 12\).* is not the one .*param_groups"):
        wrapped.step()
    with pytest.raises(StateError, match="is not the one that the optimizer was built with"):
        optim.clip_riemannian_norm_(optimizer, 1.0)
    assert torch.equal(net[0].weight, before)


def test_joint_parts_are_known(accelerator):
    layer = nn.Linear(6, 4)
    declare(layer, "weight", PSI(), joined=("bias",))
    layer, wrapped = accelerator.prepare(layer, PSISGD(param_groups(layer), lr=0.1))
    layer(DATA[0][0].float()).square().mean().backward()
    before = layer.bias.detach().clone()
    wrapped.step()
    assert not torch.equal(layer.bias, before)


def test_clipping_needs_the_wrapped_optimizer(accelerator):
    net, optimizer = build()
    _, wrapped = accelerator.prepare(net, optimizer)
    train(net, optimizer, DATA[:1])
    with pytest.raises(OptionError, match=r"AcceleratedOptimizer has no manifolds.*optimizer\.optimizer"):
        optim.clip_riemannian_norm_(wrapped, 1.0)
    assert optim.clip_riemannian_norm_(wrapped.optimizer, 1.0) > 0


def test_the_wrapper_pickles(accelerator):
    net, optimizer = build("psi-sgdm")
    _, wrapped = accelerator.prepare(net, optimizer)
    train(net, wrapped, DATA)
    twin = pickle.loads(pickle.dumps(wrapped))
    assert type(twin.optimizer) is PSISGD
    assert str(twin.state_dict()) == str(wrapped.state_dict())
    for group in twin.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    twin.step()


def test_groups_that_are_added_later(accelerator):
    a, b = (nn.Parameter(Sphere().random_point(3, 4)) for _ in range(2))
    wrapped = accelerator.prepare(RiemannianSGD([{"params": [a], "manifold": Sphere()}], lr=0.1))
    wrapped.add_param_group({"params": [b], "manifold": Sphere(), "lr": 0.2})
    for p in (a, b):
        p.grad = torch.randn_like(p)
    wrapped.step()
    for p in (a, b):
        Sphere().check_point(p.detach())
    assert [group["lr"] for group in wrapped.param_groups] == [0.1, 0.2]
