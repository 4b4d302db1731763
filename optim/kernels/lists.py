"""Rows of many parameters through `torch._foreach_*`: the backend that needs nothing but torch, on any device.

Dot products are computed matrix by matrix and concatenated, so that the algebra runs once for all points; the linear
combinations are formed in place, wherever `sums` finds the coordinates. Scalars per point are float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..options import Options
from ..rules import Coefficients, Memory, Rule
from . import algebra
from .launch import Choices, Update
from .sums import Step, Sums

__all__ = ["Stack", "coefficients_per_point", "step"]

_T = TypeVar("_T")


class Stack(NamedTuple):
    """Sets of points with gradients and state, in one matrix per set or in `parts` of them."""

    x: list[Tensor]
    """Points, (points, n), of one dtype, float32 or float64; of joint points first the first parts of all sets."""
    g: list[Tensor]
    """Euclidean gradients, shaped like the points."""
    vectors: dict[str, list[Tensor]]
    """State vectors by name, shaped like the points."""
    scalars: dict[str, list[Tensor]]
    """Scalars per point by name, (points, 1), one per set."""
    parts: int = 1
    """The number of matrices that have the coordinates of a set."""
    processes: Any = None
    """The process group that has the coordinates of all sets; None: this process has all."""

    def select(self, members: Sequence[int]) -> Stack:
        """The stack of the sets at the indices `members`."""
        return self if len(members) * self.parts == len(self.x) else self._cut([(i, ...) for i in members])

    def pieces(self, size: int) -> Iterator[Stack]:
        """The stack in runs of at most `size` elements, or of one point; a large set is cut between points."""
        sizes = [g.numel() for g in self.g]
        if sum(sizes) <= size:
            yield self
            return
        run: list[tuple[int, slice | EllipsisType]] = []
        filled, count = 0, len(sizes) // self.parts
        for i in range(count):
            points, elements = len(self.g[i]), sum(sizes[i::count])
            most = max(1, size * points // elements)
            for start in range(0, points, most):
                rows = ... if points <= most else slice(start, start + most)
                taken = min(most, points - start) * elements // points
                if run and filled + taken > size:
                    yield self._cut(run)
                    run, filled = [], 0
                run.append((i, rows))
                filled += taken
        yield self._cut(run)

    def _cut(self, run: Sequence[tuple[int, slice | EllipsisType]]) -> Stack:
        """The stack of some rows of sets, by their indices."""
        count = len(self.x) // self.parts
        matrices = [(i + first, rows) for first in range(0, len(self.x), count) for i, rows in run]

        def cut(arrays: list[Tensor], run: Sequence[tuple[int, slice | EllipsisType]] = matrices) -> list[Tensor]:
            return [arrays[i] if rows is ... else arrays[i][rows] for i, rows in run]

        vectors = {name: cut(arrays) for name, arrays in self.vectors.items()}
        scalars = {name: cut(arrays, run) for name, arrays in self.scalars.items()}
        return self._replace(x=cut(self.x), g=cut(self.g), vectors=vectors, scalars=scalars)


def step(stack: Stack, update: Update, rule: Rule, memory: Memory, options: Options) -> Step[None]:
    """One step of `stack`, in place; gradients are not written to. It runs when it is iterated, see `sums.run`.

    Coefficients that are not in `update` are those of `rule` with `memory` and `options`.
    """
    (C, N), x, vectors, scalars = update, stack.x, stack.vectors, stack.scalars
    info, sums = torch.finfo(x[0].dtype), Sums(x, stack.parts, stack.processes)
    tiny, rounding, spread = info.tiny**0.5, info.eps, sums.spread

    def column(name: str) -> Tensor:
        return torch.cat(scalars[name]).squeeze(1).double()

    def store(name: str, numbers: Tensor) -> None:
        torch._foreach_copy_(scalars[name], list(numbers.unsqueeze(1).split(sums.points)))

    xx, hh, g = yield from _measured(stack, sums, C)
    r = xx.sqrt().clamp(min=tiny)
    radius, one, zero = r, torch.ones_like(r), torch.zeros_like(r)
    held = column("radius") if C.store_radius else zero
    s = algebra.rescaling(r, held, N.low, N.high, tiny, C) if C.hold or C.free else one
    f, length = algebra.clipped(hh, r, N.limit, C)
    coefficients = Coefficients(N.keep, N.take, N.along, N.ahead)
    if C.adam:
        second, along = algebra.adam(
            length, column("exp_avg_sq"), N.beta2, N.rest, N.rate, N.correction, N.eps, C.inside
        )
        store("exp_avg_sq", second)
        coefficients = coefficients._replace(along=along)
    elif C.per_point:
        coefficients = _ask(rule, length.unsqueeze(1), stack, memory, options)
    steps = []  # u = Σ c w
    for name, v in vectors.items():
        keep, take, along = map(_flat, coefficients.of(name))
        kept, vg, _, along, _, _ = algebra.direction(f, s, zero, N.sign, keep, take, along, 0.0, C)
        torch._foreach_mul_(v, spread(kept))
        torch._foreach_addcmul_(v, g, spread(vg))
        steps.append((v, along))
    ahead = _flat(coefficients.ahead)
    if isinstance(ahead, Tensor) or ahead != 0 or not steps:
        steps = [(v, along) for v, along in steps if not _is_zero(coefficients.along)]
        steps.append((g, algebra.direction(f, s, zero, N.sign, 0.0, 0.0, 0.0, ahead, C)[4]))
    w, c = steps[0]
    if len(steps) > 1:
        w, c = list(torch._foreach_mul(w, spread(c))), one
        for other, by in steps[1:]:
            torch._foreach_addcmul_(w, other, spread(by))
    k_x, k_u = one, one
    transported = []
    if not C.additive:
        moved = vectors.values() if C.project or C.parallel else ()
        products = [product for v in moved if v is not w for product in (sums.dots(x, v), sums.dots(w, v))]
        widths = sums.widths(x) if C.unit and C.exp else one
        xw, ww, n, *products = yield from sums.total(sums.dots(x, w), sums.squares(w), widths, *products)
        xu, uu = c * xw * s, c * c * ww
        xx, r = xx * s * s, r * s
        k_x, k_u, norm2 = algebra.motion(xx, xu, uu, r, n.sqrt(), rounding, C)
        rest = iter(products)
        for v in moved:
            xv, wv = (xw, ww) if v is w else (next(rest), next(rest))
            t_v, t_x, t_u = algebra.carry(xx, xu, uu, xv * s, c * wv, k_x, k_u, norm2, r, rounding, tiny, C)
            transported.append((v, torch._foreach_mul(x, spread(t_x * s)), t_v, t_u * c))
    if C.additive and N.along == 1 and w is not g and len(steps) == 1:  # y = s x + v', in one pass
        for matrix, vector, factor in zip(x, w, spread(s), strict=True):
            torch.addcmul(vector, matrix, factor, out=matrix)
    else:
        if C.hold or C.free or not C.additive:
            torch._foreach_mul_(x, spread(k_x * s))
        torch._foreach_addcmul_(x, w, spread(k_u * c))
    for v, part, t_v, t_w in transported:
        if w is not v:
            torch._foreach_addcmul_(part, w, spread(t_w))
        torch._foreach_mul_(v, spread(t_v + t_w if w is v else t_v))
        torch._foreach_add_(v, part)
    if C.store_radius:
        store("radius", torch.where(held < 0, radius, held))


def coefficients_per_point(stack: Stack, update: Update, rule: Rule, memory: Memory, options: Options) -> Tensor:
    """The coefficients of `rule` for each point, (points of all, 4), float64; stores the rule's scalars per point."""
    C, N = update
    xx, hh, _ = _result(_measured(stack, Sums(stack.x), C))
    r = xx.sqrt().clamp(min=torch.finfo(stack.x[0].dtype).tiny ** 0.5)
    length = algebra.clipped(hh, r, N.limit, C)[1]
    coefficients = _ask(rule, length.unsqueeze(1), stack, memory, options)
    numbers = (*coefficients.of(rule.vectors[0] if rule.vectors else ""), coefficients.ahead)
    return torch.stack([_flat(number) + torch.zeros_like(r) for number in numbers], dim=1)


