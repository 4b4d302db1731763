"""The fused path: points as tables for a row kernel, one call for all. Layout only; no formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .kernels.launch import GRADIENT, POINTS, RADIUS, READ, SQUARE, VECTOR, Kernel, Update, X, update_of
from .matrices import Loose, New, Reading, Seat, raise_versions
from .options import Options
from .plan import Batch, Plan
from .points import State
from .rules import Rule
from .stages import ambient, is_penalised

__all__ = ["Fused"]


class Fused(Plan):
    """Points of one manifold, dtype and device on a row kernel."""

    half = True

    def __init__(self, seats: Sequence[Seat], state: State, rule: Rule, kernel: Kernel) -> None:
        super().__init__(seats, state, rule)
        self._kernel = kernel
        self._device = seats[0].points.parts[0].device
        self._schedules: dict[bytes, Any] = {}
        self._last: tuple[Any, Any] = (None, None)
        if self.matrices is not None:
            its = self.matrices
            self._table = np.zeros((len(its.params), 7), dtype=np.int64)
            self._table[:, POINTS:] = [(*layout.batch, *layout.event) for layout in its.layouts]
            columns = {rule.vectors[0]: VECTOR, "radius": RADIUS, **dict.fromkeys(rule.scalars, SQUARE)}
            for name, _, places in its.state:
                self._table[:, columns[name]] = places

    def lying(self, found: Reading, new: Sequence[New] | None, options: Options) -> None:
        """As in `Plan`."""
        assert self.matrices is not None
        params = self.matrices.params
        table = self._table
        table[:, X], table[:, GRADIENT] = found.params, found.sources

        def arrays() -> list[tuple[Tensor, Tensor]]:
            assert self.matrices is not None
            splits = [layout.split for layout in self.matrices.layouts]
            return [(split(p), split(g)) for split, p, g in zip(splits, params, found.grads, strict=True)]

        self._step(table, arrays, params, new, params[0].dtype, options)
        raise_versions(params, self.matrices.vectors, self.matrices.squares, self.matrices.radii if new else ())

    def loose(self, seats: Sequence[Seat], options: Options) -> None:
        """As in `Plan`."""
        for seat in seats:
            seat.enter(self.state, self.rule)
        arrays = [Loose(seat) for seat in seats]
        table = np.array([each.addresses() + list(each.x.shape) for each in arrays], dtype=np.int64)
        self._step(
            table,
            lambda: [(each.x, each.grad) for each in arrays],
            [seat.points.parts[0] for seat in seats],
            [seat.new for seat in seats],
            arrays[0].x.dtype,
            options,
        )
        for each in arrays:
            each.write_back()
        raise_versions(*(written for seat in seats for written in seat.written()))

    def _step(
        self,
        table: np.ndarray,
        arrays: Callable[[], Sequence[tuple[Tensor, Tensor]]],
        params: Sequence[Tensor],
        new: Sequence[New] | None,
        dtype: torch.dtype,
        options: Options,
    ) -> None:
        changed = []  # gradients of our own, which live until the kernel is done with them
        if is_penalised(self.manifold, options):
            changed = [ambient(self.manifold, x, grad, options).contiguous() for x, grad in arrays()]
            table[:, GRADIENT] = [grad.data_ptr() for grad in changed]
            options = {**options, "maximize": False}
        for batch, members in self.batches(params, new):
            part = table if len(members) == len(table) else np.ascontiguousarray(table[members])
            sizes = part[:, POINTS:].tobytes()
            if sizes not in self._schedules:
                self._schedules[sizes] = self._kernel.schedule(part)
            update = self._update(batch, params[0].dtype, options)
            self._kernel.step(part, self._schedules[sizes], update, dtype, self._device)

    def _update(self, batch: Batch, dtype: torch.dtype, options: Options) -> Update:
        """The options as numbers for parameters of `dtype`: those of the last step as long as nothing has changed."""
        key = (batch, dtype, *(options.get(name) for name in READ))
        if key != self._last[0] or isinstance(options["lr"], Tensor):
            self._last = (
                key,
                update_of(self.manifold, self.rule, options, batch.new.vectors, batch.step, dtype, self.kept.vectors),
            )
        return self._last[1]
