"""Pairs of factors that may be transformed against each other without changing the network: `Pair`, and how they are found.

Slices with equal charges are candidates (`relations`); where the whole moment maps of the two sides agree, slices are columns of
one point (`blocks`); what is left when random elements of the group have acted on the points is a finding (`acting`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from ..manifolds.parameters.factors import Factors
from .acting import Acting
from .blocks import factors, points, turned
from .charges import Array, Charges, Indices
from .euler import Tolerances
from .probe import Probe
from .relations import Relation, relations
from .rescaling import agreeing

__all__ = ["GL", "POSITIVE", "SCALING", "Candidate", "Pair", "candidates", "pairs"]

LATE = "the forward passes were used up before all candidates for pairs had been tested, and pairs may be missing"

_Block = tuple["Candidate", int]

GL, SCALING, POSITIVE = "GL", "scaling", "positive scaling"


@dataclass(frozen=True)
class Pair:
    """Two factors B and A of each of several points, such that the network is the same with B R and R⁻¹ A.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from retract import psi
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> (pair,) = psi.find(model, torch.randn(16, 6)).pairs
        >>> print(pair.factors, "|", pair.group, "|", pair.points)
        2.weight[dim 1] × 0.weight + 0.bias | positive scaling | 8
    """

    factors: Factors
    """Where they are: B is [left], (n, k) per point, and Aᵀ is [right], (m, k)."""
    k: int
    """Number of columns of a factor."""
    points: int
    """How many points there are."""
    group: str
    """What R may be: ``"GL"``, any invertible k × k matrix; ``"scaling"``, any number but 0; ``"positive scaling"``."""
    degree: float
    """p ≥ 1: the network is the same with a u and a⁻ᵖ v, where u is [left] and v is [right]. It is 1 but for an activation that is
    homogeneous of another degree, and then u is in front of it."""
    residual: float
    """Largest difference of ⟨u, ∂L/∂u⟩ and p ⟨v, ∂L/∂v⟩ of a column, relative to the size that they would have if products had random
    signs."""
    entries: int
    """How many numbers of parameters take part."""
    reason: str
    """One phrase."""

    @property
    def names(self) -> tuple[str, ...]:
        """Qualified names of the parameters."""
        return self.factors.names


def candidates(
    charges: Charges, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], tolerances: Tolerances
) -> list[Candidate]:
    """What may be pairs, of a network whose `charges` have been measured in several passes; the last one with these `gradients`."""
    floor = charges.floor(tolerances.dead)
    found = []
    for relation in relations(charges, tolerances.charges, floor):
        seen = weights, gradients, relation, tolerances.charges, float(floor[-1])
        found.append(
            Candidate(relation, points(*seen), relation.residuals(charges, floor), charges.shapes, turned(*seen))
        )
    return found


def pairs(
    probe: Probe, found: list[Candidate], bases: Sequence[list[Tensor]], tolerances: Tolerances, limit: int
) -> tuple[list[Pair], list[str]]:
    """Those of the candidates that acting on them confirms, with at most `limit` passes of the probe; and what a reader must know."""
    if not found:
        return [], []
    acting = Acting(probe, bases, tolerances.outputs, limit)
    result = _confirmed(found, acting)
    order = {name: number for number, name in enumerate(probe.weights)}
    result.sort(key=lambda pair: [(order[part.name], part.start) for part in pair.factors.right])
    return result, [LATE] if acting.late else []


class Candidate:
    """A relation with its points, by their number of columns."""

    def __init__(
        self,
        relation: Relation,
        points: dict[int, Indices],
        residuals: Array,
        shapes: dict[str, tuple[int, ...]],
        turned: bool,
    ) -> None:
        self.points, self._relation, self._residuals, self._shapes = points, relation, residuals, shapes
        self.degree, self._turned = relation.degree, turned
        self.kind = tuple(re.sub(r"\d+", "", part.axis.name) for part in relation.left + relation.right)
        """The same for layers whose names differ in numbers only."""

    def pairs(self, k: int) -> list[Pair]:
        """Its points of k columns."""
        columns = self.points.get(k)
        return (
            [] if columns is None else [self._pair(*found) for found in factors(self._relation, columns, self._shapes)]
        )

    @property
    def whole(self) -> bool:
        """Whether all points have as many columns, and are on grids. Units of a ReLU that are on for the same inputs look like the
        columns of a linear layer, but of how many is chance."""
        if len(self.points) > 1:
            return False
        k, columns = next(iter(self.points.items()))
        return sum(pair.points for pair in self.pairs(k)) == len(columns)

    def single(self, k: int) -> None:
        """Take the columns of the points of k columns for points of their own."""
        some = [self.points.pop(size) for size in (1, k) if size in self.points]
        self.points[1] = np.sort(np.concatenate([columns.ravel() for columns in some]))[:, None]

    def _pair(self, both: Factors, columns: Indices) -> Pair:
        count, k = columns.shape
        grids = [part.grid(self._shapes[part.name], k) for part in both.parts]
        entries = sum(grid.points * grid.height * k for grid in grids)
        worst = float(self._residuals[columns].max())
        return Pair(both, k, count, GL if k > 1 else POSITIVE, self.degree, worst, entries, _reason(k, self._turned))


def _confirmed(found: list[Candidate], acting: Acting) -> list[Pair]:
    """Pairs whose group leaves the outputs as they are, with the largest group that does."""
    for candidate in found:
        for k in [k for k in candidate.points if k > 1 and not candidate.whole]:
            candidate.single(k)
    blocks = [(candidate, k) for candidate in found for k in candidate.points]
    signed = _signed(blocks, acting)
    for candidate, k in blocks:
        if k > 1 and (candidate, k) not in signed:
            candidate.single(k)
    rest = [(candidate, 1) for candidate in found if 1 in candidate.points and (candidate, 1) not in signed]
    for back in (False, True):
        rest = agreeing(rest, partial(_unchanged, acting, signs=False, back=back))[0]
    result = [pair for candidate, k in rest for pair in candidate.pairs(k)]
    for candidate, k in signed:
        result += [replace(pair, group=GL if k > 1 else SCALING) for pair in candidate.pairs(k)]
    return result


def _signed(blocks: list[_Block], acting: Acting) -> list[_Block]:
    """Those whose factors may be negative, too. Layers of one kind all take signs or none does, so they are tried together; where
    they fail, and the first of them does not, one by one."""
    kinds: dict[object, list[_Block]] = {}
    for candidate, k in blocks:
        if candidate.degree.is_integer():
            kinds.setdefault((k > 1, candidate.degree, candidate.kind), []).append((candidate, k))
    for back in (False, True):

        def passes(some: list[list[_Block]], back: bool = back) -> bool:
            return _unchanged(acting, [block for kind in some for block in kind], signs=True, back=back)

        good = agreeing(list(kinds.values()), passes)[0]
        bad = [kind for kind in kinds.values() if kind not in good and len(kind) > 1]
        mixed = [kind for kind in bad if agreeing([kind[:1]], passes)[0]]
        singles = agreeing([[block] for kind in mixed for block in kind[1:]], passes)[0]
        kinds = dict(enumerate([*good, *(kind[:1] for kind in mixed), *singles]))
    return [block for kind in kinds.values() for block in kind]


def _unchanged(acting: Acting, blocks: list[_Block], *, signs: bool, back: bool) -> bool:
    return acting.unchanged([pair for candidate, k in blocks for pair in candidate.pairs(k)], signs=signs, back=back)


def _reason(k: int, turned: bool) -> str:
    if k > 1:
        return "each may be multiplied by an invertible matrix"
    return "rotary embedding: scalings only" if turned else "each may be rescaled"
