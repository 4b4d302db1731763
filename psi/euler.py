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
    def identity(self) -> float:
        """Of |Σ w g| / √Σ (w g)² at an invariant point. Also the chance that products with random signs pass."""
        return max(1e-3, 100 * math.sqrt(self.precision))

    @property
    def dead(self) -> float:
        """√Σ (w g)² below which the rounding of a gradient may be more than that, for outputs of length 1."""
        return 1e3 * self.precision / self.identity

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
    """Whether a point did not in any of them."""
    radial: float = math.nan
    """The largest |⟨w, g⟩| / (‖w‖ ‖g‖) of a point in the last pass in which one had a gradient."""
    part: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """Which points satisfied it in the first pass, where others did not."""


class Euler:
    """Euler's identity for any cut at given weights and gradients.

    ⟨w, g⟩ = Σ wᵢ gᵢ is held against √Σ (wᵢ gᵢ)², the size that it would have if the products had random signs: unlike ‖w‖ ‖g‖
    that does not depend on how large the parts of a point are.
    """

    def __init__(self, weights: dict[str, Tensor], gradients: dict[str, Tensor], tolerances: Tolerances) -> None:
        self.weights, self._gradients, self._tolerances = weights, gradients, tolerances
        self._rows: dict[str, Tensor] = {}
        # The functional is of unit size, so that a network all of whose gradients are rounding has no live ones.
        sizes = (float(self._full(name, Rows())[1].sum().sqrt()) for name, w in weights.items() if w.numel())
        self.floor = tolerances.dead * max(1.0, *sizes, 1.0)

    def whole(self, name: str) -> float:
        """|⟨w, g⟩| / (‖w‖ ‖g‖) of one tensor; 0 without a gradient."""
        product, square, w2, g2 = self._full(name, Rows()).sum(1).tolist()
        return abs(product) / math.sqrt(w2 * g2) if square > self.floor**2 else 0.0

    def judge(self, cut: Cut, evidence: Evidence) -> None:
        """Add to `evidence` what this pass says of `cut`."""
        masks, alive, worst, refuted = [], False, 0.0, False
        for product, square, w2, g2 in self.sums(cut):
            live = square > self.floor**2
            holds = product.abs() <= self._tolerances.identity * square.sqrt()
            masks.append(holds & live)
            if live.any():
                alive, refuted = True, refuted or not bool(holds[live].all())
                worst = max(worst, float((product.abs() / (w2 * g2).sqrt())[live].max()))
            if refuted and cut.rows.axis != 0:
                break  # which points of axis 0 hold is of interest; of others one that fails is enough
        held = torch.cat(masks)
        if refuted and not evidence.refuted and not evidence.held:
            evidence.part = held
        evidence.held = max(evidence.held, int(held.sum()))
        evidence.refuted |= refuted
        evidence.radial = worst if alive else evidence.radial

    def sums(self, cut: Cut) -> Iterator[Tensor]:
        """⟨w, g⟩, Σ (w g)², ‖w‖², ‖g‖² of the points of `cut`, (4, points) in pieces."""
        if cut.rows.axis == 0 or cut.joined:
            total = self._full(cut.parts[0], cut.rows)
            for part in cut.parts[1:]:
                total = total + self._full(part, cut.rows)
            yield total
        else:
            yield from self._pieces(cut.name, cut.rows)

    def _full(self, name: str, rows: Rows) -> Tensor:
        """The sums of one parameter, (4, points). Those of axis 0, of which blocks are made, are kept."""
        if rows.axis != 0:
            return torch.cat(list(self._pieces(name, rows)), 1)
        if name not in self._rows:
            self._rows[name] = torch.cat(list(self._pieces(name, Rows())), 1)
        kept = self._rows[name]
        return kept if rows.blocks is None else kept.view(4, rows.blocks, -1).sum(-1)

    def _pieces(self, name: str, rows: Rows) -> Iterator[Tensor]:
        w, g = self.weights[name].detach(), self._gradients[name]
        if w.ndim == 0:
            w, g = w.view(1), g.view(1)
        layout = rows.layout(w, 1)
        a, b = layout.arrange(w), layout.arrange(g)
        step = max(1, CHUNK * a.shape[0] // max(1, a.numel()))
        inside = tuple(range(layout.axes, a.ndim))
        for start in range(0, a.shape[0], step):
            s, t = a[start : start + step], b[start : start + step]
            product = s * t
            terms = (product, product.square(), s.square(), t.square())
            yield torch.stack([(term.sum(inside) if inside else term).flatten() for term in terms])
