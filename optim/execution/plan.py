"""`Plan`: point sets that are stepped together. `ArrayPlan`: a plan that prepares everything that stays the same."""

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
from .operands import Arrays, Operand, make_operand, raise_versions, real
from .points import PointSet, State, check_state, count_steps

__all__ = ["ArrayPlan", "Plan"]


class Plan(ABC):
    """Point sets with the same `Operand.kind`, checked anew at every step."""

    def __init__(self, operands: Sequence[Operand], state: State, rule: Rule) -> None:
        self.state, self.rule = state, rule
        self.points = [operand.points for operand in operands]
        self.manifold, self.state_names = self.points[0].manifold, operands[0].state_names
        self.pending = False
        """Whether the first step is prepared and has not run."""
        self._new: Sequence[Operand] = operands

    def prepare(self, options: Options) -> Callable[[], None] | None:
        """Check a step, and return the function that carries it out; None if the plan no longer fits. Writes nothing.

        Raises `GradientError` like `PointSet.gradients`, `StateError` and `GeometryError` like `check_state`.
        """
        if self._new:
            self.pending = True
            return partial(self._first, options)
        return self._later(options)

    def operands(self, points: Sequence[PointSet], options: Options) -> list[Operand] | None:
        """The operands of `points` in this step; None if one has no gradient, or other state than before."""
        operands = []
        for point_set in points:
            grads = point_set.gradients()
            if not grads:
                return None
            check_state(point_set, self.state, self.rule)
            operands.append(make_operand(point_set, grads, self.state, self.rule, options))
            if operands[-1].state_names != self.state_names:
                return None
        return operands

    def _first(self, options: Options) -> None:
        """The first step, which creates the state."""
        operands, self._new, self.pending = self._new, (), False
        self._begin(operands, options)

    def _begin(self, operands: Sequence[Operand], options: Options) -> None:
        for operand in operands:
            operand.add_to(self.state)
        self.step(operands, options)

    def _later(self, options: Options) -> Callable[[], None] | None:
        """The result of `prepare` after the first step."""
        operands = self.operands(self.points, options)
        return None if operands is None else partial(self._begin, operands, options)

    @abstractmethod
    def step(self, operands: Sequence[Operand], options: Options) -> None:
        """Move `operands`, whose state exists."""


class ArrayPlan(Plan):
    """A plan that keeps points stored as contiguous matrices as `Arrays`, and copies the others at every step."""

    half = False
    """Whether arrays in half precision are stepped in place; otherwise they are copied to float32 and back."""
    silent = False
    """Whether the writes are not seen by autograd."""

    def __init__(self, operands: Sequence[Operand], state: State, rule: Rule) -> None:
        super().__init__(operands, state, rule)
        in_place = [operand for operand in operands if self.in_place(operand)]
        self.arrays = Arrays(in_place, rule) if in_place else None
        self._copied = [operand.points for operand in operands if not self.in_place(operand)]
        self._entries: Sequence[dict[str, Any]] = ()
        self._steps: Sequence[Tensor] = ()

    def in_place(self, operand: Operand) -> bool:
        """Whether this path steps the arrays of `operand` in place."""
        dtype = operand.points.parts[0].dtype
        return operand.contiguous and (self.half or real(dtype) == dtype)

    def _begin(self, operands: Sequence[Operand], options: Options) -> None:
        for operand in operands:
            operand.add_to(self.state)
        copied = [operand for operand in operands if not self.in_place(operand)]
        fresh = [operand.fresh for operand in operands if self.in_place(operand)]
        if self.arrays is not None:
            self._entries = [self.state[p] for p in self.arrays.params]
            self._steps = count_steps(self._entries, by=0) if self.rule.counts_steps else ()
        self._move(fresh, copied, options)

    def _later(self, options: Options) -> Callable[[], None] | None:
        copied = self.operands(self._copied, options)
        if copied is None:
            return None
        if self.arrays is not None:
            if not all(map(is_, [entry.get("step") for entry in self._entries] if self._steps else (), self._steps)):
                return None
            if not self.arrays.read(self._entries):
                return None
        return partial(self._move, None, copied, options)

    def _move(self, fresh: Sequence[bool] | None, copied: Sequence[Operand], options: Options) -> None:
        if self.arrays is not None:
            self.run(self.arrays, self.arrays.params, fresh, options)
            if self.silent:
                raise_versions(self.arrays.written)
        if copied:
            for operand in copied:
                operand.add_to(self.state)
            self.step(copied, options)

    def step(self, operands: Sequence[Operand], options: Options) -> None:
        copies = [operand.as_matrices(joined=True) for operand in operands]
        params = [operand.points.parts[0] for operand in operands]
        self.run(Arrays(copies, self.rule), params, [operand.fresh for operand in operands], options)
        for operand, copy in zip(operands, copies, strict=True):
            operand.write_back(copy)
            if self.silent:  # some of the copies may be views
                raise_versions([*operand.points.parts, *chain(*operand.vectors.values()), *operand.scalars.values()])

    def batches(
        self, params: Sequence[Tensor], fresh: Sequence[bool] | None
    ) -> Sequence[tuple[tuple[bool, float | None], Sequence[int]]]:
        """Indices of `params` by (whether their vectors are fresh, number of this step); counts the step.

        The number, from 1, is in the state of `params`; None for a rule that does not count steps.
        """
        steps: Sequence[float | None] = ()
        if self.rule.counts_steps:
            steps = [step.item() for step in count_steps([self.state[p] for p in params])]
        if not any(fresh or ()) and len(set(steps)) <= 1:
            return [((False, steps[0] if steps else None), range(len(params)))]
        common: dict[tuple[bool, float | None], list[int]] = {}
        pairs = zip(fresh or [False] * len(params), steps or [None] * len(params), strict=True)
        for index, key in enumerate(pairs):
            common.setdefault(key, []).append(index)
        return list(common.items())

    @abstractmethod
    def run(self, arrays: Arrays, params: Sequence[Tensor], fresh: Sequence[bool] | None, options: Options) -> None:
        """Move `arrays`, whose state is that of `params`; `fresh`, one entry per parameter, or None if no vectors are."""
