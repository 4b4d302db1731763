"""Which slices of weights have equal charges: candidates for pairs of factors, with indices measured and not read from names.

Three searches, each among what those before it have left:

1. Single slices with equal charges, or with charges that are 2 or 3 times each other, anywhere in the network: a sort.
2. Whole axes of equal length with a linear relation, such as a normalization layer's weight and the columns of the several weights
   after it: a null space.
3. Sums of slices at equal distances, within an axis: the query heads that share a key head, the two numbers of a frequency of a
   rotary embedding, the positions that a channel is flattened to, the outputs of a group of a convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..manifolds.parameters.factors import Levels
from .charges import Array, Axis, Bundle, Charges, Indices
from .dependence import dependences
from .windows import Window, windows

__all__ = ["Relation", "Slices", "relations"]

DEGREES = (1, 2, 3)
"""Degrees of activations that are looked for; 1 is that of a product, and of ReLU."""
CLEAR = 1e3
"""A charge is clearly not zero from so many times the tolerance on."""
MANY = (2**20, 2**18, 2**17)
"""Sums that are compared with all others, at most: on axes that are in relations in part; on others, of one level; of two."""

SPARSE = 0.8
"""Share of an axis with a gradient below which it counts as sparse."""
LAGS = 64
"""Entries in a row that are compared with each other, at most."""

WHOLE = Window()


@dataclass(frozen=True)
class Slices:
    """Slices of one parameter: those of column c start at ``offsets[c]``, and `rows` is a grid of further ones."""

    axis: Axis
    offsets: Indices
    rows: Levels = ()

    @property
    def indices(self) -> Indices:
        """(columns, rows)."""
        return self.offsets[:, None] + Window(self.rows).shifts

    def take(self, columns: Indices) -> Slices:
        """Some of the columns."""
        return Slices(self.axis, self.offsets[columns], self.rows)


@dataclass(frozen=True)
class Relation:
    """The charges of `left`, summed over its slices, are `degree` times those of `right`, column by column."""

    left: tuple[Slices, ...]
    right: tuple[Slices, ...]
    degree: float = 1.0

    def take(self, columns: Indices) -> Relation:
        """Some of the columns."""
        left, right = (tuple(part.take(columns) for part in side) for side in (self.left, self.right))
        return Relation(left, right, self.degree)

    def residuals(self, charges: Charges, floor: Array) -> Array:
        """Largest difference of the charges of each column in any pass, relative to their size; 0 without a gradient."""
        (left, left2), (right, right2) = (
            (
                np.sum([bundle.values[:, part.indices].sum(-1) for bundle, part in found], 0),
                np.sum([(bundle.sizes[:, part.indices] ** 2).sum(-1) for bundle, part in found], 0),
            )
            for found in ([(charges.bundle(part.axis), part) for part in side] for side in (self.left, self.right))
        )
        gap, size = np.abs(left - self.degree * right), np.sqrt(left2) + self.degree * np.sqrt(right2)
        live = size > floor[:, None]
        return np.where(live, gap / np.where(live, size, 1.0), 0.0).max(0)


class _Entries:
    """Sums of charges from several sources, one after the other: (passes, entries), of the first two passes."""

    def __init__(self, parts: Sequence[tuple[Bundle, Window]], floor: float) -> None:
        self.bundles, self.windows = [bundle for bundle, _ in parts], [window for _, window in parts]
        found = [self.part(source, 2) for source in range(len(self.bundles))]
        self.values, self.sizes = (np.concatenate([part[side] for part in found], 1) for side in (0, 1))
        # Where most of an axis has no gradient, as rows of an embedding, sums that begin or end there are those of shorter windows.
        alive = {bundle: bundle.sizes[0] > floor for bundle in self.bundles}
        sparse = {bundle for bundle, live in alive.items() if live.mean() < SPARSE}
        counts = [values.shape[1] for values, _ in found]
        self.alive = np.concatenate(
            [
                window.ends(alive[bundle]) if bundle in sparse and window.block is None else np.ones(count, bool)
                for bundle, window, count in zip(self.bundles, self.windows, counts, strict=True)
            ]
        )
        self.starts = np.cumsum([0, *counts])
        self.source = np.repeat(np.arange(len(counts)), counts)

    def part(self, source: int, passes: int | None = None) -> tuple[Array, Array]:
        """Values and sizes of one source, of the first passes or of all."""
        values, squares = self.windows[source].sums(self.bundles[source].sums[:, :passes])
        return values, np.sqrt(np.maximum(squares, 0.0))

    def slices(self, source: int, places: Indices) -> tuple[Slices, ...]:
        """The slices that the sums at those places of a source are made of."""
        bundle, window = self.bundles[source], self.windows[source]
        offsets = window.offsets(bundle.values.shape[1])[places]
        return tuple(Slices(axis, offsets, window.levels) for axis in bundle.axes)


def relations(charges: Charges, tolerance: float, floor: Array) -> list[Relation]:
    """All relations that hold within `tolerance` of the size of the charges, where these exceed the `floor` of each pass."""
    search = _Search(charges, tolerance, floor)
    if charges.axes:
        search.singles()
        search.axes()
        search.sums()
    return search.found


class _Search:
    def __init__(self, charges: Charges, tolerance: float, floor: Array) -> None:
        self.charges, self.tolerance, self.floor = charges, tolerance, floor[:, None]
        self.order = {name: number for number, name in enumerate(charges.shapes)}
        self.claimed = {axis: np.zeros(charges.length(axis), bool) for axis in charges.axes}
        self.bundles = charges.bundles()
        self.found: list[Relation] = []
        self.group = {name: name for name in charges.shapes}
        """Of parameters that a relation joins, directly or through others, all have the same."""

    def singles(self) -> None:
        """Slices with equal charges. Of several that are equal each is paired with one of them only. Relations of the most slices come
        first: a bias that is dead in some of them belongs to these, too."""
        entries = _Entries([(bundle, WHOLE) for bundle in self.bundles if bundle.singles], self.floor[0, 0])
        starts = dict(zip(self.claimed, np.cumsum([0, *map(len, self.claimed.values())]), strict=False))
        label = np.arange(sum(map(len, self.claimed.values())))
        groups = [(degree, *group) for degree in DEGREES for group in self._groups(entries, degree)]

        def parts(group: tuple[int, int, int, Indices, Indices]) -> tuple[int, ...]:
            degree, a, b, i, _ = group
            one, other = entries.bundles[a], entries.bundles[b]
            dims = len(one.main.dims) + len(other.main.dims)
            latest = max(self.order[one.main.name], self.order[other.main.name])
            return (-dims, degree, -len(i), len(one.axes) + len(other.axes), -latest)

        finer: list[tuple[Axis, Axis]] = []
        for degree, a, b, i, j in sorted(groups, key=parts):
            one, other = entries.bundles[a].main, entries.bundles[b].main
            if any(_within(one, x) and _within(other, y) for pair in finer for x, y in (pair, pair[::-1])):
                continue
            # That the charges of two whole weights are equal follows from relations of their slices.
            joined = self.group[one.name] == self.group[other.name]
            if joined and (self._alone(entries.bundles[a]) or self._alone(entries.bundles[b])):
                continue
            left, right = label[starts[one] + i], label[starts[other] + j]
            new = left != right
            if new.any() and not self._only(one, i) and not self._only(other, j):
                names = np.arange(len(label))
                names[right[new]] = left[new]
                label = names[label]
                self._add(Relation(entries.slices(a, i[new]), entries.slices(b, j[new]), float(degree)))
                if len(one.dims) + len(other.dims) > 2:
                    finer.append((one, other))
                    for axis in self.claimed:
                        if any(_within(axis, x) for x in (one, other)):
                            self.claimed[axis][:] = True

    def _alone(self, bundle: Bundle) -> bool:
        """Whether one slice is all that has a gradient."""
        return int(self._live(bundle.values, bundle.sizes)[0].sum()) == 1

    def axes(self) -> None:
        """Linear relations of whole axes."""
        lengths: dict[int, list[Axis]] = {}
        for axis, taken in self.claimed.items():
            bundle = self.charges.bundle(axis)
            live = self._live(bundle.values, bundle.sizes)
            if not taken.any() and (live[0] & live[1:].any(0)).sum() > 1 and bundle.singles:
                lengths.setdefault(len(taken), []).append(axis)
        for length, axes in lengths.items():
            columns = np.stack([self.charges.values[axis].ravel() for axis in axes], 1)
            sizes = np.stack([self.charges.bundle(axis).sizes.ravel() for axis in axes], 1)
            for coefficients in dependences(columns, sizes, self.tolerance):
                named = [axes[number].name for number in coefficients]
                sides = [{n: abs(c) for n, c in coefficients.items() if (c > 0) == up} for up in (True, False)]
                if len(set(named)) < len(named) or any(len(set(side.values())) != 1 for side in sides):
                    continue
                left, right = (tuple(Slices(axes[n], np.arange(length)) for n in side) for side in sides)
                one, other = (next(iter(side.values())) for side in sides)
                self._add(Relation(left, right, float(other / one)))

    def sums(self) -> None:
        """Sums of slices with equal charges: first among weights that as a whole have equal charges, then among all."""
        for cluster in self._clusters():
            self._compare([part for bundle in cluster for part in self._windows(bundle, fused=False)])
        free = [b for b in self.bundles if self._free(b)]
        parts: list[list[tuple[Bundle, Window]]] = [[], [], []]
        left = list(MANY)
        for bundle in sorted(free, key=lambda b: b.values.shape[1]):
            partly = self.claimed[bundle.main].any()
            for _, window in self._windows(bundle, fused=True):
                rank = 0 if partly else max(1, len(window.levels))
                left[rank] -= window.places(bundle.values.shape[1])
                if left[rank] >= 0:
                    parts[rank].append((bundle, window))
        self._compare([part for some in parts for part in some])

    def _free(self, bundle: Bundle) -> bool:
        return not self.claimed[bundle.main].all() and bool(self._live(bundle.values, bundle.sizes)[0].any())

    def _windows(self, bundle: Bundle, *, fused: bool) -> list[tuple[Bundle, Window]]:
        found = windows(bundle, self.charges.shapes[bundle.main.name], fused=fused)
        return [(bundle, window) for window in ([WHOLE] if bundle.singles else []) + list(found)]

    def _clusters(self) -> list[list[Bundle]]:
        """Bundles of several parameters whose charges have equal sums."""
        free = [b for b in self.bundles if self._free(b) and not self.claimed[b.main].any()]
        totals = [(b.values.sum(1), self.tolerance * np.sqrt((b.sizes**2).sum(1)), b) for b in free]
        totals.sort(key=lambda entry: float(entry[0][0]))
        found: list[list[Bundle]] = []
        for place, (total, size, bundle) in enumerate(totals):
            before, slack, _ = totals[place - 1]
            equal = place > 0 and bool((np.abs(total - before) <= size + slack).all())
            found = [*found[:-1], [*found[-1], bundle]] if equal else [*found, [bundle]]
        return [some for some in found if len({b.main.name for b in some}) > 1]

    def _compare(self, parts: list[tuple[Bundle, Window]]) -> None:
        """Add the relations of sums with equal charges, those with the most of them first: sums of sums have fewer."""
        if not parts:
            return
        entries = _Entries(parts, self.floor[0, 0])

        def finest(group: tuple[int, int, Indices, Indices]) -> tuple[int, int, int]:
            a, b, i, _ = group
            axes = len(entries.bundles[a].axes) + len(entries.bundles[b].axes)
            return -len(i), entries.windows[a].count + entries.windows[b].count, axes

        for a, b, i, j in sorted(self._groups(entries, 1), key=finest):
            sides = entries.slices(a, i), entries.slices(b, j)
            first, second = sides[0][0].indices, sides[1][0].indices
            free_ = ~(self.claimed[sides[0][0].axis][first].any(1) | self.claimed[sides[1][0].axis][second].any(1))
            free_ &= ~self._apart_too(entries, (a, i), (b, j))
            if sides[0][0].axis == sides[1][0].axis:
                free_ &= ~(first[:, :, None] == second[:, None, :]).any((1, 2))
            names = [bundle.main.name for bundle in (entries.bundles[a], entries.bundles[b])]
            total = any(side[0].indices.shape[1] == len(self.claimed[side[0].axis]) for side in sides)
            total |= any(self._alone(entries.bundles[source]) for source in (a, b))
            if free_.any() and not (total and self.group[names[0]] == self.group[names[1]]):
                self._add(Relation(*sides).take(np.flatnonzero(free_)))

    def _apart_too(self, entries: _Entries, *sides: tuple[int, Indices]) -> NDArray[np.bool_]:
        """Where each of the two slices that both sides are sums of has an equal one: what is not turned of a head that is turned in part."""
        levels = [entries.windows[source].levels[-1:] for source, _ in sides]
        if any(level[0][0] != 2 if level else True for level in levels):
            return np.zeros(len(sides[0][1]), bool)
        apart = np.ones(len(sides[0][1]), bool)
        for second in (0, 1):
            (one, size), (other, size2) = (
                Window(entries.windows[source].levels[:-1]).sums(entries.bundles[source].sums)[
                    ..., places + second * entries.windows[source].levels[-1][1]
                ]
                for source, places in sides
            )
            sizes = np.sqrt(np.maximum(size, 0.0)) + np.sqrt(np.maximum(size2, 0.0))
            apart &= (np.abs(one - other) <= self.tolerance * sizes).all(0)
        return apart

    def _groups(self, entries: _Entries, degree: int) -> Iterator[tuple[int, int, Indices, Indices]]:
        """(source, source, places, places) with equal charges, places that are not clear included where they are between others."""
        i, j = self._equal(entries, degree)
        a, b = entries.source[i], entries.source[j]
        order = np.lexsort((i, b, a))
        i, j, a, b = i[order], j[order], a[order], b[order]
        edges = np.flatnonzero(np.r_[True, (np.diff(a) != 0) | (np.diff(b) != 0), True]) if len(a) else np.zeros(1, int)
        for start, end in pairwise(edges.tolist()):
            one, other = int(a[start]), int(b[start])
            if self._apart(entries.bundles[one], entries.bundles[other]):
                places = i[start:end] - entries.starts[one], j[start:end] - entries.starts[other]
                yield one, other, *self._filled(entries.part(one), entries.part(other), *places, degree)

    def _apart(self, one: Bundle, other: Bundle) -> bool:
        """Whether two bundles have no entry of a parameter in common, or may have none: rows and columns of one weight always have."""
        return all(x.name != y.name or (x == y and one.axes == other.axes) for x in one.axes for y in other.axes)

    def _equal(self, entries: _Entries, degree: int) -> tuple[Indices, Indices]:
        """Entries i, j with charges cᵢ = degree · cⱼ in all passes."""
        live = self._live(entries.values, entries.sizes)
        kept = np.flatnonzero(entries.alive & live[0] & live[1:].any(0))
        scale = np.ones(len(kept))
        if degree > 1:
            kept, scale = np.concatenate([kept, kept]), np.repeat([1.0, degree], len(kept))
        first = scale * entries.values[0, kept]
        order = np.argsort(first)
        kept, scale, first = kept[order], scale[order], first[order]
        sizes = self.tolerance * scale * entries.sizes[0, kept]
        near = np.diff(first) <= sizes[:-1] + sizes[1:]
        chain, lag, found = near, 1, []
        while lag <= LAGS and chain.any():
            at = np.flatnonzero(chain)
            if degree > 1:
                at = at[scale[at] != scale[at + lag]]
            a, b = kept[at], kept[at + lag]
            gap = np.abs(scale[at] * entries.values[:, a] - scale[at + lag] * entries.values[:, b])
            size = scale[at] * entries.sizes[:, a] + scale[at + lag] * entries.sizes[:, b]
            equal = (gap <= self.tolerance * size).all(0)
            a, b, swap = a[equal], b[equal], (scale[at] > scale[at + lag])[equal]
            if degree == 1:
                swap = a > b
            found.append(np.stack([np.where(swap, b, a), np.where(swap, a, b)]))
            chain, lag = chain[:-1] & near[lag:], lag + 1
        i, j = np.concatenate(found, 1) if found else np.zeros((2, 0), int)
        return i, j

    def _filled(
        self, one: tuple[Array, Array], other: tuple[Array, Array], i: Indices, j: Indices, degree: int
    ) -> tuple[Indices, Indices]:
        """Places i, j, and those next to them at the same distance that are as equal, though they may be zero."""
        found = []
        for distance in np.unique(j - i):
            low, high = max(0, -distance), min(one[0].shape[1], other[0].shape[1] - distance)
            a, b = slice(low, high), slice(low + distance, high + distance)
            gap = np.abs(one[0][:, a] - degree * other[0][:, b])
            equal = (gap <= self.tolerance * (one[1][:, a] + degree * other[1][:, b])).all(0)
            runs = np.cumsum(~equal)
            good = np.flatnonzero(equal & np.isin(runs, runs[i[j - i == distance] - low]))
            found.append(np.stack([good + low, good + low + distance]))
        places = np.concatenate(found, 1)
        for side in (0, 1):  # a place has one partner
            places = places[:, np.unique(places[side], return_index=True)[1]]
        return places[0], places[1]

    def _only(self, axis: Axis, places: Indices) -> bool:
        """Whether most slices along two dimensions are the only ones with a gradient of a slice along one of them, and so no finer."""
        if len(axis.dims) < 2:
            return False
        fine, size = self.charges.bundle(axis), self.charges.shapes[axis.name][axis.dims[1]]
        same = np.zeros(len(places), bool)
        for dim, index in zip(axis.dims, np.divmod(places, size), strict=True):
            coarse = self.charges.bundle(Axis(axis.name, (dim,)))
            gap = np.abs(coarse.values[:, index] - fine.values[:, places])
            same |= (gap <= self.tolerance * (coarse.sizes[:, index] + fine.sizes[:, places])).all(0)
        return bool(same.mean() > 0.5)

    def _live(self, values: Array, sizes: Array) -> NDArray[np.bool_]:
        """Where charges are clearly not zero."""
        return (sizes > self.floor[: len(sizes)]) & (np.abs(values) > CLEAR * self.tolerance * sizes)

    def _add(self, relation: Relation) -> None:
        """Take down a relation. Its right side has the first of its parameters, or the one whose charges count for more."""
        left, right = relation.left, relation.right
        first = [min(self.order[part.axis.name] for part in side) for side in (left, right)]
        at = [int(side[0].offsets[0]) for side in (left, right)]
        swap = relation.degree < 1 or (relation.degree == 1 and (first[0], at[0]) < (first[1], at[1]))
        self.found.append(Relation(right, left, 1 / relation.degree) if swap else relation)
        joined = {self.group[part.axis.name] for part in left + right}
        self.group = {name: min(joined) if group in joined else group for name, group in self.group.items()}
        for part in left + right:
            self.claimed[part.axis][part.indices] = True


def _within(one: Axis, other: Axis) -> bool:
    """Whether the slices of `other` are finer than those of `one`."""
    return one.name == other.name and one != other and set(one.dims) <= set(other.dims)
