"""Second derivatives of u ↦ f(retract(x, u)) at u = 0, by double backward: against differences, and where retractions are of second
order, and for exponentials, against Riemannian Hessians in closed form and those of pymanopt."""

import pymanopt.manifolds as reference
import pytest
import torch
from geometries import CASES
from retract.manifolds import (
    PSI,
    CenteredSphere,
    Euclidean,
    ExponentialManifold,
    Grassmann,
    Product,
    ProjectiveSpace,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    SymmetricPositiveDefinite,
    checks,
    numerics,
)

OWN = [case for case in CASES if not case.id.startswith("geoopt")]
SECOND_ORDER = {
    *(
        "euclidean0",
        "euclidean1",
        "sphere",
        "centered-sphere",
        "psi",
        "lines",
        "grassmann3",
        "grassmann2",
        "spd",
        "product",
    ),
    *("rotations3", "rotations4"),
    *("lorentz", "lorentz-flatter", "poincare", "poincare-line"),
}


def movers(manifold):
    return [manifold.retract, *([manifold.exp] if isinstance(manifold, ExponentialManifold) else [])]


def smooth(shape, generator):
    """A function of arrays of this shape and any batch, with a Hessian that is not of rank one, summed over the batch."""
    weights, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def f(y):
        first, total = y * weights, (y * second).unsqueeze(-1).flatten(y.ndim - len(shape)).sum(-1)
        return (first.sin() + 0.3 * (y * second).square() * first).sum() + 0.2 * total.square().sum()

    return f


def hessian(f, at, v):
    """The Hessian of `f` times `v` at the array `at`, by double backward."""
    at = at.detach().requires_grad_()
    (slope,) = torch.autograd.grad(f(at), at, create_graph=True)
    return torch.autograd.grad((slope * v).sum(), at, materialize_grads=True)[0]


def gradient(f, at):
    at = at.detach().requires_grad_()
    return torch.autograd.grad(f(at), at)[0]


@pytest.mark.parametrize("case", OWN, ids=lambda case: case.id)
def test_double_backward_equals_differences_of_gradients(case, generator):
    m, batch = case.manifold, (3,)
    x = m.random_point(*batch, *case.shape, generator=generator, dtype=torch.float64)
    v = m.random_tangent(x, generator=generator)
    v, f = v / m.norm(x, v), smooth(case.shape, generator)
    for move in movers(m):

        def along(u, move=move):
            return f(move(x, u))

        def slope(t, along=along):
            return gradient(along, t * v)

        h = 1e-3
        expected = (8 * (slope(h) - slope(-h)) - (slope(2 * h) - slope(-2 * h))) / (12 * h)
        assert (hessian(along, torch.zeros_like(x), v) - expected).norm() <= 1e-6 * expected.norm()


def test_which_retractions_are_of_second_order(generator):
    """Those that the table of docs/manifolds/index.md says, of the manifolds whose geodesics are known."""
    found = set()
    for case in OWN:
        if isinstance(case.manifold, ExponentialManifold):
            x = case.manifold.random_point(3, *case.shape, generator=generator, dtype=torch.float64)
            if checks.retraction_order(case.manifold, x, generator=generator) > 2.9:
                found.add(case.id)
    assert found == SECOND_ORDER


def sphere(x, v, egrad, ehess, project=Sphere().project):
    return project(x, ehess) - (x * egrad).sum(-1, keepdim=True) * v


def frame(project):
    return lambda x, v, egrad, ehess: project(x, ehess - v @ numerics.symmetric(x.mT @ egrad))


def positive(x, v, egrad, ehess):
    return x @ numerics.symmetric(ehess) @ x + numerics.symmetric(v @ numerics.symmetric(egrad) @ x)


