"""Which representative of a scaling quotient the parameter holds: the option `radius`.

In the quotient the norm of a row means nothing. The running statistics of a BatchNorm behind it remember
it all the same, and floating point has its range. So each update may rescale rows along the way, with
every tangent vector stored at them: the path in the quotient stays what it was (Theorem 1 of Yi 2022).
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
    """Norms between which ``"free"`` leaves the rows of a parameter of `dtype` alone."""
    return BAND.get(dtype, DEFAULT_BAND)


def rescaling(radius: Tensor, memory: Memory, options: Options) -> Tensor | None:
    """Factor by which this step rescales rows of norm `radius`, (points, 1), or None for no rescaling.

    ``"hold"``: to the norm that the row had at its first step, kept in ``memory.scalars["radius"]``. ``"free"``: by a power of two,
    once the norm has left the band. As `algebra.rescaling`; steps with lr = 0 leave rows alone.
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
