"""The plain tensors that a process steps in place of sharded parameters; see `sharded`. Layout only; no formula."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import StateError
from ...manifolds import Rows, numerics
from ...manifolds.parameters.rows import gather, scatter_
from ...manifolds.parameters.shards import cut_of, is_sharded
from ..kernels.sums import Message
from ..options import Options, holds
from ..rules import Rule
from ..update import ambient
from .operands import real
from .points import PointSet, State, count_steps, scalar_dtype

__all__ = ["GatheredPoints", "LocalPoints", "ShardedPoints", "exchange"]


class Shard:
    """The local tensor of a DTensor parameter, with gradient and state."""

    def __init__(self, name: str, p: Tensor) -> None:
        assert is_sharded(p)
        self.p, self.name, self.cut = p, name, cut_of(name, p)
        self.local: Tensor = p.to_local()
        self.state: dict[str, Any] = {}
        """The state of `local`, plain tensors."""
        self._sources: dict[str, Any] = {}
        """The DTensors of which they are the local parts."""

    def read(self, state: Mapping[str, Any]) -> None:
        """Update the local tensors of the parameter, its gradient and its `state`."""
        local, grad = self.p.to_local(), self.p.grad
        if (local.data_ptr(), local.shape, local.dtype) != (self.local.data_ptr(), self.local.shape, self.local.dtype):
            self.local = local
        assert grad is not None
        assert is_sharded(grad)
        if grad.placements != self.p.placements:
            grad = grad.redistribute(placements=self.p.placements)
        local_grad = grad.to_local()
        self.local.grad = local_grad.wait() if hasattr(local_grad, "wait") else local_grad
        for name in [name for name in self.state if name not in state]:
            del self.state[name]
        for name, value in state.items():
            if name in self.state and value is self._sources.get(name):
                continue
            if not _counts_steps(name) and not is_sharded(value):
                raise StateError(
                    f"{self.name} is sharded, its {name} is not: load the state with set_optimizer_state_dict of "
                    "torch.distributed.checkpoint.state_dict, which shards it"
                )
            self._sources[name] = value
            self.state[name] = value.to_local() if is_sharded(value) else value

    def arrays(self, names: Sequence[str]) -> list[Tensor]:
        """Parameter, gradient and the vectors `names` of the state."""
        assert self.local.grad is not None
        return [self.local, self.local.grad, *(self.state[name] for name in names)]

    def write(self, state: dict[str, Any], rule: Rule, scalar: Sequence[int], axis: int | None) -> None:
        """Add new entries to `state` as DTensors.

        Scalars per point have the shape `scalar` and are sharded along `axis`, or replicated for None.
        """
        from torch.distributed.tensor import DTensor, Replicate
        from torch.distributed.tensor import Shard as Placed

        self.local.grad = None
        p = self.p
        scalars = [
            Replicate() if axis is None or placement.is_replicate() else Placed(axis) for placement in p.placements
        ]
        for name, value in self.state.items():
            if name in state:
                continue
            if name in rule.stored:
                value = DTensor.from_local(value, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
            elif not _counts_steps(name):
                shape = value.shape if axis is None else torch.Size(scalar)
                stride = torch.empty(shape, device="meta").stride()
                value = DTensor.from_local(value, p.device_mesh, scalars, shape=shape, stride=stride)
            state[name] = self._sources[name] = value


def _counts_steps(name: str) -> bool:
    """Whether the state `name` is a counter of steps, of which sets of slices have one each."""
    return name.partition(".")[0] == "step"


class ShardedPoints(ABC):
    """A point set whose parts are sharded."""

    kind: str
    """How the points are stepped: a key of `sharded.CHANGES`, or ``"summed"``."""
    axis: int | None = None
    """The axis along which scalars per point are sharded; None: every process has all."""
    table: dict[Tensor, PointSet]
    """The plain parameters that this process steps in place of the DTensors, and the point set that they form."""
    state: dict[Tensor, dict[str, Any]]
    """The state of the parameters of `table`, with an entry for each."""

    def __init__(self, points: PointSet) -> None:
        self.points = points
        self.shards = [Shard(points.name, part) for part in points.parts]
        self.scalar = points.layouts()[0].scalar

    def read(self, state: State) -> None:
        """Update the local tensors of parameters, gradients and state."""
        for shard in self.shards:
            shard.read(state.get(shard.p, {}))

    @abstractmethod
    def messages(self, rule: Rule, options: Options) -> list[Message]:
        """The messages of this process to all others before a step."""

    @abstractmethod
    def receive(self, rows: list[Tensor], rule: Rule, options: Options) -> None:
        """Make `table` and `state` from the messages of all processes, (processes, numbers) each."""

    def write(self, state: State, rule: Rule, options: Options) -> None:
        """Copy the results of a step to the shards, and add new entries to `state`, the optimizer's."""
        for shard in self.shards:
            shard.write(state[shard.p], rule, self.scalar, self.axis)


