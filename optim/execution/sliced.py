"""Points that are slices of parameters: copied to stacks of points, stepped there, and copied back; those of two factors are
stepped in place (`pairs`). Layout only; no formula.

Sets of the same manifold, shape of a point, dtype and device, such as the heads of all layers, are one stack, so that they are
stepped in one call. A parameter may be in several sets; vectors of state are stored in its shape, scalars per point with the
first part of each set. Sharded pairs are stepped where they are (`divided`); all other sharded parameters of a group are gathered,
in the same collective, and every process steps them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import OptionError
from ...manifolds import Euclidean, Rows
from ...manifolds.parameters.factors import Rest
from ...manifolds.parameters.rows import scatter_
from ...manifolds.parameters.shards import is_sharded
from ..kernels import sums
from ..options import Options, holds
from ..rest import options_of_rest
from ..rules import Rule
from ..update import is_penalised
from .dispatch import Group
from .divided import DividedPairs
from .pairs import are_in_place, kind_of_pairs, step_pairs
from .plan import Plan
from .points import PointSet, State, check_state, point_sets
from .shards import GatheredPoints, exchange

__all__ = ["SlicedGroup", "check_slices"]


def check_slices(points: PointSet, options: Options) -> None:
    """Raise `OptionError` for options that steps of slices do not support."""
    if _options_of(points, options)["differentiable"] and points.slices is not None:
        raise OptionError(
            f"differentiable=True on {points.name}: steps of slices are not differentiable; leave it at False"
        )


def _options_of(points: PointSet, options: Options) -> Options:
    """The options with which `points` of a group are stepped."""
    return options_of_rest(options) if isinstance(points.slices, Rest) else options


class Stacked:
    """Several sets of slices as one tensor of points, with gradient and state."""

    def __init__(self, sets: Sequence[PointSet], state: State, rule: Rule, names: Sequence[str]) -> None:
        self._sets = sets
        self._layouts = [points.layouts() for points in sets]
        self._counts = [each[0].batch[0] for each in self._layouts]
        self.of_rest = isinstance(sets[0].slices, Rest)
        self.x = self._stack([points.parts for points in sets])
        grad = self._stack([points.gradients() for points in sets])
        self.x.grad_dtype = grad.dtype
        self.x.grad = grad
        self.state: dict[str, Any] = {}
        for name in names:
            if name in rule.stored:
                self.state[name] = self._stack([[state[p][name] for p in points.parts] for points in sets])
            else:
                found = [state[points.parts[0]][name + points.suffix] for points in sets]
                self.state[name] = found[0].clone() if name == "step" else torch.cat(found)
        label = ", ".join(points.name for points in sets)
        self.points = PointSet(label, (self.x,), sets[0].manifold, Rows())

    def write_back(self, state: State, rule: Rule) -> None:
        """Copy points and state to the parameters and their state."""
        self._scatter(self.x, [points.parts for points in self._sets])
        for name, value in self.state.items():
            if name in rule.stored:
                for points in self._sets:
                    for p in points.parts:
                        if name not in state[p]:
                            state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
                self._scatter(value, [[state[p][name] for p in points.parts] for points in self._sets])
                continue
            pieces = [value] * len(self._sets) if name == "step" else value.split(self._counts)
            for points, piece in zip(self._sets, pieces, strict=True):
                entry, stored = state[points.parts[0]], name + points.suffix
                if stored in entry:
                    entry[stored].copy_(piece)
                else:
                    entry[stored] = piece.clone()

    def _stack(self, tensors: Sequence[Sequence[Tensor]]) -> Tensor:
        """The slices of the parts of all sets as points, (points, *event)."""
        layouts, first = self._layouts[0], tensors[0][0]
        event = layouts[0].event
        if event:
            event = (sum(layout.event[0] for layout in layouts), *event[1:])
        stack = first.new_empty(sum(self._counts), *event)
        for piece, parts, each in zip(stack.split(self._counts), tensors, self._layouts, strict=True):
            heights = [layout.event[0] for layout in each] if event else []
            places = piece.split(heights, 1) if event else [piece]
            for place, tensor, layout in zip(places, parts, each, strict=True):
                place.copy_(layout.split(tensor))
        return stack

    def _scatter(self, stack: Tensor, targets: Sequence[Sequence[Tensor]]) -> None:
        for piece, tensors, layouts in zip(stack.split(self._counts), targets, self._layouts, strict=True):
            scatter_(piece, tensors, layouts)


class _Exchanged:
    """The sets of a group with sharded parameters after the exchange before a step: those whose Grams are summed, and all others,
    whose parameters are gathered."""

    def __init__(self, sets: Sequence[PointSet], state: State, rule: Rule, options: Options) -> None:
        for points in sets:
            check_state(points, state, rule)
        self._divided = DividedPairs(sets, state, rule, options)
        others = [points for points in sets if points not in self._divided.sets]
        shards = dict.fromkeys(p for points in others for p in points.parts if is_sharded(p))
        self._gathered = GatheredPoints(PointSet("slices", tuple(shards), Euclidean(0))) if shards else None
        sent = []
        if self._gathered is not None:
            self._gathered.read(state)
            sent = self._gathered.messages(rule, options)
        rows = exchange([*sent, *self._divided.messages()])
        if self._gathered is not None:
            self._gathered.receive(rows[: len(sent)], rule, options)
        self._steps = self._divided.steps(rows[len(sent) :])
        self.state: State = self._gathered.state if self._gathered is not None else {}
        """The state of the gathered parameters."""
        whole: dict[Tensor, Tensor] = dict(zip(shards, self.state, strict=True))
        self.sets = [replace(points, parts=tuple(whole.get(p, p) for p in points.parts)) for points in others]
        """The sets of gathered parameters."""

    def write(self, state: State, rule: Rule, options: Options) -> None:
        """Step the pairs whose Grams are summed, and write the results to the shards and to `state`, the optimizer's."""
        sums.run(self._steps, exchange)
        self._divided.write(state, rule)
        if self._gathered is not None:
            self._gathered.write(state, rule, options)


