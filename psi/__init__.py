"""What knows about networks: finding scale invariance, and the PSI manifold in training."""

from ..manifolds import PSI
from .declare import declare
from .invariance import find
from .probe import ProbeError
from .report import Finding, Report
from .statistics import recalibrate

__all__ = ["PSI", "Finding", "ProbeError", "Report", "declare", "find", "recalibrate"]
