"""The laws of manifolds, for tests of any manifold: all laws of all classes that it inherits."""

from ..errors import LawError
from .setting import Law
from .suite import check_manifold, laws

__all__ = ["Law", "LawError", "check_manifold", "laws"]
