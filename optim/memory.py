"""`Memory`: what an update remembers about a batch of points between steps, laid out like the points."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Memory"]


@dataclass
class Memory:
    """State of one batch of points during a step.

    Updates change the tensors in place or put new ones in their place; the executor writes either back.
    """

    dtype: torch.dtype
    """Of the parameter, which may be narrower than that of the points."""
    fresh: bool
    """Whether the vectors were created for this step."""
    vectors: dict[str, Tensor] = field(default_factory=dict)
    """Tangent vectors at the points, (points, n)."""
    scalars: dict[str, Tensor] = field(default_factory=dict)
    """Numbers per point, (points, 1)."""
    step: Tensor | None = None
    """Number of this step, from 1; None for rules that do not count."""
