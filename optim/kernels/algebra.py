"""One step of one row, as algebra on its dot products: the only place with the formulas of the row kernels.

A row is a point x, (n,), with its Euclidean gradient g and at most one tangent vector v, on a manifold that looks locally
like the unit sphere: unit vectors (the sphere, lines), or PSI, whose metric is ⟨a, b⟩ₓ = a·b/‖x‖². Every step is

    v' = keep · v + take · γ        γ: the Riemannian gradient; the four factors: `rules.Coefficients`
    u  = along · v' + ahead · γ
    y  = R(u)                       the retraction or the exponential
    v  ← T(v')                      the transport

and all of it is linear in x, g and v, with coefficients that depend on dot products alone. A backend computes the dot
products, calls the functions below in their order, and forms the linear combinations.

The functions work on torch tensors with an entry per row. `bind` replaces the six operations that they use, sqrt, sin, cos,
where, full_like and power_below, by Numba's, which work on scalars, or Triton's, which work on blocks. ``C`` is a
`launch.Choices`, constant for a compiler. Branches are written `where(condition, a, b)`, and both are computed. Nothing here
reads or writes memory.

The reference is `optim.update.update`, which calls the maps of the manifold; tests compare the two for all choices.
"""

from types import FunctionType, SimpleNamespace

import torch
from torch import cos, full_like, sin, sqrt, where

__all__ = ["FUNCTIONS", "adam", "bind", "carry", "clipped", "combination", "direction", "motion", "rescaling", "sinc"]


def power_below(r):
    """2^−e for r = m 2^e with ½ ≤ m < 1, exactly."""
    return torch.ldexp(torch.ones_like(r), -torch.frexp(r).exponent)


def bind(functions, operations, compiled=lambda function: function):
    """`functions` with `operations` in place of torch's, each passed through `compiled`, as a namespace."""
    names = dict(operations)
    for function in functions:
        bound = FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__)
        bound.__module__, bound.__doc__ = function.__module__, function.__doc__
        names[function.__name__] = compiled(bound)
    return SimpleNamespace(**names)


def rescaling(r, held, low, high, tiny, C):
    """The factor s by which a row of PSI of norm `r` is rescaled before the step, together with its vector.

    Hold: back to the norm `held`, unless that is not set (−1) or the ratio is not finite. Free: by a power of two, which
    changes no bit of the direction, once the norm has left [low, high]. A row of norm √tiny counts as zero and is not
    rescaled.
    """
    s = full_like(r, 1.0)
    if C.hold:
        ratio = held / r
        s = where((held >= 0) & (ratio < float("inf")) & (r > tiny), ratio, s)
    if C.free:
        still = ((r >= low) & (r <= high)) | (r <= tiny) | (r != r) | (r == float("inf"))
        s = where(still, s, power_below(r))
    return s


def adam(length, square, beta2, rest, rate, correction, eps, inside):
    """The second moment v̂ ← β₂ v̂ + (1 − β₂) ℓ² of the gradient's length ℓ, and the factor of the first moment in the step.

    `rest` is √(1 − β₂), `rate` lr/(1 − β₁ᵗ), `correction` √(1 − β₂ᵗ) (Kingma & Ba 2015, Algorithm 1). Inside, ε is added under
    the root (Cho & Lee 2017, Algorithm 4), otherwise to it.
    """
    part = rest * length  # its square overflows later than that of the length
    square = beta2 * square + part * part
    if inside:
        along = -rate * correction / sqrt(square + eps)
    else:
        along = -rate / (sqrt(square) / correction + eps)
    return square, along


def clipped(hh, r, limit, C):
    """f = λ and ℓ, with the Riemannian gradient γ = λ h and its length ℓ, shortened to `limit` where it is longer.

    On PSI λ = r² = ‖x‖² and h = g, since the gradient of a scale-invariant function is orthogonal to x; on unit vectors λ = 1
    and h = g − (x·g) x. The length in the metric is ‖g‖ r or ‖h‖; `hh` is ‖g‖² or ‖h‖², and used only if `C` asks for lengths.
    """
    f, length = full_like(r, 1.0), full_like(r, 0.0)
    if not C.unit:
        f = r * r
    if C.measures:
        length = sqrt(hh)
        if not C.unit:
            length = length * r
    if C.clip:
        shrink = where(length <= limit, full_like(r, 1.0), limit / length)  # of NaN, NaN
        f, length = f * shrink, length * shrink
    return f, length


def direction(f, s, xg, sign, keep, take, along, ahead, C):
    """(kept, vg, vx) and (along, ug, ux) in v' = kept v + vg g + vx x and u = along v' + ug g + ux x.

    v and γ are tangent at the row before it is rescaled by `s`. `sign` is −1 to maximize.
    """
    f = f * s * sign
    kept, vg, ug = keep * s, take * f, ahead * f
    vx, ux = full_like(f, 0.0), full_like(f, 0.0)
    if C.unit:
        vx, ux = -vg * xg, -ug * xg
    return kept, vg, vx, along + full_like(f, 0.0), ug, ux


