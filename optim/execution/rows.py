"""Points that are vectors and look locally like the unit sphere: by a row kernel in one call, or by torch's functions for lists."""

from __future__ import annotations

from collections.abc import Sequence
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
from ..stages import ambient
from .operands import Arrays, Operand
from .plan import ArrayPlan
from .points import State

__all__ = ["Fused", "Lists"]

_READ = read_by("kernel")
PIECE, LEVEL_PIECE = 2**19, 2**21
"""Elements that `Lists` steps at a time, or one row: temporaries of more leave the cache. A step without any takes more."""


class _Rows(ArrayPlan):
    """What both have in common: the update as choices and numbers."""

    def __init__(self, operands: Sequence[Operand], state: State, rule: Rule) -> None:
        super().__init__(operands, state, rule)
        self._last: tuple[Any, Any] = (None, None)

    def update(self, batch: tuple[bool, float | None], dtype: torch.dtype, options: Options) -> tuple[Update, Memory]:
        """The options as numbers for parameters of `dtype`, and what a rule is told of a batch but for its scalars: those of the
        last step as long as nothing has changed. What a rule of a user's own reads is not known, so it is asked at every step."""
        key = (batch, dtype, *(options.get(name) for name in _READ))
        known = type(self.rule) in (Adam, Momentum) and not isinstance(options["lr"], Tensor)
        if not known or key != self._last[0]:
            assert isinstance(self.manifold, Spherical)
            fresh, step = batch
            memory = Memory(dtype, fresh, step=None if step is None else torch.tensor(step))
            moving = any(name in self.kept for name in self.rule.vectors)
            self._last = key, (update_of(self.manifold, self.rule, options, memory, moving), memory)
        found: tuple[Update, Memory] = self._last[1]
        return found

    def penalised(self, stack: lists.Stack, options: Options) -> tuple[lists.Stack, Options]:
        """With the orthogonality penalty in contiguous gradients, and the options for what is left to do."""
        pairs = zip(stack.x, stack.g, strict=True)
        grads = [ambient(self.manifold, x, g, options).contiguous() for x, g in pairs]
        return stack._replace(g=grads), {**options, "maximize": False}


class Lists(_Rows):
    """By `lists.step`, a few parameters at a time."""

    def run(self, arrays: Arrays, holders: Sequence[Tensor], fresh: Sequence[bool] | None, options: Options) -> None:
        stack = arrays.stack()
        if options["orthogonality"]:
            stack, options = self.penalised(stack, options)
        for batch, members in self.batches(holders, fresh):
            update, memory = self.update(batch, holders[0].dtype, options)
            size = LEVEL_PIECE if update.choices.level else PIECE
            for piece in stack.of(members).pieces(size):
                lists.step(piece, update, self.rule, memory, options)


class Fused(_Rows):
    """By a kernel that is handed addresses, all points in one call."""

    half = True
    silent = True

    def __init__(self, operands: Sequence[Operand], state: State, rule: Rule, kernel: Kernel) -> None:
        super().__init__(operands, state, rule)
        self._kernel = kernel
        self._device = self.points[0].parts[0].device
        self._schedules: dict[bytes, Any] = {}
        self._table = None if self.arrays is None else self._table_of(self.arrays)
        self._asks = not (type(rule) is Adam or is_constant(rule))

    def run(self, arrays: Arrays, holders: Sequence[Tensor], fresh: Sequence[bool] | None, options: Options) -> None:
        table = self._table if arrays is self.arrays and self._table is not None else self._table_of(arrays)
        table[:, X], table[:, GRADIENT] = arrays.places, arrays.sources
        stack = arrays.stack() if self._asks or options["orthogonality"] else None
        if stack is not None and options["orthogonality"]:
            stack, options = self.penalised(stack, options)
            table[:, GRADIENT] = [grad.data_ptr() for grad in stack.g]
        for batch, members in self.batches(holders, fresh):
            part = table if len(members) == len(table) else np.ascontiguousarray(table[members])
            sizes = part[:, POINTS:].tobytes()
            if sizes not in self._schedules:
                self._schedules[sizes] = self._kernel.schedule(part)
            update, memory = self.update(batch, holders[0].dtype, options)
            if update.choices.given:
                assert stack is not None
                given = lists.given(stack.of(members), update, self.rule, memory, options)
                ends = np.cumsum(part[:, POINTS])
                part = part.copy()
                part[:, GIVEN] = given.data_ptr() + 32 * (ends - part[:, POINTS])
            self._kernel.step(part, self._schedules[sizes], update, arrays.params[0].dtype, self._device)

    def _table_of(self, arrays: Arrays) -> np.ndarray:
        return table_of([(*layout.batch, *layout.event) for layout in arrays.layouts], arrays.addresses, self.rule)
