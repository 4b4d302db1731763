"""Declaring what was found."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..manifolds import PSI, Manifold
from ..manifolds.declare import preparing
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
    as a table. Raises as both do; then nothing has been declared.
    """
    report = find(model, *args, probes=probes, **kwargs)
    weights = [finding for finding in report.invariant if len(finding.shape) > 1]
    commits = [preparing(model, f.name, manifold, f.rows, f.joined, representative) for f in weights]
    for commit in commits:
        commit()
    return report