def sinc(theta):
    """sin θ / θ, 1 at 0."""
    safe = where(theta != 0, theta, full_like(theta, 1.0))
    return where(theta != 0, sin(safe) / safe, full_like(theta, 1.0))


def motion(xx, xu, uu, r, n_root, rounding, C):
    """k_x and k_u in y = k_x X + k_u u, and ‖y‖², from the dot products of u and the rescaled row X = s x; r = ‖X‖.

    The retraction is X + u on PSI and (X + u)/‖X + u‖ on unit vectors. The exponential is cos θ X + (sin θ/θ) u with θ = ‖u‖ in
    the metric. It stays on the unit sphere up to rounding, so y is normalized where ‖y‖ is off by more than the rounding of a
    sum of n products, (8 + √n) ε. Where u = 0 nothing moves.
    """
    k_x, k_u = full_like(xx, 1.0), full_like(xx, 1.0)
    if C.exp:
        theta = sqrt(uu)
        if not C.unit:
            theta = theta / r
        k_x, k_u = cos(theta), sinc(theta)
    norm2 = k_x * k_x * xx + 2.0 * k_x * k_u * xu + k_u * k_u * uu
    norm2 = where(norm2 < 0, full_like(norm2, 0.0), norm2)
    if C.unit:
        norm = sqrt(norm2)
        moved = uu > 0
        if C.exp:
            off = where(norm > 1.0, norm - 1.0, 1.0 - norm)
            moved = moved & ((off > rounding * (8.0 + n_root)) | (off != off))
        k_x, k_u = where(moved, k_x / norm, k_x), where(moved, k_u / norm, k_u)
        norm2 = where(moved, full_like(norm2, 1.0), norm2)
    return k_x, k_u, norm2


def carry(xx, xu, uu, xv, uv, k_x, k_u, norm2, r, rounding, tiny, C):
    """t_v, t_x and t_u in the transported vector t_v v' + t_x X + t_u u at y, from the dot products of X, u and v'.

    Projection: v' − y (y·v')/‖y‖². Parallel transport along the exponential:
    v' − ⟨u, v'⟩ ((1 − cos θ)/θ² u + (sin θ/θ) X). Parallel transport along the geodesic from X to y = R(u), with z = φ y the
    representative of y nearest to X: (v' − ⟨z, v'⟩/(1 + ⟨X, z⟩) (X + z))/φ, and (v' − ⟨z, v'⟩ z)/φ where z = −X up to rounding.
    φ is ‖X‖/‖y‖ on PSI, the sign of X·y on lines, and 1 on the sphere.
    """
    t_v, t_x, t_u = full_like(xx, 1.0), full_like(xx, 0.0), full_like(xx, 0.0)
    metric = full_like(xx, 1.0)
    if not C.unit:
        metric = r * r
    if C.project:
        part = k_x * xv + k_u * uv
        if not C.unit:
            part = part / where(norm2 < tiny * tiny, full_like(norm2, tiny * tiny), norm2)
        t_x, t_u = -part * k_x, -part * k_u
    if C.parallel:
        if C.exp:
            half = sinc(0.5 * sqrt(uu / metric))
            part = -uv / metric
            t_x, t_u = part * sinc(sqrt(uu / metric)), part * 0.5 * half * half
        else:
            yx, yv = k_x * xx + k_u * xu, k_x * xv + k_u * uv
            phi = full_like(xx, 1.0)
            if C.lines:
                phi = where(yx < 0, full_like(xx, -1.0), phi)
            if not C.unit:
                norm = sqrt(norm2)
                phi = r / where(norm < tiny, full_like(norm, tiny), norm)
            beside = metric + phi * yx
            antipodal = beside <= rounding * metric
            part = phi * yv / where(antipodal, metric, beside)
            t_v = 1.0 / phi
            t_x, t_u = -part * (where(antipodal, full_like(xx, 0.0), t_v) + k_x), -part * k_u
    return t_v, t_x, t_u


def combination(s, kept, vg, vx, along, ug, ux, k_x, k_u, t_v, t_x, t_u):
    """The coefficients of the step on the stored row and vector: y = y_x x + y_g g + y_v v, v ← w_x x + w_g g + w_v v."""
    k_x, t_x, both = k_x * s, t_x * s, t_v + t_u * along
    y_x, y_g, y_v = k_x + k_u * (ux + along * vx), k_u * (ug + along * vg), k_u * along * kept
    w_x, w_g, w_v = both * vx + t_u * ux + t_x, both * vg + t_u * ug, both * kept
    return y_x, y_g, y_v, w_x, w_g, w_v


FUNCTIONS = (rescaling, clipped, adam, direction, sinc, motion, carry, combination)
"""The functions to bind, each after those that it calls."""
