"""Declaring what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import OptionError
from ..manifolds import PSI, Manifold
from ..manifolds.parameters.declare import preparing, undeclare, walk
from ..manifolds.parameters.records import entries
from .agreement import agreed
from .invariance import find
from .report import Finding, Report

__all__ = ["declare"]


@torch.no_grad()
def declare(
    model: nn.Module,
    *args: Any,
    manifold: Manifold = PSI(),
    representative: str = "keep",
    probes: int = 2,
    **kwargs: Any,
) -> Report:
    """`find` what is scale-invariant in `model`, declare its weights on `manifold`, and put them there.

    Parameters of one axis stay as they are. Such are the gains of norms, which a ReLU and the next norm make scale-invariant with
    their biases, as a whole: Yi (2022) trains them by plain SGD, and at the rate of the weights they do harm (docs/invariance.md).
    The report has them, and `retract.declare` takes them.

    A bias that scales along with several weights, each on its own (the factors of a low-rank layer), belongs to the first of
    them, or to what `retract.declare` was called for. The others are not declared, and the report says so.

    Called again, it declares what it finds now: what an earlier call declared and this one does not find is undeclared.
    Declarations by `retract.declare` stay, unless the same parameter is found.

    With a process group initialized this is a collective call, as `find` is, and all processes declare the same or none.

    Arguments are those of `find`, and `representative` as in `retract.declare`. Returns the report, which prints
    as a table and says what was declared. Raises as both do, and `OptionError` for a manifold of matrices; then nothing has
    been declared.
    """
    if manifold.event_ndim != 1:
        raise OptionError(
            f"{manifold!r} is no manifold of vectors, which is what scale-invariant rows are: PSI(), Grassmann(1) or Sphere(); "
            "retract.declare puts single parameters on any other"
        )
    report = find(model, *args, probes=probes, **kwargs)
    plan = agreed("psi.declare", lambda: _prepared(model, report, manifold, representative), _verdicts)
    for name in plan.obsolete:
        undeclare(model, name)
    for commit in plan.commits:
        commit()
    return Report(plan.findings, [name for f in plan.declared for name in f.names], manifold, report.notes)


class _Plan(NamedTuple):
    """What is going to be written."""

    findings: list[Finding]
    declared: list[Finding]
    obsolete: list[str]
    """Names of declarations that go."""
    commits: list[Callable[[], None]]


def _verdicts(plan: _Plan) -> dict[Any, str]:
    declared = {f.name for f in plan.declared}
    return {(f.name, f.shape): "declared" if f.name in declared else "not declared" for f in plan.findings}


def _prepared(model: nn.Module, report: Report, manifold: Manifold, representative: str) -> _Plan:
    """Everything checked, nothing written."""
    for _ in walk(model):  # raises for what no longer holds
        pass
    weights = [f for f in report.invariant if len(f.shape) > 1]
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
