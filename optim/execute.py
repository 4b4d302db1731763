"""How an update runs over parameters: from tensors and state to points and memory, and back.

The reference path, one point set at a time. Layout and choice only; no formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..manifolds import Manifold, Rows
from .memory import Memory
from .options import Options
from .rules import Rule
from .step import update

__all__ = ["PointSet", "reference"]

State = dict[Tensor, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class PointSet:
    """The points that one parameter, or several joined ones, hold: an entry of an optimizer's table."""

    name: str
    parts: tuple[Tensor, ...]
    manifold: Manifold
    rows: Rows


def reference(points: PointSet, grads: Sequence[Tensor], state: State, rule: Rule, options: Options) -> None:
    """One step of `points` in place, state included.

    Vectors stand in each part's own state, shaped like the part; numbers per point in the first part's.
    """
    parts, manifold, rows = points.parts, points.manifold, points.rows
    ndim = manifold.event_ndim
    first = parts[0]
    vector_names = rule.vectors(options)
    fresh = any(name not in state[part] for part in parts for name in vector_names)
    for part in parts:
        for name in vector_names:
            if name not in state[part]:
                state[part][name] = torch.zeros_like(part, memory_format=torch.preserve_format)
    lr = options["lr"]
    x = rows.gather(parts, parts, ndim)
    if isinstance(lr, Tensor):
        options = {**options, "lr": lr.to(device=x.device, dtype=x.dtype)}
    memory = Memory(first.dtype, fresh)
    for name in vector_names:
        memory.vectors[name] = rows.gather([state[part][name] for part in parts], parts, ndim)
    shape = rows.scalar_shape(first.shape, ndim)
    for name in (*rule.scalars, "radius"):
        if name in rule.scalars and name not in state[first]:
            dtype = first.dtype if ndim == 0 else x.dtype
            state[first][name] = torch.zeros(shape, dtype=dtype, device=first.device)
        if name in state[first]:
            number = rows.split_scalars(state[first][name], first.shape, ndim)
            memory.scalars[name] = number.to(x.dtype)
    if rule.counts_steps:
        if "step" not in state[first]:
            device = first.device if options["capturable"] else None
            state[first]["step"] = torch.zeros((), dtype=torch.float32, device=device)
        state[first]["step"] += 1
        memory.step = state[first]["step"]
    if options["differentiable"]:
        # What autograd saves must not be overwritten, so the step works on copies and writes them back at the end.
        x = x.clone()
        memory.vectors = {name: v.clone() for name, v in memory.vectors.items()}
        memory.scalars = {name: v.clone() for name, v in memory.scalars.items()}
    y = update(manifold, rule, x, rows.gather(grads, parts, ndim), memory, options)
    rows.scatter_(y, parts, parts, ndim)
    for name, vector in memory.vectors.items():
        rows.scatter_(vector, [state[part][name] for part in parts], parts, ndim)
    for name, number in memory.scalars.items():
        if name not in state[first]:
            state[first][name] = torch.empty(shape, dtype=number.dtype, device=first.device)
        stored = rows.split_scalars(state[first][name], first.shape, ndim)
        if number.data_ptr() != stored.data_ptr():
            stored.copy_(number)
