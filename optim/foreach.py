"""The foreach path: points of many parameters in one `step.update`, as a `Ragged` stack. Layout only; no formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .matrices import Loose, New, Seat
from .memory import Memory
from .options import Options
from .plan import Batch, PlanOfStacks
from .points import State
from .ragged import Ragged
from .rules import Rule
from .stages import ambient
from .step import update

__all__ = ["Foreach"]


class _Stacks(NamedTuple):
    """The arrays of some points, one entry per parameter; empty where there is none."""

    x: list[Tensor]
    vectors: list[Tensor]
    radii: list[Tensor]
    squares: list[Tensor]

    def of(self, members: Sequence[int]) -> _Stacks:
        """Those at the indices `members`."""
        if len(members) == len(self.x):
            return self
        return _Stacks(*([field[i] for i in members] if field else [] for field in self))


class Foreach(PlanOfStacks):
    """Points of one manifold, dtype and device in few calls of many kernels."""

    def __init__(self, seats: Sequence[Seat], state: State, rule: Rule) -> None:
        super().__init__(seats, state, rule)
        self._places: list[int] = []
        self._stacks: _Stacks | None = None

    def lying(self, cells: list[int], grads: list[Tensor], new: Sequence[New] | None, options: Options) -> None:
        """As in `PlanOfStacks`."""
        assert self.matrices is not None
        its = self.matrices
        places = [*cells[::5], *cells[2::5], *cells[3::5], *cells[4::5]]
        if places != self._places:
            # Views of what has moved in memory would keep, and show, what was there before.
            self._places = places
            self._stacks = _Stacks(
                [layout.split(p) for layout, p in zip(its.layouts, its.params, strict=True)],
                [layout.split(v) for layout, v in zip(its.layouts, its.vectors, strict=False)],
                [layout.split_scalars(r) for layout, r in zip(its.layouts, its.radii, strict=False)],
                [layout.split_scalars(s) for layout, s in zip(its.layouts, its.squares, strict=False)],
            )
        assert self._stacks is not None
        split = [layout.split(g) for layout, g in zip(its.layouts, grads, strict=True)]
        self._step(self._stacks, split, its.params, new, options)

    def loose(self, seats: Sequence[Seat], options: Options) -> None:
        """As in `PlanOfStacks`."""
        if not seats:
            return
        arrays = [Loose(seat) for seat in seats]
        stacks = _Stacks(
            [each.x for each in arrays],
            [each.vector for each in arrays if each.vector is not None],
            [each.radius for each in arrays if each.radius is not None],
            [each.square for each in arrays if each.square is not None],
        )
        params = [seat.points.parts[0] for seat in seats]
        self._step(stacks, [each.grad for each in arrays], params, [seat.new for seat in seats], options)
        for each in arrays:
            each.write_back()

    def _step(
        self,
        stacks: _Stacks,
        grads: list[Tensor],
        params: Sequence[Tensor],
        new: Sequence[New] | None,
        options: Options,
    ) -> None:
        if options["orthogonality"]:
            grads = [ambient(self.manifold, x, grad, options) for x, grad in zip(stacks.x, grads, strict=True)]
            options = {**options, "maximize": False, "orthogonality": 0.0}
        if isinstance(options["lr"], Tensor):
            options = {**options, "lr": float(options["lr"])}
        for batch, members in self.batches(params, new):
            self._move(batch, stacks.of(members), [grads[i] for i in members], params[0].dtype, options)

    def _move(self, batch: Batch, stacks: _Stacks, grads: list[Tensor], dtype: torch.dtype, options: Options) -> None:
        rule, pointwise = self.rule, self.manifold.event_ndim == 0
        x: Any = Ragged(stacks.x)
        memory = Memory(dtype, batch.new.vectors, step=None if batch.step is None else torch.tensor(batch.step))
        vectors: Any = Ragged(stacks.vectors)
        squares: Any = Ragged(stacks.squares) if pointwise else None
        if stacks.vectors:
            memory.vectors[rule.vectors[0]] = vectors
        if stacks.squares:
            memory.scalars[rule.scalars[0]] = squares if pointwise else torch.cat(stacks.squares)
        if stacks.radii and not batch.new.radius:
            memory.scalars["radius"] = torch.cat(stacks.radii)
        egrad: Any = Ragged(grads)
        y: Any = update(self.manifold, rule, x, egrad, memory, options)
        if y is not x:
            torch._foreach_copy_(stacks.x, y.parts)
        moved: Any = memory.vectors.get(rule.vectors[0], vectors)
        if moved is not vectors:
            torch._foreach_copy_(stacks.vectors, moved.parts)
        lengths = [len(part) for part in stacks.x]
        if stacks.squares and not pointwise:
            torch._foreach_copy_(stacks.squares, memory.scalars[rule.scalars[0]].split(lengths))
        if stacks.radii and batch.new.radius:
            torch._foreach_copy_(stacks.radii, memory.scalars["radius"].split(lengths))
