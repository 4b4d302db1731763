"""Turning the findings of a report into declarations of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from ..errors import DeclarationError, OptionError
from ..manifolds import FixedRank, Manifold, Rows
from ..manifolds.parameters.declare import preparing, undeclare, walk
from ..manifolds.parameters.factors import Part, disjoint
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
    names = tuple(name for f in plan.declared for name in f.names)
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
    found = {id(model.get_parameter(f.name)) for f in weights}
    written = list(entries(model))
    stays = [e for e in written if not e.declaration.found and (e.declaration.factors or id(e.parts[0]) not in found)]
    holders = {id(part): entry.name for entry in stays for part in entry.parts}
    names: set[str] = set()
    notes: dict[str, str] = {}
    for f in weights:
        parts = {name: id(model.get_parameter(name)) for name in f.names}
        taken = next((name for name, part in parts.items() if part in holders), None)
        if taken is None:
            names.add(f.name)
        else:
            notes[f.name] = f"not declared, {taken} belongs to the points of {holders[parts[taken]]}"
    declared = [f for f in weights if f.name in names]
    free, taken_pairs = _free_pairs(model, report, pairs, declared, [e for e in stays if e.name not in names])
    kept = {*names, *(str(pair.factors) for pair in free)}
    obsolete = [entry.name for entry in written if entry not in stays and entry.name not in kept]
    notes = {**dict.fromkeys(obsolete, "no longer declared"), **notes}
    findings = [replace(f, reason=f"{f.reason}; {notes[f.name]}") if f.name in notes else f for f in report]
    of_rows, of_pairs = ("keep", representative) if representative == "balanced" else (representative, "keep")
    commits = [
        preparing(model, f.name, manifold, f.rows, f.joined, of_rows, found=True, without=obsolete) for f in declared
    ]
    for pair in free:
        on = FixedRank(pair.k, damping=damping, degree=pair.degree)
        commits.append(preparing(model, pair.factors, on, representative=of_pairs, found=True, without=obsolete))
    told = [replace(p, reason=f"{p.reason}; {taken_pairs[p]}") if p in taken_pairs else p for p in pairs]
    return _Plan(findings, declared, told, free, obsolete, commits)


def _free_pairs(
    model: nn.Module,
    report: Sequence[Finding],
    pairs: Sequence[Pair],
    declared: Sequence[Finding],
    stays: Sequence[Entry],
) -> tuple[list[Pair], dict[Pair, str]]:
    """The pairs all of whose entries are trained and belong to no other points, and why the others cannot be declared.

    Scale-invariant rows come first, then pairs of matrices in their order, then those of a matrix with the weight and bias of a
    normalization layer, which have few numbers of their own.
    """
    shapes = {f.name: f.shape for f in report}
    pairs = sorted(
        pairs, key=lambda pair: any(_are_vectors(side, shapes) for side in (pair.factors.left, pair.factors.right))
    )
    holders = {id(model.get_parameter(name)): f.name for f in declared for name in f.names}
    slices: dict[int, tuple[Part, ...]] = {}
    for entry in stays:
        for p, name in entry.named_parts:
            if entry.declaration.factors is None:
                holders[id(p)] = entry.name
            else:
                parts = tuple(part for part in entry.declaration.factors.parts if part.name == name)
                slices[id(p)] = slices.get(id(p), ()) + parts
    free, others = [], {}
    for pair in pairs:
        params = {name: model.get_parameter(name) for name in pair.names}
        frozen = [name for name, p in params.items() if not p.requires_grad]
        held = [name for name, p in params.items() if id(p) in holders]
        wider: dict[int, tuple[Part, ...]] = {}
        for part in pair.factors.parts:
            p = params[part.name]
            before = wider.get(id(p), slices.get(id(p), ()))
            wider[id(p)] = (*before, part.resolved(p.shape, pair.k))
        if frozen:
            others[pair] = f"not declared, frozen: {', '.join(frozen)}"
        elif held:
            others[pair] = f"not declared, {held[0]} belongs to the points of {holders[id(params[held[0]])]}"
        elif not all(disjoint(wider[id(p)], tuple(p.shape)) for p in params.values()):
            others[pair] = "not declared, some of its entries belong to other points"
        else:
            free.append(pair)
            slices |= wider
    return free, others


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
