"""Points that are vectors and look locally like the unit sphere: by a row kernel in one call, or by torch's functions for lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...manifolds import Spherical
from ..kernels import lists
from ..kernels.launch import GIVEN, GRADIENT, POINTS, Kernel, Update, X, is_constant, table_of, update_of
from ..memory import Memory
from ..options import Options, read_by
from ..rules import Adam, Momentum, Rule
from ..stages import ambient, is_penalised
from .operands import Copies, New, Reading, Seat, raise_versions
from .plan import Batch, Plan, Stacks
from .points import State

__all__ = ["Fused", "Lists"]

_READ = read_by("kernel")
PIECE, LEVEL_PIECE = 2**18, 2**21
"""Elements that `Lists` steps at a time, or one row: temporaries of more leave the cache. A step without any takes more."""


class _Rows(Plan):
    """What both have in common: the update as choices and numbers."""

    def __init__(self, seats: Sequence[Seat], state: State, rule: Rule) -> None:
        super().__init__(seats, state, rule)
        self._last: tuple[Any, Any] = (None, None)

    def update(self, batch: Batch, dtype: torch.dtype, options: Options) -> Update:
        """The options as numbers for parameters of `dtype`: those of the last step as long as nothing has changed. What a rule of
        a user's own reads is not known, so it is asked at every step."""
        key = (batch, dtype, *(options.get(name) for name in _READ))
        known = type(self.rule) in (Adam, Momentum) and not isinstance(options["lr"], Tensor)
        if not known or key != self._last[0]:
            memory = self.memory(batch, dtype)
            moving = any(name in self.kept for name in self.rule.vectors)
            assert isinstance(self.manifold, Spherical)
            self._last = key, update_of(self.manifold, self.rule, options, memory, moving)
        return self._last[1]

    @staticmethod
    def memory(batch: Batch, dtype: torch.dtype) -> Memory:
        """What a rule is told of a batch, but for its numbers."""
        return Memory(dtype, batch.new.vectors, step=None if batch.step is None else torch.tensor(batch.step))

    def gradients(self, x: Sequence[Tensor], grads: Sequence[Tensor], options: Options) -> tuple[list[Tensor], Options]:
        """Contiguous gradients, with the orthogonality penalty in them, and the options for what is left to do."""
        if not is_penalised(self.manifold, options):
            return [*grads], options
        changed = [ambient(self.manifold, *pair, options).contiguous() for pair in zip(x, grads, strict=True)]
        return changed, {**options, "maximize": False}


class Lists(_Rows):
    """By `lists.step`, a few parameters at a time."""

    def step(self, found: Reading, new: Sequence[New] | None, options: Options) -> None:
        assert self.matrices is not None
        grads = [layout.lying(g) for layout, g in zip(self.matrices.layouts, found.grads, strict=True)]
        self._step(self.stacks(found), grads, self.matrices.params, new, options)

    def step_copies(self, seats: Sequence[Seat], options: Options) -> None:
        copies = [Copies(its) for its in seats]
        params, news = [its.points.parts[0] for its in seats], [its.new for its in seats]
        self._step(Stacks.of_copies(copies), [each.grad for each in copies], params, news, options)
        for each in copies:
            each.write_back()

    def _step(
        self, stacks: Stacks, grads: list[Tensor], params: Sequence[Tensor], new: Sequence[New] | None, options: Options
    ) -> None:
        grads, options = self.gradients(stacks.x, grads, options)
        for batch, members in self.batches(params, new):
            update = self.update(batch, params[0].dtype, options)
            memory = self.memory(batch, params[0].dtype)
            size = LEVEL_PIECE if update.choices.level else PIECE
            for piece, its in _pieces(stacks.of(members), [grads[i] for i in members], size):
                lists.step(piece, its, update, self.rule, memory, options)


