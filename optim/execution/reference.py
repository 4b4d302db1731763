"""The reference path: one point set at a time, through `update.update`. Layout only; no formula."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import EllipsisType

import torch
from torch import Tensor

from ...manifolds import Manifold
from ...manifolds.parameters.rows import gather, scatter_
from ..memory import Memory
from ..options import Options
from ..rules import Rule
from ..update import update
from .operands import New, Reading, Seat
from .plan import Plan
from .points import State, count_steps

__all__ = ["Reference"]

CHUNK = 2**18
"""Elements per piece; measured flat between 2^17 and 2^20 on ResNet-50's weights."""


class Reference(Plan):
    """Point sets one after the other, each by `update.update`."""

    def __init__(self, seats: Sequence[Seat], state: State, rule: Rule, *, copied: bool) -> None:
        self._all_copied = copied
        """Whether nothing is kept from one step to the next, because autograd or a CUDA graph records it."""
        super().__init__(seats, state, rule)

    def in_place(self, seat: Seat) -> bool:
        return super().in_place(seat) and not self._all_copied

    def step(self, found: Reading, new: Sequence[New] | None, options: Options) -> None:
        its, stacks = self.matrices, self.stacks(found)
        assert its is not None
        steps = count_steps([self.state[p] for p in its.params]) if self.rule.counts_steps else ()
        for i, (x, grad) in enumerate(zip(stacks.x, found.grads, strict=True)):
            fresh, step = new[i] if new else New(), steps[i] if steps else None
            grad = its.layouts[i].split(grad)
            for rows in _pieces(self.manifold, x, options):
                vectors, scalars = ({name: arrays[i][rows] for name, arrays in each.items()} for each in stacks[1:])
                memory = Memory(x.dtype, fresh.vectors, dict(vectors), _held(scalars, fresh), step)
                y = update(self.manifold, self.rule, x[rows], grad[rows], memory, _with_lr(options, x))
                x[rows].copy_(y)
                for arrays, results in ((vectors, memory.vectors), (scalars, memory.scalars)):
                    for name, array in arrays.items():
                        if results.get(name, array) is not array:
                            array.copy_(results[name])

    def step_copies(self, seats: Sequence[Seat], options: Options) -> None:
        with torch.set_grad_enabled(options["differentiable"]):
            for seat in seats:
                self._step_one(seat, options)

    def _step_one(self, seat: Seat, options: Options) -> None:
        """One step of a point set in place, state included, whatever its layout."""
        parts, layouts = seat.points.parts, seat.layouts
        x, first = gather(parts, layouts), self.state[parts[0]]
        device = x.device if options["capturable"] else None
        step = count_steps([first], device=device)[0] if self.rule.counts_steps else None
        vectors = {name: gather(each, layouts) for name, each in seat.vectors.items()}
        scalars = {name: layouts[0].split_scalars(number).to(x.dtype) for name, number in seat.scalars.items()}
        if options["differentiable"]:
            # What autograd saves must not be overwritten, so the step works on copies, written back at the end.
            x, vectors = x.clone(), {name: vector.clone() for name, vector in vectors.items()}
            scalars = {name: number.clone() for name, number in scalars.items()}
        memory = Memory(parts[0].dtype, seat.new.vectors, vectors, _held(scalars, seat.new), step)
        egrad = gather(seat.grads, layouts).to(x.dtype)
        y = update(seat.points.manifold, self.rule, x, egrad, memory, _with_lr(options, x))
        scatter_(y, parts, layouts)
        for name, vector in memory.vectors.items():
            scatter_(vector, seat.vectors[name], layouts)
        for name, number in memory.scalars.items():
            stored = layouts[0].split_scalars(seat.scalars[name])
            if number.data_ptr() != stored.data_ptr():
                stored.copy_(number)


def _pieces(manifold: Manifold, x: Tensor, options: Options) -> Iterator[slice | EllipsisType]:
    """A few points at a time, which do not know of each other: temporaries that stay in cache cost a third of those that do
    not. All at once where a penalty couples them."""
    if x.numel() <= CHUNK or x.ndim == manifold.event_ndim or options["orthogonality"]:
        yield ...
        return
    points = max(1, CHUNK * x.shape[0] // x.numel())
    for start in range(0, x.shape[0], points):
        yield slice(start, start + points)


def _held(scalars: dict[str, Tensor], new: New) -> dict[str, Tensor]:
    """Without the norm to hold, as long as there is none."""
    return {name: number for name, number in scalars.items() if not (new.radius and name == "radius")}


def _with_lr(options: Options, x: Tensor) -> Options:
    """`options` with a learning rate that is a tensor where `x` is."""
    lr = options["lr"]
    return {**options, "lr": lr.to(x.device, x.dtype).reshape(())} if isinstance(lr, Tensor) else options
