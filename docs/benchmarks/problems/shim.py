"""Manifolds that are being written: to be imported from retract.manifolds instead."""

import warnings

import torch
from retract.manifolds import Stiefel as SpecialOrthogonal
from retract.manifolds import from_geoopt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import geoopt


def Lorentz():  # noqa: N802
    return from_geoopt(geoopt.Lorentz(k=torch.tensor(1.0, dtype=torch.float64)))


def SymmetricPositiveDefinite():  # noqa: N802
    return from_geoopt(geoopt.SymmetricPositiveDefinite())


__all__ = ["Lorentz", "SpecialOrthogonal", "SymmetricPositiveDefinite"]
