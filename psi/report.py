"""`Finding` and `Report`: the results of a measurement as values, as a table, as a plot, and as declarations."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

import torch
from torch import nn

from ..errors import MissingExtraError, install
from ..manifolds import PSI, Manifold, Rows
from ..manifolds.parameters.factors import Factors, Part
from .found import declare_found
from .pairs import Pair
from .tables import aligned, covered, pair_rows, runs

__all__ = ["Finding", "Report"]


@dataclass(frozen=True)
class Finding:
    """The verdict on one parameter."""

    name: str
    """Qualified name."""
    granularity: str
    """``"row"``, ``"block"``, ``"tensor"``: what can be scaled by a positive factor of its own; ``"slices"``, if some slices of the
    parameter can, but not all of it in such points; or ``"none"``."""
    rows: Rows
    """How the parameter is cut into such points, unless they are slices."""
    joined: tuple[str, ...]
    """Names of parameters of the same module that scale along."""
    radial_ratio: float
    """Largest |⟨w, g⟩| / (‖w‖ ‖g‖) over the points, next to the weights and with every eps set aside; Euler's
    identity says 0. Of slices relative to √Σ (wᵢ gᵢ)², which is not larger. For ``"none"``, that of the whole tensor."""
    eps_leak: float
    """What the eps of normalization layers leaves of the invariance at the model's own weights: the change of an output
    when a point is doubled, divided by its change when the point makes a random move of the same length. The largest
    over the points one at a time and over all of them at once; at most 0.01, or there is no finding. NaN for
    ``"none"``."""
    reason: str
    """One phrase."""
    shape: tuple[int, ...]
    """Of the parameter."""
    slices: tuple[Factors, ...] = ()
    """The points, where they are slices of the parameter: those of one size at equal distances each, as `retract.declare` takes
    them, with parts of the parameter and of `joined`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Qualified names of the parameter and of those that scale along."""
        path = self.name.rpartition(".")[0]
        return (self.name, *(f"{path}.{part}" if path else part for part in self.joined))


class Report(Sequence[Finding]):
    """The findings on all parameters of a model, in the model's order."""

    def __init__(
        self,
        findings: Sequence[Finding],
        declared: Sequence[str] = (),
        manifold: Manifold = PSI(),
        notes: Sequence[str] = (),
        pairs: Sequence[Pair] = (),
        obstacles: Sequence[str] = (),
    ) -> None:
        self._findings = self._measured = tuple(findings)
        self.notes = tuple(notes)
        """What a reader of the verdicts must know: outputs and attributes that were not looked at, state that could not be copied."""
        self.pairs = self._measured_pairs = tuple(pairs)
        """Pairs of factors that may be transformed against each other without changing the network."""
        self.obstacles = tuple(obstacles)
        """What stands between two weights that would otherwise be a pair."""
        self.declared_pairs: tuple[Pair, ...] = ()
        """The pairs that `declare` put on `FixedRank`."""
        self.declared = tuple(declared)
        """Names of the parameters that `psi.declare` put on the manifold, joined ones included; none after `find`."""
        self._manifold = manifold

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Finding]: ...
    def __getitem__(self, index: int | slice) -> Finding | Sequence[Finding]:
        return self._findings[index]

    def __len__(self) -> int:
        return len(self._findings)

    @property
    def invariant(self) -> list[Finding]:
        """The findings other than ``"none"``."""
        return [finding for finding in self if finding.granularity != "none"]

    @torch.no_grad()
    def declare(
        self,
        model: nn.Module,
        *,
        manifold: Manifold = PSI(),
        representative: str = "keep",
        pairs: bool = False,
        damping: float = 0.0,
    ) -> Report:
        """Declare the weights that were found in `model` on `manifold`, and put them there.

        Parameters of one axis stay as they are. Such are the weights of normalization layers, which a ReLU and the next
        normalization layer make scale-invariant with their biases, as a whole: Yi (2022) trains them by plain SGD, and
        at the rate of the weights they do harm (docs/invariance.md). The report has them, and `retract.declare` takes
        them.

        A bias that scales along with several weights, each on its own (the factors of a low-rank layer), belongs to the
        first of them, or to what `retract.declare` was called for. The others are not declared, and the report says so.

        Called again, it declares what this report found: what an earlier call declared and this report does not have is
        undeclared. Declarations by `retract.declare` stay, unless the same parameter was found.

        With a process group initialized this is a collective call, as `find` is, and all processes declare the same or
        none.

        Args:
            model: that was measured, or another with the same parameters, such as a copy or the original of one.
            manifold: of vectors: `PSI`, ``Grassmann(1)`` or `Sphere`.
            representative: as in `retract.declare`: ``"unit"`` is for the rows, ``"balanced"`` for the pairs.
            pairs: whether `self.pairs` are declared, too, each on `FixedRank`. Entries belong to one point: rows come first, and
                the report says which pairs were left. Pairs with frozen parameters are left.
            damping: of `FixedRank`; more than 0 where a factor may be singular, such as the zero factor of a fresh adapter; 1e-2 is
                enough (docs/lora.md).

        Returns a report that says what was declared; this one stays as it is.

        Raises as `retract.declare` does, and `OptionError` for a manifold of matrices, `DeclarationError` for a model
        with other parameters, `RetractError` where processes differ. Then nothing has been declared.
        """
        wanted = self._measured_pairs if pairs else ()
        found = declare_found(model, self._measured, wanted, manifold, representative, damping)
        told = found.pairs if pairs else self._measured_pairs
        report = Report(found.findings, found.names, manifold, self.notes, told, self.obstacles)
        report._measured, report._measured_pairs = self._measured, self._measured_pairs
        report.declared_pairs = found.declared_pairs
        return report

    def split_sizes(self, name: str, dim: int = 0) -> tuple[int, ...]:
        """Sizes of the logical matrices in a fused weight along `dim`, in order, as `torch.split` takes them.

        Slices are of one matrix if they stand on the same side of pairs of the same parameters, or in none, and are scale-invariant in
        points of the same size, or not. Where queries, keys and values of each head are side by side, there are three sizes per head.
        Queries and keys that a normalization layer each makes invariant look alike, and are one matrix if they are side by side.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from retract import psi
            >>> _ = torch.manual_seed(0)
            >>> class Gated(nn.Module):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.gate_up, self.down = nn.Linear(5, 16), nn.Linear(8, 5)
            ...
            ...     def forward(self, x):
            ...         gate, up = self.gate_up(x).chunk(2, -1)
            ...         return self.down(nn.functional.silu(gate) * up)
            >>> psi.find(Gated(), torch.randn(9, 5)).split_sizes("gate_up.weight")
            (8, 8)

        Raises `KeyError` for a name that is not in the report, and `IndexError` for a dimension that the parameter does not have.
        """
        shape = {f.name: f.shape for f in self}[name]
        labels = [frozenset[object]()] * shape[dim]
        told: list[tuple[Part, int | None, object]] = [
            (part, None, part.columns) for f in self for points in f.slices for part in points.parts
        ]
        for pair in self.pairs:
            sides = [pair.factors.left, pair.factors.right]
            names = tuple(frozenset(part.name for part in side) for side in sides)
            told += [(part, pair.k, (names, side)) for side, parts in enumerate(sides) for part in parts]
        for part, k, label in told:
            if part.name == name and dim % len(shape) in (part.dim if isinstance(part.dim, tuple) else (part.dim,)):
                inside = covered(part, shape, k, dim % len(shape)).tolist()
                labels = [each | {label} if within else each for each, within in zip(labels, inside, strict=True)]
        return tuple(last - first + 1 for _, first, last in runs(labels))

    def decay_groups(self) -> dict[str, tuple[str, ...]]:
        """What weight decay does to the parameters, by name:

        ``"angular"``
            scale-invariant, all of it: decay changes nothing but the length of points, and with it the angle of the next steps.
        ``"balancing"``
            a factor of a pair, at least in part: the network sees the products of the factors only. Decay of both sides brings their
            norms towards each other, and makes the products smaller as a penalty on these would (of GL, their nuclear norm); decay
            of one side alone does nothing that the other cannot undo.
        ``"decay"``
            the others, those among them of which some slices are scale-invariant.
        """
        shapes = {f.name: f.shape for f in self}
        counts = self._invariant_entries(self.invariant)
        angular = {name for name, count in counts.items() if count == math.prod(shapes[name])}
        factors = {name for pair in self.pairs for name in pair.names} - angular
        names = [f.name for f in self]
        return {
            "decay": tuple(name for name in names if name not in angular | factors),
            "angular": tuple(name for name in names if name in angular),
            "balancing": tuple(name for name in names if name in factors),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, by parameter name; `rows`, and the factors of the pairs that the parameter is in, as their repr."""
        return {
            f.name: {
                **asdict(f),
                "rows": repr(f.rows),
                "slices": [repr(points) for points in f.slices],
                "pairs": [
                    {key: repr(value) if key == "factors" else value for key, value in vars(pair).items()}
                    for pair in self.pairs
                    if f.name in pair.names
                ],
            }
            for f in self
        }

    def __str__(self) -> str:
        """An aligned table of the findings, one of the pairs if there are any, and a summary."""
        header = ("parameter", "shape", "invariant per", "rows", "with", "radial", "leak", "reason")
        rows = [
            (
                f.name,
                "×".join(map(str, f.shape)) or "scalar",
                f.granularity if f.granularity != "none" else "–",
                _cut(f) if f.granularity != "none" else "",
                ", ".join(f.joined),
                f"{f.radial_ratio:.0e}",
                "" if math.isnan(f.eps_leak) else f"{f.eps_leak:.0e}",
                f.reason,
            )
            for f in self
        ]
        lines = [*aligned(header, rows), ""]
        if self.pairs:
            names = ("factor B, or u", "factor Aᵀ, or v", "R per point", "points", "residual", "share", "reason")
            lines += [*aligned(names, pair_rows(self.pairs, {f.name: f.shape for f in self})), ""]
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """How many tensors and numbers take part in pairs, how many are invariant, what share of the model that is, and the same of
        what was declared."""
        told = ""
        if self.pairs or self.obstacles:
            count = sum(pair.points for pair in self.pairs)
            told = f"Pairs of factors: {len(self.pairs)}, with {count:,} points: {self._counted(self._entries())}.\n"
            alike: dict[str, list[str]] = {}
            for obstacle in self.obstacles:
                alike.setdefault(re.sub(r"\d+", "", obstacle), []).append(obstacle)
            for first, *more in alike.values():
                told += f"No pair: {first}{f', and {len(more)} more like it' if more else ''}.\n"
        counts = self._invariant_entries(self.invariant)
        parts = len({name for f in self.invariant if f.slices for name in f.names})
        told += f"{len(counts)} of {len(self)} tensors are scale-invariant"
        told += f"{f', {parts} of them in slices' if parts else ''}: {self._counted(sum(counts.values()))}."
        if self.declared:
            declared = self._invariant_entries([f for f in self.invariant if f.name in self.declared])
            told += f"\nDeclared on {self._manifold!r}: {len(self.declared)} of {len(self)} tensors, "
            told += f"{self._counted(sum(declared.values()))}."
        if self.declared_pairs:
            count = sum(pair.points for pair in self.declared_pairs)
            told += f"\nDeclared on FixedRank: {len(self.declared_pairs)} of {len(self.pairs)} pairs, with {count:,} points."
        return "\n".join([told, *(f"Note: {note}." for note in self.notes)])

    def _entries(self) -> int:
        """How many numbers take part in pairs."""
        masks: dict[str, torch.Tensor] = {}
        shapes = {f.name: f.shape for f in self}
        for pair in self.pairs:
            for part in pair.factors.parts:
                mask = part.grid(shapes[part.name], pair.k).mask()
                masks[part.name] = masks[part.name] | mask if part.name in masks else mask
        return sum(int(mask.sum()) for mask in masks.values())

    def _invariant_entries(self, findings: Sequence[Finding]) -> dict[str, int]:
        """How many numbers of each parameter are in points of some findings."""
        shapes = {f.name: f.shape for f in self}
        counts: dict[str, int] = {}
        for f in findings:
            for points in f.slices:
                for part in points.parts:
                    grid = part.grid(shapes[part.name])
                    counts[part.name] = counts.get(part.name, 0) + math.prod(grid.batch + grid.event)
            if not f.slices:
                counts |= {name: math.prod(shapes[name]) for name in f.names}
        return counts

    def _counted(self, count: int) -> str:
        total = sum(math.prod(f.shape) for f in self)
        return f"{count:,} of {total:,} parameters, {100 * count / total if total else 0.0:.1f} %"

    def plot(self, ax: Any = None) -> Any:
        """Bars of the radial ratio per tensor on a log scale, on matplotlib axes `ax` (default: new ones), which
        are returned. Raises `MissingExtraError` without matplotlib."""
        try:
            from matplotlib import pyplot as plt
            from matplotlib.patches import Patch
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"Report.plot needs matplotlib: {install('figures')}") from error
        if ax is None:
            _, ax = plt.subplots(figsize=(8, 1 + 0.2 * len(self)), layout="constrained")
        colors = {"row": "#2171b5", "block": "#6baed6", "tensor": "#9ecae1", "slices": "#41ab5d", "none": "#d94801"}
        floor = 1e-18
        ax.barh(
            [f.name for f in self],
            [max(f.radial_ratio, floor) for f in self],
            color=[colors[f.granularity] for f in self],
        )
        ax.set_xscale("log")
        ax.set_xlim(floor, 2)
        ax.invert_yaxis()
        ax.set_xlabel("radial ratio |⟨w, g⟩| / (‖w‖ ‖g‖)")
        shown = dict.fromkeys(f.granularity for f in self)
        ax.legend(handles=[Patch(color=colors[g], label=g) for g in shown], title="invariant per")
        return ax


def _cut(finding: Finding) -> str:
    rows = finding.rows
    if finding.slices:
        grids = [points.left[0].grid(finding.shape) for points in finding.slices]
        return " + ".join(f"{grid.points}×{grid.k}" for grid in grids[:3]) + " …" * (len(grids) > 3)
    if rows.blocks is not None:
        return "whole" if rows.blocks == 1 else f"blocks={rows.blocks}"
    return f"dim {rows.dim}" + (f", groups={rows.groups}" if rows.groups > 1 else "")
