"""Why methods that differ in their rates train alike: by how much each turns the scale-invariant rows, and PSI-SGDM made to turn them
as SGD does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from retract.errors import RetractError
from retract.manifolds import PSI
from retract.optim import Coefficients, RiemannianOptimizer, Rule
from retract.optim.rules import Memory
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from . import protocol
from .loop import Study, train
from .methods import Method, load
from .protocol import Run
from .runs import Record, at_seeds, chosen_in, complete, labelled, read
from .split import on, split

__all__ = [
    "DRIVEN",
    "FOLDER",
    "METHODS",
    "PARTS",
    "SEEDS",
    "Turns",
    "drive",
    "made",
    "settings",
    "stored",
    "work",
]

FOLDER = "mechanism"
METHODS = ("sgd_decay", "psi_sgdm_nesterov", "psi_sgdm", "psi_adam", "muonh")
"""Whose turns are shown, at the settings that the BatchNorm study has chosen."""
DRIVEN = "driven"
"""The name of Nesterov PSI-SGDM with the turns of `METHODS[0]`."""
SEEDS = protocol.FINAL_SEEDS
PARTS = 16
"""Of a run, for which the turns are stored."""
_MOMENTUM = 0.9
_MANIFOLD = PSI()


class Turns:
    """The angles by which an optimizer turns the rows of weights, step by step, of which `retract.psi.Monitor` has the mean and the largest.

    Args:
        weights: whose first dimension counts rows.
        optimizer: whose steps are followed, by hooks.
    """

    def __init__(self, weights: list[nn.Parameter], optimizer: Optimizer) -> None:
        self.angles: list[list[Tensor]] = []
        """Per step and weight, (rows, 1)."""
        self._weights, self._before = weights, list[Tensor]()
        optimizer.register_step_pre_hook(self._remember)
        optimizer.register_step_post_hook(self._observe)

    def _remember(self, *_: Any) -> None:
        self._before = [w.detach().flatten(1).clone() for w in self._weights]

    def _observe(self, *_: Any) -> None:
        pairs = zip(self._before, self._weights, strict=True)
        self.angles.append([_MANIFOLD.dist(before, w.detach().flatten(1)) for before, w in pairs])


@dataclass(frozen=True)
class _Driven(Rule):
    """Nesterov's momentum with a rate of its own for each point, which is set before the step."""

    vectors = ("momentum_buffer",)
    scalars = ("rate",)
    reads_lengths = False

    def __call__(self, length: Tensor, memory: Memory, options: Mapping[str, Any]) -> Coefficients:
        rate = memory.scalars["rate"]
        return Coefficients(keep=_MOMENTUM, take=1.0, along=-_MOMENTUM * rate, ahead=-rate)


class _DrivenSGD(RiemannianOptimizer):
    rule = _Driven()


def drive(groups: list[dict[str, Any]], weights: list[nn.Parameter], angles: list[list[Tensor]]) -> Optimizer:
    """PSI-SGD with Nesterov's momentum, in which every row turns at every step by the angle in `angles`, as in `Turns`.

    The retraction x + u turns x by arctan ‖u‖ₓ, so the rate is the tangent of the angle over the length of γ + 0.9 v.
    """
    optimizer = _DrivenSGD(groups, {"lr": 1.0})
    steps = iter(angles)

    @torch.no_grad()
    def set_rates(*_: Any) -> None:
        for w, angle in zip(weights, next(steps), strict=True):
            assert w.grad is not None
            x, state = w.flatten(1), optimizer.state[w]
            gradient = _MANIFOLD.riemannian_gradient(x, w.grad.flatten(1))
            averaged = gradient
            if "momentum_buffer" in state:
                averaged = gradient + _MOMENTUM * state["momentum_buffer"].flatten(1)
            length = _MANIFOLD.norm(x, gradient + _MOMENTUM * averaged)
            rate = angle.tan() / length.clamp(min=torch.finfo(x.dtype).tiny)
            state["rate"] = rate.view(-1, *[1] * (w.ndim - 1))

    optimizer.register_step_pre_hook(set_rates)
    return optimizer


def made(study: Study, name: str, run: Run) -> Record:
    """The record of a run, with the mean turn of a row per step, in rad, in each of the `PARTS` parts of it; fewer where it diverged
    before its end. Where that of SGD did, there is nothing to drive PSI-SGDM by, and it is the record of both."""
    base, turns = load(METHODS[0] if name == DRIVEN else name), list[Turns]()

    def followed(network: nn.Module, example: Tensor, **knobs: float) -> list[Optimizer]:
        optimizers = base.optimizers(network, example, **knobs)
        turns.append(Turns(split(network, example)[0], optimizers[0]))
        return optimizers

    record = train(study, replace(base, optimizers=followed), run.values, run.seed, final=True)
    if name == DRIVEN and record["loss"] is not None:
        angles, before = turns.pop().angles, record["seconds"]

        def driven(network: nn.Module, example: Tensor, lr: float, rest: float, decay: float) -> list[Optimizer]:
            weights, _ = split(network, example)
            groups, others = on(_MANIFOLD, network, example)
            optimizer = drive(groups, weights, angles)
            turns.append(Turns(weights, optimizer))
            return [optimizer, SGD(others, lr=rest, momentum=_MOMENTUM, nesterov=True)]

        record = train(study, Method(DRIVEN, "", dict(run.values), driven), run.values, run.seed, final=True)
        record["seconds"] = round(before + record["seconds"], 1)
    means, every = [float(torch.cat(angles).mean()) for angles in turns[0].angles], study.steps // PARTS
    parts = [means[i * every : (i + 1) * every] for i in range(min(PARTS, len(means) // every))]
    record["turns"] = [float(f"{sum(part) / len(part):.5g}") for part in parts]
    return labelled(run, record)


def work(
    study: Study, methods: Sequence[str], minutes: float, results: Path, tell: Callable[[str], None] = print
) -> None:
    """Make the runs of `methods` that are missing, as `runs.work` does."""
    end, chosen = time.monotonic() + 60.0 * minutes, settings(study, results)
    if unknown := ", ".join(name for name in methods if name not in chosen):
        raise RetractError(f"{unknown}: not among the methods whose turns are compared, which are {', '.join(chosen)}")
    for name in methods:
        values = chosen[name]
        if values is None:
            tell(f"{name}: not yet swept in the study {study.name}, which chooses its setting")
            continue
        method = Method(name, "", values, list)
        if not complete(results / FOLDER, method, partial(_next_run, values), partial(made, study, name), end, tell):
            return


def _next_run(values: Mapping[str, float], records: Sequence[Record]) -> Run | None:
    """The first run at a setting that is not in `records`, or None."""
    return at_seeds(values, SEEDS, records)[1]


def settings(study: Study | type[Study], results: Path) -> dict[str, dict[str, float] | None]:
    """What `study` has chosen for each of `METHODS`, None where it is not complete; `DRIVEN` has the setting of the first."""
    chosen = {name: chosen_in(study, name, results) for name in METHODS}
    return {**chosen, DRIVEN: chosen[METHODS[0]]}


def stored(results: Path, chosen: Mapping[str, Mapping[str, float] | None]) -> dict[str, list[Record]]:
    """The runs of each method at its setting, in the order of the seeds."""
    return {
        name: [] if values is None else at_seeds(values, SEEDS, read(results / FOLDER, name))[0]
        for name, values in chosen.items()
    }
