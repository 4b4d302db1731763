"""Geometry: manifolds as values, how parameters are cut into points, and which parameter is where."""

from .base import Manifold
from .conformal import ConformalManifold
from .embedded import EmbeddedManifold
from .euclidean import Euclidean
from .fixed_rank import FixedRank
from .geodesic import ExponentialManifold, GeodesicManifold
from .geoopt import from_geoopt, to_geoopt
from .grassmann import Grassmann
from .parameters.declare import declare, declared, project_, undeclare
from .parameters.records import Declaration
from .parameters.rows import Rows
from .projective import ProjectiveSpace
from .psi import PSI
from .quotient import QuotientManifold, ScalingQuotient
from .sphere import Sphere
from .spherical import Spherical, UnitVectors
from .stiefel import Stiefel

__all__ = [
    "PSI",
    "ConformalManifold",
    "Declaration",
    "EmbeddedManifold",
    "Euclidean",
    "ExponentialManifold",
    "FixedRank",
    "GeodesicManifold",
    "Grassmann",
    "Manifold",
    "ProjectiveSpace",
    "QuotientManifold",
    "Rows",
    "ScalingQuotient",
    "Sphere",
    "Spherical",
    "Stiefel",
    "UnitVectors",
    "declare",
    "declared",
    "from_geoopt",
    "project_",
    "to_geoopt",
    "undeclare",
]
