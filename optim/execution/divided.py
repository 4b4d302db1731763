"""Pairs whose parts are divided among processes: each has rows of a factor, or all of some points, and their Grams are summed.

Nothing is gathered, unless a point is torn between its columns, as the rows of a low-rank factor are. Layout only; no formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...manifolds.parameters.factors import Factors, Grid
from ...manifolds.parameters.shards import Cut, cut_of, is_sharded
from ..kernels.sums import Message, Step
from ..options import Options
from ..rules import Rule
from .pairs import Division, are_in_place, kind_of_pairs, step_pairs
from .points import PointSet, State
from .shards import Shard
from .sides import Place

__all__ = ["DividedPairs"]


class DividedPairs:
    """The sets of a group whose sums are over processes.

    A parameter that is gathered for one of its sets is gathered for all of them.
    """

    def __init__(self, sets: Sequence[PointSet], state: State, rule: Rule, options: Options) -> None:
        places = {points: found for points in sets if (found := _places(points)) is not None}
        shards = {p: Shard(points.name, p) for points in places for p in points.parts}
        for p, shard in shards.items():
            shard.read(state.get(p, {}))
        self._local: State = {shard.local: shard.state for shard in shards.values()}
        local = {p: shard.local for p, shard in shards.items()}
        divisions = {
            points: Division(shards[points.parts[0]].cut.group, local, {points: found})
            for points, found in places.items()
        }
        self.sets = [points for points in places if are_in_place(points, self._local, rule, options, divisions[points])]
        """Those sets."""
        while True:
            gathered = {p for points in sets if points not in self.sets for p in points.parts}
            whole = [points for points in self.sets if gathered.isdisjoint(points.parts)]
            if len(whole) == len(self.sets):
                break
            self.sets = whole
        self._shards = {p: shards[p] for points in self.sets for p in points.parts}
        kinds: dict[tuple[Any, ...], dict[PointSet, bool]] = {}
        for points in self.sets:
            fresh = any(name not in shards[p].state for name in rule.needs(options) for p in points.parts)
            key = shards[points.parts[0]].cut.group, kind_of_pairs(points, state, rule, options)
            kinds.setdefault(key, {})[points] = fresh
        self._steps = [
            step_pairs(members, self._local, rule, options, Division(key[0], local, places))
            for key, members in kinds.items()
        ]

    def messages(self) -> list[Message]:
        """The first sums of this process; nothing of the optimizer is written."""
        return [next(step) for step in self._steps]

    def steps(self, answers: Sequence[Tensor]) -> list[Step[None]]:
        """The rest of the steps, from the sums of all processes."""
        return [_resumed(step, answer) for step, answer in zip(self._steps, answers, strict=True)]

    def write(self, state: State, rule: Rule) -> None:
        """Add new entries to `state`, the optimizer's."""
        for p, shard in self._shards.items():
            shard.write(state[p], rule, (), None)


def _resumed(step: Step[None], answer: Tensor) -> Step[None]:
    try:
        while True:
            answer = yield step.send(answer)
    except StopIteration:
        return


def _places(points: PointSet) -> list[Place] | None:
    """The slices of `points` in the shards of this process; None where there are no sums."""
    if not isinstance(points.slices, Factors) or not points.slices.right or not all(map(is_sharded, points.parts)):
        return None
    cuts = [cut_of(points.name, p) for p in points.parts if is_sharded(p)]
    if any(cut.axis is None or cut.group != cuts[0].group for cut in cuts):
        return None
    grids = [grid for grid in points.layouts() if isinstance(grid, Grid)]
    places = [_place(grid, cut) for grid, cut in zip(grids, cuts, strict=True)]
    return None if None in places else places  # type: ignore[return-value]


def _place(grid: Grid, cut: Cut) -> Place | None:
    """The slices in the shard of this process, and which points they are; None if a shard of any process has some columns of a
    point and not all, or points are not in the order of the cut."""
    assert cut.axis is not None
    ends = [min(rank * cut.run, cut.length) for rank in range(cut.size + 1)]
    low, high = ends[cut.rank], ends[cut.rank + 1]
    shape = (*grid.shape[: cut.axis], high - low, *grid.shape[cut.axis + 1 :])
    if cut.axis not in grid.dims:
        return Place(grid._replace(shape=shape), 0, grid.points)
    size = grid.inner_size
    (number, distance), *inner = grid.point_levels
    if cut.axis != grid.dims[0] or any(d >= size for _, d in inner):
        return None
    start, step = grid.start // size, distance // size
    extent = sum((n - 1) * (d // size) for n, d in grid.row_levels + grid.column_levels)
    spans = [(start + i * step, start + i * step + extent) for i in range(number)]
    if any(first < end <= last for first, last in spans for end in ends):
        return None
    mine = [i for i, (first, _) in enumerate(spans) if low <= first < high]
    each = grid.points // number
    first, last = (mine[0], mine[-1] + 1) if mine else (0, 0)
    moved = grid.start + first * distance - low * size
    found = grid._replace(start=moved if mine else 0, point_levels=((len(mine), distance), *inner), shape=shape)
    return Place(found, first * each, last * each)
