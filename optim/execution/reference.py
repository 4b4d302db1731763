"""The reference path: one point set at a time, or a stack of matrices, through `update.update`. Layout only; no formula."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from ...manifolds import Manifold
from ...manifolds.parameters.rows import gather, scatter_
from ..options import Options
from ..rules import Memory
from ..update import update
from .operands import Operand, matrix_of
from .plan import Plan
from .points import count_steps

__all__ = ["Reference"]

CHUNK = 2**18
"""Elements per piece; the time is about the same from 2^17 to 2^20 on ResNet-50's weights."""


STACK = 2**20
"""Elements of matrices of equal shape that are stepped together: small ones take half the time in a stack, large ones more."""


class Reference(Plan):
    """A plan that steps one point set at a time through `update.update`, or under a shape all matrices of equal shape, and keeps
    nothing between steps."""

    def step(self, operands: Sequence[Operand], options: Options) -> None:
        with torch.set_grad_enabled(options["differentiable"]):
            for stack in self._stacks(operands, options):
                self._step(stack, options)

    def _stacks(self, operands: Sequence[Operand], options: Options) -> list[list[Operand]]:
        """The point sets that are stepped together: alone, but for a shape, for those of the same layout and number of steps."""
        if options["shape"] is None or options["capturable"] or options["differentiable"]:
            return [[operand] for operand in operands]
        stacks: dict[Any, list[Operand]] = {}
        for operand in operands:
            lead = operand.points.parts[0]
            count = self.state[lead].get("step") if self.rule.counts_steps else None
            key = (tuple(operand.layouts), operand.fresh, operand.radius_unset, None if count is None else float(count))
            most = max(1, STACK // max(1, sum(part.numel() for part in operand.points.parts)))
            number = sum(len(stack) for (other, _), stack in stacks.items() if other == key) // most
            stacks.setdefault((key, number), []).append(operand)
        return [*stacks.values()]

    def _step(self, operands: Sequence[Operand], options: Options) -> None:
        """One step of point sets of the same layout, and of their state, in place."""
        first = operands[0]
        parts, layouts = first.points.parts, first.layouts
        x = _stacked([gather(each.points.parts, layouts) for each in operands])
        egrad = _stacked([gather(each.grads, layouts) for each in operands]).to(x.dtype)
        step = None
        if self.rule.counts_steps:
            entries = [self.state[each.points.parts[0]] for each in operands]
            step = count_steps(entries, device=x.device if options["capturable"] else None)[0]
        vectors = {name: _stacked([gather(each.vectors[name], layouts) for each in operands]) for name in first.vectors}
        scalars = {
            name: _stacked([layouts[0].split_scalars(each.scalars[name]) for each in operands]).to(x.dtype)
            for name in first.scalars
        }
        if options["differentiable"]:
            # Autograd saves tensors, which must not be overwritten: the step works on copies, written back at the end.
            x, vectors = x.clone(), {name: vector.clone() for name, vector in vectors.items()}
            scalars = {name: scalar.clone() for name, scalar in scalars.items()}
        lr = options["lr"]
        if isinstance(lr, Tensor):
            options = {**options, "lr": lr.to(x.device, x.dtype).reshape(())}
        absent = {"radius"} if first.radius_unset else set()
        matrix = None if options["shape"] is None else matrix_of(first.points)
        for rows in _pieces(first.points.manifold, x, options):
            memory = Memory(
                parts[0].dtype,
                first.fresh,
                {name: vectors[name][rows] for name in vectors if name in self.rule.vectors},
                {name: scalar[rows] for name, scalar in scalars.items() if name not in absent},
                step,
                {name: vectors[name][rows] for name in vectors if name in self.rule.arrays},
                matrix,
            )
            y = update(first.points.manifold, self.rule, x[rows], egrad[rows], memory, options)
            arrays = memory.vectors | memory.arrays
            if rows is ...:
                x, vectors, scalars = y, arrays, scalars | memory.scalars
                break
            x[rows] = y
            for stored, results in ((vectors, arrays), (scalars, memory.scalars)):
                for name, result in results.items():
                    stored[name][rows] = result
        for i, each in enumerate(operands):
            mine = ... if len(operands) == 1 else i
            scatter_(x[mine], each.points.parts, layouts)
            for name, vector in vectors.items():
                scatter_(vector[mine], each.vectors[name], layouts)
            for name, scalar in scalars.items():
                place = layouts[0].split_scalars(each.scalars[name])
                if scalar.data_ptr() != place.data_ptr():
                    place.copy_(scalar[mine])


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([*tensors]) if len(tensors) > 1 else tensors[0]


def _pieces(manifold: Manifold, x: Tensor, options: Options) -> Iterator[slice | EllipsisType]:
    """Slices of the points that are stepped together: temporaries that fit into the cache take a third of the time.

    All points at once where a penalty couples them, and where the step is recorded by autograd or a CUDA graph.
    """
    coupled = any(options[name] for name in ("orthogonality", "shape", "differentiable", "capturable"))
    if x.numel() <= CHUNK or x.ndim == manifold.event_ndim or coupled:
        yield ...
        return
    points = max(1, CHUNK * x.shape[0] // x.numel())
    for start in range(0, x.shape[0], points):
        yield slice(start, start + points)
