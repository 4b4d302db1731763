"""Turning the findings of a report into declarations of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from ..errors import DeclarationError, OptionError
from ..manifolds import FixedRank, Manifold, Rows
from ..manifolds.parameters.declare import preparing, undeclare, walk
from ..manifolds.parameters.factors import Factors, Part, disjoint
from ..manifolds.parameters.lookup import check_types
from ..manifolds.parameters.records import Entry, entries
from .agreement import agreed

if TYPE_CHECKING:
    from .pairs import Pair
    from .report import Finding

__all__ = ["Declared", "declare_found", "refuse_matrices"]


class Declared(NamedTuple):
    """What became of findings and pairs, with notes in their reasons."""

    findings: list[Finding]
    names: tuple[str, ...]
    """Names of the parameters whose rows were declared."""
    pairs: list[Pair]
    declared_pairs: tuple[Pair, ...]


class _Plan(NamedTuple):
    """What is going to be written."""

    findings: list[Finding]
    declared: list[Finding]
    pairs: list[Pair]
    declared_pairs: list[Pair]
    obsolete: list[str]
    """Names of declarations that go."""
    commits: list[Callable[[], None]]


def refuse_matrices(manifold: Manifold) -> None:
    """Raise `DeclarationError` for what is no manifold, `OptionError` for a manifold whose points are not vectors."""
    check_types("manifold", manifold, Rows())
    if manifold.event_ndim != 1:
        raise OptionError(
            f"{manifold!r} is no manifold of vectors, which is what scale-invariant rows are: PSI(), Grassmann(1) or Sphere(); "
            "retract.declare puts single parameters on any other"
        )


def declare_found(
    model: nn.Module,
    findings: Sequence[Finding],
    pairs: Sequence[Pair],
    manifold: Manifold,
    representative: str,
    damping: float,
) -> Declared:
    """Declare the findings on `manifold`, and the pairs on `FixedRank` with `damping`.

    Law: all processes declare the same, or none declares anything. Raises as `psi.Report.declare` does.
    """
    refuse_matrices(manifold)
    plan = agreed(
        "psi.declare", lambda: _prepared(model, findings, pairs, manifold, representative, damping), _verdicts
    )
    for name in plan.obsolete:
        undeclare(model, name)
    for commit in plan.commits:
        commit()
    names = tuple(dict.fromkeys(name for f in plan.declared for name in f.names))
    return Declared(plan.findings, names, plan.pairs, tuple(plan.declared_pairs))


def _verdicts(plan: _Plan) -> dict[tuple[str, tuple[int, ...]], str]:
    declared = {f.name for f in plan.declared}
    found = {(f.name, f.shape): "declared" if f.name in declared else "not declared" for f in plan.findings}
    return found | {(str(pair.factors), ()): pair.reason for pair in plan.pairs}


def _prepared(
    model: nn.Module,
    report: Sequence[Finding],
    pairs: Sequence[Pair],
    manifold: Manifold,
    representative: str,
    damping: float,
) -> _Plan:
    """Everything checked, nothing written."""
    for _ in walk(model):  # raises for what no longer holds
        pass
    _refuse_another(model, report)
    weights = [f for f in report if f.granularity != "none" and len(f.shape) > 1]
    found = {id(model.get_parameter(f.name)) for f in weights if not f.slices}
    written = list(entries(model))
    stays = [e for e in written if not e.declaration.found and (e.declaration.factors or id(e.parts[0]) not in found)]
    taken = _Taken(model, stays)
    obstacles = {f.name: taken.refuses(f) for f in weights}
    notes = {name: f"not declared, {why}" for name, why in obstacles.items() if why}
    declared = [f for f in weights if f.name not in notes]
    free, taken_pairs = _free_pairs(model, report, pairs, taken)
    kept = {f.name for f in declared if not f.slices}
    kept |= {str(points) for points in [*(s for f in declared for s in f.slices), *(pair.factors for pair in free)]}
    obsolete = [entry.name for entry in written if entry not in stays and entry.name not in kept]
    notes = {**dict.fromkeys(obsolete, "no longer declared"), **notes}
    findings = [replace(f, reason=f"{f.reason}; {notes[f.name]}") if f.name in notes else f for f in report]
    of_rows, of_pairs = ("keep", representative) if representative == "balanced" else (representative, "keep")
    commits = []
    for f in declared:
        joined = () if f.slices else f.joined
        for name in f.slices or (f.name,):
            commits.append(preparing(model, name, manifold, f.rows, joined, of_rows, found=True, without=obsolete))
    for pair in free:
        on = FixedRank(pair.k, damping=damping, degree=pair.degree)
        commits.append(preparing(model, pair.factors, on, representative=of_pairs, found=True, without=obsolete))
    told = [replace(p, reason=f"{p.reason}; {taken_pairs[p]}") if p in taken_pairs else p for p in pairs]
    return _Plan(findings, declared, told, free, obsolete, commits)


class _Taken:
    """Which entries of a model's parameters belong to points: to begin with those of the declarations that stay."""

    def __init__(self, model: nn.Module, stays: Sequence[Entry]) -> None:
        self._model = model
        self._holders = {id(p): entry.name for entry in stays for p in entry.parts}
        self._slices: dict[int, tuple[Part, ...]] = {}
        """Of those that belong to points in part."""
        for entry in stays:
            for p, name in entry.named_parts:
                if entry.declaration.factors is not None:
                    parts = tuple(part for part in entry.declaration.factors.parts if part.name == name)
                    self._slices[id(p)] = self._slices.get(id(p), ()) + parts

    def refuses(self, f: Finding) -> str | None:
        """Why the points of a finding cannot be declared; if they can, they are taken."""
        if f.slices:
            return self.refuses_slices(f.slices)
        params = {name: id(self._model.get_parameter(name)) for name in f.names}
        for name, p in params.items():
            if p in self._holders:
                return f"{name} belongs to the points of {self._holders[p]}"
        self._holders |= dict.fromkeys(params.values(), f.name)
        return None

    def refuses_slices(self, slices: Sequence[Factors], k: int | None = None) -> str | None:
        """As `refuses`, of factors, with `k` columns if they are those of pairs."""
        wider: dict[nn.Parameter, tuple[Part, ...]] = {}
        for part in (part for points in slices for part in points.parts):
            p = self._model.get_parameter(part.name)
            if id(p) in self._holders and id(p) not in self._slices:
                return f"{part.name} belongs to the points of {self._holders[id(p)]}"
            before = wider.get(p, self._slices.get(id(p), ()))
            wider[p] = (*before, part.resolved(p.shape, k))
        if not all(disjoint(parts, tuple(p.shape)) for p, parts in wider.items()):
            return "some of its entries belong to other points"
        for p, parts in wider.items():
            self._slices[id(p)] = parts
            self._holders.setdefault(id(p), parts[0].name)
        return None


