"""Products: kinds, packing, geoopt on equal inputs, training as of the parts one by one."""

import pickle

import geoopt
import pytest
import retract
import torch
from retract.errors import GeometryError
from retract.manifolds import (
    Euclidean,
    GeodesicManifold,
    Grassmann,
    Product,
    SpecialOrthogonal,
    SpectralSphere,
    Sphere,
    Stiefel,
    SymmetricPositiveDefinite,
    from_geoopt,
    to_geoopt,
)
from retract.manifolds.product import ExponentialProduct, GeodesicProduct, PlainProduct
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn

POSE = Product((SpecialOrthogonal(), (3, 3)), (Euclidean(1), (3,)))
MIXED = Product((Sphere(), (4,)), (Stiefel(), (3, 2)), (SymmetricPositiveDefinite(), (2, 2)))


def test_the_kind_is_what_all_parts_are():
    kinds = {
        GeodesicProduct: Product((Sphere(), (3,)), (SpecialOrthogonal(), (3, 3))),
        ExponentialProduct: Product((Sphere(), (3,)), (Stiefel(), (3, 2))),
        PlainProduct: Product((SpectralSphere(), (3, 2)), (Stiefel(), (3, 2))),
    }
    for kind, product in kinds.items():
        assert type(product) is kind
        assert isinstance(product, Product)
        assert isinstance(product, GeodesicManifold) is (kind is GeodesicProduct)
        assert pickle.loads(pickle.dumps(product)) == product
        assert hash(product) == hash(Product(*product.parts))
    assert kinds[GeodesicProduct] != Product(*reversed(kinds[GeodesicProduct].parts))
    assert POSE.injectivity_radius == SpecialOrthogonal().injectivity_radius
    assert MIXED.max_tangent_norm == SymmetricPositiveDefinite().max_tangent_norm
    assert (MIXED.compact, kinds[ExponentialProduct].compact) == (False, True)


def test_products_of_products(generator):
    """Are products: points have the same entries, maps the same values."""
    nested = Product((POSE, (12,)), (Sphere(), (4,)))
    flat = Product(*POSE.parts, (Sphere(), (4,)))
    x, y = flat.random_point(2, 16, generator=generator, dtype=torch.float64)
    assert torch.allclose(nested.log(x, y), flat.log(x, y))
    assert torch.allclose(nested.dist(x, y), flat.dist(x, y))
    squares = [
        m.dist(a, b).square().sum() for (m, _), a, b in zip(flat.parts, flat.unpack(x), flat.unpack(y), strict=True)
    ]
    assert torch.allclose(flat.dist(x, y).square(), sum(squares))


def test_what_is_no_part_is_refused():
    for parts, words in (
        ((), "at least one part"),
        ((Sphere(),), r"part 0 of a Product is Sphere\(\), not a pair"),
        (((Sphere(), (3,)), (Stiefel(), (2, 3))), r"part 1 of a Product has shape \(2, 3\): .* needs n ≥ p"),
    ):
        with pytest.raises(GeometryError, match=words):
            Product(*parts)
    with pytest.raises(GeometryError, match="has 12 entries, those of all parts, not 11"):
        POSE.check_point(torch.ones(2, 11))
    x = POSE.random_point(3, 12)
    x[1, 0] += 1.0
    with pytest.raises(GeometryError, match=r"row 1 is off by .*; part 0, of SpecialOrthogonal\(\), is; put it there"):
        POSE.check_point(x)


