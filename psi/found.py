"""Turning the findings of a report into declarations of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from ..errors import DeclarationError, OptionError
from ..manifolds import Manifold, Rows
from ..manifolds.parameters.declare import preparing, undeclare, walk
from ..manifolds.parameters.lookup import check_types
from ..manifolds.parameters.records import entries
from .agreement import agreed

if TYPE_CHECKING:
    from .report import Finding

__all__ = ["declare_found", "refuse_matrices"]


class _Plan(NamedTuple):
    """What is going to be written."""

    findings: list[Finding]
    declared: list[Finding]
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
    model: nn.Module, findings: Sequence[Finding], manifold: Manifold, representative: str
) -> tuple[list[Finding], list[str]]:
    """The findings, with what became of them in their reasons, and the names of the parameters that were declared.

    Law: all processes declare the same, or none declares anything. Raises as `psi.Report.declare` does.
    """
    refuse_matrices(manifold)
    plan = agreed("psi.declare", lambda: _prepared(model, findings, manifold, representative), _verdicts)
    for name in plan.obsolete:
        undeclare(model, name)
    for commit in plan.commits:
        commit()
    return plan.findings, [name for f in plan.declared for name in f.names]


def _verdicts(plan: _Plan) -> dict[tuple[str, tuple[int, ...]], str]:
    declared = {f.name for f in plan.declared}
    return {(f.name, f.shape): "declared" if f.name in declared else "not declared" for f in plan.findings}


def _prepared(model: nn.Module, report: Sequence[Finding], manifold: Manifold, representative: str) -> _Plan:
    """Everything checked, nothing written."""
    for _ in walk(model):  # raises for what no longer holds
        pass
    _refuse_another(model, report)
    weights = [f for f in report if f.granularity != "none" and len(f.shape) > 1]
    found = {id(model.get_parameter(f.name)) for f in weights}
    written = list(entries(model))
    stays = [e for e in written if not e.declaration.found and id(e.parts[0]) not in found]
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
    obsolete = [entry.name for entry in written if entry not in stays and entry.name not in names]
    notes = {**dict.fromkeys(obsolete, "no longer declared"), **notes}
    findings = [replace(f, reason=f"{f.reason}; {notes[f.name]}") if f.name in notes else f for f in report]
    declared = [f for f in findings if f.name in names]
    commits = [
        preparing(model, f.name, manifold, f.rows, f.joined, representative, found=True, without=obsolete)
        for f in declared
    ]
    return _Plan(findings, declared, obsolete, commits)


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
