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
from ..update import update
from .operands import Operand
from .plan import Plan
from .points import count_steps

__all__ = ["Reference"]

CHUNK = 2**18
"""Elements per piece; measured flat between 2^17 and 2^20 on ResNet-50's weights."""


class Reference(Plan):
    """Point sets one after the other, each by `update.update`, with nothing kept from one step to the next."""

    def step(self, operands: Sequence[Operand], options: Options) -> None:
        with torch.set_grad_enabled(options["differentiable"]):
            for each in operands:
                self._step_one(each, options)

    def _step_one(self, each: Operand, options: Options) -> None:
        """One step of a point set in place, state included, whatever its layout."""
        parts, layouts = each.points.parts, each.layouts
        x, egrad = gather(parts, layouts), gather(each.grads, layouts)
        egrad = egrad.to(x.dtype)
        step = None
        if self.rule.counts_steps:
            step = count_steps([self.state[parts[0]]], device=x.device if options["capturable"] else None)[0]
        vectors = {name: gather(its, layouts) for name, its in each.vectors.items()}
        scalars = {name: layouts[0].split_scalars(number).to(x.dtype) for name, number in each.scalars.items()}
        if options["differentiable"]:
            # What autograd saves must not be overwritten, so the step works on copies, written back at the end.
            x, vectors = x.clone(), {name: vector.clone() for name, vector in vectors.items()}
            scalars = {name: number.clone() for name, number in scalars.items()}
        lr = options["lr"]
        if isinstance(lr, Tensor):
            options = {**options, "lr": lr.to(x.device, x.dtype).reshape(())}
        for rows in _pieces(each.points.manifold, x, options):
            memory = Memory(
                parts[0].dtype,
                each.fresh,
                {name: vector[rows] for name, vector in vectors.items()},
                {name: number[rows] for name, number in scalars.items() if not (each.unheld and name == "radius")},
                step,
            )
            y = update(each.points.manifold, self.rule, x[rows], egrad[rows], memory, options)
            if rows is ...:
                x, vectors, scalars = y, memory.vectors, scalars | memory.scalars
                break
            x[rows] = y
            for arrays, results in ((vectors, memory.vectors), (scalars, memory.scalars)):
                for name, result in results.items():
                    arrays[name][rows] = result
        scatter_(x, parts, layouts)
        for name, vector in vectors.items():
            scatter_(vector, each.vectors[name], layouts)
        for name, number in scalars.items():
            stored = layouts[0].split_scalars(each.scalars[name])
            if number.data_ptr() != stored.data_ptr():
                stored.copy_(number)


def _pieces(manifold: Manifold, x: Tensor, options: Options) -> Iterator[slice | EllipsisType]:
    """A few points at a time, which do not know of each other: temporaries that stay in cache cost a third of those that do
    not. All at once where a penalty couples them, or autograd records the step."""
    coupled = options["orthogonality"] or options["differentiable"] or options["capturable"]
    if x.numel() <= CHUNK or x.ndim == manifold.event_ndim or coupled:
        yield ...
        return
    points = max(1, CHUNK * x.shape[0] // x.numel())
    for start in range(0, x.shape[0], points):
        yield slice(start, start + points)
