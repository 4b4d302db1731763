"""Points of `FixedRank` that are slices, such as hidden units and heads, stepped in place: no factor is copied, only Grams are.

The formulas are those of the manifold, from the Grams BᵀB and A Aᵀ, (points, k, k). All points of one k are factored together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...manifolds import Factors, FixedRank, numerics
from ...manifolds.full_rank import inverse_triangle
from ...manifolds.parameters.factors import Grid
from ..options import Options
from ..rules import Coefficients, Memory, Rule
from .points import PointSet, State, count_steps, new_scalar

__all__ = ["are_in_place", "kind_of_pairs", "step_pairs"]

PIECE = 2**17
"""Elements of a product that is summed at once, in cache."""


def are_in_place(points: PointSet, state: State, rule: Rule, options: Options) -> bool:
    """Whether `step_pairs` steps such points: slices on FixedRank in float32 or float64 that are views of their parameters and
    state; with ``foreach=False`` the reference does."""
    first, slices = points.parts[0], points.slices
    automatic = options["foreach"] is not False or options["fused"]
    if not (isinstance(points.manifold, FixedRank) and isinstance(slices, Factors) and automatic):
        return False
    if options["capturable"] or first.is_meta or first.dtype not in (torch.float32, torch.float64):
        return False
    arrays = [[p, *(state[p][name] for name in rule.vectors if name in state.get(p, {}))] for p in points.parts]
    layouts = zip(points.layouts(), arrays, strict=True)
    return all(_matrices(grid, a) is not None for grid, each in layouts for a in each if isinstance(grid, Grid))


def kind_of_pairs(points: PointSet, state: State, rule: Rule, options: Options) -> tuple[Any, ...]:
    """What point sets have in common that are stepped together: manifold, dtype, device, vectors."""
    assert isinstance(points.manifold, FixedRank)
    needed = rule.needs(options)
    names = [name for name in rule.vectors if name in needed or all(name in state.get(p, {}) for p in points.parts)]
    return replace(points.manifold, n=None), points.parts[0].dtype, points.parts[0].device, tuple(names)


def step_pairs(sets: Mapping[PointSet, bool], state: State, rule: Rule, options: Options) -> None:
    """One step of point sets of one `kind_of_pairs` and their state, in place; of each, whether vectors that the rule needs are
    missing. Gradients are not written to."""
    manifold, dtype, device, _ = kind_of_pairs(next(iter(sets)), state, rule, options)
    if isinstance(options["lr"], Tensor):
        options = {**options, "lr": options["lr"].to(device, dtype).reshape(())}
    pairs = [_Pairs(points, fresh, state, rule, options) for points, fresh in sets.items()]
    x = [each.x for each in pairs]
    for each, metric in zip(pairs, _metrics(manifold, x, _all_grams(x)), strict=True):
        each.move(metric)
    if options["transport"] == "none":
        return
    names, counts = pairs[0].vectors, [each.x.count for each in pairs]
    grams = _all_grams(x) if names else torch.empty(0)
    metrics = _metrics(manifold, x, grams) if names and manifold.k > 1 else []

    def divided(a: Tensor) -> Tensor:
        return torch.cat([each.divided(own) for each, own in zip(metrics, a.split(counts, 1), strict=True)], 1)

    for name in names:
        along = _all_grams(x, [each.vectors[name] for each in pairs])
        if manifold.k == 1:
            share = manifold.vertical_share(*grams, *along)
            turns = -share, manifold.degree * share
        else:
            turn = manifold.turn(*grams, *along, divided)
            turns = -turn, turn.mT
        for each, *factors in zip(pairs, *(turn.split(counts) for turn in turns), strict=True):
            each.vectors[name].add_(each.x, factors)


class _Pairs:
    """One point set in a step, with its gradient and state."""

    def __init__(self, points: PointSet, fresh: bool, state: State, rule: Rule, options: Options) -> None:
        slices, layouts, parts = points.slices, points.layouts(), points.parts
        assert isinstance(slices, Factors)
        grids, left = [grid for grid in layouts if isinstance(grid, Grid)], len(slices.left)
        needed = rule.needs(options)
        for p in parts:
            for name in needed:
                if name not in state[p]:
                    state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        names = [name for name in rule.vectors if all(name in state[p] for p in parts)]
        grads = [grad.to(parts[0].dtype) for grad in points.gradients()]
        self.x, self.g = _Sides.of(parts, grids, left), _Sides.of(grads, grids, left)
        self.vectors = {name: _Sides.of([state[p][name] for p in parts], grids, left) for name in names}
        self._grid, self._lead, self._suffix = grids[0], parts[0], points.suffix
        self._entry, self._fresh, self._rule, self._options = state[parts[0]], fresh, rule, options

    def move(self, metric: _Metric) -> None:
        """Take the step of the points and their vectors, which are carried unchanged."""
        options, limit = self._options, self._options["max_point_norm"]
        source, factors, length = metric.gradient(self.g, self._rule.reads_lengths or limit is not None)
        shrink: Any = -1.0 if options["maximize"] else 1.0
        if limit is not None:
            short = torch.clamp(limit / length, max=1.0)
            length, shrink = length * short, shrink * short
        coefficients = self._coefficients(length if length is None else length.view(-1, 1))
        for name, v in self.vectors.items():
            keep, take, _ = coefficients.of(name)
            v.add_(source, [_per_point(take) * shrink * factor for factor in factors], _per_point(keep))
        for name, v in self.vectors.items():
            self.x.add_(v, [_per_point(coefficients.of(name)[2])] * 2)
        if isinstance(coefficients.ahead, Tensor) or coefficients.ahead != 0:
            self.x.add_(source, [_per_point(coefficients.ahead) * shrink * factor for factor in factors])

    def _coefficients(self, length: Any) -> Coefficients:
        """The coefficients of the rule, whose scalars per point are stored."""
        rule, entry, dtype, scalars = self._rule, self._entry, self._lead.dtype, {}
        for name in rule.scalars:
            stored = name + self._suffix
            if stored not in entry:
                entry[stored] = new_scalar(name, rule, self._grid, self._lead)
            scalars[name] = entry[stored].view(-1, 1).to(dtype)
        step = _counted(entry, self._suffix) if rule.counts_steps else None
        memory = Memory(dtype, self._fresh, scalars=scalars, step=step)
        coefficients = rule(length, memory, self._options)
        for name in rule.scalars:
            entry[name + self._suffix].copy_(memory.scalars[name].view(-1, 1, 1))
        return coefficients


class _Sides:
    """An array with the shape of the points, in parts of parameters: those of the left factor, and those of the right one.

    For k > 1 each is (points, rows, k); for k = 1 it has a dimension per level of the points, and any others.
    """

    def __init__(self, parts: Sequence[Tensor], points: Sequence[int], left: int, k: int) -> None:
        self._parts, self._points, self._left, self.k = parts, points, left, k
        self.first = parts[0]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], grids: Sequence[Grid], left: int) -> _Sides:
        """The slices of parameters, or of arrays like them, as views where they exist."""
        parts = [_matrices(grid, tensor) or [grid.split(tensor)] for grid, tensor in zip(grids, tensors, strict=True)]
        points = [
            1 if grid.k > 1 else len(grid.point_levels)
            for grid, pieces in zip(grids, parts, strict=True)
            for _ in pieces
        ]
        return cls([piece for pieces in parts for piece in pieces], points, sum(map(len, parts[:left])), grids[0].k)

    @property
    def count(self) -> int:
        """The number of points."""
        return prod(self._parts[0].shape[: self._points[0]])

    def _like(self, parts: Sequence[Tensor]) -> _Sides:
        return _Sides(parts, self._points, self._left, self.k)

    def grams(self, other: _Sides, into: Tensor) -> None:
        """Write the products of both factors with those of `other` to `into`, (2, points, k, k)."""
        if self.k == 1:
            into.copy_(self.dots(other))
            return
        for i, (a, b) in enumerate(zip(self._parts, other._parts, strict=True)):
            into[int(i >= self._left)].baddbmm_(a.mT, b, beta=float(i not in (0, self._left)))

    def dots(self, other: _Sides) -> Tensor:
        """Dot products of both factors, (2, points, 1, 1)."""
        triples = zip(self._parts, other._parts, self._points, strict=True)
        sums = [_dots(a, b, points).view(-1, 1, 1) for a, b, points in triples]
        return torch.stack([torch.stack(side).sum(0) for side in (sums[: self._left], sums[self._left :])])

    def times(self, matrices: Sequence[Tensor]) -> _Sides:
        """Each factor times matrices per point, (points, k, k), in the memory order of this array."""
        found = [torch.empty_like(part) for part in self._parts]
        for i, (target, part) in enumerate(zip(found, self._parts, strict=True)):
            torch.bmm(part, matrices[int(i >= self._left)], out=target)
        return self._like(found)

    def double(self) -> _Sides:
        """The same in float64."""
        return self._like([part.double() for part in self._parts])

    def add_(self, other: _Sides, factors: Sequence[Any], keep: Any = 1.0) -> None:
        """Multiply by `keep`, and add `other` times a number, numbers or matrices per point for each factor."""
        pairs = zip(self._parts, other._parts, self._points, strict=True)
        for i, (part, added, points) in enumerate(pairs):
            factor, kept = factors[i >= self._left], keep
            matrices = isinstance(factor, Tensor) and factor.ndim == 3 and factor.shape[-1] > 1
            if isinstance(kept, Tensor) or (kept != 1 and not matrices):
                part.mul_(_spread(kept, part, points))
                kept = 1.0
            if matrices:
                part.baddbmm_(added, factor, beta=kept)
            elif isinstance(factor, Tensor):
                part.addcmul_(added, _spread(factor, part, points))
            elif factor != 0:
                part.add_(added, alpha=factor)


class _Metric:
    """The metric at the points of one set: inverse weights of both factors, (2, points, k, k), and the inverses of their lower
    triangular roots, where they have to be applied one after the other."""

    def __init__(self, inverses: Tensor, triangles: Tensor | None = None) -> None:
        self._inverses, self._triangles = inverses, triangles

    def gradient(self, g: _Sides, measured: bool) -> tuple[_Sides, Sequence[Any], Any]:
        """An array and factors whose product is the Riemannian gradient, and if `measured` its length, (points, 1, 1)."""
        if self._triangles is not None:
            source = g.times(self._triangles.mT)
            return source, self._triangles, _root(source, source, 1.0) if measured else None
        if not measured or self._inverses.shape[-1] == 1:
            return g, self._inverses, _root(g, g, self._inverses) if measured else None
        source = g.times(self._inverses)
        return source, (1.0, 1.0), _root(source, g, 1.0)

    def divided(self, a: Tensor) -> Tensor:
        """The inverse weights times matrices of both factors, (2, points, k, k)."""
        if self._triangles is None:
            return self._inverses @ a
        return self._triangles.mT @ (self._triangles @ a)


def _metrics(manifold: FixedRank, sides: Sequence[_Sides], grams: Tensor) -> list[_Metric]:
    """The metric at the points of each set; weights are factored together, and again where that is too rough, set by set."""
    weights = torch.stack(manifold.weights_of(*grams))
    counts = [side.count for side in sides]
    if manifold.k == 1:
        return [_Metric(inverses) for inverses in (1.0 / weights).split(counts, 1)]
    if not numerics.readable(weights):
        return _careful(manifold, sides, weights)
    inverses, served = manifold.inverses_of(weights)
    metrics = [_Metric(each) for each in inverses.split(counts, 1)]
    rough = [i for i, each in enumerate(served.split(counts)) if not each.all()]
    if rough:
        chosen = torch.cat([weights.split(counts, 1)[i] for i in rough], 1)
        for i, metric in zip(rough, _careful(manifold, [sides[i] for i in rough], chosen), strict=True):
            metrics[i] = metric
    return metrics


def _careful(manifold: FixedRank, sides: Sequence[_Sides], weights: Tensor) -> list[_Metric]:
    """Metrics by triangles."""
    counts = [side.count for side in sides]

    def grams(matrices: Tensor) -> Tensor:
        pairs = zip(sides, matrices.split(counts, 1), strict=True)
        return _all_grams([side.times(own.flip(0)) for side, own in pairs]).flip(0)

    triangles = inverse_triangle(manifold.roots_of(weights, grams))
    return [_Metric(each, each) for each in triangles.split(counts, 1)]


def _all_grams(sides: Sequence[_Sides], others: Sequence[_Sides] | None = None) -> Tensor:
    """Products of both factors of all sets with those of `others`, or with themselves, (2, points of all, k, k)."""
    counts, k, first = [side.count for side in sides], sides[0].k, sides[0].first
    found = first.new_empty(2, sum(counts), k, k)
    for a, b, into in zip(sides, others or sides, found.split(counts, 1), strict=True):
        a.grams(b, into)
    return found


def _matrices(grid: Grid, tensor: Tensor) -> list[Tensor] | None:
    """The slices of `tensor` as views: for k > 1 matrices (points, rows, k), several if the rows are not evenly spaced; None where
    there are no such views. For k = 1 one, with a dimension per level."""
    pieces = [grid.strided(tensor)]
    if grid.k == 1:
        return [pieces[0].squeeze(tuple(range(-len(grid.column_levels), 0)))]
    shape = grid.points, grid.height, grid.k
    for split in (False, True):
        if split:
            for _ in grid.row_levels:
                pieces = [row for piece in pieces for row in piece.unbind(len(grid.point_levels))]
            shape = grid.points, grid.height // len(pieces), grid.k
        try:
            return [piece.view(shape) for piece in pieces]
        except RuntimeError:  # torch has no other test
            continue
    return None


def _dots(a: Tensor, b: Tensor, points: int) -> Tensor:
    """Sums of a · b over all but the first dimensions, which are `points`; in pieces that stay in cache."""
    rest = tuple(range(points, a.ndim))
    if points > 1 or not rest or a.numel() <= PIECE:
        return (a * b).sum(rest) if rest else a * b
    if a.ndim == 2 and a.stride(0) < a.stride(1):  # every point is a column: rows of products are added up
        size = PIECE // a.shape[0] + 1
        total = a.mT[:size] * b.mT[:size]
        for one, other in zip(a.mT.split(size)[1:], b.mT.split(size)[1:], strict=True):
            total[: len(one)].addcmul_(one, other)
        return total.sum(0)
    if a is b and a[0].is_contiguous():  # of others it takes ten times as long
        return torch.linalg.vector_norm(a, dim=rest).square()
    size = PIECE * a.shape[0] // a.numel() + 1
    return torch.cat([(one * other).sum(rest) for one, other in zip(a.split(size), b.split(size), strict=True)])


def _root(a: _Sides, b: _Sides, factors: Any) -> Tensor:
    """√(a·b) summed over both factors, each times its own of `factors`, (points, 1, 1); in float64 where sums in float32 overflow
    or vanish, or may do so and cannot be read."""
    sums = a.dots(b)
    dtype = sums.dtype
    if dtype == torch.float32 and not (sums.is_cpu and bool(((sums > 1e-30) & (sums < torch.inf)).all())):
        wide = a.double()
        sums = wide.dots(wide if a is b else b.double())
    return (sums * factors).sum(0).sqrt().to(dtype)


def _per_point(number: Any) -> Any:
    return number.view(-1, 1, 1) if isinstance(number, Tensor) and number.ndim else number


def _spread(factor: Any, part: Tensor, points: int) -> Any:
    """Numbers per point, (points, 1, 1), with the dimensions of `part`."""
    if not isinstance(factor, Tensor) or factor.ndim == 0:
        return factor
    return factor.view(*part.shape[:points], *(1,) * (part.ndim - points))


def _counted(entry: dict[str, Any], suffix: str) -> Tensor:
    """The number of this step, which `entry` counts."""
    local = {"step": entry["step" + suffix]} if "step" + suffix in entry else {}
    (step,) = count_steps([local])
    entry["step" + suffix] = step
    return step
