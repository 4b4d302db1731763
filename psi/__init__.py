"""What knows about networks: the PSI manifold in training."""

from ..manifolds import PSI
from .statistics import recalibrate

__all__ = ["PSI", "recalibrate"]