class SlicedGroup:
    """The execution of one parameter group with slices; has the interface of `Group`."""

    def __init__(self) -> None:
        self._locals: list[Group] = []
        self.points: list[PointSet] = []
        """The sets of slices with gradients."""

    @property
    def plans(self) -> Sequence[Plan | SlicedGroup]:
        """The plans, in the order of the functions that `prepare` returns; the last one, the group, writes back."""
        return [*(plan for group in self._locals for plan in group.plans), self]

    def prepare(
        self, table: Mapping[Tensor, Sequence[PointSet]], state: State, rule: Rule, options: Options, known: bool
    ) -> Sequence[Callable[[], None]]:
        """Check a step, as `Group.prepare` does."""
        self.points = [points for points in point_sets(options["params"], table) if points.gradients()]
        for points in self.points:
            check_slices(points, options)
        sets, optimizer_state, exchanged = self.points, state, None
        if any(is_sharded(p) for points in sets for p in points.parts):
            exchanged = _Exchanged(sets, state, rule, options)
            sets, state = exchanged.sets, exchanged.state
        kinds: dict[tuple[Any, ...], list[PointSet]] = {}
        pairs: dict[tuple[Any, ...], dict[PointSet, bool]] = {}
        for points in sets:
            check_state(points, state, rule)
            if are_in_place(points, state, rule, options):
                fresh = any(name not in state.get(p, {}) for name in rule.needs(options) for p in points.parts)
                pairs.setdefault(kind_of_pairs(points, state, rule, options), {})[points] = fresh
                continue
            kinds.setdefault(_kind(points, state, rule, _options_of(points, options)), []).append(points)
        stacks = [Stacked(sets, state, rule, key[-1]) for key, sets in kinds.items()]
        local_table = {stack.x: (stack.points,) for stack in stacks}
        local_state = {stack.x: stack.state for stack in stacks}
        self._locals = []
        work: list[Callable[[], None]] = []
        for of_rest in (False, True):
            params = [stack.x for stack in stacks if stack.of_rest is of_rest]
            changed = {**(options_of_rest(options) if of_rest else options), "params": params}
            self._locals.append(Group())  # the stacks are new tensors
            work += self._locals[-1].prepare(local_table, local_state, rule, changed, True)

        def write_back() -> None:
            for members in pairs.values():
                sums.run([step_pairs(members, state, rule, options)])
            for stack in stacks:
                stack.write_back(state, rule)
            if exchanged is not None:
                exchanged.write(optimizer_state, rule, options)

        return [*work, write_back]


def _kind(points: PointSet, state: State, rule: Rule, options: Options) -> tuple[Any, ...]:
    """What the sets of one stack have in common; the names of their state come last."""
    lead, layouts = points.parts[0], points.layouts()
    entry = state.get(lead, {})
    names = [name for name in rule.stored if all(name in state.get(p, {}) for p in points.parts)]
    names += [name for name, stored in points.scalar_names(rule).items() if stored in entry]
    held = holds(points.manifold, options)
    names = [name for name in names if name != "radius" or held]
    step = entry.get("step" + points.suffix)
    if step is not None:
        names.append("step")
    height = sum(layout.event[0] for layout in layouts) if layouts[0].event else 0
    # A penalty couples the points of a stack, and a captured step cannot compare counters: every set is a stack of its own.
    alone = points if options["capturable"] or is_penalised(points.manifold, options) else None
    count = None if step is None or alone is not None else float(step)
    event = (height, *layouts[0].event[1:])
    kind = isinstance(points.slices, Rest), points.manifold, event
    dtypes = lead.dtype, points.gradients()[0].dtype
    return alone, *kind, *dtypes, lead.device, count, tuple(names)
