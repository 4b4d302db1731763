"""The laws of manifolds, for tests of a manifold of one's own: every law of every class that it inherits."""

from ..errors import LawError
from .setting import Law
from .suite import check_manifold, laws

__all__ = ["Law", "LawError", "check_manifold", "laws"]
