"""`Plan`: points that run together step after step, with everything worked out that stays the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from operator import is_
from typing import Any, NamedTuple

from torch import Tensor

from .matrices import Loose, Matrices, New, Reading, Seat, column, real, seat
from .options import Options
from .points import State, check_state, count_steps
from .rules import Rule

__all__ = ["Batch", "Plan", "Stacked", "Stacks"]


class Batch(NamedTuple):
    """What the update of several point sets has in common, beside the options."""

    new: New
    step: float | None
    """Number of this step, from 1; None for rules that do not count."""


class Stacks(NamedTuple):
    """The arrays of some points, one entry per parameter: (points, n) and (points, 1); empty where there are none."""

    x: list[Tensor]
    vectors: list[Tensor]
    radii: list[Tensor]
    squares: list[Tensor]

    @classmethod
    def of_loose(cls, arrays: Sequence[Loose]) -> Stacks:
        """Those of copied seats."""
        return cls(
            [each.x for each in arrays],
            column([each.vector for each in arrays]),
            column([each.radius for each in arrays]),
            column([each.square for each in arrays]),
        )

    def of(self, members: Sequence[int]) -> Stacks:
        """Those at the indices `members`."""
        if len(members) == len(self.x):
            return self
        return Stacks(*([field[i] for i in members] if field else [] for field in self))


class Plan(ABC):
    """Points of one manifold, dtype and device, all with the same state `Seat.kept`, and how they run: those that lie as
    matrices, and the loose ones."""

    half = False
    """Whether matrices of half precision can be worked on as they are; otherwise they are loose, and come as float32."""

    def __init__(self, seats: Sequence[Seat], state: State, rule: Rule) -> None:
        self.state, self.rule = state, rule
        self.points = [seat.points for seat in seats]
        self.manifold = seats[0].points.manifold
        lying = [seat for seat in seats if self.lies(seat)]
        self.matrices = Matrices(lying, rule) if lying else None
        self.pending = False
        """Whether a first step was prepared and has not run."""
        self._loose = [seat.points for seat in seats if not self.lies(seat)]
        self.kept = seats[0].kept
        self._new: Sequence[Seat] = seats
        self._own: Sequence[dict[str, Any]] = ()
        self._steps: Sequence[Tensor] = ()
        self._places: list[int] = []
        self._stacks = Stacks([], [], [], [])

    def lies(self, seat: Seat) -> bool:
        """Whether this path can work on the arrays of `seat` where they are."""
        return seat.lies and (self.half or real(seat.points.parts[0].dtype) == seat.points.parts[0].dtype)

    def prepare(self, options: Options) -> Callable[[], None] | None:
        """This step, checked and ready to run; None if the plan no longer fits, and everything has to be looked at
        again. Writes nothing.

        Raises `GradientError` as `PointSet.gradients` does, and what `check_state` raises.
        """
        if self._new:
            self.pending = True
            return partial(self._first, options)
        seats = []
        for points in self._loose:
            grads = points.gradients()
            if not grads:
                return None
            check_state(points, self.state, self.rule)
            seats.append(seat(points, grads, self.state, self.rule, options))
            if seats[-1].kept != self.kept:
                return None
        if self.matrices is None:
            return partial(self.loose, seats, options)
        if not all(map(is_, [its.get("step") for its in self._own] if self._steps else (), self._steps)):
            return None
        found = self.matrices.read(self._own)
        return None if found is None else partial(self._again, found, seats, options)

    def _first(self, options: Options) -> None:
        """The first step, which makes the state."""
        seats, self._new, self.pending = self._new, (), False
        lying, loose = [s for s in seats if self.lies(s)], [s for s in seats if not self.lies(s)]
        if self.matrices is not None:
            for each in lying:
                each.enter(self.state, self.rule)
            self._own = [self.state[p] for p in self.matrices.params]
            self._steps = count_steps(self._own, by=0) if self.rule.counts_steps else ()
            found = self.matrices.read(self._own)
            assert found is not None
            self.lying(found, [each.new for each in lying], options)
        if loose:
            self.loose(loose, options)

    def _again(self, found: Reading, seats: list[Seat], options: Options) -> None:
        self.lying(found, None, options)
        if seats:
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

    def stacks(self, found: Reading) -> Stacks:
        """The arrays of `matrices`: views, made again when parameters have moved in memory."""
        its = self.matrices
        assert its is not None
        if found.params != self._places:
            self._places = found.params
            self._stacks = Stacks(
                [layout.split(p) for layout, p in zip(its.layouts, its.params, strict=True)],
                [layout.split(v) for layout, v in zip(its.layouts, its.vectors, strict=True)] if its.vectors else [],
                *(
                    [layout.split_scalars(a) for layout, a in zip(its.layouts, arrays, strict=True)] if arrays else []
                    for arrays in (its.radii, its.squares)
                ),
            )
        return self._stacks

    @abstractmethod
    def lying(self, found: Reading, new: Sequence[New] | None, options: Options) -> None:
        """Move `matrices`; `new` is None where nothing is."""

    @abstractmethod
    def loose(self, seats: Sequence[Seat], options: Options) -> None:
        """Move the others."""


class Stacked(Plan):
    """A plan that takes the arrays of many points in one `step`, those that lie and copies of the loose ones alike."""

    def loose(self, seats: Sequence[Seat], options: Options) -> None:
        """As in `Plan`."""
        for its in seats:
            its.enter(self.state, self.rule)
        arrays = [Loose(its) for its in seats]
        params = [its.points.parts[0] for its in seats]
        news = [its.new for its in seats]
        self.step(Stacks.of_loose(arrays), [each.grad for each in arrays], params, news, options)
        for each in arrays:
            each.write_back()

    @abstractmethod
    def step(
        self, stacks: Stacks, grads: list[Tensor], params: Sequence[Tensor], new: Sequence[New] | None, options: Options
    ) -> None:
        """Move the points of `params`, whose arrays and gradients these are; `new` is None where nothing is."""
