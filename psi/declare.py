"""`declare`: finding what is scale-invariant and declaring it, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..manifolds import PSI, Manifold
from .found import refuse_matrices
from .invariance import find
from .report import Report

__all__ = ["declare"]


def declare(
    model: nn.Module,
    args: Tensor | Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    manifold: Manifold = PSI(),
    representative: str = "keep",
    pairs: bool = False,
    damping: float = 0.0,
    probes: int = 2,
) -> Report:
    """`find` what is scale-invariant in `model`, declare its weights on `manifold`, and put them there; with `pairs` also the
    pairs of factors, on `FixedRank`.

    This is ``find(model, args, kwargs, probes=probes).declare(model, manifold=manifold,
    representative=representative, pairs=pairs, damping=damping)``: `args`, `kwargs` and `probes` are explained at `find`, what is declared and the
    other options at `Report.declare`.

    With a process group initialized this is a collective call, and all processes declare the same or none.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from retract import psi
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        >>> report = psi.declare(model, torch.randn(16, 6))
        >>> report.declared
        ('0.weight',)

    Returns:
        The report, which prints as a table and says what was declared.

    Raises:
        TypeError, ProbeError, RetractError: as `find`.
        DeclarationError, GeometryError: as `Report.declare`; then nothing has been declared.
    """
    refuse_matrices(manifold)
    report = find(model, args, kwargs, probes=probes)
    return report.declare(model, manifold=manifold, representative=representative, pairs=pairs, damping=damping)
