"""torch's database of optimizer inputs, for SGD and Adam, and a problem to run them on in flat space and on manifolds."""

import copy

import pytest
import torch
from paths import PATHS
from retract.manifolds import PSI, Sphere
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

database = pytest.importorskip("torch.testing._internal.common_optimizers")

OURS = {"SGD": RiemannianSGD, "Adam": RiemannianAdam}
INFOS = {info.name: info for info in database.optim_db}
GEOMETRIES = {"flat": None, "PSI": PSI(), "Sphere": Sphere()}
CURVED = [name for name, manifold in GEOMETRIES.items() if manifold is not None]

SKIPPED_INPUTS = dict.fromkeys(
    (
        ("Adam", "amsgrad"),
        ("Adam", "capturable, amsgrad"),
        ("Adam", "Tensor lr with capturable and amsgrad"),
        ("Adam", "Tensor lr, Tensor betas, with capturable and amsgrad"),
    ),
    "amsgrad is no option: a maximum over time is not kept per point; a state_dict with it is refused",
)
SKIPPED_PATHS = dict.fromkeys(
    ("foreach", "fused"), "a step that can be captured runs on the reference path; both raise"
)


def described(name, which):
    """(description, entry) of the database's inputs, those for a GPU included, or of its errors."""
    if which == "inputs":
        return [(entry.desc, entry) for entry in INFOS[name].optim_inputs_func("cuda")]
    return [
        (entry.optimizer_error_input.desc, entry) for entry in INFOS[name].optim_error_inputs_func("cpu", torch.float32)
    ]


def options_of(entry):
    """The keyword arguments of an input; amsgrad=False asks for nothing."""
    return {key: value for key, value in entry.kwargs.items() if (key, value) != ("amsgrad", False)}


INPUTS = [
    pytest.param(name, options_of(entry), id=f"{name}-{desc}".replace(" ", "_"))
    for name in OURS
    for desc, entry in described(name, "inputs")
    if (name, desc) not in SKIPPED_INPUTS
]
SPACES = pytest.mark.parametrize("space", GEOMETRIES)
each_input = pytest.mark.parametrize(("name", "options"), INPUTS)


class Problem:
    """A matrix and a vector: ‖w x + b‖², or with w's rows normalized where they live on a manifold."""

    def __init__(self, space, device, dtype=torch.float64, contiguous=True):
        torch.manual_seed(0)
        self.space, self.manifold = space, GEOMETRIES[space]
        w, b, self.x = torch.randn(10, 5), torch.randn(10), torch.randn(5).to(device, dtype)
        if self.manifold is not None:
            w = self.manifold.nearest(w)
        w, b = w.to(device, dtype), b.to(device, dtype)
        if not contiguous:
            w, b = torch.stack([w, w], -1)[..., 0], torch.stack([b, b], -1)[..., 0]
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)
        assert self.w.is_contiguous() == contiguous

    def groups(self, **options):
        """Groups of matrix and vector; weight decay goes to the vector where the matrix refuses it."""
        curved = {} if self.manifold is None else {"manifold": self.manifold, "weight_decay": 0.0}
        return [{"params": [self.w], **curved, **options}, {"params": [self.b]}]

    def loss(self):
        w = self.w if self.manifold is None else nn.functional.normalize(self.w, dim=1)
        return (w.mv(self.x) + self.b).square().sum()

    def run(self, optimizer, steps=10, schedulers=()):
        """Losses of `steps`, by a closure."""

        def closure():
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss.detach()

        losses = []
        for _ in range(steps):
            losses.append(optimizer.step(closure))
            for scheduler in schedulers:
                scheduler.step(*[losses[-1]] if isinstance(scheduler, ReduceLROnPlateau) else [])
        return torch.stack(losses)

    def weights(self):
        return [self.w.detach(), self.b.detach()]


def equal(mine, theirs):
    return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def close(mine, theirs, dtype=torch.float64):
    tolerance = 200 * torch.finfo(dtype).eps
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(mine, theirs, strict=True))


def paths_of(options):
    """The paths that go with the options of an input."""
    return [path for path in PATHS if path not in SKIPPED_PATHS] if options.get("capturable") else list(PATHS)


def fresh(options):
    """Options with tensors of their own, which schedulers write to, and torch's rate, for which the inputs are made."""
    return {"lr": 1e-3, **copy.deepcopy(options)}


def torchs(name, problem, options):
    """torch's own optimizer on the same; it has no capture on a CPU."""
    its = {key: value for key, value in fresh(options).items() if key != "capturable"}
    if "betas" in its:
        its["betas"] = tuple(float(beta) for beta in its["betas"])
    return INFOS[name].optim_cls(problem.groups(), foreach=False, **its)