class LocalPoints(ShardedPoints):
    """Points, cut into `rows` in the shards, that are stepped in place: each is complete in one shard or, of the kind
    ``"summed"``, a vector of which every process has some coordinates."""

    def __init__(self, points: PointSet, rows: Rows, kind: str) -> None:
        super().__init__(points)
        self.rows, self.kind = rows, kind
        if kind != "summed":
            self.axis = self.shards[0].cut.axis or 0

    def _points(self) -> PointSet:
        parts = tuple(shard.local for shard in self.shards)
        return PointSet(self.points.name, parts, self.points.manifold, self.rows)

    @property
    def _empty(self) -> bool:
        """Whether this process has no points."""
        return self.kind != "summed" and any(shard.local.numel() == 0 for shard in self.shards)

    def messages(self, rule: Rule, options: Options) -> list[Message]:
        """The unit representatives, with a penalty."""
        cut, layouts = self.shards[0].cut, self.points.layouts()
        if self.kind != "penalised" or cut.axis is None:
            return []
        run, n = -(-layouts[0].batch[0] // cut.size), sum(layout.event[0] for layout in layouts)
        sent = self.shards[0].local.new_zeros(run, n, dtype=real(self.points.parts[0].dtype))
        if not self._empty:
            points = self._points()
            x = gather(points.parts, points.layouts())
            sent[: x.shape[0]] = x / numerics.norm(x, 1)
        return [(cut.group, sent.reshape(-1))]

    def receive(self, rows: list[Tensor], rule: Rule, options: Options) -> None:
        """Make `table` and `state`, and add the penalty to the gradients."""
        self.table, self.state = {}, {}
        if self._empty:
            return
        points = self._points()
        self.table = {points.parts[0]: points}
        self.state = {shard.local: shard.state for shard in self.shards}
        if self.kind == "penalised":
            layouts = points.layouts()
            x, egrad = gather(points.parts, layouts), gather(points.gradients(), layouts)
            among = rows[0].reshape(-1, x.shape[1]) if rows else None
            changed = [torch.empty_like(part) for part in points.parts]
            scatter_(ambient(points.manifold, x, egrad, options, among), changed, layouts)
            for part, grad in zip(points.parts, changed, strict=True):
                part.grad = grad

    def write(self, state: State, rule: Rule, options: Options) -> None:
        """Add new entries to `state`, the optimizer's; a process without points has made none, and creates them here."""
        if self._empty:
            for shard in self.shards:
                for name in rule.needs(options):
                    shard.state.setdefault(name, torch.zeros_like(shard.local))
            first, layout = self.shards[0], self.points.layouts()[0]
            held = holds(self.points.manifold, options)
            shape = [0 if axis == self.axis else size for axis, size in enumerate(self.scalar)]
            for name in (*rule.scalars, *(["radius"] if held else [])):
                first.state.setdefault(name, first.local.new_zeros(shape, dtype=scalar_dtype(layout, first.local)))
            if rule.counts_steps:
                count_steps([first.state])
        super().write(state, rule, options)


class GatheredPoints(ShardedPoints):
    """Points that are gathered, and stepped by every process."""

    kind = "gathered"

    def messages(self, rule: Rule, options: Options) -> list[Message]:
        """The shards of parameter, gradient and vectors."""
        self._names = [name for name in rule.stored if all(name in shard.state for shard in self.shards)]
        divided = [shard for shard in self.shards if shard.cut.axis is not None]
        return [(shard.cut.group, shard.cut.pack(array)) for shard in divided for array in shard.arrays(self._names)]

    def receive(self, rows: list[Tensor], rule: Rule, options: Options) -> None:
        """Make `table` of the whole parameters."""
        received, self.state = iter(rows), {}
        for shard in self.shards:
            cut, arrays = shard.cut, shard.arrays(self._names)
            if cut.axis is None:
                full, full.grad, *vectors = (array.clone() for array in arrays)
            else:
                full, full.grad, *vectors = (cut.unpack(next(received), shard.p.shape) for _ in arrays)
            scalars = {name: value for name, value in shard.state.items() if name not in rule.stored}
            self.state[full] = {**dict(zip(self._names, vectors, strict=True)), **scalars}
        parts = tuple(self.state)
        self.table = {parts[0]: PointSet(self.points.name, parts, self.points.manifold, self.points.rows)}

    def write(self, state: State, rule: Rule, options: Options) -> None:
        """Copy the part of this process to its shards, and add new entries to `state`, the optimizer's."""
        for shard, (full, entry) in zip(self.shards, self.state.items(), strict=True):
            shard.local.copy_(shard.cut.local(full))
            for name, value in entry.items():
                if name in rule.stored:
                    shard.state.setdefault(name, torch.zeros_like(shard.local)).copy_(shard.cut.local(value))
                else:
                    shard.state[name] = value
        self.table, self.state = {}, {}
        super().write(state, rule, options)


def exchange(messages: Sequence[Message]) -> list[Tensor]:
    """The messages of all processes, (processes, numbers) each; one collective per process group and dtype."""
    kinds: dict[tuple[Any, torch.dtype], list[int]] = {}
    for index, (group, numbers) in enumerate(messages):
        kinds.setdefault((group, numbers.dtype), []).append(index)
    rows: dict[int, Tensor] = {}
    for (group, _), members in kinds.items():
        sent = torch.cat([messages[i][1] for i in members])
        received = sent.new_empty(torch.distributed.get_world_size(group), sent.numel())
        torch.distributed.all_gather(list(received), sent, group=group)
        columns = received.split([messages[i][1].numel() for i in members], dim=1)
        rows.update(zip(members, columns, strict=True))
    return [rows[i] for i in range(len(messages))]