def _measured(stack: Stack, sums: Sums, C: Choices) -> Step[tuple[Tensor, Tensor, list[Tensor]]]:
    """x·x of all points, h·h if lengths are needed, and h: the gradients, on unit vectors without their parts along x."""
    if C.unit:
        return (yield from sums.normal(stack.x, stack.g, C.measures))
    xx = sums.squares(stack.x)
    xx, hh = yield from sums.total(xx, sums.squares(stack.g) if C.measures else torch.zeros_like(xx))
    return xx, hh, stack.g


def _result(step: Step[_T]) -> _T:
    """The result of a `step` that sends no message."""
    try:
        next(step)
    except StopIteration as end:
        result: _T = end.value
        return result
    raise AssertionError("sums of one process were sent to others")


def _ask(rule: Rule, length: Tensor, stack: Stack, memory: Memory, options: Options) -> Coefficients:
    """The coefficients of `rule`, which sees its scalars per point as (points of all, 1), float64; they are stored again."""
    scalars = {name: stack.scalars[name] for name in rule.scalars}
    memory.scalars = {name: torch.cat(numbers).double() for name, numbers in scalars.items()}
    coefficients = rule(length, memory, {**options, "lr": float(options["lr"])})
    for name, numbers in scalars.items():
        torch._foreach_copy_(numbers, list(memory.scalars[name].split([part.shape[0] for part in numbers])))
    return coefficients


def _flat(number: Any) -> Any:
    """`number`, with a scalar per point as (points,)."""
    return number.reshape(-1) if isinstance(number, Tensor) and number.ndim else number


def _is_zero(number: Any) -> bool:
    return isinstance(number, (int, float)) and number == 0
