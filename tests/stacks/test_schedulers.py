"""Every learning-rate scheduler of torch: what it sets is what the update uses, and it resumes with the run."""

import io

import pytest
import torch
from networks import batches, declare_all, normed_mlp, train
from retract import param_groups
from retract.manifolds import PSI, Grassmann, Sphere
from retract.optim import PSISGD, AdamG, RiemannianAdam, RiemannianSGD
from torch import nn
from torch.optim import lr_scheduler as torchs
from torch.optim.swa_utils import SWALR

STEPS = 12
SCHEDULERS = {
    "LambdaLR": lambda o: torchs.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (1 + t)]),
    "MultiplicativeLR": lambda o: torchs.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: torchs.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: torchs.MultiStepLR(o, [2, 7], 0.5),
    "ConstantLR": lambda o: torchs.ConstantLR(o, 0.3, 5),
    "LinearLR": lambda o: torchs.LinearLR(o, 0.1, total_iters=8),
    "ExponentialLR": lambda o: torchs.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: torchs.PolynomialLR(o, 15, 2.0),
    "CosineAnnealingLR": lambda o: torchs.CosineAnnealingLR(o, STEPS),
    "CosineAnnealingWarmRestarts": lambda o: torchs.CosineAnnealingWarmRestarts(o, 5),
    "CyclicLR": lambda o: torchs.CyclicLR(o, 0.01, 0.2, 4),
    "OneCycleLR": lambda o: torchs.OneCycleLR(o, [0.2, 0.1], STEPS + 1),
    "ReduceLROnPlateau": lambda o: torchs.ReduceLROnPlateau(o, factor=0.5, patience=1, threshold=0.5),
    "SequentialLR": lambda o: torchs.SequentialLR(o, [torchs.LinearLR(o, 0.1, 1.0, 4), torchs.StepLR(o, 2, 0.5)], [4]),
    "ChainedScheduler": lambda o: torchs.ChainedScheduler([torchs.LinearLR(o, 0.1), torchs.ExponentialLR(o, 0.9)], o),
    "SWALR": lambda o: SWALR(o, 0.01, anneal_epochs=6),
}
OPTIMIZERS = {
    "psi-sgdm": (lambda p: PSISGD(p, lr=0.1, momentum=0.9), PSI(), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "sgd": (
        lambda p: RiemannianSGD(p, lr=0.1, momentum=0.9),
        Sphere(),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ),
    "adam": (lambda p: RiemannianAdam(p, lr=0.05), PSI(), lambda p: torch.optim.Adam(p, lr=0.05)),
    "adamg": (
        lambda p: AdamG(p, lr=0.05),
        Grassmann(1),
        lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.9, 0.99)),
    ),
}
SET = ("lr", "momentum", "betas")
"""What a scheduler sets in a group."""


def build(name):
    make, manifold, _ = OPTIMIZERS[name]
    net = declare_all(normed_mlp(), manifold)
    return net, make(param_groups(net))


def data():
    return list(batches(STEPS, 16, 6, classes=4))


def settings(optimizer):
    return [{key: group[key] for key in SET if key in group} for group in optimizer.param_groups]


def advance(scheduler, step):
    """One step of the scheduler, which may want a metric: one that gets better twice and stays."""
    scheduler.step(max(10.0 - step, 8.0)) if isinstance(scheduler, torchs.ReduceLROnPlateau) else scheduler.step()


def run(net, optimizer, scheduler, its_data, start=0):
    """Losses, and what the scheduler had set for each step."""
    seen, losses = [], []
    for step, batch in enumerate(its_data, start):
        seen.append(settings(optimizer))
        losses.append(train(net, optimizer, [batch]))
        advance(scheduler, step)
    return torch.cat(losses), seen


def test_every_scheduler_of_torch_is_here():
    theirs = {
        name
        for name, value in vars(torchs).items()
        if isinstance(value, type) and issubclass(value, torchs.LRScheduler) and not name.startswith("_")
    }
    assert theirs - {"LRScheduler"} | {"SWALR"} == set(SCHEDULERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_a_schedule_is_what_it_sets(schedule, name):
    """The run is, bitwise, the one with the same numbers set by hand; they are those that torch's own optimizer gets."""
    net, optimizer = build(name)
    losses, seen = run(net, optimizer, SCHEDULERS[schedule](optimizer), data())
    assert len({str(each) for each in seen}) > 1
    if schedule in ("CyclicLR", "OneCycleLR"):  # they turn momentum against the rate
        turned = "betas" if "adam" in name else "momentum"
        assert len({str(groups[0][turned]) for groups in seen}) > 4

    _, _, theirs = OPTIMIZERS[name]
    plain = theirs([{"params": [nn.Parameter(torch.zeros(1))]} for _ in optimizer.param_groups])
    scheduler = SCHEDULERS[schedule](plain)
    for step, expected in enumerate(seen):
        assert settings(plain) == expected
        plain.step()
        advance(scheduler, step)

    twin, other = build(name)
    by_hand = []
    for batch, groups in zip(data(), seen, strict=True):
        for group, values in zip(other.param_groups, groups, strict=True):
            group.update(values)
        by_hand.append(train(twin, other, [batch]))
    assert torch.equal(torch.cat(by_hand), losses)
    assert not torch.equal(train(*build(name), data()), losses), "the control: what is set is used"
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
    if OPTIMIZERS[name][1] != PSI():
        for weight in (net[0].weight, net[3].weight):
            OPTIMIZERS[name][1].check_point(weight.detach(), tolerance=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_a_scheduler_resumes(schedule, name):
    """Model, optimizer and scheduler through bytes under weights_only=True: the run goes on bitwise."""
    half = STEPS // 2
    net, optimizer = build(name)
    scheduler = SCHEDULERS[schedule](optimizer)
    run(net, optimizer, scheduler, data()[:half])
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in (net, optimizer, scheduler)], buffer)
    losses, seen = run(net, optimizer, scheduler, data()[half:], half)

    buffer.seek(0)
    twin, other = build(name)
    scheduler = SCHEDULERS[schedule](other)
    for part, state in zip((twin, other, scheduler), torch.load(buffer, weights_only=True), strict=True):
        part.load_state_dict(state)
    again, seen_again = run(twin, other, scheduler, data()[half:], half)
    assert seen_again == seen
    assert torch.equal(again, losses)
