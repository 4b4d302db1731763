"""Parameters that are sharded over processes (DTensors of FSDP2 and of tensor parallelism). Layout only; no formula.

Every process steps plain tensors:

- `LocalPoints`: points that are complete in one shard are stepped in place, on any path, without communication.
- `ReducedPoints`: vectors of which every process has some coordinates. The update commutes with rotations, so it takes
  place in the two or three dimensions that a point, its gradient and its vector span. The coordinates there come from a QR
  factorisation in two stages (TSQR; Demmel, Grigori, Hoemmen, Langou 2012), for which processes exchange at most nine
  numbers per point.
- `GatheredPoints`: all others are gathered and stepped by every process, which keeps its part.

An orthogonality penalty couples the points of a tensor: their unit representatives are gathered. The points of a parameter
group are exchanged in one collective per step (and process group and dtype).
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
from .plan import Plan
from .points import PointSet, State, point_sets
from .shards import GatheredPoints, LocalPoints, Message, ReducedPoints, ShardedPoints

__all__ = ["ShardedGroup", "check_sharding"]


def check_sharding(points: PointSet, options: Options) -> None:
    """Raise `GeometryError` for a sharding that `cut_of` does not support, `OptionError` for a mixture of plain and sharded
    parts and for `differentiable`."""
    sharded = [part for part in points.parts if is_sharded(part)]
    if sharded and len(sharded) < len(points.parts):
        raise OptionError(
            f"{points.name} forms joint points with other parameters, of which only some are sharded; shard all or none"
        )
    if sharded and options["differentiable"]:
        raise OptionError(
            f"differentiable=True on {points.name}: steps of sharded parameters are not differentiable; leave it at False"
        )
    for part in sharded:
        cut_of(points.name, part)


class ShardedGroup:
    """The execution of one parameter group with sharded parameters; has the interface of `Group`."""

    def __init__(self) -> None:
        self._plain, self._local, self._penalised, self._spanning = Group(), Group(), Group(), Group()
        self.points: list[PointSet] = []
        """The sharded point sets with gradients."""
        self._known: dict[tuple[PointSet, bool], ShardedPoints] = {}

    @property
    def plans(self) -> Sequence[Plan | ShardedGroup]:
        """The plans, in the order of the functions that `prepare` returns; the last one, the group, writes back the shards."""
        groups = (self._plain, self._local, self._penalised, self._spanning)
        return [*(plan for group in groups for plan in group.plans), self]

    def prepare(
        self, table: Mapping[Tensor, Sequence[PointSet]], state: State, rule: Rule, options: Options, known: bool
    ) -> Sequence[Callable[[], None]]:
        """Check a step, as `Group.prepare` does, and exchange messages: all processes have to call it."""
        members = []
        plain = [p for p in options["params"] if not is_sharded(p)]
        for points in point_sets([p for p in options["params"] if is_sharded(p)], table):
            if points.gradients():
                penalty = is_penalised(points.manifold, options)
                if (points, penalty) not in self._known:
                    self._known[points, penalty] = _sharded(points, penalty)
                members.append(self._known[points, penalty])
        self.points, self._spanning = [member.points for member in members], Group()
        for member in members:
            member.read(state)
        messages = [member.messages(rule, options) for member in members]
        rows = iter(_exchange([message for sent in messages for message in sent]))
        for member, sent in zip(members, messages, strict=True):
            member.receive([next(rows) for _ in sent], rule, options)
        work = [*self._plain.prepare(table, state, rule, {**options, "params": plain}, known)]
        local = [member for member in members if isinstance(member, LocalPoints) and not member.penalised]
        penalised = [member for member in members if isinstance(member, LocalPoints) and member.penalised]
        spanning = [member for member in members if not isinstance(member, LocalPoints)]
        for group, sets, changes in (
            (self._local, local, {}),
            (self._penalised, penalised, {"maximize": False, "orthogonality": 0.0}),
            (self._spanning, spanning, {}),
        ):
            local_table = {p: (points,) for member in sets for p, points in member.table.items()}
            local_state = {p: entry for member in sets for p, entry in member.local_state().items()}
            changed = {**options, **changes, "params": [*local_state]}
            work += group.prepare(local_table, local_state, rule, changed, True)

        def write_back() -> None:
            for member in members:
                member.write_back(rule, options)
                member.write(state, rule)

        return [*work, write_back]


def _sharded(points: PointSet, penalty: bool) -> ShardedPoints:
    """`points` as they can be stepped."""
    cuts = [cut_of(points.name, part) for part in points.parts if is_sharded(part)]
    local = [_local_rows(part, cut, points) for part, cut in zip(points.parts, cuts, strict=True)]
    alike = len({(cut.axis is None, cut.size) for cut in cuts}) == 1
    if alike and all(rows is not None and rows == local[0] for rows in local):
        assert local[0] is not None
        return LocalPoints(points, local[0], penalty)
    rotates = isinstance(points.manifold, (Spherical, Euclidean)) and points.manifold.event_ndim == 1
    reducible = alike and rotates and points.parts[0].dtype != torch.float16
    if (
        reducible
        and not penalty
        and all(_cuts_coordinates(part, cut, points) for part, cut in zip(points.parts, cuts, strict=True))
    ):
        return ReducedPoints(points)
    return GatheredPoints(points)


def _local_rows(part: Tensor, cut: Cut, points: PointSet) -> Rows | None:
    """The `Rows` that cut the shards of `part` into points; None if points are divided among shards."""
    rows = points.rows
    if cut.axis is None or points.manifold.event_ndim == 0:
        return rows
    if rows.blocks is not None:
        size = cut.length // rows.blocks
        whole = cut.axis == 0 and cut.run % size == 0
        return (
            replace(rows, blocks=max(1, cut.local(torch.empty(part.shape, device="meta")).shape[0] // size))
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


def _exchange(messages: Sequence[Message]) -> list[Tensor]:
    """The messages of all processes, (processes, numbers) each; one collective per process group and dtype."""
    kinds: dict[tuple[Any, torch.dtype], list[int]] = {}
    for index, (cut, numbers) in enumerate(messages):
        kinds.setdefault((cut.group, numbers.dtype), []).append(index)
    rows: dict[int, Tensor] = {}
    for (group, _), members in kinds.items():
        sent = torch.cat([messages[i][1] for i in members])
        size = messages[members[0]][0].size
        received = sent.new_empty(size, sent.numel())
        torch.distributed.all_gather(list(received), sent, group=group)
        columns = received.split([messages[i][1].numel() for i in members], dim=1)
        rows.update(zip(members, columns, strict=True))
    return [rows[i] for i in range(len(messages))]
