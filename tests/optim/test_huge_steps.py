"""Steps of any finite length: the points stay finite and on their manifold, and what comes next moves them as ever."""

import itertools

import pytest
import torch
from retract.manifolds import PSI, GeodesicManifold, Grassmann, Sphere, Stiefel
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn

MANIFOLDS = [
    *((Stiefel(), shape) for shape in ((6, 3), (3, 3), (5, 1), (64, 16))),
    *((Grassmann(2), shape) for shape in ((6, 2), (3, 2))),
    *((manifold, (6,)) for manifold in (Sphere(), Grassmann(1), PSI())),
]
LENGTHS = (1e2, 1e4, 1e6, 1e10, 1e15, 1e19, 1e25, 1e30)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def directions(manifold, x, generator):
    """Generic tangents, and for frames some of rank one and some whose columns differ by 1e8."""
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    yield noise
    if manifold.event_ndim == 2:
        yield noise[..., :1] * noise[..., :1, :]
        yield noise * torch.logspace(0, -8, x.shape[-1], dtype=torch.float64)


def check(manifold, shape, dtype, generator):
    limit = 100 * torch.finfo(dtype).eps
    motions = [("retract", "manifold"), ("exp", "project")]
    if isinstance(manifold, GeodesicManifold):
        motions += [("exp", "parallel"), ("retract", "parallel")]
    start = manifold.random_point(3, *shape, generator=generator, dtype=dtype)
    for noise, length, (motion, transport) in itertools.product(
        directions(manifold, start, generator), LENGTHS, motions
    ):
        # A float16 gradient ends at 65504, and a row that grows by 1e19 in one step has no conformal factor in float32.
        if (length > 1e4 and dtype == torch.float16) or (length > 1e15 and motion == "retract" and manifold == PSI()):
            continue
        w = nn.Parameter(start.clone())
        group = {"params": [w], "manifold": manifold}
        optimizer = RiemannianSGD([group], lr=1.0, momentum=0.5, motion=motion, transport=transport)
        for size in (length, 1.0, 1.0):
            before = w.detach().clone()
            w.grad = (size * noise / noise.norm() + 0.01 * torch.randn(noise.shape, generator=generator)).to(dtype)
            optimizer.step()
            defect = float(manifold.point_defect(w.detach().to(torch.float64)).max())
            assert defect <= limit, (length, motion, transport, defect / limit)
            assert not torch.equal(w, before), (length, motion, transport)


@pytest.mark.parametrize("dtype", DTYPES[1:3], ids=str)
@pytest.mark.parametrize(("manifold", "shape"), [MANIFOLDS[0], *MANIFOLDS[4::2]], ids=str)
def test_some_huge_steps(manifold, shape, dtype, generator):
    check(manifold, shape, dtype, generator)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("manifold", "shape"), MANIFOLDS, ids=str)
def test_many_huge_steps(manifold, shape, dtype, seed):
    check(manifold, shape, dtype, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("motion", ["retract", "exp"])
@pytest.mark.parametrize(("manifold", "shape"), MANIFOLDS[:6], ids=str)
def test_adam_at_a_huge_rate(manifold, shape, motion, generator):
    for lr in (1e6, 1e12):
        w = nn.Parameter(manifold.random_point(3, *shape, generator=generator))
        optimizer = RiemannianAdam([{"params": [w], "manifold": manifold}], lr=lr, motion=motion, transport="project")
        for _ in range(3):
            w.grad = torch.randn(w.shape, generator=generator)
            optimizer.step()
            assert manifold.point_defect(w.detach()).max() <= 100 * torch.finfo(w.dtype).eps


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("manifold", [Stiefel(), Grassmann(3)], ids=repr)
def test_a_frame_alone_moves_as_in_a_batch(manifold, dtype, generator):
    """torch.linalg.matrix_exp does not: alone, a small matrix comes out off by 1e5 roundings."""
    x = manifold.random_point(5, 7, 3, generator=generator, dtype=dtype)
    for length in (0.005, 0.01, 0.02, 0.05, 0.9, 2.0, 1e3):
        u = manifold.random_tangent(x, generator=generator)
        u = length * u / manifold.norm(x, u)
        alone = torch.stack([manifold.exp(*pair) for pair in zip(x, u, strict=True)])
        assert (alone - manifold.exp(x, u)).abs().max() <= 30 * torch.finfo(dtype).eps * max(1.0, length)


@pytest.mark.parametrize("manifold", [Stiefel(), Grassmann(3)], ids=repr)
def test_long_geodesics_in_float32_are_those_of_float64(manifold, generator):
    """Within the rounding of the angle; the defect stays that of one rotation."""
    x = manifold.random_point(5, 7, 3, generator=generator, dtype=torch.float64)
    for length in (1.0, 1e2, 1e4):
        u = manifold.random_tangent(x, generator=generator)
        u = length * u / manifold.norm(x, u)
        y = manifold.exp(x.float(), u.float())
        assert manifold.point_defect(y).max() <= 1e-5
        assert (y - manifold.exp(x, u)).abs().max() <= 20 * torch.finfo(torch.float32).eps * length


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(("manifold", "shape"), MANIFOLDS[:6], ids=str)
def test_geodesics_of_any_rank(manifold, shape, dtype, generator):
    """The columns beside the frame are orthonormal to it, those that rounding has made too; nothing is put back after."""
    x = manifold.random_point(3, *shape, generator=generator, dtype=dtype)
    for noise, length, wanted in itertools.product(directions(manifold, x, generator), LENGTHS, (False, True)):
        u = manifold.project(x, noise.to(dtype))
        u = (length * u / manifold.norm(x, u)).requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            ends = [manifold.exp(x, u), manifold.retract(x, u)]
        for y in ends:
            assert manifold.point_defect(y.detach()).max() <= 100 * torch.finfo(dtype).eps, length
