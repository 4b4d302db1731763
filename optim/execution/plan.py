"""`Plan`: points that run together step after step. `ArrayPlan`: with everything worked out that stays the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor

from ..options import Options
from ..rules import Rule
from .operands import Arrays, Operand, operand, raise_versions, real
from .points import PointSet, State, check_state, count_steps

__all__ = ["ArrayPlan", "Plan"]


class Plan(ABC):
    """Points of one manifold, dtype and device, all with the same state `Operand.kept`, which are looked at at every step."""

    def __init__(self, operands: Sequence[Operand], state: State, rule: Rule) -> None:
        self.state, self.rule = state, rule
        self.points = [each.points for each in operands]
        self.manifold, self.kept = self.points[0].manifold, operands[0].kept
        self.pending = False
        """Whether a first step was prepared and has not run."""
        self._new: Sequence[Operand] = operands

    def prepare(self, options: Options) -> Callable[[], None] | None:
        """This step, checked and ready to run; None if the plan no longer fits, and everything has to be looked at
        again. Writes nothing.

        Raises `GradientError` as `PointSet.gradients` does, and what `check_state` raises.
        """
        if self._new:
            self.pending = True
            return partial(self._first, options)
        return self._again(options)

    def look(self, points: Sequence[PointSet], options: Options) -> list[Operand] | None:
        """`points` in this step; None if they have other state than before, or no gradient."""
        operands = []
        for each in points:
            grads = each.gradients()
            if not grads:
                return None
            check_state(each, self.state, self.rule)
            operands.append(operand(each, grads, self.state, self.rule, options))
            if operands[-1].kept != self.kept:
                return None
        return operands

    def _first(self, options: Options) -> None:
        """The first step, which makes the state."""
        operands, self._new, self.pending = self._new, (), False
        self._begin(operands, options)

    def _begin(self, operands: Sequence[Operand], options: Options) -> None:
        for each in operands:
            each.enter(self.state)
        self.step(operands, options)

    def _again(self, options: Options) -> Callable[[], None] | None:
        """As `prepare`, after the first step."""
        operands = self.look(self.points, options)
        return None if operands is None else partial(self._begin, operands, options)

    @abstractmethod
    def step(self, operands: Sequence[Operand], options: Options) -> None:
        """Move `operands`, whose state is there."""


class ArrayPlan(Plan):
    """A plan of which those points that are stored as contiguous matrices are kept as `Arrays`; the others are copied at every
    step, and back."""

    half = False
    """Whether matrices of half precision can be worked on as they are; otherwise they are copied to float32, and back."""
    silent = False
    """Whether autograd does not see what is written."""

    def __init__(self, operands: Sequence[Operand], state: State, rule: Rule) -> None:
        super().__init__(operands, state, rule)
        in_place = [each for each in operands if self.in_place(each)]
        self.arrays = Arrays(in_place, rule) if in_place else None
        self._copied = [each.points for each in operands if not self.in_place(each)]
        self._own: Sequence[dict[str, Any]] = ()
        self._steps: Sequence[Tensor] = ()

    def in_place(self, each: Operand) -> bool:
        """Whether this path can work on the arrays of `each` where they are."""
        dtype = each.points.parts[0].dtype
        return each.contiguous and (self.half or real(dtype) == dtype)

    def _begin(self, operands: Sequence[Operand], options: Options) -> None:
        for each in operands:
            each.enter(self.state)
        copied = [each for each in operands if not self.in_place(each)]
        fresh = [each.fresh for each in operands if self.in_place(each)]
        if self.arrays is not None:
            self._own = [self.state[p] for p in self.arrays.params]
            self._steps = count_steps(self._own, by=0) if self.rule.counts_steps else ()
        self._move(fresh, copied, options)

    def _again(self, options: Options) -> Callable[[], None] | None:
        copied = self.look(self._copied, options)
        if copied is None:
            return None
        if self.arrays is not None:
            if not all(map(is_, [its.get("step") for its in self._own] if self._steps else (), self._steps)):
                return None
            if not self.arrays.read(self._own):
                return None
        return partial(self._move, None, copied, options)

    def _move(self, fresh: Sequence[bool] | None, copied: Sequence[Operand], options: Options) -> None:
        if self.arrays is not None:
            self.run(self.arrays, self.arrays.params, fresh, options)
            if self.silent:
                raise_versions(self.arrays.written)
        if copied:
            for each in copied:
                each.enter(self.state)
            self.step(copied, options)

    def step(self, operands: Sequence[Operand], options: Options) -> None:
        copies = [each.copied() for each in operands]
        holders = [each.points.parts[0] for each in operands]
        self.run(Arrays(copies, self.rule), holders, [each.fresh for each in operands], options)
        for each, copy in zip(operands, copies, strict=True):
            each.write_back(copy)
            if self.silent:  # a copy that was none
                raise_versions([*each.points.parts, *chain(*each.vectors.values()), *each.scalars.values()])

    def batches(
        self, holders: Sequence[Tensor], fresh: Sequence[bool] | None
    ) -> Sequence[tuple[tuple[bool, float | None], Sequence[int]]]:
        """Which points have in common whether their vectors are fresh, and the number of this step, from 1; None for a rule that
        does not count. As indices of `holders`, whose state has the number. Counts the step."""
        steps: Sequence[float | None] = ()
        if self.rule.counts_steps:
            steps = [step.item() for step in count_steps([self.state[p] for p in holders])]
        if not any(fresh or ()) and len(set(steps)) <= 1:
            return [((False, steps[0] if steps else None), range(len(holders)))]
        common: dict[tuple[bool, float | None], list[int]] = {}
        pairs = zip(fresh or [False] * len(holders), steps or [None] * len(holders), strict=True)
        for index, key in enumerate(pairs):
            common.setdefault(key, []).append(index)
        return list(common.items())

    @abstractmethod
    def run(self, arrays: Arrays, holders: Sequence[Tensor], fresh: Sequence[bool] | None, options: Options) -> None:
        """Move `arrays`, whose state belongs to the parameters `holders`; `fresh`, one each, is None where no vectors are."""
