"""The reference path: one point set at a time, through `step.update`. Layout only; no formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..manifolds import ConformalManifold, Manifold
from ..manifolds.rows import gather, scatter_
from .memory import Memory
from .options import Options
from .points import PointSet, State, count_steps, new_number
from .rules import Rule
from .step import update

__all__ = ["reference"]

CHUNK = 2**18
"""Elements per piece; measured flat between 2^17 and 2^20 on ResNet-50's weights."""


def reference(points: PointSet, grads: Sequence[Tensor], state: State, rule: Rule, options: Options) -> None:
    """One step of `points` in place, state included.

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
    chunked = x.ndim == 2 and not isinstance(points.manifold, ConformalManifold)
    if chunked and not options["orthogonality"] and not options["differentiable"]:
        y = _update_in_chunks(points.manifold, rule, x, egrad, memory, options)
    else:
        y = update(points.manifold, rule, x, egrad, memory, options)
    scatter_(y, parts, layouts)
    for name, vector in memory.vectors.items():
        scatter_(vector, [state[part][name] for part in parts], layouts)
    for name, number in memory.scalars.items():
        if name not in first:
            first[name] = torch.empty(layout.scalar, dtype=number.dtype, device=x.device)
        stored = layout.split_scalars(first[name])
        if number.data_ptr() != stored.data_ptr():
            stored.copy_(number)


def _update_in_chunks(
    manifold: Manifold, rule: Rule, x: Tensor, egrad: Tensor, memory: Memory, options: Options
) -> Tensor:
    """`update` over a few rows at a time, written over `x` and `memory`: rows do not know of each other, and temporaries
    that stay in cache cost a third of those that do not."""
    rows = max(1, CHUNK // x.shape[1])
    for start in range(0, x.shape[0], rows):
        part = slice(start, start + rows)
        piece = replace(
            memory,
            vectors={name: vector[part] for name, vector in memory.vectors.items()},
            scalars={name: number[part] for name, number in memory.scalars.items()},
        )
        y = update(manifold, rule, x[part], egrad[part], piece, options)
        x[part].copy_(y)
        for name, vector in piece.vectors.items():
            memory.vectors[name][part].copy_(vector)
    return x
