"""Points of `FixedRank` that are slices, such as hidden units and heads, stepped in place: no factor is copied, only Grams are.

The formulas are those of the manifold, from the Grams BᵀB and A Aᵀ, (points, k, k). All points of one k are factored together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...manifolds import Factors, FixedRank, numerics
from ...manifolds.full_rank import inverse_triangle
from ...manifolds.parameters.factors import Grid
from ..kernels.sums import Step
from ..options import Options, needs_reference
from ..rules import Coefficients, Memory, Rule
from .points import PointSet, State, count_steps, new_scalar
from .sides import Place, Sides, all_grams, matrices_in, root_of_sums

__all__ = ["Division", "are_in_place", "kind_of_pairs", "step_pairs"]


class Division(NamedTuple):
    """The division of the parts of sets among processes, which sum their Grams."""

    group: Any
    local: Mapping[Tensor, Tensor]
    """The shards of parameters."""
    places: Mapping[PointSet, Sequence[Place]]


def are_in_place(
    points: PointSet, state: State, rule: Rule, options: Options, division: Division | None = None
) -> bool:
    """Whether `step_pairs` steps such points: slices on FixedRank in float32 or float64 that are views of their parameters and
    state; with ``foreach=False`` the reference does."""
    first, slices = points.parts[0], points.slices
    automatic = options["foreach"] is not False or options["fused"]
    if not (isinstance(points.manifold, FixedRank) and isinstance(slices, Factors) and automatic):
        return False
    if needs_reference(points.manifold, rule, options):
        return False
    if options["capturable"] or first.is_meta or first.dtype not in (torch.float32, torch.float64):
        return False
    parts, places = _located(points, division)
    arrays = [[p, *(state[p][name] for name in rule.vectors if name in state.get(p, {}))] for p in parts]
    return all(matrices_in(place.grid, a) is not None for place, each in zip(places, arrays, strict=True) for a in each)


def _located(points: PointSet, division: Division | None) -> tuple[Sequence[Tensor], Sequence[Place]]:
    """The tensors that this process steps, and the slices in them."""
    if division is not None:
        return [division.local[p] for p in points.parts], division.places[points]
    return points.parts, [Place(grid, 0, grid.points) for grid in points.layouts() if isinstance(grid, Grid)]


def kind_of_pairs(points: PointSet, state: State, rule: Rule, options: Options) -> tuple[Any, ...]:
    """What point sets have in common that are stepped together: manifold, dtype, device, vectors."""
    assert isinstance(points.manifold, FixedRank)
    needed = rule.needs(options)
    names = [name for name in rule.vectors if name in needed or all(name in state.get(p, {}) for p in points.parts)]
    return replace(points.manifold, n=None), points.parts[0].dtype, points.parts[0].device, tuple(names)


def step_pairs(
    sets: Mapping[PointSet, bool], state: State, rule: Rule, options: Options, division: Division | None = None
) -> Step[None]:
    """One step of point sets of one `kind_of_pairs` and their state, in place; of each, whether vectors that the rule needs are
    missing. Gradients are not written to.

    With a `division` it sends the sums of this process, at most twice, in float64; before the first nothing is written but
    `state`.
    """
    first = next(iter(sets))
    manifold, dtype, device = first.manifold, first.parts[0].dtype, first.parts[0].device
    assert isinstance(manifold, FixedRank)
    if isinstance(options["lr"], Tensor):
        options = {**options, "lr": options["lr"].to(device, dtype).reshape(())}
    pairs = [_Pairs(points, fresh, state, rule, options, division) for points, fresh in sets.items()]
    x, counts = [each.x for each in pairs], [each.x.count for each in pairs]
    wide = division is not None and dtype != torch.float64
    summed = division is not None
    squares = [all_grams([each.g for each in pairs], wide=wide)] if summed and pairs[0].measured else []
    grams, *squares = yield from _total(division, dtype, all_grams(x, wide=wide), *squares)
    for i, (each, metric) in enumerate(zip(pairs, _metrics(manifold, x, grams, summed), strict=True)):
        each.move(metric.to(dtype), *(metric.length(total.split(counts, 1)[i]).to(dtype) for total in squares))
    names = pairs[0].vectors
    if options["transport"] == "none" or not names:
        return
    alongs = [all_grams(x, [each.vectors[name] for each in pairs], wide) for name in names]
    grams, *alongs = yield from _total(division, dtype, all_grams(x, wide=wide), *alongs)
    metrics = _metrics(manifold, x, grams, summed)

    def divided(a: Tensor) -> Tensor:
        return torch.cat([each.divided(own) for each, own in zip(metrics, a.split(counts, 1), strict=True)], 1)

    for name, along in zip(names, alongs, strict=True):
        if manifold.k == 1:
            share = manifold.vertical_share(*grams, *along).to(dtype)
            turns = -share, manifold.degree * share
        else:
            turn = manifold.turn(grams[0], grams[1], along[0], along[1], divided).to(dtype)
            turns = -turn, turn.mT
        for each, *factors in zip(pairs, *(turn.split(counts) for turn in turns), strict=True):
            each.vectors[name].add_(each.x, factors)


def _total(division: Division | None, dtype: torch.dtype, *sums: Tensor) -> Step[Sequence[Tensor]]:
    """The totals of sums over all processes; they are sent as numbers of `dtype`, like what is gathered, so that one collective takes
    both."""
    if division is None:
        return sums
    sent = torch.cat([each.double().flatten() for each in sums])
    answer = yield division.group, sent.view(dtype)
    total = answer.clone(memory_format=torch.contiguous_format).view(torch.float64).sum(0)
    pieces = total.split([each.numel() for each in sums])
    return [piece.view(each.shape) for piece, each in zip(pieces, sums, strict=True)]


class _Pairs:
    """One point set in a step, with its gradient and state."""

    def __init__(
        self, points: PointSet, fresh: bool, state: State, rule: Rule, options: Options, division: Division | None
    ) -> None:
        slices, needed = points.slices, rule.needs(options)
        parts, places = _located(points, division)
        assert isinstance(slices, Factors)
        for p in parts:
            for name in needed:
                if name not in state[p]:
                    state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        names = [name for name in rule.vectors if all(name in state[p] for p in parts)]
        self._layout, self._lead, self._suffix = points.layouts()[0], parts[0], points.suffix
        count = self._layout.batch[0]

        def sides(tensors: Sequence[Any]) -> Sides:
            return Sides.of(tensors, places, len(slices.left), count)

        self.x, self.g = sides(parts), sides([p.grad.to(p.dtype) for p in parts if p.grad is not None])
        self.vectors = {name: sides([state[p][name] for p in parts]) for name in names}
        self._entry, self._fresh, self._rule, self._options = state[parts[0]], fresh, rule, options
        self.measured = rule.reads_lengths or options["max_point_norm"] is not None

    def move(self, metric: _Metric, length: Any = None) -> None:
        """Take the step of the points and their vectors, which are carried unchanged; the `length` of the gradient may be known."""
        options, limit = self._options, self._options["max_point_norm"]
        source, factors, found = metric.gradient(self.g, self.measured and length is None)
        length = found if length is None else length
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
                entry[stored] = new_scalar(name, rule, self._layout, self._lead)
            scalars[name] = entry[stored].view(-1, 1).to(dtype)
        step = _counted(entry, self._suffix) if rule.counts_steps else None
        memory = Memory(dtype, self._fresh, scalars=scalars, step=step)
        coefficients = rule(length, memory, self._options)
        for name in rule.scalars:
            entry[name + self._suffix].copy_(memory.scalars[name].view(-1, 1, 1))
        return coefficients


class _Metric:
    """The metric at the points of one set: inverse weights of both factors, (2, points, k, k), and the inverses of their lower
    triangular roots, where they have to be applied one after the other."""

    def __init__(self, inverses: Tensor, triangles: Tensor | None = None) -> None:
        self._inverses, self._triangles = inverses, triangles

    def gradient(self, g: Sides, measured: bool) -> tuple[Sides, Any, Any]:
        """An array and factors whose product is the Riemannian gradient, and if `measured` its length, (points, 1, 1)."""
        if self._triangles is not None:
            source = g.times(self._triangles.mT)
            return source, self._triangles, root_of_sums(source, source, 1.0) if measured else None
        if not measured or self._inverses.shape[-1] == 1:
            return g, self._inverses, root_of_sums(g, g, self._inverses) if measured else None
        source = g.times(self._inverses)
        return source, (1.0, 1.0), root_of_sums(source, g, 1.0)

    def divided(self, a: Tensor) -> Tensor:
        """The inverse weights times matrices of both factors, (2, points, k, k)."""
        if self._triangles is None:
            return self._inverses @ a
        return self._triangles.mT @ (self._triangles @ a)

    def length(self, squares: Tensor) -> Tensor:
        """The length of the gradient, (points, 1, 1), from the Grams of its factors, (2, points, k, k)."""
        return self.divided(squares).diagonal(dim1=-2, dim2=-1).sum((0, -1)).clamp(min=0.0).sqrt().view(-1, 1, 1)

    def to(self, dtype: torch.dtype) -> _Metric:
        """The same in `dtype`."""
        return _Metric(self._inverses.to(dtype), None if self._triangles is None else self._triangles.to(dtype))


def _metrics(manifold: FixedRank, sides: Sequence[Sides], grams: Tensor, summed: bool) -> list[_Metric]:
    """The metric at the points of each set; weights are factored together, and again where that is too rough, set by set, but
    not those that are `summed` over processes, in float64."""
    weights = torch.stack(manifold.weights_of(*grams))
    counts = [side.count for side in sides]
    if manifold.k == 1:
        return [_Metric(inverses) for inverses in (1.0 / weights).split(counts, 1)]
    if summed:
        triangles = inverse_triangle(numerics.cholesky(weights))
        return [_Metric(each, each) for each in triangles.split(counts, 1)]
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


def _careful(manifold: FixedRank, sides: Sequence[Sides], weights: Tensor) -> list[_Metric]:
    """Metrics by triangles."""
    counts = [side.count for side in sides]

    def grams(matrices: Tensor) -> Tensor:
        pairs = zip(sides, matrices.split(counts, 1), strict=True)
        return all_grams([side.times(own.flip(0)) for side, own in pairs]).flip(0)

    triangles = inverse_triangle(manifold.roots_of(weights, grams))
    return [_Metric(each, each) for each in triangles.split(counts, 1)]


def _per_point(number: Any) -> Any:
    return number.view(-1, 1, 1) if isinstance(number, Tensor) and number.ndim else number


def _counted(entry: dict[str, Any], suffix: str) -> Tensor:
    """The number of this step, which `entry` counts."""
    local = {"step": entry["step" + suffix]} if "step" + suffix in entry else {}
    (step,) = count_steps([local])
    entry["step" + suffix] = step
    return step