# Manifold, shape, what makes functions invariant, the Hessian in closed form (Absil, Mahony & Sepulchre 2008, ch. 5), pymanopt's manifold.
CLOSED = {
    "euclidean": (Euclidean(1), (4,), None, lambda x, v, egrad, ehess: ehess, reference.Euclidean(4)),
    "sphere": (Sphere(), (5,), None, sphere, reference.Sphere(5)),
    "centered-sphere": (CenteredSphere(), (5,), None, lambda *a: sphere(*a, CenteredSphere().project), None),
    "lines": (ProjectiveSpace(), (5,), lambda y: y.unsqueeze(-1) * y.unsqueeze(-2), sphere, None),
    # An invariant function has no slope along x, and its Hessian in the metric u·v/‖x‖² is ‖x‖² times that of the array.
    "psi": (
        PSI(),
        (5,),
        lambda y: y / y.norm(dim=-1, keepdim=True),
        lambda x, v, egrad, ehess: PSI().project(x, x.square().sum(-1, keepdim=True) * ehess),
        None,
    ),
    "stiefel": (Stiefel(), (5, 2), None, frame(Stiefel().project), reference.Stiefel(5, 2)),
    "grassmann": (
        Grassmann(2),
        (5, 2),
        lambda y: y @ y.mT,
        lambda x, v, egrad, ehess: Grassmann(2).project(x, ehess) - v @ (x.mT @ egrad),
        reference.Grassmann(5, 2),
    ),
    "rotations3": (
        SpecialOrthogonal(),
        (3, 3),
        None,
        frame(SpecialOrthogonal().project),
        reference.SpecialOrthogonalGroup(3),
    ),
    "rotations4": (
        SpecialOrthogonal(),
        (4, 4),
        None,
        frame(SpecialOrthogonal().project),
        reference.SpecialOrthogonalGroup(4),
    ),
    "spd": (SymmetricPositiveDefinite(), (3, 3), None, positive, reference.SymmetricPositiveDefinite(3)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_hessians_in_closed_form(name, generator):
    """⟨w, Hess f v⟩ of the closed form is the second derivative of f along a retraction of second order, and along the exponential; the
    closed form is pymanopt's."""
    m, shape, invariant, closed, theirs = CLOSED[name]
    x = m.random_point(*shape, generator=generator, dtype=torch.float64)
    v, w = (m.random_tangent(x, generator=generator) for _ in range(2))
    outer = smooth(invariant(x).shape if invariant else shape, generator)
    f = (lambda y: outer(invariant(y))) if invariant else outer
    egrad, ehess = gradient(f, x), hessian(f, x, v)
    found = closed(x, v, egrad, ehess)
    for move in movers(m)[name == "stiefel" :]:  # QR is of first order
        second = hessian(lambda u, move=move: f(move(x, u)), torch.zeros_like(x), v)
        expected = m.inner(x, found, w).sum()
        size = m.norm(x, found) * m.norm(x, w)
        assert abs((second * w).sum() - expected) <= 1e-10 * size, move.__name__
    if theirs is not None:
        p, g, h, s = (a.numpy() for a in (x, egrad, ehess, v))
        stored = p.T @ s if name.startswith("rotations") else s  # there tangents are stored without the factor x
        other = theirs.euclidean_to_riemannian_hessian(p, g, h, stored)
        if name.startswith("rotations"):
            other = p @ other
        assert torch.allclose(found, torch.as_tensor(other), rtol=1e-11, atol=1e-11)


def test_the_hessian_of_a_product_is_that_of_its_parts(generator):
    """Of a function of all parts together: the parts of the closed form are those of the parts, with mixed terms from the arrays."""
    product = Product((Sphere(), (4,)), (SymmetricPositiveDefinite(), (2, 2)))
    x = product.random_point(8, generator=generator, dtype=torch.float64)
    f, v = smooth((8,), generator), product.random_tangent(x, generator=generator)
    second = hessian(lambda u: f(product.retract(x, u)), torch.zeros_like(x), v)
    egrad, ehess = gradient(f, x), hessian(f, x, v)
    shares = zip(*(product.unpack(a) for a in (x, v, egrad, ehess)), strict=True)
    expected = product.pack(*(closed(*share) for closed, share in zip((sphere, positive), shares, strict=True)))
    w = product.random_tangent(x, generator=generator)
    assert torch.allclose((second * w).sum(), product.inner(x, expected, w).sum(), rtol=1e-10)
