"""Every scheduler that torch has: what it sets is what each step uses, and it resumes with the optimizer."""

import copy
import inspect
import io

import pytest
import torch
from optimizers import VARIANTS
from retract.manifolds import PSI, Euclidean, Sphere, Stiefel
from torch import nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import ConstantLR, ExponentialLR, LRScheduler

STEPS = 12
SCHEDULERS = {
    "LambdaLR": lambda make, o: make(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda make, o: make(o, lambda t: 1 - 0.5 / t),
    "StepLR": lambda make, o: make(o, 3, 0.5),
    "MultiStepLR": lambda make, o: make(o, [2, 7], 0.3),
    "ConstantLR": lambda make, o: make(o, 0.3, 8),
    "LinearLR": lambda make, o: make(o, 0.1, total_iters=9),
    "ExponentialLR": lambda make, o: make(o, 0.8),
    "PolynomialLR": lambda make, o: make(o, 10, 2.0),  # lr 0 in the last steps
    "CosineAnnealingLR": lambda make, o: make(o, 8),
    "CosineAnnealingWarmRestarts": lambda make, o: make(o, 3, 2),
    "CyclicLR": lambda make, o: make(o, 0.01, 0.1, 4),
    "OneCycleLR": lambda make, o: make(o, 0.1, STEPS + 1),
    "SequentialLR": lambda make, o: make(o, [ConstantLR(o, 0.2, 3), ExponentialLR(o, 0.7)], [4]),
    "ChainedScheduler": lambda make, o: make([ConstantLR(o, 0.2, 8), ExponentialLR(o, 0.9)]),
    "ReduceLROnPlateau": lambda make, o: make(o, factor=0.5, patience=1),
    "SWALR": lambda make, o: make(o, 0.2, 9),
}
MOMENTUM = {"CyclicLR", "OneCycleLR"}
"""Those that change momentum, or Adam's beta1, too."""
RUNS = {"sgd": False, "sgd-momentum": True, "psi-sgdm": False, "adam": False}
"""Optimizers, and whether their rates are tensors."""


def classes():
    """The schedulers of torch, by name."""
    found = {**vars(lr_scheduler), **vars(swa_utils)}
    kinds = {name: cls for name, cls in found.items() if inspect.isclass(cls) and issubclass(cls, LRScheduler)}
    # Before torch 2.7 this one is no LRScheduler.
    kinds |= {"ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau}
    return {name: cls for name, cls in kinds.items() if not name.startswith("_") and cls is not LRScheduler}


def test_every_scheduler_of_torch_is_here():
    assert classes().keys() == SCHEDULERS.keys()


class Problem:
    """Points on four manifolds, each a group with a rate of its own, and a gradient for each step."""

    def __init__(self, optimizer, device):
        generator = torch.Generator(device).manual_seed(0)
        options = {"generator": generator, "dtype": torch.float64, "device": device}
        manifolds = {PSI(): (5, 4), Sphere(): (5, 4), Stiefel(): (2, 4, 2), Euclidean(0): (5, 4)}
        self.points = {m: nn.Parameter(m.random_point(*shape, **options)) for m, shape in manifolds.items()}
        self.targets = [torch.randn(40, **options) for _ in range(STEPS)]
        groups = [
            {"params": [p], "manifold": m, "lr": torch.tensor(rate) if RUNS[optimizer] else rate}
            for rate, (m, p) in zip((0.1, 0.08, 0.06, 0.04), self.points.items(), strict=True)
        ]
        self.optimizer = VARIANTS[optimizer](groups)

    def step(self, t):
        for p in self.points.values():
            p.grad = (3 * p.detach() + self.targets[t][: p.numel()].view_as(p)).cos()
        self.optimizer.step()
        for m, p in self.points.items():
            m.check_point(p.detach())

    def options(self):
        """What a scheduler may set, group by group."""
        keys = ("lr", "momentum", "betas")
        return [
            {key: torch.clone(g[key]) if torch.is_tensor(g[key]) else g[key] for key in keys if key in g}
            for g in self.optimizer.param_groups
        ]

    def set(self, options):
        for group, its in zip(self.optimizer.param_groups, options, strict=True):
            group.update(its)

    def end(self):
        return torch.cat([p.detach().reshape(-1) for p in self.points.values()])


def advance(scheduler):
    scheduler.step(*[1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else [])


@pytest.mark.parametrize("optimizer", RUNS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_are_their_values_set_by_hand_and_resume(name, optimizer, device):
    """Bitwise, in every group, with the points on their manifolds after every step."""

    def start():
        problem = Problem(optimizer, device)
        return problem, SCHEDULERS[name](classes()[name], problem.optimizer)

    problem, scheduler = start()
    used, buffer = [], io.BytesIO()
    for t in range(STEPS):
        if t == 5:
            torch.save([[*problem.points.values()], problem.optimizer.state_dict(), scheduler.state_dict()], buffer)
        used.append(problem.options())
        problem.step(t)
        advance(scheduler)
    for g in range(4):
        assert len({float(its[g]["lr"]) for its in used}) > 1
        if name in MOMENTUM:
            assert len({its[g].get("momentum", its[g].get("betas")) for its in used}) > 3

    by_hand = Problem(optimizer, device)
    for t in range(STEPS):
        by_hand = copy.deepcopy(by_hand)  # which remembers nothing of earlier options
        by_hand.set(used[t])
        by_hand.step(t)
    assert torch.equal(by_hand.end(), problem.end())

    resumed, scheduler = start()
    buffer.seek(0)
    points, state, schedule = torch.load(buffer, weights_only=True)
    resumed.optimizer.load_state_dict(state)
    scheduler.load_state_dict(schedule)
    with torch.no_grad():
        for p, its in zip(resumed.points.values(), points, strict=True):
            p.copy_(its)
    for t in range(5, STEPS):
        assert str(resumed.options()) == str(used[t])
        resumed.step(t)
        advance(scheduler)
    assert torch.equal(resumed.end(), problem.end())
