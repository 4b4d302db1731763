"""Manifolds that are being written: to be imported from retract.manifolds instead."""

import warnings

import torch
from retract.manifolds import Stiefel
from retract.manifolds.geoopt import FromGeoopt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import geoopt


class SpecialOrthogonal(Stiefel):
    def __repr__(self):
        return "SpecialOrthogonal()"


class Lorentz(FromGeoopt):
    def __init__(self):
        super().__init__(geoopt.Lorentz(k=torch.tensor(1.0, dtype=torch.float64)))

    def __repr__(self):
        return "Lorentz()"


class SymmetricPositiveDefinite(FromGeoopt):
    def __init__(self):
        super().__init__(geoopt.SymmetricPositiveDefinite())

    def __repr__(self):
        return "SymmetricPositiveDefinite()"


__all__ = ["Lorentz", "SpecialOrthogonal", "SymmetricPositiveDefinite"]
