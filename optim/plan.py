"""`Plan`: points that run together step after step, with everything worked out that stays the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .matrices import Matrices, New, Seat, real, seat
from .options import Options
from .points import PointSet, State, check_state, count_steps
from .reference import reference
from .rules import Rule

__all__ = ["Batch", "Plan", "PlanOfStacks", "Reference"]


class Plan(ABC):
    """Points of one kind and the way in which they run."""

    pending = False
    """Whether a first step was prepared and never ran."""

    @abstractmethod
    def prepare(self, options: Options) -> Callable[[], None] | None:
        """This step, checked and ready to run; None if the plan no longer fits, and everything has to be looked at
        again. Writes nothing.

        Raises `GradientError` as `PointSet.gradients` does.
        """


class Reference(Plan):
    """One point set after the other."""

    def __init__(self, points: Sequence[PointSet], state: State, rule: Rule) -> None:
        self._points, self._state, self._rule = points, state, rule

    def prepare(self, options: Options) -> Callable[[], None] | None:
        """As in `Plan`."""
        work = [(points, points.gradients()) for points in self._points]
        for points in self._points:
            check_state(points, self._state, self._rule)
        return partial(self._run, work, options) if all(grads for _, grads in work) else None

    def _run(self, work: Sequence[tuple[PointSet, list[Tensor]]], options: Options) -> None:
        with torch.set_grad_enabled(options["differentiable"]):
            for points, grads in work:
                reference(points, grads, self._state, self._rule, options)


class Batch(NamedTuple):
    """What the update of several point sets has in common, beside the options."""

    new: New
    step: float | None
    """Number of this step, from 1; None for rules that do not count."""


class PlanOfStacks(Plan):
    """Points of one manifold, dtype and device that move in a few calls: those that lie as matrices, and the loose ones."""

    half = False
    """Whether matrices of half precision can be worked on as they are; otherwise they are loose, and come as float32."""

    def __init__(self, seats: Sequence[Seat], state: State, rule: Rule) -> None:
        self.state, self.rule = state, rule
        self.manifold = seats[0].points.manifold
        lying = [seat for seat in seats if self._lies(seat)]
        self.matrices = Matrices(lying, rule) if lying else None
        self._loose = [seat.points for seat in seats if not self._lies(seat)]
        self._new: Sequence[Seat] = seats

    def _lies(self, seat: Seat) -> bool:
        return seat.lies and (self.half or real(seat.points.parts[0].dtype) == seat.points.parts[0].dtype)

    def prepare(self, options: Options) -> Callable[[], None] | None:
        """As in `Plan`."""
        if self._new:
            self.pending = True
            return partial(self._first, options)
        seats = []
        for points in self._loose:
            grads = points.gradients()
            if not grads:
                return None
            seats.append(seat(points, grads, self.state, self.rule, options))
        if self.matrices is None:
            return partial(self.loose, seats, options)
        found = self.matrices.read(self.state)
        return None if found is None else partial(self._again, *found, seats, options)

    def _first(self, options: Options) -> None:
        """The first step, which makes the state."""
        seats, self._new, self.pending = self._new, (), False
        for each in seats:
            each.enter(self.state, self.rule)
        if self.matrices is not None:
            found = self.matrices.read(self.state)
            assert found is not None
            self.lying(*found, [each.new for each in seats if self._lies(each)], options)
        self.loose([each for each in seats if not self._lies(each)], options)

    def _again(self, cells: list[int], grads: list[Tensor], seats: list[Seat], options: Options) -> None:
        self.lying(cells, grads, None, options)
        self.loose(seats, options)

    def batches(self, params: Sequence[Tensor], new: Sequence[New] | None) -> Sequence[tuple[Batch, Sequence[int]]]:
        """Which of `params` have their `Batch` in common, as indices; counts the step."""
        steps: Sequence[float | None] = ()
        if self.rule.counts_steps:
            steps = [step.item() for step in count_steps([self.state[p] for p in params])]
        if new is None and len(set(steps)) <= 1:
            return [(Batch(New(), steps[0] if steps else None), range(len(params)))]
        common: dict[Batch, list[int]] = {}
        for index, key in enumerate(zip(new or [New()] * len(params), steps or [None] * len(params), strict=True)):
            common.setdefault(Batch(*key), []).append(index)
        return list(common.items())

    @abstractmethod
    def lying(self, cells: list[int], grads: list[Tensor], new: Sequence[New] | None, options: Options) -> None:
        """Move `matrices`, of which `read` gave addresses and gradients; `new` is None where nothing is."""

    @abstractmethod
    def loose(self, seats: Sequence[Seat], options: Options) -> None:
        """Move the others."""
