"""Points of `FixedRank` with k = 1 that are slices, such as hidden units, stepped in place: every part of a factor has one number
per point for each of its arrays. The formulas are those of the manifold, from dot products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...manifolds import Factors, FixedRank
from ...manifolds.parameters.factors import Grid
from ..options import Options
from ..rules import Memory, Rule
from .points import PointSet, State, count_steps, new_scalar

__all__ = ["are_units", "is_fresh", "step_units"]


def are_units(points: PointSet, options: Options) -> bool:
    """Whether `step_units` steps such points: scalings in float32 or float64; with ``foreach=False`` the reference does."""
    automatic = options["foreach"] is not False or options["fused"]
    precise = points.parts[0].dtype in (torch.float32, torch.float64)
    on = isinstance(points.manifold, FixedRank) and points.manifold.k == 1
    return bool(on and automatic and precise and not options["capturable"] and not points.parts[0].is_meta)


def is_fresh(points: PointSet, state: State, rule: Rule, options: Options) -> bool:
    """Whether vectors that `rule` needs are missing in the state of `points`."""
    return any(name not in state.get(p, {}) for name in rule.needs(options) for p in points.parts)


def step_units(points: PointSet, state: State, rule: Rule, options: Options, fresh: bool) -> None:
    """One step of `points` and their state, in place, with `fresh` vectors or not; gradients are not written to."""
    manifold, slices, grads = points.manifold, points.slices, points.gradients()
    assert isinstance(manifold, FixedRank)
    assert isinstance(slices, Factors)
    if isinstance(options["lr"], Tensor):
        options = {**options, "lr": options["lr"].to(points.parts[0].device, points.parts[0].dtype).reshape(())}
    lead, grids = points.parts[0], [grid for grid in points.layouts() if isinstance(grid, Grid)]
    needed = rule.needs(options)
    for p in points.parts:
        for name in needed:
            if name not in state[p]:
                state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
    names = [name for name in rule.stored if all(name in state[p] for p in points.parts)]
    x, g = _Sides.of(points.parts, grids, len(slices.left)), _Sides.of(grads, grids, len(slices.left))
    vectors = {name: _Sides.of([state[p][name] for p in points.parts], grids, len(slices.left)) for name in names}

    weights = manifold.weights_of_units(*x.dots(x))
    sign = -1.0 if options["maximize"] else 1.0
    length: Any = None
    shrink: Any = 1.0
    if rule.reads_lengths or options["max_point_norm"] is not None:
        length = g.length(weights)
    if options["max_point_norm"] is not None:
        limit = torch.clamp(options["max_point_norm"] / length, max=1.0)
        length, shrink = length * limit, limit.view(-1, 1, 1)
    scalars = {}
    for name in rule.scalars:
        stored = name + points.suffix
        if stored not in state[lead]:
            state[lead][stored] = new_scalar(name, rule, grids[0], lead)
        scalars[name] = state[lead][stored].view(-1, 1).to(lead.dtype)
    step = _counted(state[lead], points.suffix) if rule.counts_steps else None
    memory = Memory(lead.dtype, fresh, scalars=scalars, step=step)
    coefficients = rule(length, memory, options)
    for name in rule.scalars:
        state[lead][name + points.suffix].copy_(memory.scalars[name].view(-1, 1, 1))

    of_gradient = [sign * shrink / weight for weight in weights]
    for name, v in vectors.items():
        keep, take, _ = coefficients.of(name)
        v.multiply_(_per_point(keep))
        v.add_(g, [_per_point(take) * factor for factor in of_gradient])
    for name, v in vectors.items():
        x.add_(v, [_per_point(coefficients.of(name)[2])] * 2)
    if isinstance(coefficients.ahead, Tensor) or coefficients.ahead != 0:
        x.add_(g, [_per_point(coefficients.ahead) * factor for factor in of_gradient])
    if options["transport"] != "none" and vectors:
        xx = x.dots(x)
        for v in vectors.values():
            share = manifold.vertical_share(*xx, *x.dots(v))
            v.add_(x, [-share, manifold.degree * share])


class _Sides:
    """An array with the shape of the points, in parts of parameters: those of the left factor, and those of the right one."""

    def __init__(self, parts: Sequence[Tensor], points: Sequence[Sequence[int]], left: int) -> None:
        self._parts, self._points, self._left = parts, points, left

    @classmethod
    def of(cls, tensors: Sequence[Tensor], grids: Sequence[Grid], left: int) -> _Sides:
        """Views of the slices of parameters, or of arrays like them."""
        parts = [grid.strided(tensor) for grid, tensor in zip(grids, tensors, strict=True)]
        return cls(parts, [[n for n, _ in grid.point_levels] for grid in grids], left)

    def dots(self, other: _Sides) -> tuple[Tensor, Tensor]:
        """Dot products of both factors, each (points, 1, 1)."""
        sums = [
            (a * b).sum(tuple(range(len(shape), a.ndim))).view(-1, 1, 1)
            for a, b, shape in zip(self._parts, other._parts, self._points, strict=True)
        ]
        left, right = sums[: self._left], sums[self._left :]
        return torch.stack(left).sum(0), torch.stack(right).sum(0)

    def length(self, weights: Sequence[Tensor]) -> Tensor:
        """√(‖g_u‖² / w_u + ‖g_v‖² / w_v), (points, 1); squares in float64 where those in float32 overflow or vanish, or may do so
        and cannot be read."""
        sums = self.dots(self)
        wide = sums[0].dtype == torch.float32
        if wide and not (sums[0].is_cpu and all(bool(((gg > 1e-30) & (gg < torch.inf)).all()) for gg in sums)):
            doubled = _Sides([part.double() for part in self._parts], self._points, self._left)
            sums = doubled.dots(doubled)
        of_u, of_v = (gg / weight for gg, weight in zip(sums, weights, strict=True))
        return (of_u + of_v).sqrt().to(weights[0].dtype).view(-1, 1)

    def multiply_(self, factor: Any) -> None:
        """Multiply by a number, or by numbers per point."""
        if isinstance(factor, Tensor) or factor != 1:
            for part, shape in zip(self._parts, self._points, strict=True):
                part.mul_(_spread(factor, part, shape))

    def add_(self, other: _Sides, factors: Sequence[Any]) -> None:
        """Add `other` times a number, or numbers per point, for each factor."""
        pairs = zip(self._parts, other._parts, self._points, strict=True)
        for i, (part, added, shape) in enumerate(pairs):
            factor = factors[i >= self._left]
            if isinstance(factor, Tensor):
                part.addcmul_(added, _spread(factor, part, shape))
            elif factor != 0:
                part.add_(added, alpha=factor)


def _per_point(number: Any) -> Any:
    return number.view(-1, 1, 1) if isinstance(number, Tensor) and number.ndim else number


def _spread(factor: Any, part: Tensor, shape: Sequence[int]) -> Any:
    """Numbers per point, (points, 1, 1), with the dimensions of `part`."""
    if not isinstance(factor, Tensor) or factor.ndim == 0:
        return factor
    return factor.view(*shape, *(1,) * (part.ndim - len(shape)))


def _counted(entry: dict[str, Any], suffix: str) -> Tensor:
    """The number of this step, which `entry` counts."""
    local = {"step": entry["step" + suffix]} if "step" + suffix in entry else {}
    (step,) = count_steps([local])
    entry["step" + suffix] = step
    return step
