from retract.manifolds import Lorentz, Stiefel, SymmetricPositiveDefinite


class SpecialOrthogonal(Stiefel):
    def __repr__(self):
        return "SpecialOrthogonal()"


__all__ = ["Lorentz", "SpecialOrthogonal", "SymmetricPositiveDefinite"]
