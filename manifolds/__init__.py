"""Geometry: manifolds as values, how parameters are cut into points, and which parameter is where."""

from .base import Manifold
from .centered_sphere import CenteredSphere
from .conformal import ConformalManifold
from .embedded import EmbeddedManifold
from .euclidean import Euclidean
from .fixed_rank import FixedRank
from .geodesic import ExponentialManifold, GeodesicManifold
from .geoopt import from_geoopt, to_geoopt
from .grassmann import Grassmann
from .hyperbolic import Hyperbolic
from .lorentz import Lorentz
from .parameters.declare import declare, declared, project_, undeclare
from .parameters.factors import Factors, Part
from .parameters.records import Declaration
from .parameters.rows import Rows
from .poincare_ball import PoincareBall
from .product import Product
from .projective import ProjectiveSpace
from .psi import PSI
from .quotient import QuotientManifold, ScalingQuotient
from .special_orthogonal import SpecialOrthogonal
from .spectral_sphere import SpectralSphere
from .sphere import Sphere
from .spherical import Spherical, UnitVectors
from .stiefel import Stiefel
from .symmetric_positive_definite import SymmetricPositiveDefinite

__all__ = [
    "PSI",
    "CenteredSphere",
    "ConformalManifold",
    "Declaration",
    "EmbeddedManifold",
    "Euclidean",
    "ExponentialManifold",
    "Factors",
    "FixedRank",
    "GeodesicManifold",
    "Grassmann",
    "Hyperbolic",
    "Lorentz",
    "Manifold",
    "Part",
    "PoincareBall",
    "Product",
    "ProjectiveSpace",
    "QuotientManifold",
    "Rows",
    "ScalingQuotient",
    "SpecialOrthogonal",
    "SpectralSphere",
    "Sphere",
    "Spherical",
    "Stiefel",
    "SymmetricPositiveDefinite",
    "UnitVectors",
    "declare",
    "declared",
    "from_geoopt",
    "project_",
    "to_geoopt",
    "undeclare",
]
