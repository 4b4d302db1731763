"""The laws reject wrong manifolds: each mutant must fall to the law named beside it."""

from dataclasses import dataclass

import laws
import pytest
import torch
from geometries import CASES
from laws import Setting
from retract.manifolds import PSI, Grassmann, Sphere
from retract.manifolds.grassmann import Lines

BY_ID = {case.id: case for case in CASES}


def mutant(base, **methods):
    """A subclass of `base` with methods replaced, as a value like any manifold."""
    return dataclass(frozen=True, repr=False)(type(f"Wrong{base.__name__}", (base,), methods))


MUTANTS = [
    ("psi", PSI, "riemannian_gradient", lambda m, x, g: g, laws.gradient_is_dual_to_the_metric),
    ("psi", PSI, "riemannian_gradient", lambda m, x, g: g, laws.gradient_is_of_second_order),
    ("psi", PSI, "riemannian_gradient", lambda m, x, g: -PSI().riemannian_gradient(x, g), laws.gradient_is_of_second_order),
    ("psi", PSI, "retract", lambda m, x, u: x - u, laws.retraction_agrees_to_first_order),
    ("psi", PSI, "retract", lambda m, x, u: x + 2 * u, laws.retraction_agrees_to_first_order),
    ("psi", PSI, "transport", lambda m, x, u, v: torch.zeros_like(v), laws.transport_is_a_vector_transport),
    ("psi", PSI, "transport", lambda m, x, u, v: -m.project(x + u, v), laws.transport_is_a_vector_transport),
    ("psi", PSI, "inner", lambda m, x, u, v: PSI().inner(x, u, u), laws.metric_is_an_inner_product),
    ("psi", PSI, "conformal_factor", lambda m, x: m.radius(x), laws.metric_and_maps_respect_the_group),
    ("psi", PSI, "canonical", lambda m, x: x, laws.canonical_is_constant_on_classes),
    ("psi", PSI, "align", lambda m, x, y: y, laws.canonical_is_constant_on_classes),
    ("psi", PSI, "act", lambda m, g, x: x * g.square(), laws.radius_scales_with_the_representative),
    ("psi", PSI, "project", lambda m, x, a: a, laws.radius_scales_with_the_representative),
    ("sphere", Sphere, "riemannian_gradient", lambda m, x, g: 1.01 * m.project(x, g), laws.gradient_is_of_second_order),
    ("sphere", Sphere, "riemannian_gradient", lambda m, x, g: 1.01 * m.project(x, g), laws.gradient_is_dual_to_the_metric),
    ("sphere", Sphere, "project", lambda m, x, a: a - 0.9 * x * (x * a).sum(-1, True), laws.projection_is_linear_and_idempotent),
    ("sphere", Sphere, "retract", lambda m, x, u: Sphere().retract(x, 0.9 * u), laws.retraction_agrees_to_first_order),
    ("sphere", Sphere, "retract", lambda m, x, u: 0.9 * Sphere().retract(x, u), laws.retraction_stays_on_the_manifold),
    ("sphere", Sphere, "transport", lambda m, x, u, v: v, laws.transport_is_a_vector_transport),
    ("sphere", Sphere, "nearest", lambda m, a: a / a.norm(dim=-1, keepdim=True).square(), laws.nearest_is_a_point_and_leaves_points),
    ("sphere", Sphere, "exp", Sphere.retract, laws.geodesics_continue_themselves),
    ("sphere", Sphere, "log", lambda m, x, y: m.project(x, y - x), laws.logarithm_inverts_the_exponential),
    ("sphere", Sphere, "dist", lambda m, x, y: torch.acos((x * y).sum(-1, True) - 1e-4), laws.distance_to_itself_is_zero),
    ("sphere", Sphere, "parallel_transport", lambda m, x, u, v: m.project(m.exp(x, u), v), laws.parallel_transport_is_isometric),
    ("sphere", Sphere, "tangent_defect", lambda m, x, u: (u * x).sum(-1).abs(), laws.scalars_keep_event_dimensions),
    ("grassmann1", Lines, "retract", lambda m, x, u: -Grassmann(1).retract(x, u), laws.retraction_at_zero_is_the_point_itself),
    ("grassmann1", Lines, "canonical", lambda m, x: x, laws.canonical_is_constant_on_classes),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case_id", "base", "method", "wrong", "law"),
    [pytest.param(*m, id=f"{m[0]}-{m[2]}-{m[4].__name__}-{i}") for i, m in enumerate(MUTANTS)],
)
def test_mutant_falls(case_id, base, method, wrong, law, generator, device):
    case = BY_ID[case_id]
    law(Setting(case, generator, device))  # the law holds for the right manifold
    wrong_manifold = mutant(base, **{method: wrong})()
    with pytest.raises(AssertionError):
        law(Setting(case, generator, device, manifold=wrong_manifold))
