"""`retract.testing` itself: the right law fails for a wrong manifold, and says which, by how much, and at which input."""

import re
from dataclasses import dataclass

import pytest
import torch
from retract.errors import GeometryError
from retract.manifolds import Euclidean, GeodesicManifold, Grassmann, Sphere, Stiefel, from_geoopt
from retract.testing import LawError, check_manifold, laws
from retract.testing.setting import LAWS

NUMBER = r"-?\d[\d.e+-]*"


class Uncompiled(Sphere):
    """Spares the seconds that compiling takes."""

    unmet_laws = ("vmap_and_compile_agree",)


class Halfway(Uncompiled):
    def retract(self, x, u):
        return super().retract(x, 0.5 * u)


class Hidden(Sphere):
    def log(self, x, y):
        return Sphere().log(x, y).detach()


class Ragged(Uncompiled):
    """Wrong for the second point of a batch."""

    def project(self, x, a):
        p = super().project(x, a)
        share = torch.ones(x.shape[:-1], dtype=x.dtype, device=x.device)
        if x.ndim > 1:
            share[1] = 0.9
        return share.unsqueeze(-1) * p


class Unfinished(Sphere):
    def transport(self, x, u, v):
        raise NotImplementedError("not yet\nwith details")


class Writing(Sphere):
    def nearest(self, a):
        return a.div_(a.norm(dim=-1, keepdim=True))


class Overflowing(Uncompiled):
    """exp by hyperbolic functions overflows for long tangents."""

    def exp(self, x, u):
        return Sphere().exp(x, u) + 0 * (0.1 * u).cosh()


def message(manifold, shape=(5,), **options):
    with pytest.raises(LawError) as caught:
        check_manifold(manifold, shape, **options)
    return str(caught.value)


