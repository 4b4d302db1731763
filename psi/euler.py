"""Euler's identity: a function of w with L(a w) = L(w) for all a > 0 has ⟨w, ∇L⟩ = 0 (Yi 2022, Lemma 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..manifolds import Rows
from .cuts import Cut

__all__ = ["Euler", "Evidence", "Tolerances"]

CHUNK = 2**17
"""Elements whose products are summed at a time."""


@dataclass(frozen=True)
class Tolerances:
    """What counts as rounding, given the `precision` of the coarsest type that the network is measured in."""

    precision: float

    @property
    def strict(self) -> float:
        """Of √n |⟨w, g⟩| / (‖w‖ ‖g‖) at an invariant point. Also the chance that a gradient in a random direction passes."""
        return max(1e-6, 1e4 * self.precision)

    @property
    def clear(self) -> float:
        """Beyond which a point is certainly not invariant; between the two nothing is said."""
        return math.sqrt(self.strict)

    @property
    def dead(self) -> float:
        """‖w‖ ‖g‖ below which the rounding of a gradient may be more than `strict`, for outputs of length 1."""
        return 10 * self.precision / self.strict

    @property
    def outputs(self) -> float:
        """Relative change of an output that counts as none."""
        return max(1e-7, 1e3 * self.precision)


@dataclass
class Evidence:
    """What the gradients have said of a cut so far, over all passes."""

    held: int = 0
    """How many points satisfied the identity in one pass, at most."""
    refuted: bool = False
    """Whether a point clearly did not in any of them."""
    radial: float = math.nan
    """The largest |⟨w, g⟩| / (‖w‖ ‖g‖) of a point in the last pass in which one had a gradient."""
    part: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """Which points satisfied it in the first pass, where others did not."""


class Euler:
    """Euler's identity for any cut at given weights and gradients."""

    def __init__(self, weights: dict[str, Tensor], gradients: dict[str, Tensor], tolerances: Tolerances) -> None:
        self.weights, self._gradients, self._tolerances = weights, gradients, tolerances
        self._rows: dict[str, Tensor] = {}
        self._influence = {n: float(w.detach().norm() * gradients[n].norm()) for n, w in weights.items()}
        # The functional is of unit size, so that a network all of whose gradients are rounding has no live ones.
        self.floor = tolerances.dead * max(1.0, *self._influence.values())

    def dead(self, name: str) -> bool:
        """Whether the gradient is nothing but rounding."""
        return self._influence[name] <= self.floor

    def whole(self, name: str) -> float:
        """|⟨w, g⟩| / (‖w‖ ‖g‖) of one tensor; 0 without a gradient."""
        if self.dead(name):
            return 0.0
        return abs(float((self.weights[name].detach() * self._gradients[name]).sum())) / self._influence[name]

    def judge(self, cut: Cut, evidence: Evidence) -> None:
        """Add to `evidence` what this pass says of `cut`.

        With n coordinates and a gradient in a random direction, √n |⟨w, g⟩| is about ‖w‖ ‖g‖, whatever n.
        """
        root = math.sqrt(sum(self.weights[part].numel() for part in cut.parts) / cut.count)
        masks, live, worst, refuted = [], 0, 0.0, False
        for product, w2, g2 in self.sums(cut):
            size = (w2 * g2).sqrt()
            alive = size > self.floor
            ratio = torch.where(alive, product.abs() / size, math.inf)
            masks.append(root * ratio <= self._tolerances.strict)
            if alive.any():
                live += int(alive.sum())
                top = float(ratio[alive].max())
                worst, refuted = max(worst, top), refuted or root * top > self._tolerances.clear
            if refuted and not (cut.rows.axis == 0):
                break  # which points of axis 0 hold is of interest; of others one that fails is enough
        held = torch.cat(masks)
        if refuted and not evidence.refuted and not evidence.held and cut.rows.axis == 0:
            evidence.part = held
        evidence.held = max(evidence.held, int(held.sum()))
        evidence.refuted |= refuted
        evidence.radial = worst if live else evidence.radial

    def sums(self, cut: Cut) -> Iterator[Tensor]:
        """⟨w, g⟩, ‖w‖², ‖g‖² of the points of `cut`, (3, points) in pieces."""
        if cut.rows.axis == 0 or cut.joined:
            total = self._full(cut.parts[0], cut.rows)
            for part in cut.parts[1:]:
                total = total + self._full(part, cut.rows)
            yield total
        else:
            yield from self._pieces(cut.name, cut.rows)

    def _full(self, name: str, rows: Rows) -> Tensor:
        """The sums of one parameter, (3, points). Those of axis 0, of which blocks are made, are kept."""
        if rows.axis != 0:
            return torch.cat(list(self._pieces(name, rows)), 1)
        if name not in self._rows:
            self._rows[name] = torch.cat(list(self._pieces(name, Rows())), 1)
        kept = self._rows[name]
        return kept if rows.blocks is None else kept.view(3, rows.blocks, -1).sum(-1)

    def _pieces(self, name: str, rows: Rows) -> Iterator[Tensor]:
        w, g = self.weights[name].detach(), self._gradients[name]
        layout = rows.layout(w, 1)
        a, b = layout.arrange(w), layout.arrange(g)
        step = max(1, CHUNK * a.shape[0] // max(1, a.numel()))
        inside = tuple(range(layout.axes, a.ndim))
        for start in range(0, a.shape[0], step):
            s, t = a[start : start + step], b[start : start + step]
            products = ((x * y).sum(inside) if inside else x * y for x, y in ((s, t), (s, s), (t, t)))
            yield torch.stack([product.flatten() for product in products])
