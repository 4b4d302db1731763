"""Rows of many parameters through `torch._foreach_*`: the backend that needs nothing but torch, on any device.

Dot products are computed matrix by matrix and concatenated, so that the algebra runs once for all points; the linear
combinations are formed in place. Scalars per point are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...manifolds import numerics
from ..memory import Memory
from ..options import Options
from ..rules import Coefficients, Rule
from . import algebra
from .launch import Choices, Update

__all__ = ["Stack", "coefficients_per_point", "step"]


class Stack(NamedTuple):
    """Points with gradients and state, one entry per matrix."""

    x: list[Tensor]
    """Points, (points, n), of one dtype, float32 or float64."""
    g: list[Tensor]
    """Euclidean gradients, shaped like the points."""
    vectors: dict[str, list[Tensor]]
    """State vectors by name, shaped like the points."""
    scalars: dict[str, list[Tensor]]
    """Scalars per point by name, (points, 1)."""

    def map(self, function: Callable[[list[Tensor]], list[Tensor]]) -> Stack:
        """The stack with `function` applied to every list."""
        vectors, scalars = ({name: function(arrays) for name, arrays in state.items()} for state in self[2:])
        return Stack(function(self.x), function(self.g), vectors, scalars)

    def select(self, members: Sequence[int]) -> Stack:
        """The stack of the matrices at the indices `members`."""
        return self if len(members) == len(self.x) else self.map(lambda arrays: [arrays[i] for i in members])

    def pieces(self, size: int) -> Iterator[Stack]:
        """The stack in runs of at most `size` elements, or of one row; a large matrix is cut between rows."""
        sizes = [g.numel() for g in self.g]
        if sum(sizes) <= size:
            yield self
            return
        rows = [max(1, size // g.shape[1]) for g in self.g]

        def cut(arrays: list[Tensor]) -> list[Tensor]:
            pairs = zip(arrays, rows, strict=True)
            return [piece for a, count in pairs for piece in (a.split(count) if len(a) > count else (a,))]

        stack = self.map(cut) if max(sizes) > size else self
        run: list[int] = []
        filled = 0
        for i, g in enumerate(stack.g):
            if run and filled + g.numel() > size:
                yield stack.select(run)
                run, filled = [], 0
            run.append(i)
            filled += g.numel()
        yield stack.select(run)


def step(stack: Stack, update: Update, rule: Rule, memory: Memory, options: Options) -> None:
    """One step of `stack`, in place; gradients are not written to.

    Coefficients that are not in `update` are those of `rule` with `memory` and `options`.
    """
    (C, N), (x, g, vectors, scalars) = update, stack
    info, points = torch.finfo(x[0].dtype), [part.shape[0] for part in x]
    tiny, rounding = info.tiny**0.5, info.eps

    def spread(numbers: Tensor) -> list[Tensor]:
        return list(numbers.to(x[0].dtype).unsqueeze(1).split(points))

    def column(name: str) -> Tensor:
        return torch.cat(scalars[name]).squeeze(1).double()

    def store(name: str, numbers: Tensor) -> None:
        torch._foreach_copy_(scalars[name], list(numbers.unsqueeze(1).split(points)))

    xx, r, g = _measured(x, g, C)
    radius, one, zero = r, torch.ones_like(r), torch.zeros_like(r)
    held = column("radius") if C.store_radius else zero
    s = algebra.rescaling(r, held, N.low, N.high, tiny, C) if C.hold or C.free else one
    f, length = algebra.clipped(_squares(g) if C.measures else zero, r, N.limit, C)
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
    if not C.additive:
        xw, ww = _dots(x, w), _squares(w)
        xu, uu = c * xw * s, c * c * ww
        xx, r = xx * s * s, r * s
        root = one
        if C.unit and C.exp:
            widths = torch.tensor([part.shape[1] for part in x], dtype=torch.float64)
            root = widths.sqrt().repeat_interleave(torch.tensor(points)).to(r.device, non_blocking=True)
        k_x, k_u, norm2 = algebra.motion(xx, xu, uu, r, root, rounding, C)
    transported = []
    if C.project or C.parallel:
        for v in vectors.values():
            xv, uv = (xw if w is v else _dots(x, v)) * s, c * (ww if w is v else _dots(w, v))
            t_v, t_x, t_u = algebra.carry(xx, xu, uu, xv, uv, k_x, k_u, norm2, r, rounding, tiny, C)
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
    (C, N), (x, g, *_) = update, stack
    xx, r, g = _measured(x, g, C)
    length = algebra.clipped(_squares(g) if C.measures else xx, r, N.limit, C)[1]
    coefficients = _ask(rule, length.unsqueeze(1), stack, memory, options)
    numbers = (*coefficients.of(rule.vectors[0] if rule.vectors else ""), coefficients.ahead)
    return torch.stack([_flat(number) + torch.zeros_like(r) for number in numbers], dim=1)


def _measured(x: list[Tensor], g: list[Tensor], C: Choices) -> tuple[Tensor, Tensor, list[Tensor]]:
    """x·x and ‖x‖ of all points, (points of all,), and the gradients, on unit vectors without their parts along x.

    Combinations of x and an almost normal g would otherwise cancel to rounding errors.
    """
    xx = _squares(x)
    r = xx.sqrt().clamp(min=torch.finfo(x[0].dtype).tiny ** 0.5)
    if C.unit:
        along = (-_dots(x, g)).to(x[0].dtype).unsqueeze(1).split([part.shape[0] for part in x])
        g = list(torch._foreach_addcmul(g, x, list(along)))
    return xx, r, g


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


def _dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """a·b of every row of every matrix, (points of all,), float64."""
    return torch.cat([torch.linalg.vecdot(p, q) for p, q in zip(a, b, strict=True)]).double()


def _squares(a: Sequence[Tensor]) -> Tensor:
    """a·a of every row of every matrix, (points of all,), float64.

    Squares in float32 that overflow or underflow are summed again in float64; off the CPU, where testing for that would wait
    for the device, all are.
    """
    if a[0].dtype == torch.float32 and not a[0].is_cpu:
        return torch.cat([torch.linalg.vector_norm(p, dim=1, dtype=torch.float64) for p in a]).square()
    size = torch.cat([torch.linalg.vector_norm(p, dim=1) for p in a])
    if a[0].dtype == torch.float32 and not numerics.squares_fit(size):
        size = torch.cat([torch.linalg.vector_norm(p, dim=1, dtype=torch.float64) for p in a])
    return size.double().square()
