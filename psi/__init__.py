"""Tools for networks: finding scale invariance, and the PSI manifold in training."""

from ..manifolds import PSI
from .declare import declare
from .diagnostics import Monitor, Observation
from .invariance import find
from .pairs import Pair
from .probe import ProbeError
from .report import Finding, Report
from .statistics import recalibrate

__all__ = ["PSI", "Finding", "Monitor", "Observation", "Pair", "ProbeError", "Report", "declare", "find", "recalibrate"]
