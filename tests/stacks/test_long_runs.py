"""Runs of 100,000 steps: nothing overflows, nothing leaves its manifold, and float32 stays with float64."""

import itertools

import pytest
import torch
from paths import PATHS
from retract.manifolds import PSI, Grassmann, Sphere, Stiefel
from retract.optim import PSISGD, RiemannianAdam, RiemannianSGD
from torch import nn

LONG = 100_000
LENGTHS = [2_000, pytest.param(LONG, marks=pytest.mark.long)]


def with_lengths(cases, short):
    """Every case for `LONG` steps; those for which `short` holds also for few."""
    few = [pytest.param(2_000, *case) for case in cases if short(*case)]
    return few + [pytest.param(LONG, *case, marks=pytest.mark.long) for case in cases]


@pytest.mark.parametrize(
    ("steps", "radius", "path"),
    with_lengths(
        list(itertools.product(["hold", "free"], ["reference", "foreach", "default"])),
        lambda _, path: path == "default",
    ),
)
def test_psi_sgdm_stays_finite(steps, radius, path):
    """Random gradients at the paper's rate, as long at each representative as an invariant loss has them, ∝ 1/‖w‖. Rows
    that start near both ends of the band and outside of it come back into it, or to their norms up to the last step."""
    start = torch.tensor([[1e-15], [2e-4], [1.0], [9e3], [1e15]])
    w = nn.Parameter(torch.nn.functional.normalize(torch.randn(5, 8), dim=1) * start)
    optimizer = PSISGD([{"params": [w], "manifold": PSI()}], lr=0.1, momentum=0.9, radius=radius, **PATHS[path])
    for _ in range(steps):
        w.grad = torch.randn(5, 8) / w.detach().norm(dim=1, keepdim=True)
        optimizer.step()
    norms = w.detach().norm(dim=1, keepdim=True)
    assert torch.isfinite(w.detach()).all()
    assert torch.isfinite(optimizer.state[w]["momentum_buffer"]).all()
    if radius == "hold":
        assert ((norms / start - 1.0).abs() < 1.0).all(), norms
    else:
        assert (norms > 0.5e-4).all(), norms
        assert (norms < 2e4).all(), norms


@pytest.mark.parametrize("radius", ["hold", "free"])
@pytest.mark.parametrize("steps", LENGTHS)
def test_psi_sgdm_in_float32_stays_with_float64(steps, radius):
    """The same sequence of gradients for both, at a rate at which the whole run turns a row by half a radian.

    A loss would make the gradients functions of the point, and the comparison say little: near a minimum it pulls both
    paths to the same point, whatever errors they make; elsewhere it drives them apart exponentially. Random gradients at a
    high rate forget where a row was: the step is not isometric, and its contraction adds up. Here rows that start a
    millionth apart, the control, are about as far apart at the end, so no error is forgotten and none grows.
    """
    psi, near, generator = PSI(), 1e-6, torch.Generator().manual_seed(1)
    size = torch.tensor([[1.0], [0.3], [9.9e3], [1.05e-4]])  # under "free" the last two come back by a power of two
    start = torch.nn.functional.normalize(torch.randn(4, 16), dim=1) * size
    aside = start.double() + near * psi.radius(start) * psi.canonical(psi.random_tangent(start.double()))
    single, double = nn.Parameter(start.clone()), nn.Parameter(torch.cat([start.double(), aside]))
    pairs = [
        (w, PSISGD([{"params": [w], "manifold": psi}], lr=5e-5, momentum=0.9, radius=radius)) for w in (single, double)
    ]
    for _ in range(steps):
        noise = torch.randn(4, 16, generator=generator)
        for w, optimizer in pairs:
            x = w.detach()
            w.grad = psi.project(x, noise.to(x.dtype).repeat(len(x) // 4, 1)) / psi.radius(x)
            optimizer.step()
    one, two, control = single.detach().double(), double.detach()[:4], double.detach()[4:]
    report = f"{psi.dist(one, two).max():.1e} apart, {psi.dist(start.double(), two).mean():.2f} from the start, control {psi.dist(two, control) / near}"
    print(report)
    # One rounding per step, as a random walk, makes ε √steps: 3.8e-5 after 100,000.
    assert psi.dist(one, two).max() < 5 * torch.finfo(torch.float32).eps * steps**0.5, report
    assert ((psi.dist(two, control) / near - 1).abs() < 0.6).all(), report
    moved_back = (psi.radius(two) / psi.radius(start)).log2().abs() > 5
    if steps == LONG:
        assert moved_back.flatten().tolist() == [False, False, radius == "free", False], report


CASES = [
    (manifold, motion, path, make)
    for manifold in (Sphere(), Grassmann(1), Grassmann(2), Stiefel())
    for motion in ("retract", "exp")
    for path in (("reference", "default") if manifold.event_ndim == 1 else ("default",))
    for make in (RiemannianSGD, RiemannianAdam)
]


@pytest.mark.parametrize(
    ("steps", "manifold", "motion", "path", "make"),
    with_lengths(CASES, lambda _manifold, _motion, path, make: path == "default" and make is RiemannianSGD),
    ids=str,
)
def test_points_stay_on_their_manifold(steps, manifold, motion, path, make):
    """In float32, with momentum that is transported; the buffer stays tangent."""
    w = nn.Parameter(manifold.random_point(*((4, 8) if manifold.event_ndim == 1 else (2, 8, 2))))
    options = {"motion": motion, "transport": "project" if isinstance(manifold, Stiefel) else "manifold", **PATHS[path]}
    if make is RiemannianSGD:
        options["momentum"] = 0.9
    optimizer = make([{"params": [w], "manifold": manifold}], lr=0.01, **options)
    worst = 0.0
    for step in range(1, steps + 1):
        w.grad = torch.randn_like(w)
        optimizer.step()
        if step % 500 == 0:
            worst = max(worst, float(manifold.point_defect(w.detach()).max()))
    print(f"{manifold} {motion} {make.__name__} {path}: defect {worst:.1e}")
    assert worst < 1e-5
    buffer = optimizer.state[w][optimizer.rule.vectors[0]]
    assert torch.isfinite(buffer).all()
    manifold.check_tangent(w.detach(), buffer)
