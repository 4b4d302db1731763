"""Shapes: the stage between rule and motion, which turns the step of the rule into a steepest step under another norm.

With the step b of a rule at learning rate 1, the points move by η s D(b), where D(b) = argmax ⟨b, A⟩ over A with ‖A‖ ≤ 1, in the norm
that the shape stands for. D forgets the length of b, so the learning rate η is the length of the step in that norm. On points of
another size than 1 (PSI, SpectralSphere) a shape acts in the coordinates in which they have size 1, and the step is lifted back:
it does not depend on the representative.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import OptionError
from ..manifolds import (
    EmbeddedManifold,
    Euclidean,
    Grassmann,
    Manifold,
    ScalingQuotient,
    SpectralSphere,
    Sphere,
    Stiefel,
)
from . import lmo, msign

__all__ = [
    "ADJUST_LR_FNS",
    "Points",
    "Row",
    "Shape",
    "Sign",
    "Spectral",
    "Tangent",
    "Unit",
    "check_shape",
    "described",
    "frame_error",
    "has_coordinates",
    "named",
    "radius_of",
    "shaped",
]


class Points(NamedTuple):
    """The points at which a shape acts, in coordinates in which they have size 1.

    Example:
        >>> import torch
        >>> from retract.manifolds import Euclidean
        >>> from retract.optim import Points
        >>> Points(Euclidean(2), torch.zeros(3, 2, 5), (2, 5)).matrices(torch.ones(3, 2, 5)).shape
        torch.Size([3, 2, 5])
    """

    manifold: Manifold
    x: Tensor
    """(*batch, *event)."""
    matrix: tuple[int, int] | None
    """The shape of one matrix: of a point, or of all rows of a parameter if the points are its rows. None: no matrix."""

    def matrices(self, a: Tensor) -> Tensor:
        """`a`, shaped like the points, as matrices, (matrices, n, p)."""
        assert self.matrix is not None
        return a.reshape(-1, *self.matrix)


class Shape(ABC):
    """A duality map, as a value: a frozen dataclass. A shape of your own is a subclass with `__call__`.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from retract.manifolds import Euclidean
        >>> from retract.optim import RiemannianSGD, Shape
        >>> @dataclass(frozen=True)
        ... class Largest(Shape):
        ...     '''The largest coordinate of a point alone: the steepest step under the norm Σ|aᵢ|.'''
        ...     def __call__(self, points, a):
        ...         size = a.abs()
        ...         return a.sign() * (size == size.amax(-1, keepdim=True))
        >>> w = torch.nn.Parameter(torch.zeros(1, 3))
        >>> group = {"params": [w], "manifold": Euclidean(1)}
        >>> optimizer = RiemannianSGD([group], lr=0.1, shape=Largest())
        >>> w.grad = torch.tensor([[1.0, -3.0, 2.0]])
        >>> optimizer.step()
        >>> w.detach()
        tensor([[0.0000, 0.1000, 0.0000]])
    """

    of_matrices = False
    """Whether `__call__` needs ``points.matrix``, and couples the rows of a matrix."""

    @abstractmethod
    def __call__(self, points: Points, a: Tensor) -> Tensor:
        """The shaped step, (*batch, *event).

        Args:
            points: the points in coordinates of size 1.
            a: the step, (*batch, *event), of any length; 0 must give 0, and a positive multiple the same result.
        """

    def error(self, manifold: Manifold) -> str | None:
        """Why the shape is not defined on `manifold`, or None if it is."""
        if has_coordinates(manifold):
            return None
        return (
            f"it compares the coordinates of a point, and those of {manifold!r} are not orthonormal; use shape='unit'"
        )


@dataclass(frozen=True)
class Unit(Shape):
    """b/‖b‖ per point, in the metric of the manifold: the steepest step under the metric's own norm.

    Example:
        >>> import torch
        >>> from retract.manifolds import Sphere
        >>> from retract.optim import Points, Unit
        >>> points = Points(Sphere(), torch.eye(1, 3), None)
        >>> Unit()(points, torch.tensor([[0.0, 3.0, 4.0]]))
        tensor([[0.0000, 0.6000, 0.8000]])
    """

    def __call__(self, points: Points, a: Tensor) -> Tensor:
        size = points.manifold.norm(points.x, a)
        return a / torch.where(size == 0, 1.0, size)

    def error(self, manifold: Manifold) -> str | None:
        """None: every manifold has a metric."""
        return None


@dataclass(frozen=True)
class Tangent(Shape):
    """The projection of b to the tangent space: after a shape that leaves it, ``shape=("spectral", "tangent")``.

    Example:
        >>> import torch
        >>> from retract.manifolds import Sphere
        >>> from retract.optim import Points, Tangent
        >>> points = Points(Sphere(), torch.eye(1, 3), None)
        >>> Tangent()(points, torch.tensor([[2.0, 3.0, 4.0]]))
        tensor([[0., 3., 4.]])
    """

    def __call__(self, points: Points, a: Tensor) -> Tensor:
        return points.manifold.project(points.x, a)

    def error(self, manifold: Manifold) -> str | None:
        """None: every manifold has a projection."""
        return None


@dataclass(frozen=True)
class Sign(Shape):
    """The sign of every coordinate: the steepest step under the norm max |aᵢ|.

    Example:
        >>> import torch
        >>> from retract.manifolds import Euclidean
        >>> from retract.optim import Points, Sign
        >>> Sign()(Points(Euclidean(1), torch.ones(1, 3), None), torch.tensor([[0.0, 3.0, -4.0]]))
        tensor([[ 0.,  1., -1.]])
    """

    def __call__(self, points: Points, a: Tensor) -> Tensor:
        return torch.where(a.isnan(), a, a.sign())  # the sign of NaN is 0

    def error(self, manifold: Manifold) -> str | None:
        """As in `Shape.error`; also on subspaces, whose frames may be turned."""
        return super().error(manifold) or frame_error(manifold)


@dataclass(frozen=True)
class Row(Shape):
    """Every row of a matrix at length 1: the steepest step under the norm maxᵢ ‖aᵢ‖ of the rows.

    Example:
        >>> import torch
        >>> from retract.manifolds import Euclidean
        >>> from retract.optim import Points, Row
        >>> x = torch.zeros(1, 2, 2)
        >>> Row()(Points(Euclidean(2), x, (2, 2)), torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]))
        tensor([[[0.6000, 0.8000],
                 [0.0000, 1.0000]]])
    """

    of_matrices = True

    def __call__(self, points: Points, a: Tensor) -> Tensor:
        return msign.normalized(points.matrices(a), 1).reshape(a.shape)


_DTYPES = (None, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Spectral(Shape):
    """msign(b) = U Vᵀ for b = U Σ Vᵀ, of every matrix: the steepest step under the spectral norm (Jordan 2024).

    Example:
        >>> import torch
        >>> from retract.manifolds import Euclidean
        >>> from retract.optim import Points, Spectral
        >>> x = torch.zeros(1, 2, 2, dtype=torch.float64)
        >>> Spectral("svd")(Points(Euclidean(2), x, (2, 2)), torch.diag(x.new_tensor([5.0, -0.1])))
        tensor([[ 1.,  0.],
                [ 0., -1.]], dtype=torch.float64)

    Args:
        method: ``"newton_schulz"`` (Jordan 2024), ``"polar_express"`` (Amsel et al. 2025), or ``"svd"``, exact.
        steps: of the iteration.
        coefficients: of Newton–Schulz.
        dtype: in which the iteration runs. None: float64 for float64, otherwise bfloat16 on a GPU and float32 on a CPU, where
            torch.bfloat16, the dtype of torch.optim.Muon, is twice as fast with hardware for it, and slow without.
        exact: argmax ⟨b, A⟩ over *tangent* A with ‖A‖₂ ≤ 1, by `lmo`: on Stiefel, on SpectralSphere, and for points of Sphere and PSI
            that are whole matrices. False: msign(b), whether it is tangent or not.

    Raises:
        OptionError: another method or dtype; less than one step; coefficients that are not three numbers.
    """

    method: str = "newton_schulz"
    """``"newton_schulz"``, ``"polar_express"`` or ``"svd"``."""
    steps: int = 5
    """Steps of the iteration."""
    coefficients: tuple[float, float, float] = msign.QUINTIC
    """The coefficients of Newton–Schulz."""
    dtype: torch.dtype | None = None
    """The dtype of the iteration."""
    exact: bool = False
    """Whether the step is the best tangent one."""
    of_matrices = True

    def __post_init__(self) -> None:
        if self.method not in ("newton_schulz", "polar_express", "svd"):
            raise OptionError(f"method={self.method!r} is not one of 'newton_schulz', 'polar_express', 'svd'")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise OptionError(f"steps={self.steps!r} is not a number of steps ≥ 1")
        given = tuple(self.coefficients) if isinstance(self.coefficients, tuple | list) else ()
        if len(given) != 3 or not all(isinstance(one, int | float) for one in given):
            raise OptionError(f"coefficients={self.coefficients!r} are not the three numbers of a quintic polynomial")
        object.__setattr__(self, "coefficients", given)
        if self.dtype not in _DTYPES:
            raise OptionError(
                f"dtype={self.dtype!r} is not one of {', '.join(map(repr, _DTYPES))}; the range of float16 is too narrow for gradients"
            )

    def __call__(self, points: Points, a: Tensor) -> Tensor:
        b = points.matrices(a)
        if not self.exact:
            return self.msign(b).reshape(a.shape)
        x = points.matrices(points.x)
        if isinstance(points.manifold, Stiefel):
            return lmo.stiefel(x, b, self.msign).reshape(a.shape)
        normal = points.manifold.normal(x) if isinstance(points.manifold, SpectralSphere) else x
        return lmo.hyperplane(normal, b, self.msign).reshape(a.shape)

    def error(self, manifold: Manifold) -> str | None:
        """As in `Shape.error`; also where no exact solver exists."""
        error = super().error(manifold)
        solved = isinstance(manifold, Stiefel | SpectralSphere | Sphere | ScalingQuotient)
        if error is None and self.exact and not solved:
            return (
                f"there is no solver for tangent matrices of {manifold!r}; leave exact at False, and project with "
                "shape=('spectral', 'tangent')"
            )
        return error

    def msign(self, a: Tensor) -> Tensor:
        """msign of `a`, (*batch, n, p), by `method`."""
        if self.method == "svd":
            return msign.exact(a)
        own = msign.POLAR_EXPRESS if self.method == "polar_express" else [self.coefficients]
        return msign.iterated(a, own, self.steps, self.dtype)


NAMES: dict[str, Shape] = {
    "unit": Unit(),
    "row": Row(),
    "sign": Sign(),
    "spectral": Spectral(),
    "tangent": Tangent(),
}
"""The shapes that have a name."""
_FACTORS = {
    "original": lambda n, p: max(1.0, n / p) ** 0.5,
    "match_rms_adamw": lambda n, p: 0.2 * max(n, p) ** 0.5,
    "spectral_norm": lambda n, p: (n / p) ** 0.5,
}
ADJUST_LR_FNS = (None, *_FACTORS)


def named(name: str, value: Any) -> tuple[Shape, ...] | None:
    """The value of the option `name`, a shape, its name, or several in their order, as a tuple; None stays None.

    Raises `OptionError` for other values.
    """
    if value is None:
        return None
    given = [NAMES.get(one) if isinstance(one, str) else one for one in _tuple(value)]
    found = tuple(one for one in given if isinstance(one, Shape))
    if not found or len(found) < len(given):
        raise OptionError(
            f"{name}={value!r} is not None, one of {', '.join(map(repr, NAMES))}, a Shape, or several of them in a tuple"
        )
    return found


def described(shape: Sequence[Shape]) -> str:
    """`shape` by the names of its parts."""
    return " then ".join(next((name for name, one in NAMES.items() if one == each), repr(each)) for each in shape)


def has_coordinates(manifold: Manifold) -> bool:
    """Whether the coordinates of a point, in units of its size, are orthonormal in the metric of `manifold`."""
    return isinstance(manifold, EmbeddedManifold | Euclidean | ScalingQuotient)


def frame_error(manifold: Manifold) -> str | None:
    """Why the coordinates of a representative have no meaning on `manifold`, or None if they have."""
    if not isinstance(manifold, Grassmann):
        return None
    return (
        f"a point of {manifold!r} is a subspace, and the step would depend on the frame that stands for it; use Stiefel(), "
        "shape='spectral' or a second moment per point"
    )


def check_shape(label: str, manifold: Manifold, matrix: tuple[int, int] | None, of_rows: bool, options: Any) -> None:
    """Raise `OptionError` if the points of `label` cannot be stepped with the shape of `options`; `matrix` as in `Points`, `of_rows`
    if the points are its rows."""
    shape = options["shape"]
    if manifold.event_ndim == 0:
        raise OptionError(
            f"shape={described(shape)} on {label}: in flat space every coordinate is a point there. Declare matrices with Euclidean(2), and "
            "give the other parameters to another optimizer or set shape=None in their group: "
            "param_groups(model, euclidean={'shape': None})"
        )
    for one in shape:
        error = one.error(manifold)
        if error is None and one.of_matrices and matrix is None:
            error = "it needs matrices, and these points are none; Rows(blocks=…) or Rows.whole() of a parameter with two dimensions are"
        exact = isinstance(one, Spectral) and one.exact
        if error is None and exact and of_rows:
            error = "there is no solver for points that are rows of a matrix, only for whole matrices: Rows.whole(), Rows(blocks=…)"
        if error is None and exact and options["differentiable"] and not isinstance(manifold, Stiefel):
            error = "the search for its multiplier has no derivative; leave differentiable at False, or exact"
        if error:
            raise OptionError(f"shape={described([one])} on {label}: {error}")
    if options["adjust_lr_fn"] is not None and matrix is None:
        raise OptionError(
            f"adjust_lr_fn={options['adjust_lr_fn']!r} on {label}: it is a function of the sides of a matrix, and these points are "
            "none; set it to None in this group"
        )


def radius_of(manifold: Manifold, x: Tensor) -> Any:
    """The norm that PSI's metric divides by, (*batch, 1…); 1.0 for other metrics."""
    return manifold.radius(x) if isinstance(manifold, ScalingQuotient) else 1.0


def shaped(
    manifold: Manifold, x: Tensor, u: Tensor, matrix: tuple[int, int] | None, options: Any
) -> tuple[Tensor, Any]:
    """D(u), (*batch, *event), for the step `u` of the rule at learning rate 1, and the factor that makes it the step η s D(u)."""
    size = manifold.size(x) if isinstance(manifold, SpectralSphere) else radius_of(manifold, x)
    unit = isinstance(size, float)
    points, a = Points(manifold, x if unit else x / size, matrix), u if unit else u / size
    for shape in options["shape"]:
        a = shape(points, a)
    scale = options["scale"]
    if options["adjust_lr_fn"] is not None:
        assert matrix is not None
        scale *= _FACTORS[options["adjust_lr_fn"]](*matrix)
    return a, size * scale * options["lr"]


def _tuple(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else (value,)
