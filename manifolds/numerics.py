"""Scalars and factorisations that stay finite, differentiable and on the manifold at the edges.

Reductions run over the last `ndim` (event) dimensions and keep them as size 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_unary

from ..errors import GeometryError

__all__ = [
    "DTYPES",
    "cholesky",
    "derivatives_wanted",
    "differentiated",
    "dot",
    "exceeds",
    "finite_matrices",
    "full_precision",
    "generic",
    "hold_still",
    "in_this_precision",
    "longest",
    "matrix_exp",
    "norm",
    "polar",
    "positive_qr",
    "random_normal",
    "readable",
    "root_of_squares",
    "root_tiny",
    "safe_sqrt",
    "settle",
    "shortened",
    "special_polar",
    "squares_fit",
    "svd",
    "symmetric",
    "tolerance",
    "with_value",
]


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""In which parameters on a manifold are kept."""


def root_tiny(dtype: torch.dtype) -> float:
    """√ of the smallest normal number, 1e-19 in float32: shorter vectors have squares that vanish, and count as zero."""
    return float(torch.finfo(dtype).tiny ** 0.5)


def longest(dtype: torch.dtype) -> tuple[float, float]:
    """Lengths 1/(16 ε), from where on an angle has no digits, and 10/√ε, from where on derivatives of exponentials have none.

    Longer steps may as well be shortened to them.
    """
    eps = torch.finfo(dtype).eps
    return 0.0625 / eps, 10.0 / eps**0.5


def tolerance(dtype: torch.dtype) -> float:
    """How far a computed quantity of order one may be from its law before a check fails.

    The square root of the machine epsilon: 1.5e-8 in float64, 3.5e-4 in float32. Rounding of a long row
    or of a thousand steps stays well below it, a wrong formula does not.
    """
    return float(torch.finfo(dtype).eps ** 0.5)


