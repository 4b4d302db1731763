"""The laws of manifolds that are locally isometric to the unit sphere."""

from __future__ import annotations

from torch import Tensor
from torch.func import jvp

from ..manifolds import Spherical, numerics
from .setting import Setting, law


def _direction(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


@law(Spherical)
def direction_is_a_local_isometry(s: Setting) -> None:
    """The differential of x ↦ x/‖x‖ keeps lengths, and the metric is u·v / λ with λ = conformal_factor."""
    turned = jvp(_direction, (s.x,), (s.u,))[1]
    s.same(
        numerics.norm(turned, 1), s.m.norm(s.x, s.u), "the length of the differential of x/‖x‖ along u against norm(u)"
    )
    dot = numerics.dot(s.u, s.v, 1)
    s.same(s.m.inner(s.x, s.u, s.v) * s.m.conformal_factor(s.x), dot, "λ inner(u, v) against u·v")


@law(Spherical)
def alignment_gives_a_representative_of_the_same_length(s: Setting) -> None:
    """With f = alignment(x, y), f y represents the point of y and is as long as x; f = 1 for y = x."""
    y = s.inputs["y"] = s.point()
    facing = s.m.alignment(s.x, y) * y
    s.same(numerics.norm(facing, 1), numerics.norm(s.x, 1), "‖f y‖ against ‖x‖")
    s.same(s.m.dist(y, facing), 0 * s.m.dist(s.x, y), "dist(y, f y) against 0")
    s.same(s.m.alignment(s.x, s.x) * s.x, s.x, "alignment(x, x) x against x")
