"""The limited memory of L-BFGS: the last steps and changes of the gradient, carried along with the point."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from .space import Arrays, Space

__all__ = ["Keep", "Pairs"]

Keep = Callable[[float, float, float], bool]
"""(⟨s, y⟩, ⟨s, s⟩, ‖g‖²) ↦ whether a pair is kept."""


class Pairs:
    """The pairs (s, y) in one stack per array, (2, k, *batch, *event), all tangent at one point; the newest is the last."""

    def __init__(self, space: Space, memory: int, keep: Keep) -> None:
        self.space, self.memory, self.keep = space, memory, keep
        self.stacks: Arrays | None = None
        self.last: tuple[Arrays, Arrays] | None = None
        """The last step and the gradient before it, both carried to the point, until `append`."""

    def forget(self) -> bool:
        """Drop all pairs; whether there were any."""
        known = self.stacks is not None
        self.stacks = self.last = None
        return known

    def carry(self, x: Arrays, gradient: Arrays, u: Arrays, y: Arrays, moved: Arrays) -> None:
        """Carry all from x to y = retract(x, u), where `u` has become `moved`; `gradient` is that at x."""
        own = [g.unsqueeze(0) for g in gradient]
        if self.stacks is not None:  # one transport for all: a manifold does the work that depends on the points once
            own = [torch.cat([stack.flatten(0, 1), g]) for stack, g in zip(self.stacks, own, strict=True)]
        own = self.space.carried(x, u, y, own)
        if self.stacks is not None:
            self.stacks = [stack[:-1].unflatten(0, (2, -1)) for stack in own]
        self.last = moved, [stack[-1] for stack in own]

    def append(self, gradient: Arrays) -> None:
        """Append the pair of the last step, which ends in `gradient`."""
        if self.last is None:
            return
        fresh = [torch.stack([s, g - before]).unsqueeze(1) for s, before, g in zip(*self.last, gradient, strict=True)]
        self.last = None
        if self.stacks is None:
            self.stacks = fresh
        else:
            self.stacks = [torch.cat([stack, pair], 1) for stack, pair in zip(self.stacks, fresh, strict=True)]

    def direction(self, x: Arrays, gradient: Arrays, square: float) -> tuple[Arrays, float, float] | None:
        """−H g with its slope and its length, with H the inverse BFGS matrix of the pairs that are kept; None without any. `square` is ‖g‖².

        With R the upper triangle of SᵀY, D its diagonal, γ = ⟨s, y⟩/⟨y, y⟩ of the newest pair and p = R⁻¹ Sᵀg it is
        H g = γ g + S R⁻ᵀ((D + γ YᵀY) p − γ Yᵀg) − γ Y p (Byrd, Nocedal & Schnabel 1994, eq. 3.1), on inner products that are all taken before: a
        device is waited for once.
        """
        if self.stacks is None:
            return None
        pairs = [stack.flatten(0, 1) for stack in self.stacks]
        products = self.space.table(x, pairs, pairs), self.space.table(x, pairs, [g.unsqueeze(0) for g in gradient])
        table = torch.cat(products, 1).double().cpu().numpy()
        k = self.stacks[0].shape[1]
        kept = [i for i in range(k) if self.keep(table[i, k + i], table[i, i], square)][-self.memory :]
        if not kept:
            self.stacks = None
            return None
        if len(kept) < k:
            self.stacks = [stack[:, kept] for stack in self.stacks]
            pairs = [stack.flatten(0, 1) for stack in self.stacks]
            rows = [*kept, *(k + i for i in kept)]
            table = table[np.ix_(rows, [*rows, 2 * k])]
        weights, scale = _weights(table)
        among, along = table[:, :-1], table[:, -1]
        slope = float(weights @ along) - scale * square
        length = float(weights @ (among @ weights - 2.0 * scale * along)) + scale**2 * square
        factors = torch.from_numpy(weights)
        d = [
            torch.tensordot(factors.to(stack), stack, 1).sub_(g, alpha=scale)
            for stack, g in zip(pairs, gradient, strict=True)
        ]
        return d, slope, math.sqrt(max(length, 0.0))


def _weights(table: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The factors of s₁ … sₖ, y₁ … yₖ in −H g, and γ, of which −γ g is added.

    `table` has a row per vector: its inner products with s₁ … sₖ, y₁ … yₖ and g.
    """
    k = len(table) // 2
    sy, yy, sg, yg = table[:k, k:-1], table[k:, k:-1], table[:k, -1], table[k:, -1]
    triangle = np.triu(sy)
    scale = float(sy[-1, -1] / yy[-1, -1])
    p = np.linalg.solve(triangle, sg)
    inner = sy.diagonal() * p + scale * (yy @ p - yg)
    return np.concatenate([-np.linalg.solve(triangle.T, inner), scale * p]), scale
