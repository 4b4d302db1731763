"""The limited memory of L-BFGS: the last steps and changes of the gradient, carried along with the point."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .space import Arrays, Space, as_rows

__all__ = ["Keep", "Pairs"]

Numbers = NDArray[np.float64]
Keep = Callable[[Numbers, Numbers, float], NDArray[np.bool_]]
"""(⟨s, y⟩, ⟨s, s⟩, ‖g‖²) ↦ which pairs are kept."""

# Where a transport is the projection at the new point, tangents that stay as they are along a way of length ℓ have inner products that
# are off by a share of ℓ² at most, with ℓ in radii of curvature: so they are carried at these distances only, and their inner products are taken once.
_DRIFT = 0.3


class Pairs:
    """The pairs (s, y) in one stack per array, (k, 2, *batch, *event), all tangent at one point; the newest is the last."""

    def __init__(self, space: Space, memory: int, keep: Keep) -> None:
        self.space, self.memory, self.keep = space, memory, keep
        self.stacks: Arrays | None = None
        self.last: tuple[Arrays, Arrays] | None = None
        """The last step and the gradient before it, both carried to the point, until `append`."""
        self._known: tuple[Numbers, Numbers] | None = None
        """The inner products of the pairs, (k, 2, k, 2), and R⁻¹ of `direction`, without the newest; None where they have changed."""
        self._drift = 0.0

    def forget(self) -> bool:
        """Drop all pairs; whether there were any."""
        known = self.stacks is not None
        self.stacks = self.last = self._known = None
        return known

    def carry(self, x: Arrays, gradient: Arrays, u: Arrays, y: Arrays, length: float) -> None:
        """Carry all from x to y = retract(x, u), with `u` of `length` as the newest step and `gradient` the one at x."""
        space = self.space
        self._drift += length
        if space.flat:
            self.last = u, gradient
        elif space.projects and self._drift <= _DRIFT * space.reach:
            self.last = u, space.carried(x, u, y, gradient)
        else:  # one transport for all: a manifold does the work that depends on the points once
            own = [torch.stack(both) for both in zip(u, gradient, strict=True)]
            if self.stacks is not None:
                own = [torch.cat([stack.flatten(0, 1), a]) for stack, a in zip(self.stacks, own, strict=True)]
            own = space.carried(x, u, y, own)
            if self.stacks is not None:
                self.stacks = [stack[:-2].unflatten(0, (-1, 2)) for stack in own]
            self._known, self._drift = None, 0.0
            self.last = [stack[-2] for stack in own], [stack[-1] for stack in own]

    def append(self, gradient: Arrays) -> None:
        """Append the pair of the last step, which ends in `gradient`."""
        if self.last is None:
            return
        fresh = [torch.stack([s, g - before]).unsqueeze(0) for s, before, g in zip(*self.last, gradient, strict=True)]
        self.last = None
        if self.stacks is None:
            self.stacks, self._known = fresh, None
        else:
            self.stacks = [torch.cat([stack, pair]) for stack, pair in zip(self.stacks, fresh, strict=True)]

    def direction(self, x: Arrays, gradient: Arrays, square: float) -> tuple[Arrays, float, float] | None:
        """−H g with its slope and its length, with H the inverse BFGS matrix of the pairs that are kept; None without any. `square` is ‖g‖².

        With R the upper triangle of SᵀY, D its diagonal, γ = ⟨s, y⟩/⟨y, y⟩ of the newest pair and p = R⁻¹ Sᵀg it is
        H g = γ g + S R⁻ᵀ((D + γ YᵀY) p − γ Yᵀg) − γ Y p (Byrd, Nocedal & Schnabel 1994, eq. 3.1), on inner products that are all taken before: a
        device is waited for once.
        """
        if self.stacks is None:
            return None
        table, along = self._products(x, gradient)
        inverse = self._known[1] if self._known else np.empty((0, 0))
        sy, ss = (table[:, 0, :, i].diagonal() for i in (1, 0))
        kept: Any = self.keep(sy, ss, square).nonzero()[0][-self.memory :]
        if not kept.size:
            self.forget()
            return None
        if kept.size < len(table):
            newest = kept[0] == len(table) - kept.size
            inverse = inverse[kept[0] :, kept[0] :] if newest else inverse[:0, :0]
            kept = slice(kept[0], None) if newest else kept
            self.stacks = [stack[kept] for stack in self.stacks]
            table, along = table[kept][:, :, kept], along[kept]
        sg, yg, sy, yy = along[:, 0], along[:, 1], table[:, 0, :, 1], table[:, 1, :, 1]
        inverse = _inverse(sy, inverse)
        self._known = table, inverse
        scale = float(sy[-1, -1] / yy[-1, -1])
        p = inverse @ sg
        weights = np.empty_like(along)
        weights[:, 0], weights[:, 1] = -(sy.diagonal() * p + scale * (yy @ p - yg)) @ inverse, scale * p
        weights = weights.reshape(-1)
        share = float(weights @ along.reshape(-1))
        long = float(weights @ table.reshape(weights.size, -1) @ weights)
        factors = torch.from_numpy(weights)
        d = [
            torch.addmv(g.reshape(-1), as_rows(stack.flatten(0, 1)).T, factors.to(stack), beta=-scale).view_as(g)
            for stack, g in zip(self.stacks, gradient, strict=True)
        ]
        if self.space.projects and not self.space.flat and self._drift:
            d = self.space.each("project", x, d)
        return d, share - scale * square, math.sqrt(max(long - 2.0 * scale * share + scale**2 * square, 0.0))

    def _products(self, x: Arrays, gradient: Arrays) -> tuple[Numbers, Numbers]:
        """The inner products of the pairs with one another, (k, 2, k, 2), and with the gradient, (k, 2)."""
        assert self.stacks is not None
        known = 2 * len(self._known[0]) if self._known else 0
        pairs = [stack.flatten(0, 1) for stack in self.stacks]
        others = [torch.cat([both[known:], g.unsqueeze(0)]) for both, g in zip(pairs, gradient, strict=True)]
        found = self.space.table(x, pairs, others).double().cpu().numpy()
        k, fresh = len(found), found[:, :-1]
        table = np.empty((k, k))
        table[:, known:], table[known:] = fresh, fresh.T
        if self._known:
            table[:known, :known] = self._known[0].reshape(known, known)
        return table.reshape(k // 2, 2, k // 2, 2), found[:, -1].reshape(-1, 2)


def _inverse(a: Numbers, known: Numbers) -> Numbers:
    """The inverse of the upper triangle of `a`, (k, k), from the `known` one of its first rows and columns."""
    inverse = np.zeros(a.shape)
    inverse[: len(known), : len(known)] = known
    for j in range(len(known), len(a)):
        inverse[:j, j] = inverse[:j, :j] @ a[:j, j] / -a[j, j]
        inverse[j, j] = 1.0 / a[j, j]
    return inverse
