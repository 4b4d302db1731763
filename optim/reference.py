"""The reference path: one point set at a time, through `step.update`. Layout only; no formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..manifolds import Euclidean, Manifold, ScalingQuotient
from ..manifolds.base import unguarded
from ..manifolds.rows import gather, scatter_
from .matrices import New, Reading, Seat
from .memory import Memory
from .motion import is_linear
from .options import Options
from .plan import Plan
from .points import PointSet, State, count_steps, new_number
from .rules import Rule
from .step import update

__all__ = ["Reference"]

CHUNK = 2**18
"""Elements per piece; measured flat between 2^17 and 2^20 on ResNet-50's weights."""


class Reference(Plan):
    """Point sets one after the other, each by `step.update`."""

    def __init__(self, seats: Sequence[Seat], state: State, rule: Rule, *, loose: bool) -> None:
        self._all_loose = loose
        """Whether nothing is kept from one step to the next: because autograd or a CUDA graph records it, or for a rule that
        may keep any number of vectors and scalars."""
        super().__init__(seats, state, rule)

    def lies(self, seat: Seat) -> bool:
        """As in `Plan`."""
        return super().lies(seat) and not self._all_loose

    def lying(self, found: Reading, new: Sequence[New] | None, options: Options) -> None:
        """As in `Plan`."""
        its, rule = self.matrices, self.rule
        assert its is not None
        stacks, moving = self.stacks(found), rule.vectors[0]
        if isinstance(options["lr"], Tensor):
            options = {**options, "lr": options["lr"].to(stacks.x[0].device, stacks.x[0].dtype).reshape(())}
        steps = count_steps([self.state[p] for p in its.params]) if rule.counts_steps else ()
        for i, (x, grad) in enumerate(zip(stacks.x, found.grads, strict=True)):
            fresh = new[i] if new else New()
            memory = Memory(x.dtype, fresh.vectors, step=steps[i] if steps else None)
            if stacks.vectors:
                memory.vectors[moving] = stacks.vectors[i]
            if stacks.squares:
                memory.scalars[rule.scalars[0]] = stacks.squares[i]
            if stacks.radii and not fresh.radius:
                memory.scalars["radius"] = stacks.radii[i]
            y = _update(self.manifold, rule, x, its.layouts[i].split(grad), memory, options)
            if y is not x:
                x.copy_(y)
            if stacks.vectors and memory.vectors[moving] is not stacks.vectors[i]:
                stacks.vectors[i].copy_(memory.vectors[moving])
            if fresh.radius and stacks.radii:
                stacks.radii[i].copy_(memory.scalars["radius"])

    def loose(self, seats: Sequence[Seat], options: Options) -> None:
        """As in `Plan`."""
        with torch.set_grad_enabled(options["differentiable"]):
            for seat in seats:
                _step(seat.points, seat.grads, self.state, self.rule, options)


def _step(points: PointSet, grads: Sequence[Tensor], state: State, rule: Rule, options: Options) -> None:
    """One step of `points` in place, state included, whatever its layout.

    Vectors stand in each part's own state, shaped like the part; numbers per point in the first part's.
    """
    parts, layouts = points.parts, points.layouts()
    first, layout = state[parts[0]], layouts[0]
    needed = rule.needs(options)
    fresh = any(name not in state[part] for part in parts for name in needed)
    for part in parts:
        for name in needed:
            if name not in state[part]:
                state[part][name] = torch.zeros_like(part, memory_format=torch.preserve_format)
    names = [name for name in rule.vectors if all(name in state[part] for part in parts)]
    x = gather(parts, layouts)
    for name in rule.scalars:
        if name not in first:
            first[name] = new_number(name, rule, layout, parts[0])
    step = count_steps([first], device=x.device if options["capturable"] else None)[0] if rule.counts_steps else None
    memory = Memory(
        dtype=parts[0].dtype,
        fresh=fresh,
        vectors={name: gather([state[part][name] for part in parts], layouts) for name in names},
        scalars={n: layout.split_scalars(first[n]).to(x.dtype) for n in (*rule.scalars, "radius") if n in first},
        step=step,
    )
    if isinstance(options["lr"], Tensor):
        options = {**options, "lr": options["lr"].to(device=x.device, dtype=x.dtype).reshape(())}
    if options["differentiable"]:
        # What autograd saves must not be overwritten, so the step works on copies, written back at the end.
        x = x.clone()
        memory.vectors = {name: vector.clone() for name, vector in memory.vectors.items()}
    egrad = gather(grads, layouts).to(x.dtype)
    y = _update(points.manifold, rule, x, egrad, memory, options)
    scatter_(y, parts, layouts)
    for name, vector in memory.vectors.items():
        scatter_(vector, [state[part][name] for part in parts], layouts)
    for name, number in memory.scalars.items():
        if name not in first:
            first[name] = torch.empty(layout.scalar, dtype=number.dtype, device=x.device)
        stored = layout.split_scalars(first[name])
        if number.data_ptr() != stored.data_ptr():
            stored.copy_(number)


def _update(manifold: Manifold, rule: Rule, x: Tensor, egrad: Tensor, memory: Memory, options: Options) -> Tensor:
    """`update`, over a few rows at a time where that helps: rows do not know of each other, and temporaries that stay in
    cache cost a third of those that do not. Then `x` and `memory` are written over."""
    manifold = unguarded(manifold)
    whole = (
        x.ndim != 2
        or manifold.event_ndim != 1
        or x.numel() <= CHUNK
        or is_linear(manifold, options)
        or isinstance(manifold, Euclidean)
    )
    if whole or options["orthogonality"] or options["differentiable"]:
        return update(manifold, rule, x, egrad, memory, options)
    unheld = isinstance(manifold, ScalingQuotient) and options["radius"] == "hold" and "radius" not in memory.scalars
    if unheld:
        memory.scalars["radius"] = x.new_empty(x.shape[0], 1)
    rows = max(1, CHUNK // x.shape[1])
    for start in range(0, x.shape[0], rows):
        part = slice(start, start + rows)
        piece = replace(
            memory,
            vectors={name: vector[part] for name, vector in memory.vectors.items()},
            scalars={name: number[part] for name, number in memory.scalars.items() if not unheld or name != "radius"},
        )
        y = update(manifold, rule, x[part], egrad[part], piece, options)
        x[part].copy_(y)
        for name, vector in piece.vectors.items():
            memory.vectors[name][part].copy_(vector)
        if unheld:
            memory.scalars["radius"][part].copy_(piece.scalars["radius"])
    return x
