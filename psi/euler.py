"""Euler's identity: a function of w with L(a w) = L(w) for all a > 0 has ⟨w, ∇L⟩ = 0 (Yi 2022, Lemma 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..manifolds import Rows
from .cuts import Cut

__all__ = ["Euler"]

CHUNK = 2**17
"""Elements whose products are summed at a time."""
DEAD = 1e-12
"""‖w‖ ‖g‖ relative to the largest in the model, below which a gradient is rounding and says nothing."""


class Euler:
    """Euler's identity for any cut at given weights and gradients.

    Keeps sums per row and per channel only, from which blocks and whole tensors follow, so that the gradients
    can go: they are as large as the weights.
    """

    def __init__(self, weights: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        self.weights = weights
        self._gradients = gradients
        self._sums: dict[tuple[str, Rows], Tensor] = {}
        influence = {n: float(w.detach().norm() * gradients[n].norm()) for n, w in weights.items()}
        self._influence = influence
        self._floor = DEAD * max(influence.values(), default=0.0)

    def forget(self) -> None:
        """Let the gradients go; cuts not asked for before cannot be asked for now."""
        self._gradients = {}

    def dead(self, name: str) -> bool:
        """Whether the gradient is nothing but rounding."""
        return self._influence[name] <= self._floor

    def ratios(self, cut: Cut) -> tuple[Tensor, int]:
        """|⟨w, g⟩| / (‖w‖ ‖g‖) of every point that has a gradient, and the number of coordinates."""
        sums = torch.stack([self._point_sums(part, cut.rows) for part in cut.parts]).sum(0)
        product, w2, g2 = sums
        size = (w2 * g2).sqrt()
        live = size > self._floor
        n = sum(self.weights[part].numel() for part in cut.parts) // max(1, product.numel())
        return product.abs()[live] / size[live], n

    def holding(self, cut: Cut, threshold: float) -> tuple[int, int]:
        """How many points have √n |⟨w, g⟩| ≤ threshold ‖w‖ ‖g‖, and how many have a gradient at all.

        With n coordinates and a gradient in a random direction the left side is about the right side at threshold 1,
        whatever n; so a threshold t lets a point pass by accident with probability t.
        """
        ratios, n = self.ratios(cut)
        return int((ratios * math.sqrt(n) <= threshold).sum()), ratios.numel()

    def holds(self, cut: Cut, threshold: float) -> bool:
        """Whether every point with a gradient satisfies the identity in this sense, and there is one."""
        good, live = self.holding(cut, threshold)
        return 0 < live == good

    def worst(self, cut: Cut) -> float:
        """Largest ratio over the points, 0 if none has a gradient."""
        ratios, _ = self.ratios(cut)
        return float(ratios.max()) if ratios.numel() else 0.0

    def _point_sums(self, name: str, rows: Rows) -> Tensor:
        """⟨w, g⟩, ‖w‖², ‖g‖² per point of one parameter, (3, points)."""
        if rows.blocks is not None:
            return self._point_sums(name, Rows(axis=0)).view(3, rows.blocks, -1).sum(-1)
        key = name, rows
        if key not in self._sums:
            w, g = self.weights[name].detach(), self._gradients[name]
            layout = rows.layout(w, 1)
            if w.ndim == 0:
                self._sums[key] = torch.stack([w * g, w * w, g * g]).view(3, 1)
                return self._sums[key]
            a, b = layout.arrange(w), layout.arrange(g)
            sums = w.new_empty(3, *layout.arranged[: layout.axes])
            step = max(1, CHUNK * a.shape[0] // max(1, a.numel()))
            inside = tuple(range(layout.axes, a.ndim))
            for start in range(0, a.shape[0], step):
                part = slice(start, start + step)
                for row, (s, t) in zip(sums, ((a, b), (a, a), (b, b)), strict=True):
                    product = s[part] * t[part]
                    row[part] = product.sum(inside) if inside else product
            self._sums[key] = sums.view(3, -1)
        return self._sums[key]
