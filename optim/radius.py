"""The option `radius`: which representative of a point of a scaling quotient the parameter stores.

The norm of a row has no meaning in the quotient, but the running statistics of the next BatchNorm depend on it, and floating
point has a limited range. So an update may rescale rows, together with the tangent vectors stored at them; the path in the
quotient does not change (Theorem 1 of Yi 2022).
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from ..manifolds.numerics import root_tiny
from .kernels import algebra
from .memory import Memory
from .options import Options

__all__ = ["band", "rescaling"]

# Yi (2022, §6.2) renormalises above 1e4; below 1e-4 a BatchNorm's eps of 1e-5 would start to show. In float16 the
# squares of a row inside the narrower band neither overflow nor vanish.
BAND = {torch.float16: (1e-2, 1e2)}
DEFAULT_BAND = (1e-4, 1e4)
_HOLD, _FREE = SimpleNamespace(hold=True, free=False), SimpleNamespace(hold=False, free=True)


def band(dtype: torch.dtype) -> tuple[float, float]:
    """The lowest and the highest norm at which ``"free"`` does not rescale rows of a parameter of `dtype`."""
    return BAND.get(dtype, DEFAULT_BAND)


def rescaling(radius: Tensor, memory: Memory, options: Options) -> Tensor | None:
    """The factor by which this step rescales rows of norm `radius`, (points, 1), or None for no rescaling.

    ``"hold"``: to the norm of the row at its first step, stored in ``memory.scalars["radius"]``. ``"free"``: by a power of two,
    once the norm has left the `band`. The formula is `algebra.rescaling`. Steps with lr = 0 do not rescale.
    """
    held = options["radius"] == "hold"
    if held and "radius" not in memory.scalars:
        memory.scalars["radius"] = radius
        return None
    low, high = band(memory.dtype)
    before = memory.scalars["radius"] if held else radius
    factor: Tensor = algebra.rescaling(radius, before, low, high, root_tiny(radius.dtype), _HOLD if held else _FREE)
    lr = options["lr"]
    if isinstance(lr, Tensor):
        return torch.where(lr == 0, 1.0, factor)
    return None if lr == 0 else factor
