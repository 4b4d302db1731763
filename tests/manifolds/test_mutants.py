"""The laws reject wrong manifolds: each mutant must fall to the law named beside it."""

from dataclasses import astuple, dataclass

import pytest
import torch
from geometries import CASES
from retract.manifolds import PSI, Euclidean, FixedRank, Grassmann, ProjectiveSpace, Sphere, numerics, rotations
from retract.testing import LawError, basics, derivatives, geodesics, quotients, spherical

BY_ID = {case.id: case for case in CASES}


def mutant(base, **methods):
    """A subclass of `base` with methods replaced, as a value like any manifold."""
    return dataclass(frozen=True, repr=False)(type(f"Wrong{base.__name__}", (base,), methods))


def hidden(function):
    """The value without its derivatives: those of the argument instead."""
    return lambda m, a: a + (function(a) - a).detach()


def straight_at_zero(m, x, u):
    """Right in value and slope; at u = 0 the branch x + u, which has no curvature, is differentiated."""
    moved = x + u
    return moved / torch.where(u.norm(dim=-1, keepdim=True) > 0, moved.norm(dim=-1, keepdim=True), 1.0)


def through_theta(m, x, u):
    """Functions of θ = ‖u‖, whose slope is set to 0 at 0."""
    theta = u.norm(dim=-1, keepdim=True)
    safe = torch.where(theta > 0, theta, 1.0)
    return theta.cos() * x + torch.where(theta > 0, safe.sin() / safe, 1.0) * u


def over_length(m, x, y):
    """The chord over its length, where they coincide over 1."""
    chord = m.project(x, y - x)
    length = chord.norm(dim=-1, keepdim=True)
    return chord * (m.dist(x, y) / torch.where(length > 0, length, 1.0))


def shortest_subgradient(m, x, y):
    """The slope is 0 where the points coincide, and so is all that is made of it."""
    return 2 * torch.atan2(numerics.norm(x - y, 1), numerics.norm(x + y, 1))


def by_powers(m, x, u):
    """The geodesic through the power series of a matrix that is not normal."""
    cosine, sine, _ = rotations.trigonometric(u.mT @ u)
    return x @ cosine + u @ sine


def over_cosine(m, x, y, v):
    return v - (y * v).sum(-1, True) * (x + y) / (1 + (x * y).sum(-1, True))


def through_decomposition(m, x, y):
    """Through singular vectors, which have no derivative where singular values coincide."""
    left, sine, right = torch.linalg.svd(m.project(x, m.align(x, y)), full_matrices=False)
    return (left * sine.clamp(max=1).asin().unsqueeze(-2)) @ right


def ambient(m, x, a):
    """Orthogonal to the class in the dot product in place of the metric."""
    b, c = m.split(x)
    u, v = m.split(a)
    s = (b.mT @ u - v.mT @ c) @ torch.linalg.inv(b.mT @ b + c.mT @ c)
    return torch.cat([u - b @ s, v + c @ s.mT], -2)


