"""One step of one row of hyperbolic space, as algebra on its dot products: the only place with the formulas of its row kernels.

A row is a point x with its Euclidean gradient g and at most one tangent vector v. Every step is

    w = keep · v + take · γ         γ: the Riemannian gradient; the four factors: `rules.Coefficients`
    u = along · w + ahead · γ
    y = R(u)                        the retraction or the exponential
    v ← T(w)                        the transport

and linear in x, g and v, with coefficients that depend on x·x, x·g, x·v, g·g, g·v and v·v alone. In the ball γ = f g. On the
sheet, the hyperboloid, all products and combinations are of the coordinates but the first, those of γ are g + s x, and the
first coordinates of y and v follow from the others.

The products of float32 rows are summed in float64, and everything here is computed in it: differences of products then lose
no digit that the rows have. The functions are bound to a backend like those of `algebra`, see there. `where` computes both
branches. The reference is `optim.update.update`, which calls the maps of the manifold.
"""

from torch import exp, full_like, sqrt, where

__all__ = ["FUNCTIONS", "combination", "gradient", "motion", "steps"]


def gradient(xx, xg, xv, gg, gv, vv, g0, unit, limit, rounding, C):
    """g(x), s, f, ℓ, and h·h, h·v, v·v in the metric, up to the ball's 4/g(x)², where γ = f h is ℓ long, at most `limit`.

    In the ball g(x) = 1 − ‖x‖²/R² and h = g. On the sheet x₀² = R² + x·x, s = (x·g + x₀g₀)/R², h = g + s x, and the metric of
    tangents is a·b − (x·a)(x·b)/x₀². `unit` is R².
    """
    gap, share, f = full_like(xx, 1.0), full_like(xx, 0.0), full_like(xx, 1.0)
    if C.sheet:
        time2 = unit + xx
        share = (xg + sqrt(time2) * g0) / unit
        xh = xg + share * xx
        gg = gg + share * (xg + xh) - xh * xh / time2
        gv = gv + share * xv - xh * xv / time2
        vv = vv - xv * xv / time2
    else:
        gap = 1.0 - xx * (1.0 / unit)
        gap = where(gap < rounding, full_like(gap, rounding), gap)
        f = 0.25 * gap * gap
    gg = where(gg < 0, full_like(gg, 0.0), gg)
    length = sqrt(f * gg)
    if C.clip:
        shrink = where(length <= limit, full_like(xx, 1.0), limit / length)
        f, length = f * shrink, length * shrink
    return gap, share, f, length, gg, gv, vv


def steps(f, sign, keep, take, along, ahead):
    """w = a v + b h and u = c v + d h, as a, b, c and d."""
    b = take * f * sign
    return keep, b, along * keep, along * b + ahead * f * sign


def motion(gap, xx, xu, uu, xw, uw, unit, longest, C):
    """k_x and k_u in y = k_x x + k_u u, t_v, t_x and t_u in T(w) = t_v w + t_x x + t_u u, and g(y), from dot products.

    The formulas are those of `Lorentz` and `PoincareBall`. With θ = ‖u‖ₓ/R and q = sinh(θ/2)/(θ/2) the exponential has
    cosh θ = 1 + θ²q²/2 and sinh θ/θ = q √(1 + θ²q²/4); it is no longer than `longest`.
    """
    one, slope = full_like(xx, 1.0), 2.0 / (unit * gap)
    uu = where(uu < 0, full_like(uu, 0.0), uu)
    square, stretch, versine, shorter = unit * slope * slope * uu, one, one, one
    if C.sheet:
        square = uu / unit
    if C.exp:
        length = sqrt(square * unit)
        shorter = where(length <= longest, one, longest / length)
        square = square * shorter * shorter
        half_angle, near = 0.5 * sqrt(square), 0.25 * square
        power, long = exp(half_angle), half_angle > 0.5
        # The series, which has all digits below ½.
        q = 1.0 + near / 110.0 * (1.0 + near / 156.0)
        q = 1.0 + near / 6.0 * (1.0 + near / 20.0 * (1.0 + near / 42.0 * (1.0 + near / 72.0 * q)))
        q = where(long, 0.5 * (power - 1.0 / power) / where(long, half_angle, one), q)
        versine, stretch = 0.5 * q * q, shorter * q * sqrt(1.0 + near * q * q)
    t_v, t_x, t_u = one, full_like(xx, 0.0), full_like(xx, 0.0)
    if C.sheet:
        k_x, k_u = sqrt(1.0 + square), stretch
        if C.exp:
            k_x = 1.0 + square * versine
        if C.project:
            t_x, t_u = k_u * k_x * uw / unit, k_u * k_u * uw / unit
        if C.parallel:
            t_x, t_u = stretch * uw / unit, uw / (unit * (1.0 + k_x))
            if C.exp:
                t_u = shorter * shorter * versine * uw / unit
        return k_x, k_u, t_v, t_x, t_u, gap
    over = 1.0 / (1.0 + sqrt(1.0 + square))
    half, over = 0.5 * square * over, 2.0 * over
    if C.exp:
        half = 0.5 * square * versine
        over = 1.0 / (1.0 + half)
    xu, uu, uw = stretch * xu, stretch * stretch * uu, stretch * uw
    shift = gap * half
    inverse = 1.0 / (1.0 + 2.0 * half - shift + slope * xu)
    other = gap * inverse
    if C.parallel:
        summed, k = gap + other + half * gap * other, slope * slope * inverse * over
        t_v = inverse
        t_x = k * (0.25 * unit * summed * uw + 0.5 * inverse * (xu * uw - uu * xw))
        t_u = -k * stretch * (0.25 * unit * summed * xw + 0.5 * inverse * (xx * uw - xu * xw))
    return 1.0 + shift * inverse, stretch * inverse, t_v, t_x, t_u, other


def combination(share, a, b, c, d, k_x, k_u, t_v, t_x, t_u):
    """The coefficients of the step on the stored row and vector: y = y_x x + y_g g + y_v v, v ← w_x x + w_g g + w_v v."""
    w_v, w_h = t_v * a + t_u * c, t_v * b + t_u * d
    return k_x + k_u * d * share, k_u * d, k_u * c, t_x + w_h * share, w_h, w_v


FUNCTIONS = (gradient, steps, motion, combination)
