"""Row kernels in NumPy: the two functions of `launch.Kernel` around the algebra of a row, as short as a backend can be."""

import ctypes

import numpy as np
import torch
from retract.optim.kernels import algebra
from retract.optim.kernels.launch import COEFFICIENTS, COORDINATES, GRADIENT, POINTS, RADIUS, SQUARE, VECTOR, X

row = algebra.bind(
    algebra.FUNCTIONS,
    {
        "sqrt": np.sqrt,
        "sin": np.sin,
        "cos": np.cos,
        "where": np.where,
        "full_like": np.full_like,
        "power_below": lambda r: np.ldexp(1.0, -np.frexp(r)[1]),
    },
)


def schedule(table):
    """Nothing to prepare: matrices are stepped one by one."""


def step(table, schedule, update, dtype, device):
    real = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}[dtype]
    with np.errstate(all="ignore"):
        for entry in table:
            move(entry, update, real, torch.finfo(dtype))


def move(entry, update, real, info):
    """Every row of one matrix at once; numbers per point are (points, 1)."""
    (choices, numbers), n = update, int(entry[COORDINATES])

    def at(column, columns, ctype=real):
        flat = (ctype * (int(entry[POINTS]) * columns)).from_address(int(entry[column]))
        return np.ctypeslib.as_array(flat).reshape(-1, columns)

    x, g = at(X, n), at(GRADIENT, n)
    xx = dot(x, x)
    norm = np.maximum(np.sqrt(xx), info.tiny**0.5)
    zero = np.zeros_like(xx)
    if choices.unit:
        g = g - dot(x, g) * x
    held = at(RADIUS, 1) if choices.store_radius else zero
    s = row.rescaling(norm, held, numbers.low, numbers.high, info.tiny**0.5, choices)
    f, length = row.clipped(dot(g, g), norm, numbers.limit, choices)
    keep, take, along, ahead = numbers.keep, numbers.take, numbers.along, numbers.ahead
    if choices.adam:
        square = at(SQUARE, 1)
        square[:], along = row.adam(
            length, square, numbers.beta2, numbers.rest, numbers.rate, numbers.correction, numbers.eps, choices.inside
        )
    elif choices.per_point:
        keep, take, along, ahead = np.split(at(COEFFICIENTS, 4, ctypes.c_double), 4, axis=1)
    kept, vg, _, along, ug, _ = row.direction(f, s, zero, numbers.sign, keep, take, along, ahead, choices)
    u, start, r = ug * g, s * x, s * norm
    if choices.moving:
        w = kept * at(VECTOR, n) + vg * g
        u = u + along * w
    products = dot(start, start), dot(start, u), dot(u, u)
    k_x, k_u, norm2 = row.motion(*products, r, n**0.5, info.eps, choices)
    if choices.moving:
        more = dot(start, w), dot(u, w), k_x, k_u, norm2, r, info.eps, info.tiny**0.5
        t_v, t_x, t_u = row.carry(*products, *more, choices)
        at(VECTOR, n)[:] = t_v * w + t_x * start + t_u * u
    x[:] = k_x * start + k_u * u
    if choices.store_radius:
        held[:] = np.where(held < 0, norm, held)


def dot(a, b):
    return (a * b).sum(axis=1, keepdims=True)