@contextmanager
def full_precision() -> Iterator[None]:
    """Arithmetic in the precision of the arrays, also inside `torch.autocast`, which would take matrix products in half
    precision: an orthonormal frame comes out of one with a defect of 1e-2."""
    with ExitStack() as stack:
        for device in _autocast_devices():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def in_this_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under the `torch.autocast` that surrounds this call, also where it is called inside of `full_precision`."""
    for device in _autocast_devices():
        function = torch.autocast(device, torch.get_autocast_dtype(device))(function)
    return function


def _autocast_devices() -> list[str]:
    return [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]


def _event(ndim: int) -> tuple[int, ...]:
    return tuple(range(-ndim, 0))


def dot(u: Tensor, v: Tensor, ndim: int) -> Tensor:
    """Ambient dot product, (*batch, *event) × (*batch, *event) → (*batch, 1…).

    An array with itself goes through the norm, in one pass and without an array of products: two and a half times
    as fast on a CPU. Where derivatives are wanted it does not: a norm has none at 0, its square has. Many rows of a few
    coordinates, up to 6, are added column by column, twice as fast again.
    """
    if ndim == 0:
        return u * v
    if not derivatives_wanted():
        if ndim == 1 and u.shape[-1] <= 6 and u.numel() >= 2048 and u.is_cpu:
            first, *others = (u * v).split(1, -1)
            return sum(others, first)
        if u is v:
            return root_of_squares(u, ndim).square()
    return (u * v).sum(_event(ndim), keepdim=True)


def norm(a: Tensor, ndim: int) -> Tensor:
    """Ambient Euclidean norm, (*batch, *event) → (*batch, 1…); its gradient at 0 is 0.

    Norms of float32 arrays are right over the whole range of float32, although squares overflow above 1e19 and vanish
    below 1e-19: such rows are summed again in float64. Where values cannot be read (on a device that would have to be
    waited for, under autograd, `vmap` and the compiler) all rows are summed in float64.
    """
    if has_torch_function_unary(a):
        size: Tensor = handle_torch_function(norm, (a,), a, ndim)
        return size
    if ndim == 0:
        return a.abs()
    if a.dtype != torch.float32:
        return root_of_squares(a, ndim)
    if not readable(a) or (a.requires_grad and torch.is_grad_enabled()):
        return root_of_squares(a, ndim, torch.float64).to(a.dtype)
    size = root_of_squares(a, ndim)
    if not squares_fit(size):
        again = ~((size > SHORT) & (size < LONG)).squeeze(_event(ndim))
        size[again] = root_of_squares(a[again], ndim, torch.float64).to(a.dtype)
    return size


SHORT, LONG = 1e-16, 1e19
"""Norms below and above which squares of float32 numbers lose digits and overflow."""


def readable(a: Tensor) -> bool:
    """Whether values of `a` may decide what is computed: not on a device that would have to be waited for, nor inside `vmap` and
    the compiler."""
    return a.is_cpu and not torch.compiler.is_compiling() and not torch._C._functorch.is_functorch_wrapped_tensor(a)


def exceeds(a: Tensor, bound: float) -> bool:
    """Whether all of `a` can be read and is larger than `bound`."""
    return readable(a) and a.numel() > 0 and a.min().item() > bound


def squares_fit(size: Tensor) -> bool:
    """Whether norms that were computed in float32 are right, none of them too short or too long for its square."""
    if not size.numel():
        return True
    low, high = torch.aminmax(size)
    return low.item() > SHORT and high.item() < LONG


def root_of_squares(a: Tensor, ndim: int, dtype: torch.dtype | None = None) -> Tensor:
    """The norm as √Σa², summed in `dtype`: the fastest, for arrays whose squares are known to fit, or where it does not
    matter."""
    return torch.linalg.vector_norm(a, dim=_event(ndim), keepdim=True, dtype=dtype)


def shortened(u: Tensor, limit: Tensor | float, ndim: int) -> Tensor:
    """`u`, scaled down to the length `limit` where it is longer; the factor counts as a constant."""
    return u * (limit / norm(u.detach(), ndim)).clamp(max=1.0)


def length(a: Tensor, ndim: int) -> Tensor:
    """`norm`, whose square has all derivatives at 0 too; where they can be taken it is δ there, that of `safe_sqrt`."""
    size = norm(a.detach(), ndim)
    if not differentiated(a):
        return size
    zero = size == 0
    still = a.masked_fill(~zero, 0.0)
    return torch.where(zero, safe_sqrt(dot(still, still, ndim)), norm(a.masked_fill(zero, 1.0), ndim))


def safe_sqrt(square: Tensor) -> Tensor:
    """√max(square, 0); NaN stays NaN.

    Where it is 0 and derivatives can be taken, it is δ = ∛tiny instead, 3e-103 in float64 and 2e-13 in float32, with the
    derivatives of √(square + δ²). So a length has slope 0 at 0, a subgradient, and in all modes and to second order its
    square has the derivatives of `square`, to which a factor 0 would put an end: (s²)″ = 2 s′² + 2 s s″.
    """
    positive = ~(square <= 0)
    root = square.masked_fill(~positive, 1.0).sqrt()
    if not differentiated(square):
        return root.masked_fill(~positive, 0.0)
    shift = torch.finfo(square.dtype).tiny ** (1 / 3)
    return torch.where(positive, root, (square.masked_fill(square != 0, 0.0) + shift**2).sqrt())


def derivatives_wanted() -> bool:
    """Whether a derivative may be taken of what is computed now, in reverse or in forward mode.

    Optimizers compute without, and are spared the terms that only derivatives need.
    """
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def differentiated(a: Tensor) -> bool:
    """Whether a derivative may be taken with respect to what `a` is made of."""
    return (a.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0


def with_value(value: Tensor | float, smooth: Tensor) -> Any:
    """`value`, bitwise, with the derivatives of `smooth`, of all orders and in both modes.

    For a formula that is equal to `value` but for its rounding, or that has the derivatives which `value` hides. Where it
    overflows or is NaN there are no derivatives, and `value` stays.
    """
    if not derivatives_wanted():
        return value
    return torch.where(torch.isfinite(smooth), smooth - smooth.detach(), 0.0) + (
        value.detach() if isinstance(value, Tensor) else value
    )


def hold_still(u: Tensor, moved: Tensor, still: Tensor | float, ndim: int) -> Tensor:
    """`moved` where the tangent `u` is nonzero, `still` where it is zero, everywhere with the derivatives of `moved`.

    With ``still = x + u``, which is then `x` bitwise, maps that re-orthonormalise get ``retract(x, 0) = x`` as an
    array. The derivatives of x + u would lack the curvature: its second one is 0.
    """
    length = root_of_squares(u, ndim)
    if exceeds(length, 0.0):
        return moved
    return torch.where(length > 0, moved, with_value(still, moved))


def settle(a: Tensor | float, defect: Tensor, placed: Tensor, terms: int) -> Tensor:
    """`placed` where `defect` exceeds the rounding of a sum of `terms` products, `a` itself, bitwise, where not;
    everywhere with the derivatives of `placed`.

    Such a sum carries about √terms roundings, so a defect below (8 + √terms) ε is none.
    """
    return torch.where(defect <= torch.finfo(placed.dtype).eps * (8.0 + terms**0.5), with_value(a, placed), placed)


def random_normal(
    shape: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    place: Callable[[Tensor], Tensor] = lambda a: a,
) -> Tensor:
    """`place` of a standard normal array; half precisions are drawn and placed in float32, and rounded once.

    Raises `GeometryError` for a `dtype` that is complex or an integer.
    """
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise GeometryError(f"random points have real coordinates, not {dtype}; draw them in one of {DTYPES}")
    wide = torch.promote_types(dtype, torch.float32)
    return place(torch.randn(tuple(shape), generator=generator, dtype=wide, device=device)).to(dtype)


def symmetric(a: Tensor) -> Tensor:
    """(a + aᵀ)/2, (*batch, p, p) → (*batch, p, p)."""
    return 0.5 * (a + a.mT)


def positive_qr(a: Tensor) -> Tensor:
    """Orthonormal factor of the QR decomposition whose R has a positive diagonal, (*batch, n, p).

    Without the sign convention the factor jumps with the LAPACK build, and the map is no retraction.
    """
    q, r = torch.linalg.qr(a)
    diagonal = r.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    return q * torch.ones_like(diagonal).copysign(diagonal)


def generic(like: Tensor) -> Tensor:
    """A fixed matrix cos(i j) in the shape of one of `like`, (n, p), with which nothing is aligned by chance."""
    rows, columns = (torch.arange(1, size + 1, dtype=like.dtype, device=like.device) for size in like.shape[-2:])
    return (rows.unsqueeze(-1) * columns).cos()


def cholesky(a: Tensor) -> Tensor:
    """Lower triangular L with L Lᵀ = a for symmetric positive semidefinite `a`, (*batch, k, k).

    Matrices that are singular up to rounding are factored with 8 k ε of their trace added to the diagonal.
    """
    lower, info = torch.linalg.cholesky_ex(a)
    if readable(info) and not info.any():
        return lower
    k = a.shape[-1]
    trace = a.diagonal(dim1=-2, dim2=-1).sum(-1)
    shift = torch.where(info > 0, 8 * k * torch.finfo(a.dtype).eps * trace, 0.0)
    return torch.linalg.cholesky_ex(a + shift[..., None, None] * torch.eye(k, dtype=a.dtype, device=a.device))[0]


def matrix_exp(a: Tensor) -> Tensor:
    """exp(a), (*batch, k, k). torch is off by up to 1e-10 for a matrix alone of norm about 0.02, so it is given two."""
    alone = a[..., 0, 0].numel() == 1
    return torch.linalg.matrix_exp(torch.stack([a, a]))[0] if alone else torch.linalg.matrix_exp(a)


def finite_matrices(a: Tensor) -> Tensor:
    """Which matrices have no infinite or NaN entry, (*batch, 1, 1)."""
    return torch.isfinite(a).all(-1, keepdim=True).all(-2, keepdim=True)


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reduced singular value decomposition of `a`, (*batch, n, p), with NaN for matrices that are not finite, for which
    LAPACK raises."""
    finite = finite_matrices(a)
    left, singular, right = torch.linalg.svd(torch.where(finite, a, 0.0), full_matrices=False)
    return torch.where(finite, left, torch.nan), torch.where(finite[..., 0], singular, torch.nan), right