def _pieces(stacks: Stacks, grads: list[Tensor], size: int) -> Iterator[tuple[Stacks, list[Tensor]]]:
    """`stacks` and `grads` in runs of at most `size` elements, or of one row; a large matrix is cut between rows."""
    rows = [max(1, size // x.shape[1]) for x in stacks.x]

    def cut(arrays: list[Tensor]) -> list[Tensor]:
        return [
            piece
            for a, count in zip(arrays, rows, strict=True)
            for piece in (a.split(count) if len(a) > count else (a,))
        ]

    if any(len(x) > count for x, count in zip(stacks.x, rows, strict=True)):
        vectors, scalars = ({name: cut(arrays) for name, arrays in each.items()} for each in stacks[1:])
        stacks, grads = Stacks(cut(stacks.x), vectors, scalars), cut(grads)
    piece: list[int] = []
    filled = 0
    for i, grad in enumerate(grads):
        if piece and filled + grad.numel() > size:
            yield stacks.of(piece), [grads[j] for j in piece]
            piece, filled = [], 0
        piece.append(i)
        filled += grad.numel()
    yield stacks.of(piece), [grads[j] for j in piece]


class Fused(_Rows):
    """By a kernel that is handed addresses, all points in one call."""

    half = True

    def __init__(self, seats: Sequence[Seat], state: State, rule: Rule, kernel: Kernel) -> None:
        super().__init__(seats, state, rule)
        self._kernel = kernel
        self._device = seats[0].points.parts[0].device
        self._schedules: dict[bytes, Any] = {}
        if self.matrices is not None:
            its = self.matrices
            addresses = {name: places for name, _, places in its.state}
            sizes = [(*layout.batch, *layout.event) for layout in its.layouts]
            self._table = table_of([0] * len(its.params), [0] * len(its.params), addresses, sizes, rule)

    def step(self, found: Reading, new: Sequence[New] | None, options: Options) -> None:
        its = self.matrices
        assert its is not None
        table = self._table
        table[:, X], table[:, GRADIENT] = found.params, found.sources
        stacks, grads = None, None
        if is_penalised(self.manifold, options) or not (type(self.rule) is Adam or is_constant(self.rule)):
            stacks = self.stacks(found)
            grads = [layout.lying(g) for layout, g in zip(its.layouts, found.grads, strict=True)]
        self._step(table, stacks, grads, its.params, new, its.params[0].dtype, options)
        raise_versions(its.written)

    def step_copies(self, seats: Sequence[Seat], options: Options) -> None:
        copies = [Copies(its) for its in seats]
        stacks, grads = Stacks.of_copies(copies), [each.grad for each in copies]
        addresses = {name: [a.data_ptr() for a in arrays] for name, arrays in (stacks.vectors | stacks.scalars).items()}
        x = [each.x.data_ptr() for each in copies]
        table = table_of(x, [g.data_ptr() for g in grads], addresses, [each.x.shape for each in copies], self.rule)
        params, news = [its.points.parts[0] for its in seats], [its.new for its in seats]
        self._step(table, stacks, grads, params, news, copies[0].x.dtype, options)
        for each in copies:
            each.write_back()
        for its in seats:
            raise_versions(its.written())

    def _step(
        self,
        table: np.ndarray,
        stacks: Stacks | None,
        grads: list[Tensor] | None,
        params: Sequence[Tensor],
        new: Sequence[New] | None,
        dtype: torch.dtype,
        options: Options,
    ) -> None:
        if stacks is not None and grads is not None:
            grads, options = self.gradients(stacks.x, grads, options)  # which live until the kernel is done with them
            table[:, GRADIENT] = [grad.data_ptr() for grad in grads]
        for batch, members in self.batches(params, new):
            part = table if len(members) == len(table) else np.ascontiguousarray(table[members])
            sizes = part[:, POINTS:].tobytes()
            if sizes not in self._schedules:
                self._schedules[sizes] = self._kernel.schedule(part)
            update = self.update(batch, params[0].dtype, options)
            if update.choices.given:
                assert stacks is not None
                assert grads is not None
                memory = self.memory(batch, params[0].dtype)
                given = lists.given(stacks.of(members), [grads[i] for i in members], update, self.rule, memory, options)
                ends = np.cumsum(part[:, POINTS])
                part = part.copy()
                part[:, GIVEN] = given.data_ptr() + 32 * (ends - part[:, POINTS])
            self._kernel.step(part, self._schedules[sizes], update, dtype, self._device)
