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
    """`find` what is scale-invariant in `model`, declare all of it on `manifold`, and put it there.

    Arguments are those of `find`, and `representative` as in `retract.declare`. Returns the report, which prints
    as a table. Raises as both do; then nothing has been declared.
    """
    report = find(model, *args, probes=probes, **kwargs)
    commits = [preparing(model, f.name, manifold, f.rows, f.joined, representative) for f in report.invariant]
    for commit in commits:
        commit()
    return report
