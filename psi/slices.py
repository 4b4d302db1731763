"""Scale-invariant points that are slices of a parameter: heads, sections or units of a fused weight, with indices measured and not
read from names.

The charges ⟨w, ∂L/∂w⟩ of the slices of an invariant point add up to 0 (Euler's identity), whatever the weights are. So the partial
sums of charges along an axis are equal in front of the point and behind it, and two equal ones without another between them are its
ends. Slices of a point may also lie at a distance, as where the units of a head are the outer dimension: then the same holds of every
so many-th charge. Or they are at the same places in every stretch of an axis, as where queries, keys and values of each head are side by
side and a layer normalizes the queries of all heads together: then it holds of sums over all stretches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from ..manifolds import Rows
from ..manifolds.parameters.factors import Factors
from .blocks import factors
from .charges import Array, Axis, Bundle, Charges, Indices
from .cuts import Cut
from .euler import Tolerances
from .relations import Relation, Slices
from .rescaling import Rescaling
from .verdicts import LATE, Search, Sliced

__all__ = ["slices"]

MANY = 2**18
"""Partial sums along one axis that are compared with each other, at most, if those of neighbouring slices are no more: distances that
are left out are the large ones of axes of some thousand slices."""


@dataclass(frozen=True)
class _Runs:
    """Points of equally many slices each, of one weight or with its bias."""

    bundle: Bundle
    columns: Indices
    """The slices of each point, (points, number)."""

    @property
    def name(self) -> str:
        """Of the weight."""
        return self.bundle.main.name

    @property
    def starts(self) -> Indices:
        """The first slice of each point."""
        return self.columns[:, 0]

    @property
    def number(self) -> int:
        """How many slices a point has."""
        return self.columns.shape[1]

    @property
    def span(self) -> int:
        """How far they are apart."""
        return int(self.columns[0, -1] - self.columns[0, 0])

    def at(self, places: Indices) -> _Runs:
        """Some of the points."""
        return replace(self, columns=self.columns[places])

    def sums(self) -> tuple[Array, Array]:
        """Of the charges of each point, and the size that they would have if products had random signs: (passes, points)."""
        squares = self.bundle.sizes[:, self.columns] ** 2
        return self.bundle.values[:, self.columns].sum(2), np.sqrt(squares.sum(2))

    @property
    def residual(self) -> float:
        """The largest sum of the first pass relative to that size."""
        sums, sizes = self.sums()
        return float((np.abs(sums) / sizes)[0].max())

    def grids(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[Cut, _Runs]]:
        """The points as cuts on regular grids, as few as it takes."""
        axes = self.bundle.axes
        whole = tuple(Slices(axis, np.arange(self.bundle.values.shape[1])) for axis in axes)
        joined = tuple(axis.name.rpartition(".")[2] for axis in axes[1:])
        for both, columns in factors(Relation(whole, ()), self.columns, shapes):
            # Manifolds of vectors do not say how many slices a point has.
            number = self.number if self.number > 1 else None
            parts = (replace(part, columns=part.columns or number) for part in both.left)
            cut = Cut(self.name, "slices", Rows(), joined, len(columns), Factors(tuple(parts)))
            yield cut, replace(self, columns=columns)

    def single(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[Cut, _Runs]]:
        """Each of several points as a cut of its own."""
        for place in range(len(self.starts) if len(self.starts) > 1 else 0):
            yield from self.at(np.array([place])).grids(shapes)


def slices(charges: Charges, search: Search, tolerances: Tolerances, rescaling: Rescaling) -> Sliced:
    """The points that rescaling confirms, of parameters that are not invariant as a whole, or all of which are, in fewer points."""
    found = _candidates(charges, search, tolerances.charges, charges.floor(tolerances.dead))
    cuts = {cut: some for runs in found for cut, some in runs.grids(charges.shapes)}
    good, late = rescaling.unchanged(list(cuts))
    # What holds of some points of a grid only is tried point by point.
    failed = [runs for cut, runs in cuts.items() if cut not in good and cut not in late]
    points = {cut: some for runs in failed for cut, some in runs.single(charges.shapes)}
    alone, more = rescaling.unchanged(list(points))
    kept = {cut: cuts[cut] for cut in good}
    for runs in failed:
        starts = [int(points[cut].starts[0]) for cut in alone if points[cut].bundle is runs.bundle]
        places = np.flatnonzero(np.isin(runs.starts, starts))
        if len(places):
            kept |= runs.at(places).grids(charges.shapes)
    search.notes |= {cut.name: LATE for cut in [*late, *more] if cut.name not in search.proven}
    proven: dict[str, list[Cut]] = {}
    for cut in kept:
        proven.setdefault(cut.name, []).append(cut)
    for name in proven.keys() & search.proven.keys():
        if sum(cut.count for cut in proven[name]) == sum(cut.count for cut in cuts if cut.name == name):
            del search.proven[name]
        else:
            del proven[name]
    return Sliced(proven, {cut: runs.residual for cut, runs in kept.items()})


def _candidates(charges: Charges, search: Search, tolerance: float, floor: Array) -> list[_Runs]:
    """Points whose charges add up to 0, within `tolerance` of their size and beyond the `floor` of each pass.

    Of a parameter they are along one dimension, or along two that are counted together: the one along which they have the most entries, and
    then the most points. Along it points of few slices come first, and weights before weights with a bias: one that is dead does not mind to
    scale along, and need not. What is invariant as a whole is cut only if all of it is, in more points.
    """
    divisible = search.divisible
    bundles: dict[str, dict[Axis, list[Bundle]]] = {}
    for bundle in charges.bundles():
        name = bundle.main.name
        own = len(charges.shapes[name]) > 1 and bundle.singles
        if own and all(axis.name in divisible.get(name, ()) for axis in bundle.axes):
            bundles.setdefault(name, {}).setdefault(bundle.main, []).append(bundle)
    found = []
    for name, axes in bundles.items():
        best = max((_disjoint(some, tolerance, floor) for some in axes.values()), key=_extent)
        share, points = _extent(best)
        if name not in search.proven or (share == 1 and points > search.proven[name].count):
            found += best
    return found


def _extent(found: list[_Runs]) -> tuple[Fraction, int]:
    """The share of the weight, and the number of points."""
    share = sum((Fraction(runs.columns.size, runs.bundle.values.shape[1]) for runs in found), Fraction())
    return share, sum(len(runs.starts) for runs in found)


def _disjoint(bundles: list[Bundle], tolerance: float, floor: Array) -> list[_Runs]:
    """Points along one axis that have no slice in common."""
    found = [runs for bundle in bundles for runs in _runs(bundle, tolerance, floor[:, None])]
    taken = np.zeros(bundles[0].values.shape[1], bool)
    kept = []
    for runs in sorted(found, key=lambda runs: (runs.number, len(runs.bundle.axes), runs.span)):
        places = []
        for place, columns in enumerate(runs.columns):
            if not taken[columns].any():
                taken[columns] = True
                places.append(place)
        if places:
            kept.append(runs.at(np.array(places)))
    return kept


def _runs(bundle: Bundle, tolerance: float, floor: Array) -> Iterator[_Runs]:
    """The shortest runs of slices at equal distances whose charges add up to 0, though not all are 0; and those of the same places in all
    stretches of equal length."""
    length = bundle.values.shape[1]
    divisors = (np.flatnonzero(length % np.arange(1, length // 2 + 1) == 0) + 1).tolist()
    distances = divisors[: max(1, MANY // length)]
    for distance in distances:
        for columns in _between(bundle, distance, tolerance):
            if columns.shape[1] < length and (columns.shape[1] > 1 or distance == 1):
                yield from _vanishing(_Runs(bundle, columns), tolerance, floor)
    for distance in distances[1:]:
        shape = (-1, length // distance, distance)
        values, squares = (each.reshape(shape).sum(1) for each in (bundle.values, bundle.sizes**2))
        for columns in _between(replace(bundle, values=values, sizes=np.sqrt(squares)), 1, tolerance):
            if 1 < columns.shape[1] < distance:
                every = columns[:, None] + distance * np.arange(length // distance)[:, None]
                yield from _vanishing(_Runs(bundle, every.reshape(len(columns), -1)), tolerance, floor)


def _vanishing(runs: _Runs, tolerance: float, floor: Array) -> Iterator[_Runs]:
    """The points whose charges add up to 0, though not all are 0."""
    sums, sizes = runs.sums()
    live = sizes > floor
    vanish = ((np.abs(sums) <= tolerance * sizes) | ~live).all(0) & live[0] & live[1:].any(0)
    if vanish.any():
        yield runs.at(np.flatnonzero(vanish))


def _between(bundle: Bundle, distance: int, tolerance: float) -> Iterator[Indices]:
    """The slices between equal partial sums of every `distance`-th charge that have no other equal one between them, (runs, number) for
    each number."""
    first = _partial(bundle.values[0], distance)
    ordered = np.sort(first)
    if (ordered[:, 1:] - ordered[:, :-1]).min() > tolerance * np.linalg.norm(bundle.sizes[0]):
        return  # nearly always
    order = np.argsort(first)
    equal = np.ones((distance, order.shape[1] - 1), bool)
    for charges, sizes in zip(bundle.values, bundle.sizes, strict=True):
        sums, squares = (_partial(terms, distance) for terms in (charges, sizes**2))
        gap, square = (np.abs(np.diff(np.take_along_axis(each, order, -1))) for each in (sums, squares))
        equal = equal & (gap <= tolerance * np.sqrt(square))
        if not equal.any():
            return
    labels = np.zeros(order.shape, np.int64)
    np.put_along_axis(labels, order[:, 1:], (~equal).cumsum(-1), -1)
    places = np.argsort(labels, kind="stable")
    chain, at = np.nonzero(np.diff(np.take_along_axis(labels, places, -1)) == 0)
    starts, numbers = places[chain, at] * distance + chain, places[chain, at + 1] - places[chain, at]
    for number in np.unique(numbers).tolist():
        yield np.sort(starts[numbers == number])[:, None] + distance * np.arange(number)


def _partial(terms: Array, distance: int) -> Array:
    """Partial sums of every `distance`-th term, (distance, terms + 1)."""
    chains = terms.reshape(-1, distance).T
    return np.concatenate([np.zeros((distance, 1)), chains.cumsum(1)], 1)
