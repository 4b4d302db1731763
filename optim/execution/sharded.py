"""Parameters that are sharded over processes (DTensors of FSDP2 and of tensor parallelism). Layout only; no formula.

Every process steps plain tensors:

- Points that are complete in one shard are stepped in place, on any path, without communication.
- Of other vectors on manifolds with row kernels every process has some coordinates. It steps those in place through
  `lists.step`, whose sums are over all processes: they exchange at most eight numbers per point, for a rule with one vector.
- All others are gathered and stepped by every process, which keeps its part.

An orthogonality penalty couples the points of a tensor: their unit representatives are gathered. All points of a parameter
group are exchanged in the same collectives (per process group and dtype): one in a step to gather, at most two for sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ...errors import OptionError
from ...manifolds import Rows
from ...manifolds.parameters.shards import Cut, cut_of, is_sharded
from ..options import Options, needs_reference
from ..rules import Rule
from ..update import is_penalised
from .dispatch import Group, has_lists
from .operands import Operand, has_rows_of_matrices, make_operand
from .plan import Plan
from .points import PointSet, State, check_state, point_sets
from .rows import Lists, step_in_place
from .shards import GatheredPoints, LocalPoints, ShardedPoints, exchange

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
        self._groups = {kind: Group() for kind in ("plain", *CHANGES)}
        self.points: list[PointSet] = []
        """The sharded point sets with gradients."""
        self._known: dict[tuple[PointSet, bool, bool, bool, bool], ShardedPoints] = {}

    @property
    def plans(self) -> Sequence[Plan | ShardedGroup]:
        """The plans, in the order of the functions that `prepare` returns; the last one is the group, which steps summed points
        and writes back the shards."""
        return [*(plan for group in self._groups.values() for plan in group.plans), self]

    def prepare(
        self, table: Mapping[Tensor, Sequence[PointSet]], state: State, rule: Rule, options: Options, known: bool
    ) -> Sequence[Callable[[], None]]:
        """Check a step, as `Group.prepare` does, and exchange messages: all processes have to call it."""
        members = []
        plain = [p for p in options["params"] if not is_sharded(p)]
        for points in point_sets([p for p in options["params"] if is_sharded(p)], table):
            if points.gradients():
                key = (
                    points,
                    is_penalised(points.manifold, options),
                    options["capturable"],
                    *_shaping(points, rule, options),
                )
                if key not in self._known:
                    self._known[key] = _sharded(*key)
                members.append(self._known[key])
        self.points, self._groups["gathered"] = [member.points for member in members], Group()
        for member in members:
            member.read(state)
        messages = [member.messages(rule, options) for member in members]
        rows = iter(exchange([message for sent in messages for message in sent]))
        for member, sent in zip(members, messages, strict=True):
            member.receive([next(rows) for _ in sent], rule, options)
        work = [*self._groups["plain"].prepare(table, state, rule, {**options, "params": plain}, known)]
        local_table = {p: (points,) for member in members for p, points in member.table.items()}
        local_state = {p: entry for member in members for p, entry in member.state.items()}
        for kind, changes in CHANGES.items():
            params = [p for member in members if member.kind == kind for p in member.state]
            changed = {**options, **changes, "params": params}
            work += self._groups[kind].prepare(local_table, local_state, rule, changed, True)
        summed: dict[tuple[Any, ...], list[Operand]] = {}
        for member in members:
            for points in member.table.values() if member.kind == "summed" else ():
                check_state(points, local_state, rule)
                operand = make_operand(points, points.gradients(), local_state, rule, options)
                summed.setdefault((member.shards[0].cut.group, operand.kind), []).append(operand)

        def finish() -> None:
            for operand in chain(*summed.values()):
                operand.add_to(local_state)
            plans = [(Lists(operands, local_state, rule), operands, group) for (group, _), operands in summed.items()]
            step_in_place(plans, options, exchange)
            for member in members:
                member.write(state, rule, options)

        return [*work, finish]


CHANGES: dict[str, Options] = {
    "local": {},
    "penalised": {"maximize": False, "orthogonality": 0.0},  # both are in the gradients
    "gathered": {},
}
"""The options to be changed by the kind of points that are stepped like plain parameters."""


def _shaping(points: PointSet, rule: Rule, options: Options) -> tuple[bool, bool]:
    """Whether only the reference path steps `points`, and whether a shape couples them: rows of one matrix."""
    shape = options["shape"] or ()
    coupled = has_rows_of_matrices(points) and any(one.of_matrices for one in shape)
    return bool(needs_reference(points.manifold, rule, options)), coupled


def _sharded(points: PointSet, penalty: bool, capturable: bool, reference: bool, coupled: bool) -> ShardedPoints:
    """`points` as they can be stepped."""
    if coupled:
        return GatheredPoints(points)
    cuts = [cut_of(points.name, part) for part in points.parts if is_sharded(part)]
    local = [_local_rows(part, cut, points) for part, cut in zip(points.parts, cuts, strict=True)]
    if len({(cut.axis is None, cut.group) for cut in cuts}) == 1:
        if local[0] is not None and all(rows == local[0] for rows in local):
            return LocalPoints(points, local[0], "penalised" if penalty else "local")
        divided = all(_cuts_coordinates(part, cut, points) for part, cut in zip(points.parts, cuts, strict=True))
        if divided and has_lists(points.manifold) and not (penalty or capturable or reference):
            return LocalPoints(points, points.rows, "summed")
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
