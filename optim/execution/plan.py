"""`Plan`: points that run together step after step, with everything worked out that stays the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from operator import is_
from typing import Any, NamedTuple

from torch import Tensor

from ..options import Options
from ..rules import Rule
from .operands import Copies, Matrices, New, Reading, Seat, real, seat
from .points import State, check_state, count_steps

__all__ = ["Batch", "Plan", "Stacks"]


class Batch(NamedTuple):
    """What the update of several point sets has in common, beside the options."""

    new: New
    step: float | None
    """Number of this step, from 1; None for rules that do not count."""


class Stacks(NamedTuple):
    """The arrays of some points, one entry per parameter: (points, n) and, by name, (points, n) and (points, 1)."""

    x: list[Tensor]
    vectors: dict[str, list[Tensor]]
    scalars: dict[str, list[Tensor]]

    @classmethod
    def of_copies(cls, copies: Sequence[Copies]) -> Stacks:
        """Those of copied seats."""
        return cls(
            [each.x for each in copies],
            {name: [each.vectors[name] for each in copies] for name in copies[0].vectors},
            {name: [each.scalars[name] for each in copies] for name in copies[0].scalars},
        )

    def of(self, members: Sequence[int]) -> Stacks:
        """Those at the indices `members`."""
        if len(members) == len(self.x):
            return self
        vectors, scalars = (
            {name: [tensors[i] for i in members] for name, tensors in each.items()} for each in self[1:]
        )
        return Stacks([self.x[i] for i in members], vectors, scalars)


class Plan(ABC):
    """Points of one manifold, dtype and device, all with the same state `Seat.kept`, and how they run: those that are stored as
    contiguous matrices, and those that must be copied."""

    half = False
    """Whether matrices of half precision can be worked on as they are; otherwise they are copied to float32, and back."""

    def __init__(self, seats: Sequence[Seat], state: State, rule: Rule) -> None:
        self.state, self.rule = state, rule
        self.points = [seat.points for seat in seats]
        self.manifold = seats[0].points.manifold
        in_place = [seat for seat in seats if self.in_place(seat)]
        self.matrices = Matrices(in_place, rule) if in_place else None
        self.pending = False
        """Whether a first step was prepared and has not run."""
        self.kept = seats[0].kept
        self._copied = [seat.points for seat in seats if not self.in_place(seat)]
        self._new: Sequence[Seat] = seats
        self._own: Sequence[dict[str, Any]] = ()
        self._steps: Sequence[Tensor] = ()
        self._places: list[int] = []
        self._stacks = Stacks([], {}, {})

    def in_place(self, seat: Seat) -> bool:
        """Whether this path can work on the arrays of `seat` where they are."""
        return seat.contiguous and (self.half or real(seat.points.parts[0].dtype) == seat.points.parts[0].dtype)

    def prepare(self, options: Options) -> Callable[[], None] | None:
        """This step, checked and ready to run; None if the plan no longer fits, and everything has to be looked at
        again. Writes nothing.

        Raises `GradientError` as `PointSet.gradients` does, and what `check_state` raises.
        """
        if self._new:
            self.pending = True
            return partial(self._first, options)
        seats = []
        for points in self._copied:
            grads = points.gradients()
            if not grads:
                return None
            check_state(points, self.state, self.rule)
            seats.append(seat(points, grads, self.state, self.rule, options))
            if seats[-1].kept != self.kept:
                return None
        if self.matrices is None:
            return partial(self._step_copies, seats, options)
        if not all(map(is_, [its.get("step") for its in self._own] if self._steps else (), self._steps)):
            return None
        found = self.matrices.read(self._own)
        return None if found is None else partial(self._again, found, seats, options)

    def _first(self, options: Options) -> None:
        """The first step, which makes the state."""
        seats, self._new, self.pending = self._new, (), False
        in_place, copied = [s for s in seats if self.in_place(s)], [s for s in seats if not self.in_place(s)]
        if self.matrices is not None:
            for each in in_place:
                each.enter(self.state)
            self._own = [self.state[p] for p in self.matrices.params]
            self._steps = count_steps(self._own, by=0) if self.rule.counts_steps else ()
            found = self.matrices.read(self._own)
            assert found is not None
            self.step(found, [each.new for each in in_place], options)
        if copied:
            self._step_copies(copied, options)

    def _again(self, found: Reading, seats: list[Seat], options: Options) -> None:
        self.step(found, None, options)
        if seats:
            self._step_copies(seats, options)

    def _step_copies(self, seats: Sequence[Seat], options: Options) -> None:
        for each in seats:
            each.enter(self.state)
        self.step_copies(seats, options)

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

    def stacks(self, found: Reading) -> Stacks:
        """The arrays of `matrices`: views, made again when parameters have moved in memory."""
        its = self.matrices
        assert its is not None
        if found.params != self._places:
            self._places = found.params
            self._stacks = Stacks(
                [layout.split(p) for layout, p in zip(its.layouts, its.params, strict=True)],
                {
                    name: [layout.split(v) for layout, v in zip(its.layouts, vectors, strict=True)]
                    for name, vectors in its.vectors.items()
                },
                {
                    name: [layout.split_scalars(a) for layout, a in zip(its.layouts, numbers, strict=True)]
                    for name, numbers in its.scalars.items()
                },
            )
        return self._stacks

    @abstractmethod
    def step(self, found: Reading, new: Sequence[New] | None, options: Options) -> None:
        """Move `matrices`; `new` is None where nothing is."""

    @abstractmethod
    def step_copies(self, seats: Sequence[Seat], options: Options) -> None:
        """Move the others, whose state is there."""
