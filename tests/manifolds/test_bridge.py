"""The bridge to geoopt, both ways."""

import copy
import inspect
import pickle
import subprocess
import sys

import geoopt
import pytest
import retract
import torch
from retract.errors import GeometryError
from retract.manifolds import PSI, Euclidean, Grassmann, ProjectiveSpace, Sphere, Stiefel, from_geoopt, to_geoopt
from retract.manifolds.geoopt import FromGeoopt
from retract.optim import RiemannianAdam, RiemannianSGD
from retract.testing import LawError, basics
from torch import nn

OURS = [(PSI(), (10,)), (ProjectiveSpace(), (10,)), (Sphere(), (10,)), (Grassmann(3), (7, 3)), (Stiefel(), (7, 3))]
IDS = [repr(manifold) for manifold, _ in OURS]


def test_geoopt_is_not_imported_before_it_is_used():
    code = (
        "import sys, retract; assert 'geoopt' not in sys.modules; retract.manifolds.to_geoopt(retract.manifolds.PSI())"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize(
    "manifold",
    [geoopt.CanonicalStiefel(), geoopt.Stiefel(), geoopt.BirkhoffPolytope(), geoopt.Scaled(geoopt.Sphere(), 2.0)],
    ids=lambda m: type(m).__name__,
)
def test_refused_manifolds_deserve_it(manifold):
    """The bridge refuses with a reason, and the laws agree that there is one."""
    with pytest.raises(GeometryError, match=f"geoopt's {type(manifold).__name__} is refused: its "):
        from_geoopt(manifold)
    with pytest.raises(GeometryError, match="is refused"):
        from_geoopt(geoopt.ProductManifold((geoopt.Sphere(), 4), (manifold, (4, 4))))
    shape = (4, 4) if manifold.ndim == 2 else (5,)
    broken = []
    for law in (basics.projection_is_linear_and_idempotent, basics.gradient_is_of_second_order):
        try:
            law.check(FromGeoopt(manifold), shape, batch=(2,), seed=1)
        except LawError:
            broken.append(law.name)
    assert broken


def test_complex_and_learnable_manifolds_are_refused():
    for manifold in (geoopt.UpperHalf(), geoopt.BoundedDomain()):
        with pytest.raises(GeometryError, match="its points are complex"):
            from_geoopt(manifold)
    with pytest.raises(GeometryError, match="learns k: the metric would change"):
        from_geoopt(geoopt.Lorentz(learnable=True))


def test_values():
    assert from_geoopt(geoopt.Lorentz(1.0)) == from_geoopt(geoopt.Lorentz(1.0))
    assert from_geoopt(geoopt.Lorentz(1.0)) != from_geoopt(geoopt.Lorentz(2.0))
    assert from_geoopt(to_geoopt(PSI())) is not None
    assert from_geoopt(to_geoopt(PSI())) == PSI()
    sphere = geoopt.Sphere()
    assert to_geoopt(from_geoopt(sphere)) is sphere
    for twin in (copy.deepcopy(to_geoopt(PSI())), pickle.loads(pickle.dumps(to_geoopt(PSI())))):
        assert from_geoopt(twin) == PSI()


@pytest.mark.parametrize(
    ("theirs", "shape"),
    [
        (geoopt.Lorentz(), (3, 5)),
        (geoopt.PoincareBall(), (3, 5)),
        (geoopt.SymmetricPositiveDefinite(), (2, 3, 3)),
        (geoopt.EuclideanStiefel(), (2, 5, 3)),
        (geoopt.ProductManifold((geoopt.Sphere(), 4), (geoopt.EuclideanStiefel(), (3, 2))), (2, 10)),
    ],
    ids=lambda v: str(v),
)
@pytest.mark.parametrize(
    "make", [lambda p: RiemannianSGD(p, lr=0.02, momentum=0.9), lambda p: RiemannianAdam(p, lr=0.02)]
)
def test_geoopt_manifolds_run_in_our_optimizers(theirs, shape, make):
    """Through a group and through geoopt.ManifoldParameter alike; towards a target, staying on the manifold."""
    manifold = from_geoopt(theirs)
    generator = torch.Generator().manual_seed(3)
    start, target = (manifold.random_point(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    ends = []
    for w, group in (
        (nn.Parameter(start.clone()), {"manifold": manifold}),
        (geoopt.ManifoldParameter(start.clone(), manifold=theirs), {}),
    ):
        optimizer = make([{"params": [w], **group}])
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = (w - target).square().sum()
            loss.backward()
            grad = w.grad.clone()
            optimizer.step()
            assert torch.equal(w.grad, grad)
            losses.append(float(loss.detach()))
        manifold.check_point(w.detach())
        assert losses[-1] < 0.7 * losses[0]
        ends.append(w.detach().as_subclass(torch.Tensor))
    assert torch.equal(*ends)


def test_manifold_parameters_take_the_last_dimensions():
    w = geoopt.ManifoldParameter(nn.functional.normalize(torch.randn(2, 3, 4), dim=-1), manifold=geoopt.Sphere())
    optimizer = RiemannianSGD([w], lr=0.1)
    w.grad = torch.randn(2, 3, 4)
    optimizer.step()
    assert torch.allclose(w.norm(dim=-1), torch.ones(2, 3))
    assert optimizer.param_groups[0]["manifold"] == "from_geoopt(Sphere manifold)"


def test_manifold_parameters_have_groups_of_their_own():
    """So that options for either side reach them, or do not; a declaration goes before what the tensor says."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    for layer in model:
        layer.weight = geoopt.ManifoldParameter(
            nn.functional.normalize(layer.weight.detach()), manifold=geoopt.Sphere()
        )
    retract.declare(model[1], "weight", Sphere())
    groups = retract.param_groups(model, manifold={"lr": 0.5}, euclidean={"weight_decay": 0.1})
    assert [group["names"] for group in groups] == [["1.weight"], ["0.weight"], ["0.bias", "1.bias"]]
    declared, theirs, rest = RiemannianSGD(groups, lr=0.1).param_groups
    assert (declared["manifold"], theirs["manifold"]) == ("Sphere()", "from_geoopt(Sphere manifold)")
    assert (declared["lr"], theirs["lr"], rest["lr"]) == (0.5, 0.5, 0.1)
    assert (theirs["weight_decay"], rest["weight_decay"]) == (0.0, 0.1)


@pytest.mark.parametrize(("manifold", "event"), OURS, ids=IDS)
def test_our_manifolds_under_geoopts_own_contract(manifold, event):
    """What geoopt asks of its manifolds: projections pass its asserts, broadcasting agrees with a loop, transports
    end tangent, logarithm and distance invert the exponential; with and without a batch dimension."""
    theirs = to_geoopt(manifold)
    assert issubclass(type(theirs), geoopt.manifolds.base.Manifold)
    abstract = {
        n for n, f in inspect.getmembers(geoopt.manifolds.base.Manifold) if getattr(f, "__isabstractmethod__", 0)
    }
    assert all(n in vars(type(theirs)) for n in abstract)
    ex, ev = torch.randn(4, *event, dtype=torch.float64), torch.randn(4, *event, dtype=torch.float64) / 3
    x = theirs.projx(ex)
    theirs.assert_check_point(x)
    theirs.assert_check_point_on_manifold(x)
    u, v = theirs.proju(x, ev), theirs.proju(x, torch.randn_like(ev))
    theirs.assert_check_vector_on_tangent(x, u)
    y, moved = theirs.retr_transp(x, u, v)
    theirs.assert_check_point_on_manifold(y)
    theirs.assert_check_vector_on_tangent(y, theirs.transp_follow_retr(x, u, v))
    theirs.assert_check_vector_on_tangent(theirs.expmap(x, u), theirs.transp_follow_expmap(x, u, v))
    theirs.assert_check_vector_on_tangent(y, moved)
    assert theirs.inner(x, u).shape == (4,)
    assert theirs.inner(x, u, v, keepdim=True).shape == (4, *[1] * len(event))
    assert torch.allclose(theirs.norm(x, u).square(), theirs.inner(x, u))
    assert torch.equal(theirs.component_inner(x, u), theirs.inner(x, u, keepdim=True))
    grad = theirs.egrad2rgrad(x, u)
    assert torch.allclose(theirs.inner(x, grad, v), (u * v).flatten(1).sum(1))
    for i in range(4):
        assert torch.allclose(theirs.projx(ex[i]), x[i])
        assert torch.allclose(theirs.retr(x[i], u[i]), y[i])
        assert torch.allclose(theirs.transp_follow_retr(x[i], u[i], v[i]), theirs.transp_follow_retr(x, u, v)[i])
        assert theirs.inner(x[i], u[i]).shape == ()
    theirs.assert_check_point_on_manifold(theirs.random(4, *event))
    if isinstance(manifold, Stiefel):
        with pytest.raises(NotImplementedError, match="has no logarithm"):
            theirs.logmap(x, y)
        return
    z = theirs.expmap(x, u)
    assert torch.allclose(theirs.expmap(x, theirs.logmap(x, z)), z)
    assert torch.allclose(theirs.dist(x, z), theirs.norm(x, u))
    assert theirs.logmap(x, x).abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # geoopt hands tensors to scipy's line search
@pytest.mark.parametrize(("manifold", "event"), OURS, ids=IDS)
def test_our_manifolds_in_geoopts_optimizers(manifold, event):
    target = torch.randn(3, *event, dtype=torch.float64)
    scale = (lambda w: w / w.norm(dim=-1, keepdim=True)) if manifold == PSI() else (lambda w: w)
    for make in (lambda p: geoopt.optim.RiemannianAdam(p, lr=0.05), lambda p: geoopt.optim.RiemannianLineSearch(p)):
        w = geoopt.ManifoldParameter(
            manifold.random_point(3, *event, dtype=torch.float64), manifold=to_geoopt(manifold)
        )
        optimizer = make([w])

        def closure(w=w, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (
                (scale(w) * target).sum().square()
                if isinstance(manifold, Grassmann | ProjectiveSpace)
                else (scale(w) * target).sum()
            )
            loss.backward()
            return loss.detach()

        first = float(closure())
        for _ in range(15):
            optimizer.step(closure)
        assert float(closure()) < first
        manifold.check_point(w.detach().as_subclass(torch.Tensor))


def test_flat_space_crosses_both_ways():
    assert from_geoopt(to_geoopt(Euclidean(1))) == Euclidean(1)
    theirs = from_geoopt(geoopt.Euclidean(ndim=1))
    x = torch.randn(3, 4)
    assert torch.equal(theirs.retract(x, x), 2 * x)
