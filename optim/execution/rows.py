"""Plans for rows, on manifolds with the algebra of `kernels`: a row kernel in one call, or torch's functions for lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...manifolds import Hyperbolic, Spherical
from ..kernels import lists, sums
from ..kernels.launch import (
    COEFFICIENTS,
    GRADIENT,
    POINTS,
    Kernel,
    Update,
    X,
    hyperbolic_update_of,
    is_constant,
    table_of,
    update_of,
)
from ..options import Options, read_by
from ..rules import Adam, Memory, Momentum, Rule
from ..update import ambient
from .operands import Arrays, Operand, stack_of
from .plan import ArrayPlan
from .points import State

__all__ = ["Fused", "Lists", "step_in_place"]

_READ = read_by("kernel")
PIECE, ADDITIVE_PIECE = 2**19, 2**21
"""Elements that `Lists` steps at a time, at least one row: larger temporaries leave the cache. Additive steps have none."""


class _Rows(ArrayPlan):
    """A plan with the update as choices and numbers, the base of both."""

    def __init__(self, operands: Sequence[Operand], state: State, rule: Rule) -> None:
        super().__init__(operands, state, rule)
        self._last: tuple[Any, Any] = (None, None)

    def update(self, batch: tuple[bool, float | None], dtype: torch.dtype, options: Options) -> tuple[Update, Memory]:
        """The options as choices and numbers for parameters of `dtype`, and the memory of a batch without scalars.

        Both are reused as long as nothing has changed. A user's rule is called at every step, since the options that it reads
        are not known.
        """
        key = (batch, dtype, *(options.get(name) for name in _READ))
        known = type(self.rule) in (Adam, Momentum) and not isinstance(options["lr"], Tensor)
        if not known or key != self._last[0]:
            fresh, step = batch
            memory = Memory(dtype, fresh, step=None if step is None else torch.tensor(step))
            moving = any(name in self.state_names for name in self.rule.vectors)
            if isinstance(self.manifold, Hyperbolic):
                update: Any = hyperbolic_update_of(self.manifold, self.rule, options, memory, moving)
            else:
                assert isinstance(self.manifold, Spherical)
                update = update_of(self.manifold, self.rule, options, memory, moving)
            self._last = key, (update, memory)
        found: tuple[Update, Memory] = self._last[1]
        return found

    def penalised(self, stack: lists.Stack, options: Options) -> tuple[lists.Stack, Options]:
        """`stack` with the orthogonality penalty added to contiguous gradients, and the options for the rest of the step."""
        pairs = zip(stack.x, stack.g, strict=True)
        grads = [ambient(self.manifold, x, g, options).contiguous() for x, g in pairs]
        return stack._replace(g=grads), {**options, "maximize": False}


class Lists(_Rows):
    """Rows through `lists.step`, a few parameters at a time; joint points part by part, and strided ones, in place."""

    def run(self, arrays: Arrays, params: Sequence[Tensor], fresh: Sequence[bool] | None, options: Options) -> None:
        sums.run(self.steps(arrays.stack(), params, fresh, options))

    def step(self, operands: Sequence[Operand], options: Options) -> None:
        step_in_place([(self, operands, None)], options)

    def steps(
        self, stack: lists.Stack, params: Sequence[Tensor], fresh: Sequence[bool] | None, options: Options
    ) -> Iterator[sums.Step[None]]:
        """The steps of `stack`, whose parameters and their state are those of `params`; see `sums.run`."""
        if options["orthogonality"]:
            stack, options = self.penalised(stack, options)
        for batch, members in self.batches(params, fresh):
            update, memory = self.update(batch, params[0].dtype, options)
            size = ADDITIVE_PIECE if update.choices.additive else PIECE
            some = stack.select(members)
            for piece in some.pieces(size) if stack.processes is None else [some]:
                yield lists.step(piece, update, self.rule, memory, options)


def step_in_place(
    plans: Iterable[tuple[Lists, Sequence[Operand], Any]],
    options: Options,
    exchange: Callable[[Sequence[sums.Message]], list[Tensor]] | None = None,
) -> None:
    """Step the operands of `plans` part by part; with each, the process group that has their coordinates, or None."""
    steps: list[Iterator[sums.Step[None]]] = []
    copies: list[tuple[Operand, Operand]] = []
    for plan, operands, processes in plans:
        matrices = [operand.as_matrices(joined=bool(options["orthogonality"])) for operand in operands]
        copies += zip(operands, matrices, strict=True)
        params, fresh = [operand.points.parts[0] for operand in operands], [operand.fresh for operand in operands]
        steps.append(plan.steps(stack_of(matrices, processes), params, fresh, options))
    sums.run(chain(*steps), exchange)
    for operand, copy in copies:
        operand.write_back(copy)


class Fused(_Rows):
    """Rows through a kernel that reads addresses, all points in one call."""

    half = True
    silent = True

    def __init__(self, operands: Sequence[Operand], state: State, rule: Rule, kernel: Kernel) -> None:
        super().__init__(operands, state, rule)
        self._kernel = kernel
        self._device = self.points[0].parts[0].device
        self._schedules: dict[bytes, Any] = {}
        self._table = None if self.arrays is None else self._table_of(self.arrays)
        self._calls_rule = not (type(rule) is Adam or is_constant(rule))

    def run(self, arrays: Arrays, params: Sequence[Tensor], fresh: Sequence[bool] | None, options: Options) -> None:
        table = self._table if arrays is self.arrays and self._table is not None else self._table_of(arrays)
        table[:, X], table[:, GRADIENT] = arrays.param_addresses, arrays.grad_addresses
        stack = arrays.stack() if self._calls_rule or options["orthogonality"] else None
        if stack is not None and options["orthogonality"]:
            stack, options = self.penalised(stack, options)
            table[:, GRADIENT] = [grad.data_ptr() for grad in stack.g]
        for batch, members in self.batches(params, fresh):
            part = table if len(members) == len(table) else np.ascontiguousarray(table[members])
            sizes = part[:, POINTS:].tobytes()
            if sizes not in self._schedules:
                self._schedules[sizes] = self._kernel.schedule(part)
            update, memory = self.update(batch, params[0].dtype, options)
            if self._calls_rule:
                assert stack is not None
                coefficients = lists.coefficients_per_point(stack.select(members), update, self.rule, memory, options)
                ends = np.cumsum(part[:, POINTS])
                part = part.copy()
                part[:, COEFFICIENTS] = coefficients.data_ptr() + 32 * (ends - part[:, POINTS])
            self._kernel.step(part, self._schedules[sizes], update, arrays.params[0].dtype, self._device)

    def _table_of(self, arrays: Arrays) -> np.ndarray:
        return table_of([(*layout.batch, *layout.event) for layout in arrays.layouts], arrays.addresses, self.rule)