def _free_pairs(
    model: nn.Module, report: Sequence[Finding], pairs: Sequence[Pair], taken: _Taken
) -> tuple[list[Pair], dict[Pair, str]]:
    """The pairs all of whose entries are trained and belong to no other points, and why the others cannot be declared.

    Scale-invariant rows come first, then pairs of matrices in their order, then those of a matrix with the weight and bias of a
    normalization layer, which have few numbers of their own.
    """
    shapes = {f.name: f.shape for f in report}
    pairs = sorted(
        pairs, key=lambda pair: any(_are_vectors(side, shapes) for side in (pair.factors.left, pair.factors.right))
    )
    others = {}
    for pair in pairs:
        frozen = [name for name in pair.names if not model.get_parameter(name).requires_grad]
        why = f"frozen: {', '.join(frozen)}" if frozen else taken.refuses_slices([pair.factors], pair.k)
        if why:
            others[pair] = f"not declared, {why}"
    return [pair for pair in pairs if pair not in others], others


def _are_vectors(parts: Sequence[Part], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(len(shapes[part.name]) == 1 for part in parts)


def _refuse_another(model: nn.Module, report: Sequence[Finding]) -> None:
    """Raise `DeclarationError` where the findings are those of a model with other parameters."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for f in report:
        if shapes.get(f.name) != f.shape:
            actual = f"here it has shape {shapes[f.name]}" if f.name in shapes else "this one has no such parameter"
            raise DeclarationError(
                f"the report is of another model: it found {f.name} of shape {f.shape}, and {actual}. Measure this model, "
                "with psi.find"
            )