# To which order derivatives of `polar` are right: as many as it takes Newton steps.
_POLAR_ORDERS = 3


def polar(a: Tensor) -> Tensor:
    """Orthonormal matrix closest to `a`, (*batch, n, p) → (*batch, n, p), n ≥ p.

    Equivariant from the right: polar(a q) = polar(a) q for orthogonal q. Derivatives up to the third are right, in both
    modes, also at equal singular values; there are none where a singular value vanishes.

    With a = L Σ Vᵀ the value is L Vᵀ. The derivative of the decomposition divides by differences of singular values, so
    the factors are taken as constants, and Newton's method is started for the polar factor q of a V from q = L, where it
    has converged. With the derivative of the equations at the start, kept fixed, each step

        q ← q + L (s + ω) + (1 − L Lᵀ)(a V − q m) Σ⁻¹,    m = qᵀ a V,    s = (1 − qᵀq)/2,
        (σᵢ + σⱼ) ωᵢⱼ = (m − mᵀ)ᵢⱼ + sᵢⱼ (σⱼ − σᵢ)

    changes no value and makes one more order of derivatives right; only sums of singular values are divided by.
    """
    return _polar(a, *svd(a.detach()))


def special_polar(a: Tensor) -> Tensor:
    """Rotation closest to `a`, (*batch, n, n) → (*batch, n, n): `polar`, and where its determinant is −1, with the sign of the
    smallest singular value and of its left vector turned (Umeyama 1991)."""
    left, singular, right = svd(a.detach())
    sign = torch.cat([torch.ones_like(singular[..., 1:]), torch.linalg.det(left @ right).sign().unsqueeze(-1)], -1)
    return _polar(a, left * sign.unsqueeze(-2), singular * sign, right)


def _polar(a: Tensor, left: Tensor, singular: Tensor, right: Tensor) -> Tensor:
    value = left @ right
    if not derivatives_wanted():
        return value
    turned, q = a @ right.mT, left
    column, row = singular.unsqueeze(-1), singular.unsqueeze(-2)
    sums = torch.where(column + row > 0, column + row, torch.inf)
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(_POLAR_ORDERS):
        m = q.mT @ turned
        s = 0.5 * (identity - q.mT @ q)
        step = left @ (s + (m - m.mT + s * (row - column)) / sums)
        if a.shape[-2] > a.shape[-1]:
            outside = turned - q @ m
            step = step + (outside - left @ (left.mT @ outside)) / row
        q = q + step
    return with_value(value, q @ right)
