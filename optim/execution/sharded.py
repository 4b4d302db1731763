"""Parameters that are sharded over processes (DTensors of FSDP2 and of tensor parallelism). Layout only; no formula.

Every process steps plain tensors:

- `Local`: points that lie whole in one shard are stepped where they are, by any path, without a word between processes.
- `Thin`: of other vectors every process holds some coordinates. The update commutes with rotations, so it is carried out
  in the two or three dimensions that a point, its gradient and its vector span. Coordinates there come from a QR
  factorisation in two stages (TSQR; Demmel, Grigori, Hoemmen, Langou 2012), for which processes exchange at most nine
  numbers per point.
- `Whole`: everything else is gathered and stepped by everybody, and each process keeps its part.

An orthogonality penalty couples the points of a tensor: their unit representatives are gathered. All that the points of
a parameter group exchange in a step goes in one collective (per process group and dtype).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import OptionError
from ...manifolds import Euclidean, Rows, Spherical
from ...manifolds.parameters.shards import Cut, cut_of, is_sharded
from ..options import Options
from ..rules import Rule
from ..stages import is_penalised
from .dispatch import Group
from .mirrors import Local, Parcel, Sharded, Thin, Whole
from .plan import Plan
from .points import PointSet, State, point_sets

__all__ = ["ShardedGroup", "check_sharding"]


def check_sharding(points: PointSet, options: Options) -> None:
    """Raise what keeps sharded `points` from being stepped.

    That is `GeometryError` as `cut_of` raises it, and `OptionError` for a mixture of plain and sharded parts and for
    `differentiable`.
    """
    sharded = [part for part in points.parts if is_sharded(part)]
    if sharded and len(sharded) < len(points.parts):
        raise OptionError(
            f"{points.name} forms joint points with other parameters, of which only some are sharded; shard all or none"
        )
    if sharded and options["differentiable"]:
        raise OptionError(
            f"differentiable=True on {points.name}: a sharded parameter is stepped outside of autograd; leave it at False"
        )
    for part in sharded:
        cut_of(points.name, part)


class ShardedGroup:
    """One parameter group with sharded parameters, from step to step; as `Group`."""

    def __init__(self) -> None:
        self._plain, self._local, self._penalised, self._spanning = Group(), Group(), Group(), Group()
        self.points: list[PointSet] = []
        """What is sharded, and has gradients."""
        self._known: dict[tuple[PointSet, bool], Sharded] = {}

    @property
    def plans(self) -> Sequence[Plan | ShardedGroup]:
        """As in `Group`; what brings shards home stands for a plan of all of them."""
        groups = (self._plain, self._local, self._penalised, self._spanning)
        return [*(plan for group in groups for plan in group.plans), self]

    def prepare(
        self, table: Mapping[Tensor, PointSet], state: State, rule: Rule, options: Options, known: bool
    ) -> Sequence[Callable[[], None]]:
        """As `Group.prepare`; processes talk to each other here, so that all have to step."""
        members = []
        plain = [p for p in options["params"] if not is_sharded(p)]
        for points in point_sets([p for p in options["params"] if is_sharded(p)], table):
            if points.gradients():
                penalty = is_penalised(points.manifold, options)
                if (points, penalty) not in self._known:
                    self._known[points, penalty] = _sharded(points, penalty)
                members.append(self._known[points, penalty])
        self.points, self._spanning = [each.points for each in members], Group()
        for each in members:
            each.read(state)
        parcels = [each.parcels(rule, options) for each in members]
        rows = iter(_exchange([parcel for its in parcels for parcel in its]))
        for each, its in zip(members, parcels, strict=True):
            each.arrive([next(rows) for _ in its], rule, options)
        work = [*self._plain.prepare(table, state, rule, {**options, "params": plain}, known)]
        local = [each for each in members if isinstance(each, Local) and not each.penalised]
        penalised = [each for each in members if isinstance(each, Local) and each.penalised]
        spanning = [each for each in members if not isinstance(each, Local)]
        for group, sets, changes in (
            (self._local, local, {}),
            (self._penalised, penalised, {"maximize": False, "orthogonality": 0.0}),
            (self._spanning, spanning, {}),
        ):
            theirs = {p: points for each in sets for p, points in each.table.items()}
            own = {p: its for each in sets for p, its in each.own().items()}
            work += group.prepare(theirs, own, rule, {**options, **changes, "params": [*own]}, True)

        def leave() -> None:
            for each in members:
                each.leave(rule, options)
                each.write(state, rule)

        return [*work, leave]


def _sharded(points: PointSet, penalty: bool) -> Sharded:
    """How `points` are stepped."""
    cuts = [cut_of(points.name, part) for part in points.parts if is_sharded(part)]
    local = [_local_rows(part, cut, points) for part, cut in zip(points.parts, cuts, strict=True)]
    alike = len({(cut.axis is None, cut.size) for cut in cuts}) == 1
    if alike and all(rows is not None and rows == local[0] for rows in local):
        assert local[0] is not None
        return Local(points, local[0], penalty)
    turns = isinstance(points.manifold, (Spherical, Euclidean)) and points.manifold.event_ndim == 1
    thin = alike and turns and points.parts[0].dtype != torch.float16
    if (
        thin
        and not penalty
        and all(_cuts_coordinates(part, cut, points) for part, cut in zip(points.parts, cuts, strict=True))
    ):
        return Thin(points)
    return Whole(points)


def _local_rows(part: Tensor, cut: Cut, points: PointSet) -> Rows | None:
    """How the shards of `part` are cut into points, if each has whole ones."""
    rows = points.rows
    if cut.axis is None or points.manifold.event_ndim == 0:
        return rows
    if rows.blocks is not None:
        size = cut.length // rows.blocks
        whole = cut.axis == 0 and cut.run % size == 0
        return (
            replace(rows, blocks=max(1, cut.own(torch.empty(part.shape, device="meta")).shape[0] // size))
            if whole
            else None
        )
    if rows.groups > 1 and (cut.axis != 1 or len(points.parts) > 1):
        return None
    return rows if cut.axis in rows.point_dims(part.ndim, points.manifold.event_ndim) else None


def _cuts_coordinates(part: Tensor, cut: Cut, points: PointSet) -> bool:
    """Whether every shard of `part` has coordinates of every point."""
    rows = points.rows
    if cut.axis is None:
        return False
    if rows.blocks is not None:
        return rows.blocks == 1 or cut.axis != 0
    return rows.groups == 1 and cut.axis not in rows.point_dims(part.ndim, points.manifold.event_ndim)


def _exchange(parcels: Sequence[Parcel]) -> list[Tensor]:
    """What all processes send, (processes, numbers) per parcel; one collective per process group and dtype."""
    kinds: dict[tuple[Any, torch.dtype], list[int]] = {}
    for index, (cut, numbers) in enumerate(parcels):
        kinds.setdefault((cut.group, numbers.dtype), []).append(index)
    rows: dict[int, Tensor] = {}
    for (group, _), members in kinds.items():
        sent = torch.cat([parcels[i][1] for i in members])
        size = parcels[members[0]][0].size
        received = sent.new_empty(size, sent.numel())
        torch.distributed.all_gather(list(received), sent, group=group)
        columns = received.split([parcels[i][1].numel() for i in members], dim=1)
        rows.update(zip(members, columns, strict=True))
    return [rows[i] for i in range(len(parcels))]
