"""What a process steps in place of its shard of a parameter; see `sharded`. Layout only; no formula."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...errors import StateError
from ...manifolds import Manifold, Rows, ScalingQuotient, numerics
from ...manifolds.parameters.rows import gather, scatter_
from ...manifolds.parameters.shards import Cut, cut_of, is_sharded
from ..options import Options
from ..rules import Rule
from ..stages import ambient
from .operands import real
from .points import PointSet, State, count_steps

__all__ = ["Local", "Parcel", "Sharded", "Thin", "Whole"]

Parcel = tuple[Cut, Tensor]
"""Numbers to be sent to all processes of a cut, as many from each."""


class Mirror:
    """A DTensor parameter as the plain tensor of this process, with gradient and state."""

    def __init__(self, name: str, p: Tensor) -> None:
        assert is_sharded(p)
        self.p, self.name, self.cut = p, name, cut_of(name, p)
        self.local: Tensor = p.to_local()
        self.own: dict[str, Any] = {}
        """Its state as plain tensors."""
        self._seen: dict[str, Any] = {}
        """What they are the local parts of."""

    def read(self, own: Mapping[str, Any]) -> None:
        """Take over where parameter and gradient are now, and their state, `own`."""
        local, grad = self.p.to_local(), self.p.grad
        if (local.data_ptr(), local.shape, local.dtype) != (self.local.data_ptr(), self.local.shape, self.local.dtype):
            self.local = local
        assert grad is not None
        assert is_sharded(grad)
        if grad.placements != self.p.placements:
            grad = grad.redistribute(placements=self.p.placements)
        its = grad.to_local()
        self.local.grad = its.wait() if hasattr(its, "wait") else its
        for name in [name for name in self.own if name not in own]:
            del self.own[name]
        for name, value in own.items():
            if name in self.own and value is self._seen.get(name):
                continue
            if name != "step" and not is_sharded(value):
                raise StateError(
                    f"{self.name} is sharded, its {name} is not: load the state with set_optimizer_state_dict of "
                    "torch.distributed.checkpoint.state_dict, which deals it out"
                )
            self._seen[name] = value
            self.own[name] = value.to_local() if is_sharded(value) else value

    def arrays(self, names: Sequence[str]) -> list[Tensor]:
        """Parameter, gradient and those vectors of the state."""
        assert self.local.grad is not None
        return [self.local, self.local.grad, *(self.own[name] for name in names)]

    def write(self, own: dict[str, Any], rule: Rule, scalar: Sequence[int], axis: int | None) -> None:
        """Put what a step has begun into the state, `own`.

        Numbers per point have the shape `scalar` and are cut along `axis`; None: every process has all of them.
        """
        from torch.distributed.tensor import DTensor, Replicate, Shard

        self.local.grad = None
        p = self.p
        numbers = [Replicate() if axis is None or each.is_replicate() else Shard(axis) for each in p.placements]
        for name, value in self.own.items():
            if name in own:
                continue
            if name in rule.vectors:
                value = DTensor.from_local(value, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
            elif name != "step":
                stride = torch.empty(scalar, device="meta").stride()
                value = DTensor.from_local(value, p.device_mesh, numbers, shape=torch.Size(scalar), stride=stride)
            own[name] = self._seen[name] = value


class Sharded(ABC):
    """A point set whose parts are sharded."""

    penalised = False
    table: dict[Tensor, PointSet]
    """What this process steps in its place: plain parameters and the point set that they form."""

    def __init__(self, points: PointSet) -> None:
        self.points = points
        self.mirrors = [Mirror(points.name, part) for part in points.parts]
        self.scalar = points.layouts()[0].scalar
        self.table = {}

    @property
    def manifold(self) -> Manifold:
        """Of the points."""
        return self.points.manifold

    def read(self, state: State) -> None:
        """Take over parameters, gradients and state."""
        for mirror in self.mirrors:
            mirror.read(state.get(mirror.p, {}))

    def begun(self, rule: Rule) -> list[str]:
        """Names of the vectors that all parts have."""
        return [name for name in rule.vectors if all(name in mirror.own for mirror in self.mirrors)]

    @abstractmethod
    def parcels(self, rule: Rule, options: Options) -> list[Parcel]:
        """What other processes need for a step."""

    @abstractmethod
    def arrive(self, rows: list[Tensor], rule: Rule, options: Options) -> None:
        """Make `table` and the state from the parcels of all processes, (processes, numbers) each."""

    @abstractmethod
    def own(self) -> dict[Tensor, dict[str, Any]]:
        """State of what is stepped; with all of the parameters in it."""

    @abstractmethod
    def leave(self, rule: Rule, options: Options) -> None:
        """After the step: bring parameters and state home."""

    def write(self, state: State, rule: Rule) -> None:
        """Put new state into the optimizer's."""
        for mirror in self.mirrors:
            mirror.write(state[mirror.p], rule, self.scalar, None)


