"""Declaring what was found."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..manifolds import PSI, Manifold
from ..manifolds.declare import preparing
from ..manifolds.errors import OptionError
from .invariance import find
from .report import Report

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
    weights = [finding for finding in report.invariant if len(finding.shape) > 1]
    commits = [preparing(model, f.name, manifold, f.rows, f.joined, representative) for f in weights]
    for commit in commits:
        commit()
    return Report(report, [name for f in weights for name in f.names], manifold)
