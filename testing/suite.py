"""`check_manifold` runs every law that a manifold inherits; `laws` lists them, for pytest."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import GeometryError, LawError
from ..manifolds import Manifold
from . import basics, derivatives, geodesics, quotients, spherical  # noqa: F401  (they register their laws)
from .setting import LAWS, Law

__all__ = ["check_manifold", "laws"]


def laws(manifold: Manifold) -> list[Law]:
    """The laws of every class that `manifold` inherits, except for its unmet laws.

    One test per law and dtype::

        @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
        @pytest.mark.parametrize("law", retract.testing.laws(PositiveOrthant()))
        def test_law(law, dtype):
            law.check(PositiveOrthant(), (4,), dtype=dtype)

    >>> from retract.manifolds import Sphere, Stiefel
    >>> from retract.testing import laws
    >>> [law.name for law in laws(Stiefel()) if law.of.__name__ == "EmbeddedManifold"]
    ['projection_is_self_adjoint']
    >>> {law.of.__name__ for law in laws(Sphere())} - {law.of.__name__ for law in laws(Stiefel())} == {
    ...     "GeodesicManifold", "Spherical"}
    True

    Args:
        manifold: an instance, not a class.

    Returns:
        Laws whose class `Law.of` the manifold inherits and whose name is not in its `Manifold.unmet_laws`.

    Raises:
        TypeError: if `manifold` is not an instance of `Manifold`.
        GeometryError: if `Manifold.unmet_laws` has an unknown name.
    """
    if not isinstance(manifold, Manifold):
        raise TypeError(f"laws() takes a manifold, such as Sphere(), not {manifold!r}")
    inherited = {law.name: law for law in LAWS if isinstance(manifold, law.of)}
    unknown = sorted({*manifold.unmet_laws}.difference(inherited))
    if unknown:
        raise GeometryError(f"unmet_laws of {manifold!r} has {unknown}, but its laws are {sorted(inherited)}")
    return [law for name, law in inherited.items() if name not in manifold.unmet_laws]


def check_manifold(
    manifold: Manifold,
    shape: Sequence[int],
    *,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    batches: Sequence[Sequence[int]] = ((3,),),
    seed: int = 0,
    device: torch.device | str = "cpu",
    thorough: bool = False,
) -> None:
    """Check every law that a manifold inherits, at random points and tangents.

    >>> import torch
    >>> from retract.manifolds import Sphere
    >>> from retract.testing import check_manifold
    >>> check_manifold(Sphere(), (5,))
    >>> class Halfway(Sphere):
    ...     def retract(self, x, u):
    ...         return super().retract(x, 0.5 * u)
    >>> try:
    ...     check_manifold(Halfway(), (5,), dtypes=[torch.float64])
    ... except AssertionError as error:
    ...     print(*(line.partition(":")[0] for line in str(error).splitlines() if "not hold" in line), sep="\\n")
    2 of 40 laws do not hold for Halfway()
    gradient_is_of_second_order does not hold for Halfway(), points of shape (3, 5) in torch.float64
    retraction_agrees_to_first_order does not hold for Halfway(), points of shape (3, 5) in torch.float64

    A manifold declares its limits on the class or on an instance: `Manifold.max_tangent_norm` if its maps overflow for long
    tangents, `GeodesicManifold.injectivity_radius`, below which `log` inverts `exp`, and `Manifold.unmet_laws`, laws that it
    is known not to satisfy. The cache of `torch.compile` is reset.

    Args:
        manifold: any instance of `Manifold`, defined anywhere.
        shape: shape of one point, (*event).
        dtypes: dtypes of points and tangents. Orders and derivatives are measured in float64 only.
        batches: batch shapes of the points.
        seed: seed of all random numbers.
        device: device of all arrays.
        thorough: whether to test derivatives in all combinations of modes and at all special points, which is much slower.

    Raises:
        LawError: if laws do not hold, after all have been checked. For each the message has its name and statement, the
            error and its tolerance, and the input, at the first dtype and batch shape where it fails.
        GeometryError: if a point cannot have the shape `shape`, or `Manifold.unmet_laws` has an unknown name.
    """
    inherited, failures = laws(manifold), []
    for law in inherited:
        try:
            for dtype in dtypes:
                for batch in batches:
                    law.check(manifold, shape, dtype=dtype, batch=batch, seed=seed, device=device, thorough=thorough)
        except LawError as error:
            failures.append(error)
    if failures:
        head = f"{len(failures)} of {len(inherited)} laws do not hold for {manifold!r}"
        raise LawError("\n\n".join([head, *map(str, failures)])) from failures[0]