def test_against_geoopt(generator):
    """The same maps on the same arrays, of geoopt's own product and of ours behind its interface."""
    parts = (geoopt.Sphere(), 4), (geoopt.EuclideanStiefel(), (3, 2)), (geoopt.SymmetricPositiveDefinite(), (2, 2))
    theirs = geoopt.ProductManifold(*parts)
    bridged, back = from_geoopt(theirs), to_geoopt(MIXED)
    x = MIXED.random_point(5, 14, generator=generator, dtype=torch.float64)
    a, b = (torch.randn(5, 14, generator=generator, dtype=torch.float64) for _ in range(2))
    u, v = 0.3 * MIXED.project(x, a), MIXED.project(x, b)
    for name, arguments in (
        ("inner", (x, u, v)),
        ("norm", (x, u)),
        ("project", (x, a)),
        ("riemannian_gradient", (x, a)),
        ("retract", (x, u)),
        ("exp", (x, u)),
    ):
        expected = getattr(bridged, name)(*arguments)
        assert torch.allclose(getattr(MIXED, name)(*arguments), expected, rtol=1e-11, atol=1e-11), name
    assert torch.allclose(back.expmap(x, u), theirs.expmap(x, u), rtol=1e-11, atol=1e-11)
    y, mine = MIXED.exp(x, u), Product(*MIXED.parts[::2])
    there = geoopt.ProductManifold(*parts[::2])
    p, q = (mine.pack(*MIXED.unpack(each)[::2]) for each in (x, y))
    assert torch.allclose(mine.log(p, q), there.logmap(p, q), rtol=1e-8, atol=1e-8)
    assert torch.allclose(mine.dist(p, q).squeeze(-1), there.dist(p, q), rtol=1e-8)


@pytest.mark.parametrize("options", [{}, {"motion": "exp", "transport": "project"}], ids=str)
def test_gradient_descent_is_that_of_the_parts(options, generator):
    """With momentum: nothing in RiemannianSGD depends on more than a part."""
    x, target = (MIXED.random_point(3, 14, generator=generator, dtype=torch.float64) for _ in range(2))
    whole = nn.Parameter(x.clone())
    single = [nn.Parameter(part.clone()) for part in MIXED.unpack(x)]
    group = {"params": [whole], "manifold": MIXED, **options}
    groups = [{"params": [w], "manifold": m, **options} for w, (m, _) in zip(single, MIXED.parts, strict=True)]
    optimizers = RiemannianSGD([group], lr=0.1, momentum=0.9), RiemannianSGD(groups, lr=0.1, momentum=0.9)
    for _ in range(5):
        for optimizer, joined in zip(optimizers, (lambda: whole, lambda: MIXED.pack(*single)), strict=True):
            optimizer.zero_grad()
            (joined() * target).sin().sum().backward()
            optimizer.step()
    assert torch.allclose(whole, MIXED.pack(*single), rtol=0, atol=1e-12)
    assert (whole - x).abs().max() > 0.1


@pytest.mark.parametrize("make", [RiemannianSGD, RiemannianAdam])
def test_a_declared_layer_trains(make, generator):
    """Its rows are points: poses of two clouds of points that are found from where they are seen."""
    layer = nn.Linear(12, 2, bias=False)
    retract.declare(layer, "weight", POSE)
    POSE.check_point(layer.weight.detach())
    target, points = POSE.random_point(2, 12, generator=generator), torch.randn(2, 20, 3, generator=generator)

    def seen(pose):
        turn, shift = POSE.unpack(pose)
        return points @ turn.mT + shift.unsqueeze(-2)

    optimizer = make(retract.param_groups(layer), lr=0.05 if make is RiemannianSGD else 0.1)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (seen(layer.weight) - seen(target)).square().sum(-1).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    POSE.check_point(layer.weight.detach())
    assert losses[-1] < 0.02 * losses[0]


def test_quotients_are_parts(generator):
    """Distances and logarithms are those of subspaces, whatever the basis."""
    product = Product((Grassmann(2), (4, 2)), (Sphere(), (3,)))
    x, y = product.random_point(2, 11, generator=generator, dtype=torch.float64)
    frame, vector = product.unpack(y)
    turn = SpecialOrthogonal().random_point(2, 2, generator=generator, dtype=torch.float64)
    assert torch.allclose(product.dist(x, y), product.dist(x, product.pack(frame @ turn, vector)))
    assert torch.allclose(product.log(x, y), product.log(x, product.pack(frame @ turn, vector)))