class Local(Sharded):
    """Points that lie whole in one shard each, and are cut by `rows` there."""

    def __init__(self, points: PointSet, rows: Rows, penalty: bool) -> None:
        super().__init__(points)
        self.rows = rows
        self.penalised = penalty

    def _points(self) -> PointSet:
        parts = tuple(mirror.local for mirror in self.mirrors)
        return PointSet(self.points.name, parts, self.manifold, self.rows)

    @property
    def _empty(self) -> bool:
        return any(mirror.local.numel() == 0 for mirror in self.mirrors)

    def parcels(self, rule: Rule, options: Options) -> list[Parcel]:
        """Unit representatives, if there is a penalty."""
        cut = self.mirrors[0].cut
        if not self.penalised or cut.axis is None:
            return []
        layout = self.points.layouts()[0]
        run = -(-layout.batch[0] // cut.size)
        n = sum(layout.event[0] for layout in self.points.layouts())
        sent = self.mirrors[0].local.new_zeros(run, n, dtype=real(self.points.parts[0].dtype))
        if not self._empty:
            points = self._points()
            x = gather(points.parts, points.layouts())
            sent[: x.shape[0]] = x / numerics.norm(x, 1)
        return [(cut, sent.reshape(-1))]

    def arrive(self, rows: list[Tensor], rule: Rule, options: Options) -> None:
        """As in `Sharded`; with a penalty in the gradients."""
        points = self._points()
        self.table = {} if self._empty else {points.parts[0]: points}
        if self.penalised and not self._empty:
            layouts = points.layouts()
            x, egrad = gather(points.parts, layouts), gather(points.gradients(), layouts)
            among = rows[0].reshape(-1, x.shape[1]) if rows else None
            changed = [torch.empty_like(part) for part in points.parts]
            scatter_(ambient(self.manifold, x, egrad, options, among), changed, layouts)
            for part, grad in zip(points.parts, changed, strict=True):
                part.grad = grad

    def own(self) -> dict[Tensor, dict[str, Any]]:
        """As in `Sharded`."""
        return {} if self._empty else {mirror.local: mirror.own for mirror in self.mirrors}

    def leave(self, rule: Rule, options: Options) -> None:
        """As in `Sharded`; a process without points has their state all the same."""
        if not self._empty:
            return
        for mirror in self.mirrors:
            for name in rule.needs(options):
                mirror.own.setdefault(name, torch.zeros_like(mirror.local))
        first = self.mirrors[0]
        held = isinstance(self.manifold, ScalingQuotient) and options["radius"] == "hold"
        dtype = real(first.local.dtype) if self.manifold.event_ndim else first.local.dtype
        for name in (*rule.scalars, *(["radius"] if held else [])):
            shape = list(self.scalar)
            shape[self._axis] = 0
            first.own.setdefault(name, first.local.new_zeros(shape, dtype=dtype))
        if rule.counts_steps:
            count_steps([first.own])

    @property
    def _axis(self) -> int:
        """Along which numbers per point are cut."""
        axis = self.mirrors[0].cut.axis
        return 0 if axis is None else axis

    def write(self, state: State, rule: Rule) -> None:
        """As in `Sharded`; numbers lie where their points do."""
        for mirror in self.mirrors:
            mirror.write(state[mirror.p], rule, self.scalar, self._axis)


class Thin(Sharded):
    """Vectors of which every process has some coordinates, as vectors of two or three coordinates."""

    def parcels(self, rule: Rule, options: Options) -> list[Parcel]:
        """The triangular factors of this process' coordinates, (points, k, k)."""
        self._names, self._count = self.begun(rule), prod(self.scalar)
        self._here = [mirror for mirror in self.mirrors if mirror.local.numel()]
        self._layouts = [self.points.rows.layout(mirror.local, 1) for mirror in self._here]
        k, first = 2 + len(self._names), self.mirrors[0]
        factor = first.local.new_zeros(self._count, k, k, dtype=real(first.local.dtype))
        self._q = factor[:, :0]
        if self._here:
            arrays = zip(*(mirror.arrays(self._names) for mirror in self._here), strict=True)
            columns = torch.stack([gather(its, self._layouts).to(factor.dtype) for its in arrays], -1)
            self._q, r = torch.linalg.qr(columns)
            factor[:, : r.shape[1]] = r
        return [(first.cut, factor.reshape(-1))]

    def arrive(self, rows: list[Tensor], rule: Rule, options: Options) -> None:
        """The second stage, the same on all processes."""
        cut, k, points = self.mirrors[0].cut, 2 + len(self._names), self._count
        stacked = rows[0].reshape(cut.size, points, k, k).transpose(0, 1).reshape(points, cut.size * k, k)
        q, r = torch.linalg.qr(stacked)
        self._mine = q[:, cut.rank * k : (cut.rank + 1) * k]
        self._x, self._x.grad, *vectors = (column.contiguous() for column in r.unbind(-1))
        self._before = {"": self._x.clone(), **{name: v.clone() for name, v in zip(self._names, vectors, strict=True)}}
        self._own: dict[str, Any] = dict(zip(self._names, vectors, strict=True))
        for name, value in self.mirrors[0].own.items():
            if name not in rule.vectors:
                self._own[name] = value if name == "step" else value.view(points, 1)
        self.table = {self._x: PointSet(self.points.name, (self._x,), self.manifold, Rows())}

    def own(self) -> dict[Tensor, dict[str, Any]]:
        """As in `Sharded`."""
        return {self._x: self._own}

    def leave(self, rule: Rule, options: Options) -> None:
        """Add what has changed: what has not stays as it is, bit for bit."""
        self._add("", self._x, [mirror.local for mirror in self._here])
        for name, value in self._own.items():
            if name in rule.vectors:
                for mirror in self.mirrors:
                    mirror.own.setdefault(name, torch.zeros_like(mirror.local))
                self._add(name, value, [mirror.own[name] for mirror in self._here])
            elif name not in self.mirrors[0].own:
                self.mirrors[0].own[name] = value if name == "step" else value.view(self.scalar)
        self.table, self._own, self._q = {}, {}, self._q[:, :0]  # which is as large as the parameter with its state

    def _add(self, name: str, value: Tensor, targets: list[Tensor]) -> None:
        """Bring the change from the vectors `name` to `value`, (points, k), home to `targets`, the parts here."""
        if targets:
            change = self._mine @ (value - self._before[name] if name in self._before else value).unsqueeze(-1)
            vectors = (self._q @ change[:, : self._q.shape[2]]).squeeze(-1)
            parts = [torch.empty_like(target, dtype=vectors.dtype) for target in targets]
            scatter_(vectors, parts, self._layouts)
            for target, part in zip(targets, parts, strict=True):
                target.copy_(target + part)


class Whole(Sharded):
    """Points that are gathered."""

    def parcels(self, rule: Rule, options: Options) -> list[Parcel]:
        """The shards of parameter, gradient and vectors."""
        self._names = self.begun(rule)
        cut = [mirror for mirror in self.mirrors if mirror.cut.axis is not None]
        return [(mirror.cut, mirror.cut.pack(array)) for mirror in cut for array in mirror.arrays(self._names)]

    def arrive(self, rows: list[Tensor], rule: Rule, options: Options) -> None:
        """As in `Sharded`."""
        arrived, self._own = iter(rows), {}
        for mirror in self.mirrors:
            cut, arrays = mirror.cut, mirror.arrays(self._names)
            if cut.axis is None:
                full, full.grad, *vectors = (array.clone() for array in arrays)
            else:
                full, full.grad, *vectors = (cut.unpack(next(arrived), mirror.p.shape) for _ in arrays)
            numbers = {name: value for name, value in mirror.own.items() if name not in rule.vectors}
            self._own[full] = {**dict(zip(self._names, vectors, strict=True)), **numbers}
        parts = tuple(self._own)
        self.table = {parts[0]: PointSet(self.points.name, parts, self.manifold, self.points.rows)}

    def own(self) -> dict[Tensor, dict[str, Any]]:
        """As in `Sharded`."""
        return self._own

    def leave(self, rule: Rule, options: Options) -> None:
        """Every process keeps its part."""
        for mirror, (full, own) in zip(self.mirrors, self._own.items(), strict=True):
            mirror.local.copy_(mirror.cut.own(full))
            for name, value in own.items():
                if name in rule.vectors:
                    mirror.own.setdefault(name, torch.zeros_like(mirror.local)).copy_(mirror.cut.own(value))
                else:
                    mirror.own[name] = value
        self.table, self._own = {}, {}