MUTANTS = [
    ("psi", PSI, "riemannian_gradient", lambda m, x, g: g, basics.gradient_is_dual_to_the_metric),
    ("psi", PSI, "riemannian_gradient", lambda m, x, g: g, basics.gradient_is_of_second_order),
    ("psi", PSI, "riemannian_gradient", lambda m, x, g: -PSI().riemannian_gradient(x, g), basics.gradient_is_of_second_order),
    ("psi", PSI, "retract", lambda m, x, u: x - u, basics.retraction_agrees_to_first_order),
    ("psi", PSI, "retract", lambda m, x, u: x + 2 * u, basics.retraction_agrees_to_first_order),
    ("psi", PSI, "transport", lambda m, x, u, v: torch.zeros_like(v), basics.transport_is_a_vector_transport),
    ("psi", PSI, "transport", lambda m, x, u, v: -m.project(x + u, v), basics.transport_is_a_vector_transport),
    ("psi", PSI, "inner", lambda m, x, u, v: PSI().inner(x, u, u), basics.metric_is_an_inner_product),
    ("psi", PSI, "conformal_factor", lambda m, x: m.radius(x), quotients.metric_and_maps_respect_the_group),
    ("psi", PSI, "canonical", lambda m, x: x, quotients.canonical_is_constant_on_classes),
    ("psi", PSI, "align", lambda m, x, y: y, quotients.canonical_is_constant_on_classes),
    ("psi", PSI, "act", lambda m, g, x: x * g.square(), quotients.radius_scales_with_the_representative),
    ("psi", PSI, "project", lambda m, x, a: a, quotients.radius_scales_with_the_representative),
    ("sphere", Sphere, "riemannian_gradient", lambda m, x, g: 1.01 * m.project(x, g), basics.gradient_is_of_second_order),
    ("sphere", Sphere, "riemannian_gradient", lambda m, x, g: 1.01 * m.project(x, g), basics.gradient_is_dual_to_the_metric),
    ("sphere", Sphere, "project", lambda m, x, a: a - 0.9 * x * (x * a).sum(-1, True), basics.projection_is_linear_and_idempotent),
    ("sphere", Sphere, "retract", lambda m, x, u: Sphere().retract(x, 0.9 * u), basics.retraction_agrees_to_first_order),
    ("sphere", Sphere, "retract", lambda m, x, u: 0.9 * Sphere().retract(x, u), basics.retraction_stays_on_the_manifold),
    ("sphere", Sphere, "transport", lambda m, x, u, v: v, basics.transport_is_a_vector_transport),
    ("sphere", Sphere, "nearest", lambda m, a: a / a.norm(dim=-1, keepdim=True).square(), basics.nearest_is_a_point_and_leaves_points),
    ("sphere", Sphere, "exp", Sphere.retract, geodesics.geodesics_continue_themselves),
    ("sphere", Sphere, "log", lambda m, x, y: m.project(x, y - x), geodesics.logarithm_inverts_the_exponential),
    ("sphere", Sphere, "dist", lambda m, x, y: torch.acos((x * y).sum(-1, True) - 1e-4), geodesics.distance_to_itself_is_zero),
    ("sphere", Sphere, "parallel_transport", lambda m, x, u, v: m.project(m.exp(x, u), v), geodesics.parallel_transport_is_isometric),
    ("sphere", Sphere, "tangent_defect", lambda m, x, u: (u * x).sum(-1).abs(), basics.scalars_keep_event_dimensions),
    ("lines", ProjectiveSpace, "retract", lambda m, x, u: -ProjectiveSpace().retract(x, u), basics.retraction_at_zero_is_the_point_itself),
    ("lines", ProjectiveSpace, "canonical", lambda m, x: x, quotients.canonical_is_constant_on_classes),
    ("sphere", Sphere, "nearest", hidden(Sphere().nearest), derivatives.first_derivatives_equal_differences),
    ("sphere", Sphere, "retract", straight_at_zero, derivatives.second_derivatives_equal_differences),
    ("sphere", Sphere, "exp", through_theta, derivatives.second_derivatives_equal_differences),
    ("sphere", Sphere, "log", over_length, derivatives.first_derivatives_equal_differences),
    ("sphere", Sphere, "dist", lambda m, x, y: 2 * ((x - y).square().sum(-1, True).sqrt() / 2).asin(), derivatives.kinks_have_subgradients),
    ("grassmann2", Grassmann, "exp", by_powers, basics.steps_of_any_length_end_on_the_manifold),
    ("sphere", Sphere, "dist", shortest_subgradient, derivatives.second_derivatives_equal_differences),
    ("sphere", Sphere, "transport_to", over_cosine, derivatives.maps_are_finite_at_the_cut_locus),
    ("grassmann2", Grassmann, "log", through_decomposition, derivatives.first_derivatives_equal_differences),
    ("grassmann2", Grassmann, "log", through_decomposition, derivatives.half_the_squared_distance_has_minus_the_logarithm_as_gradient),
    ("sphere", Sphere, "geodesic", lambda m, x, u, t: m.exp(x, u) if isinstance(t, torch.Tensor) else m.exp(x, t * u), geodesics.geodesics_take_many_times),
    ("psi", PSI, "norm", lambda m, x, u: u.norm(dim=-1, keepdim=True), basics.metric_is_an_inner_product),
    ("euclidean1", Euclidean, "retract_and_transport", lambda m, x, u, v: (x + u, 1.01 * v), basics.transport_is_a_vector_transport),
    ("euclidean1", Euclidean, "retract_and_transport", lambda m, x, u, v: (x + 1.01 * u, v), basics.transport_is_a_vector_transport),
    ("psi", PSI, "point_defect", lambda m, x: (x.norm(dim=-1, keepdim=True) == 0) * 1.0, basics.nan_is_no_point),
    ("sphere", Sphere, "point_defect", lambda m, x: 0 * x[..., :1], basics.points_are_told_from_other_arrays),
    ("sphere", Sphere, "__repr__", lambda m: "Sphere", basics.repr_evaluates),
    ("sphere", Sphere, "inner", lambda m, x, u, v: 4 * (u * v).sum(-1, True), spherical.direction_is_a_local_isometry),
    ("sphere", Sphere, "alignment", lambda m, x, y: -torch.ones_like(y[..., :1]), spherical.alignment_gives_a_representative_of_the_same_length),
    ("sphere", Sphere, "row_kernel", "rays", geodesics.row_kernels_have_its_formulas),
    ("fixed-rank3", FixedRank, "total_space", property(lambda m: Euclidean(2)), quotients.gradients_of_invariant_functions_are_horizontal),
    ("fixed-rank3", FixedRank, "project", ambient, quotients.horizontal_and_vertical_make_up_a_tangent),
    ("fixed-rank3", FixedRank, "transport", lambda m, x, u, v: v, basics.transport_is_a_vector_transport),
    ("fixed-rank3", FixedRank, "canonical", FixedRank.balanced, quotients.canonical_is_constant_on_classes),
    ("fixed-rank1-squares", FixedRank, "act", lambda m, g, x: FixedRank(1, 3).act(g, x), quotients.metric_and_maps_respect_the_group),
    ("psi", PSI, "alignment", lambda m, x, y: torch.ones_like(y[..., :1]), spherical.alignment_gives_a_representative_of_the_same_length),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case_id", "base", "method", "wrong", "law"),
    [pytest.param(*m, id=f"{m[0]}-{m[2]}-{m[4].name}-{i}") for i, m in enumerate(MUTANTS)],
)
def test_mutant_falls(case_id, base, method, wrong, law, seed, device):
    case = BY_ID[case_id]
    law.check(case.manifold, case.shape, seed=seed, device=device)  # the law holds for the right manifold
    wrong_manifold = mutant(base, **{method: wrong})(*astuple(case.manifold))
    with pytest.raises(LawError, match=f"^{law.name} does not hold for "):
        law.check(wrong_manifold, case.shape, seed=seed, device=device)
