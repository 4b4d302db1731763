"""Euler's identity: a function of w with L(a w) = L(w) for all a > 0 has ⟨w, ∇L⟩ = 0 (Yi 2022, Lemma 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

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
    def charges(self) -> float:
        """Relative difference of two charges that counts as none."""
        return max(1e-9, 1e2 * self.precision)

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
    suspect: bool = False
    """Whether a point did not in a pass that is no proof."""
    radial: float = math.nan
    """The largest |⟨w, g⟩| / (‖w‖ ‖g‖) of a point in the last pass in which one had a gradient."""


class Euler:
    """Euler's identity for any cut at given weights and gradients.

    ⟨w, g⟩ = Σ wᵢ gᵢ is held against √Σ (wᵢ gᵢ)², the size that it would have if the products had random signs: unlike ‖w‖ ‖g‖
    that does not depend on how large the parts of a point are.
    """

    def __init__(self, weights: dict[str, Tensor], gradients: dict[str, Tensor], tolerances: Tolerances) -> None:
        self.weights, self._gradients, self._tolerances = weights, gradients, tolerances
        self._rows: dict[str, Tensor] = {}
        # The functional is of unit size, so that a network all of whose gradients are rounding has no live ones.
        sizes = (float(self._full(name, Rows(), 1)[1].sum().sqrt()) for name, w in weights.items() if w.numel())
        self.floor = tolerances.dead * max(1.0, *sizes, 1.0)

    def whole(self, name: str) -> float:
        """|⟨w, g⟩| / (‖w‖ ‖g‖) of one tensor; 0 without a gradient."""
        product, square, w2, g2 = self._full(name, Rows(), 1).sum(1).tolist()
        return abs(product) / math.sqrt(w2 * g2) if square > self.floor**2 else 0.0

    def judge(self, cut: Cut, evidence: Evidence, *, sound: bool) -> None:
        """Add to `evidence` what this pass says of `cut`; if it is not `sound`, a failure is only a suspicion."""
        held, alive, worst, refuted = 0, False, 0.0, False
        for product, square, w2, g2 in self.sums(cut):
            live = square > self.floor**2
            holds = (product.abs() <= self._tolerances.identity * square.sqrt()) & live
            held += int(holds.sum())
            if live.any():
                alive, refuted = True, refuted or not bool(holds[live].all())
                worst = max(worst, float((product.abs() / (w2 * g2).sqrt())[live].max()))
            if refuted:
                break  # one point that fails is enough
        evidence.held = max(evidence.held, held)
        evidence.refuted |= refuted and sound
        evidence.suspect |= refuted
        evidence.radial = worst if alive and not refuted else evidence.radial

    def sums(self, cut: Cut) -> Iterator[Tensor]:
        """⟨w, g⟩, Σ (w g)², ‖w‖², ‖g‖² of the points of `cut`, (4, points) in pieces."""
        if cut.rows.dim == 0 or cut.joined:
            yield self.full(cut)
        else:
            yield from self._pieces(cut.name, cut.rows)

    def full(self, cut: Cut) -> Tensor:
        """As `sums`, in one piece."""
        if cut.slices is None:
            return torch.stack([self._full(part, cut.rows, cut.count) for part in cut.parts]).sum(0)
        found = []
        for part in cut.parts:
            w, g = (cut.layout(part, each).split(each) for each in (self.weights[part].detach(), self._gradients[part]))
            found.append(torch.cat([*_sums(w, g, 1)], 1))
        return torch.stack(found).sum(0)

    def _full(self, name: str, rows: Rows, count: int) -> Tensor:
        """The sums of one parameter, (4, points). Those of dim 0, of which blocks are made, are kept."""
        if name in self._rows and rows.dim == 0:
            kept = self._rows[name]
        else:
            # Filled piece by piece: small results between large intermediate ones would scatter memory.
            first = self.weights[name].shape[0] if rows.dim == 0 and self.weights[name].ndim else count
            kept, start = self.weights[name].new_empty(4, first), 0
            for piece in self._pieces(name, Rows() if rows.dim == 0 else rows):
                kept[:, start : start + piece.shape[1]] = piece
                start += piece.shape[1]
            if rows.dim == 0:
                self._rows[name] = kept
        return kept if rows.blocks is None else kept.view(4, rows.blocks, -1).sum(-1)

    def _pieces(self, name: str, rows: Rows) -> Iterator[Tensor]:
        w, g = self.weights[name].detach(), self._gradients[name]
        if w.ndim == 0:
            w, g = w.view(1), g.view(1)
        layout = rows.layout(w, 1)
        yield from _sums(layout.arrange(w), layout.arrange(g), layout.axes)


def _sums(w: Tensor, g: Tensor, axes: int) -> Iterator[Tensor]:
    """Σ w g, Σ (w g)², Σ w², Σ g² over all but the first `axes`, (4, points) in pieces that need little memory."""
    width = w.numel() // max(1, w.shape[0]) if w.ndim else 0
    if w.numel() > CHUNK:
        step = max(1, CHUNK // width)
        parts = zip(w.split(step), g.split(step), strict=True) if width <= CHUNK else zip(w, g, strict=True)
        inner = axes if width <= CHUNK else max(0, axes - 1)
        pieces = (piece for s, t in parts for piece in _sums(s, t, inner))
        if axes:
            yield from pieces
        else:
            yield sum(pieces, w.new_zeros(4, 1))
        return
    product = w * g
    terms = (product, product.square(), w.square(), g.square())
    inside = tuple(range(axes, w.ndim))
    yield torch.stack([(term.sum(inside) if inside else term).flatten() for term in terms])
