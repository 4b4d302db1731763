"""`Memory`: the state of a batch of points, in the layout of the points."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Memory"]


@dataclass
class Memory:
    """The state of one batch of points during a step.

    Updates change the tensors in place or replace them; the executor writes them back.
    """

    dtype: torch.dtype
    """The dtype of the parameter, which may be narrower than that of the points."""
    fresh: bool
    """Whether the vectors were created for this step."""
    vectors: dict[str, Tensor] = field(default_factory=dict)
    """Tangent vectors at the points, (points, n)."""
    scalars: dict[str, Tensor] = field(default_factory=dict)
    """Scalars per point, (points, 1)."""
    step: Tensor | None = None
    """The number of this step, from 1; None for rules that do not count steps."""
