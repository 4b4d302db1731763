"""The reference path: one point set at a time, through `update.update`. Layout only; no formula."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import EllipsisType

import torch
from torch import Tensor

from ...manifolds import Manifold
from ...manifolds.parameters.rows import gather, scatter_
from ..options import Options
from ..rules import Memory
from ..update import update
from .operands import Operand
from .plan import Plan
from .points import count_steps

__all__ = ["Reference"]

CHUNK = 2**18
"""Elements per piece; the time is about the same from 2^17 to 2^20 on ResNet-50's weights."""


class Reference(Plan):
    """A plan that steps one point set at a time through `update.update`, and keeps nothing between steps."""

    def step(self, operands: Sequence[Operand], options: Options) -> None:
        with torch.set_grad_enabled(options["differentiable"]):
            for operand in operands:
                self._step_one(operand, options)

    def _step_one(self, operand: Operand, options: Options) -> None:
        """One step of a point set and its state, in place."""
        parts, layouts = operand.points.parts, operand.layouts
        x = gather(parts, layouts)
        egrad = gather(operand.grads, layouts).to(x.dtype)
        step = None
        if self.rule.counts_steps:
            step = count_steps([self.state[parts[0]]], device=x.device if options["capturable"] else None)[0]
        vectors = {name: gather(tensors, layouts) for name, tensors in operand.vectors.items()}
        scalars = {name: layouts[0].split_scalars(scalar).to(x.dtype) for name, scalar in operand.scalars.items()}
        if options["differentiable"]:
            # Autograd saves tensors, which must not be overwritten: the step works on copies, written back at the end.
            x, vectors = x.clone(), {name: vector.clone() for name, vector in vectors.items()}
            scalars = {name: scalar.clone() for name, scalar in scalars.items()}
        lr = options["lr"]
        if isinstance(lr, Tensor):
            options = {**options, "lr": lr.to(x.device, x.dtype).reshape(())}
        absent = {"radius"} if operand.radius_unset else set()
        for rows in _pieces(operand.points.manifold, x, options):
            memory = Memory(
                parts[0].dtype,
                operand.fresh,
                {name: vector[rows] for name, vector in vectors.items()},
                {name: scalar[rows] for name, scalar in scalars.items() if name not in absent},
                step,
            )
            y = update(operand.points.manifold, self.rule, x[rows], egrad[rows], memory, options)
            if rows is ...:
                x, vectors, scalars = y, memory.vectors, scalars | memory.scalars
                break
            x[rows] = y
            for arrays, results in ((vectors, memory.vectors), (scalars, memory.scalars)):
                for name, result in results.items():
                    arrays[name][rows] = result
        scatter_(x, parts, layouts)
        for name, vector in vectors.items():
            scatter_(vector, operand.vectors[name], layouts)
        for name, scalar in scalars.items():
            stored = layouts[0].split_scalars(operand.scalars[name])
            if scalar.data_ptr() != stored.data_ptr():
                stored.copy_(scalar)


def _pieces(manifold: Manifold, x: Tensor, options: Options) -> Iterator[slice | EllipsisType]:
    """Slices of the points that are stepped together: temporaries that fit into the cache take a third of the time.

    All points at once where a penalty couples them, and where the step is recorded by autograd or a CUDA graph.
    """
    coupled = options["orthogonality"] or options["differentiable"] or options["capturable"]
    if x.numel() <= CHUNK or x.ndim == manifold.event_ndim or coupled:
        yield ...
        return
    points = max(1, CHUNK * x.shape[0] // x.numel())
    for start in range(0, x.shape[0], points):
        yield slice(start, start + points)
