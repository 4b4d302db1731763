"""The limited memory of L-BFGS: the last steps and changes of the gradient, carried along with the point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from .objective import State, Trial
from .space import Arrays, Space

__all__ = ["Keep", "Pairs"]

Keep = Callable[[float, float, float], bool]
"""(⟨s, y⟩, ⟨s, s⟩, ‖g‖²) ↦ whether a pair is kept."""


class Pairs:
    """The pairs (s, y) in one stack per array, (2, k, *batch, *event), all tangent at one point; the newest is the last."""

    def __init__(self, space: Space, memory: int, keep: Keep) -> None:
        self.space, self.memory, self.keep = space, memory, keep
        self.stacks: Arrays | None = None

    def remember(self, here: State, d: Arrays, trial: Trial) -> None:
        """Carry the pairs from `here` to the state of `trial`, which is at t d, and append the newest."""
        there, carried = trial.state, trial.carried
        assert there is not None and carried is not None
        # One transport for all: a manifold does the work that depends on the points once.
        own = [g.unsqueeze(0) for g in here.gradient]
        if self.stacks is not None:
            own = [torch.cat([stack.flatten(0, 1), g]) for stack, g in zip(self.stacks, own, strict=True)]
        moved = self.space.carried(here.x, [trial.t * a for a in d], there.x, own)
        fresh = [torch.stack([trial.t * s, g - v[-1]]) for s, g, v in zip(carried, there.gradient, moved, strict=True)]
        if self.stacks is None:
            self.stacks = [pair.unsqueeze(1) for pair in fresh]
            return
        start = max(0, self.stacks[0].shape[1] + 1 - self.memory)
        self.stacks = [
            torch.cat([v[:-1].unflatten(0, (2, -1))[:, start:], pair.unsqueeze(1)], 1)
            for v, pair in zip(moved, fresh, strict=True)
        ]

    def direction(self, here: State) -> tuple[Arrays, float, float] | None:
        """−H g with its slope and its length, H by the BFGS formula from the pairs that are kept; None without any.

        The two-loop recursion (Nocedal & Wright 2006, Algorithm 7.4) runs on the coefficients of the pairs, from inner products that
        are all taken before it: a device is waited for once.
        """
        if self.stacks is None:
            return None
        k = self.stacks[0].shape[1]
        both = [stack.flatten(0, 1) for stack in self.stacks]
        last = [torch.cat([stack, g.unsqueeze(0)]) for stack, g in zip(both, here.gradient, strict=True)]
        table = self.space.table(here.x, both, last).tolist()
        kept = [i for i in range(k) if self.keep(table[i][k + i], table[i][i], here.square)]
        if len(kept) < k:
            self.stacks = [stack[:, kept] for stack in self.stacks] if kept else None
            if not kept:
                return None
            both = [stack.flatten(0, 1) for stack in self.stacks]
            rows = [*kept, *(k + i for i in kept)]
            table = [[table[i][j] for j in (*rows, 2 * k)] for i in rows]
        weights, scale = _weights(table)
        slope = sum(w * row[-1] for w, row in zip(weights, table, strict=True)) - scale * here.square
        products = [sum(w * value for w, value in zip(weights, row[:-1], strict=True)) for row in table]
        square = sum(w * (p - 2.0 * scale * row[-1]) for w, p, row in zip(weights, products, table, strict=True))
        factors = torch.tensor(weights, dtype=torch.float64)
        d = [
            torch.tensordot(factors.to(stack), stack, 1).sub_(g, alpha=scale)
            for stack, g in zip(both, here.gradient, strict=True)
        ]
        return d, slope, math.sqrt(max(square + scale**2 * here.square, 0.0))


def _weights(table: Sequence[Sequence[float]]) -> tuple[list[float], float]:
    """The factors of s₁ … sₖ, y₁ … yₖ in −H g, and γ = ⟨s, y⟩/⟨y, y⟩ of the newest pair, of which −γ g is added.

    `table` has a row per vector: its inner products with s₁ … sₖ, y₁ … yₖ and g.
    """
    k = len(table) // 2
    sy = [[table[i][k + j] for j in range(k)] for i in range(k)]
    yy = [[table[k + i][k + j] for j in range(k)] for i in range(k)]
    alpha, factor = [0.0] * k, [0.0] * k
    scale = sy[-1][-1] / yy[-1][-1]
    for i in reversed(range(k)):
        alpha[i] = (table[i][-1] - sum(alpha[j] * sy[i][j] for j in range(i + 1, k))) / sy[i][i]
    for i in range(k):
        own = scale * (table[k + i][-1] - sum(alpha[j] * yy[i][j] for j in range(k)))
        beta = (own + sum(factor[j] * sy[j][i] for j in range(i))) / sy[i][i]
        factor[i] = alpha[i] - beta
    return [*(-a for a in factor), *(scale * a for a in alpha)], scale