def test_a_message_names_law_statement_amount_tolerance_and_input():
    said = message(Ragged(), dtypes=[torch.float64], seed=7)
    head, *failures = said.split("\n\n")
    assert re.fullmatch(r"\d+ of \d+ laws do not hold for Ragged\(\)", head)
    (found,) = (text for text in failures if text.startswith("projection_is_linear_and_idempotent"))
    first, law, where, *inputs = found.split("\n")
    assert first.startswith(
        "projection_is_linear_and_idempotent does not hold for Ragged(), points of shape (3, 5) in "
    )
    words = rf"float64: project twice against once, at \(1, \d\) {NUMBER} for {NUMBER}, is off by {NUMBER} \(tolerance "
    assert re.search(rf"{words}{NUMBER}\)$", first)
    assert law == "  law of Manifold: project is linear, and projecting a second time changes nothing."
    assert where == "  at row (1,), with seed=7 on cpu:"
    assert [line.split(" = ")[0].strip() for line in inputs] == ["x", "u", "v", "w", "a", "b"]
    x = Sphere().random_point(3, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert inputs[0] == f"  x = [{', '.join(f'{number:.6g}' for number in x[1].tolist())}]"


@pytest.mark.parametrize(
    ("manifold", "law", "words"),
    [
        (Halfway(), "retraction_agrees_to_first_order", r"retract parts from exp, or from x \+ u, at order 1,"),
        (Hidden(), "first_derivatives_equal_differences", r"forward mode through log at u = 0, y = x, at \(\d, \d\) "),
        (Unfinished(), "transport_is_a_vector_transport", r"NotImplementedError was raised: not yet\n"),
        (Writing(), "inputs_stay_as_they_are", r"argument 0 of nearest after the call is not equal bitwise; off by"),
        (Overflowing(), "steps_are_finite", r"exp along a tangent of length 10000 has \d+ entries not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_right_law_fails(manifold, law, words):
    (one,) = (each for each in laws(manifold) if each.name == law)
    with pytest.raises(LawError, match=f"^{law} does not hold for {type(manifold).__name__}.*{words}") as caught:
        one.check(manifold, (5,), seed=3)
    assert one.statement in str(caught.value)


def test_the_input_shown_is_the_one_that_fails():
    """The tangent of length 1e4, not the one that it was made of; a map of which one point fails, with that point."""
    (law,) = (each for each in laws(Overflowing()) if each.name == "steps_are_finite")
    with pytest.raises(LawError) as caught:
        law.check(Overflowing(), (5,), batch=())
    (u,) = re.findall(r"^  u = \[(.*)\]$", str(caught.value), re.M)
    assert torch.tensor([float(number) for number in u.split(", ")]).norm() == pytest.approx(1e4, rel=1e-4)


def test_every_wrong_law_is_reported_once():
    names = re.findall(r"^(\w+) does not hold", message(Halfway()), re.M)
    assert len(names) == len(set(names))
    assert {"retraction_agrees_to_first_order", "gradient_is_of_second_order"} <= set(names)


def test_a_law_that_fails_in_one_dtype_or_batch_alone_is_found():
    class Rounded(Uncompiled):
        def transport(self, x, u, v):
            return super().transport(x, u, v) * (1.01 if x.dtype == torch.float32 else 1.0)

    assert "in torch.float32: transport" in message(Rounded())
    check_manifold(Rounded(), (5,), dtypes=[torch.float64])

    class Unbatched(Uncompiled):
        def dist(self, x, y):
            return super().dist(x, y) * (1.01 if x.ndim == 1 else 1.0)

    assert "points of shape (5,)" in message(Unbatched(), batches=[()])


def test_what_a_manifold_declares_is_believed_and_checked():
    class Short(Overflowing):
        max_tangent_norm = 100.0

    class Knowing(Halfway):
        unmet_laws = (*Uncompiled.unmet_laws, "retraction_agrees_to_first_order", "gradient_is_of_second_order")

    class Mistaken(Uncompiled):
        injectivity_radius = 3.5

    class Misspelled(Sphere):
        unmet_laws = ("retraction_agrees",)

    check_manifold(Short(), (5,))
    check_manifold(Knowing(), (5,))
    assert "logarithm_inverts_the_exponential does not hold" in message(Mistaken())
    with pytest.raises(
        GeometryError, match=r"unmet_laws of .*Misspelled\(\) has \['retraction_agrees'\], but its laws are"
    ):
        laws(Misspelled())


def test_laws_follow_the_classes_that_are_inherited():
    def of(manifold):
        return {law.of.__name__ for law in laws(manifold)}

    embedded = {"Manifold", "EmbeddedManifold", "ExponentialManifold"}
    assert of(Stiefel()) == embedded
    assert of(Sphere()) == embedded | {"GeodesicManifold", "Spherical"}
    assert of(Grassmann(2)) == embedded | {"GeodesicManifold", "QuotientManifold"}
    assert of(Euclidean(1)) == {"Manifold", "ConformalManifold", "ExponentialManifold", "GeodesicManifold"}
    assert all(law.statement.endswith(".") for law in LAWS)
    assert len({law.name for law in LAWS}) == len(LAWS)


def test_wrong_questions_are_refused():
    with pytest.raises(TypeError, match=r"laws\(\) takes a manifold, such as Sphere\(\), not <class"):
        laws(Sphere)
    with pytest.raises(
        GeometryError, match=r"shape=\(3, 5\), of one point without batch dimensions: a point of Sphere\(\) has"
    ):
        check_manifold(Sphere(), (3, 5))


def test_manifolds_of_geoopt_say_what_they_break():
    geoopt = pytest.importorskip("geoopt")
    product = from_geoopt(geoopt.ProductManifold((geoopt.Lorentz(), 4), (geoopt.EuclideanStiefel(), (3, 2))))
    assert product.max_tangent_norm == 1.0
    assert {"transport_is_a_vector_transport", "nan_is_no_point", "repr_evaluates"} <= {*product.unmet_laws}
    assert from_geoopt(geoopt.Sphere()).unmet_laws == ("repr_evaluates",)


def test_a_manifold_may_be_made_of_others_and_hold_what_it_likes():
    """Fields that are manifolds, in a class that no module holds: its repr evaluates, it is pickled, compiled, copied."""

    @dataclass(frozen=True)
    class Scaled(GeodesicManifold):
        """Another manifold with lengths multiplied by a factor."""

        base: GeodesicManifold
        factor: float = 1.0

        event_ndim = 1

        def inner(self, x, u, v):
            return self.factor**2 * self.base.inner(x, u, v)

        def riemannian_gradient(self, x, egrad):
            return self.base.riemannian_gradient(x, egrad) / self.factor**2

        project = lambda self, x, a: self.base.project(x, a)  # noqa: E731
        nearest = lambda self, a: self.base.nearest(a)  # noqa: E731
        retract = lambda self, x, u: self.base.retract(x, u)  # noqa: E731
        transport = lambda self, x, u, v: self.base.transport(x, u, v)  # noqa: E731
        point_defect = lambda self, x: self.base.point_defect(x)  # noqa: E731
        random_point = lambda self, *shape, **options: self.base.random_point(*shape, **options)  # noqa: E731
        exp = lambda self, x, u: self.base.exp(x, u)  # noqa: E731
        log = lambda self, x, y: self.base.log(x, y)  # noqa: E731
        parallel_transport = lambda self, x, u, v: self.base.parallel_transport(x, u, v)  # noqa: E731
        transport_to = lambda self, x, y, v: self.base.transport_to(x, y, v)  # noqa: E731

        @property
        def injectivity_radius(self):
            return self.factor * self.base.injectivity_radius

    check_manifold(Scaled(Sphere(), 2.0), (4,), dtypes=[torch.float64])


@pytest.mark.parametrize("law", laws(Sphere())[:2])
def test_pytest_names_a_test_after_its_law(law, request):
    assert request.node.name.endswith(f"[{law.name}]")
