"""Optimizers of norm geometry in the life of a run: copies, options that change, state of other optimizers, what is refused."""

import copy
import pickle

import pytest
import torch
from retract import optim
from retract.errors import OptionError, StateError
from retract.manifolds import (
    PSI,
    CenteredSphere,
    Euclidean,
    FixedRank,
    Rows,
    SpectralSphere,
    Sphere,
    Stiefel,
    from_geoopt,
)
from retract.optim import RiemannianAdam, RiemannianSGD, Shape, Spectral
from torch import nn

WHOLE = Rows.whole()
MADE = [
    (optim.Muon, Euclidean(2), Rows()),
    (optim.MuonH, PSI(), WHOLE),
    (optim.AdamH, PSI(), WHOLE),
    (optim.HypersphericalDescent, PSI(), Rows()),
    (optim.ObliqueSGD, Sphere(), Rows()),
    (optim.ObliqueAdam, Sphere(), Rows()),
    (optim.ManifoldMuon, Stiefel(), Rows()),
    (optim.SPEL, Stiefel(), Rows()),
    (optim.SSO, SpectralSphere(), Rows()),
    (optim.Scion, Euclidean(2), Rows()),
    (optim.Nero, CenteredSphere(), Rows()),
    (optim.Rotational, PSI(), Rows()),
    (optim.PSIMuon, PSI(), Rows()),
]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(make, manifold, rows=Rows(), w=None, **options):
    w = normal(6, 4) if w is None else w
    p = nn.Parameter(manifold.nearest(w) if rows == Rows() else w.clone())
    return p, make([{"params": [p], "manifold": manifold, "rows": rows}], **options)


def step(p, optimizer, seed=1):
    p.grad = normal(*p.shape, seed=seed)
    optimizer.step()


@pytest.mark.parametrize(("make", "manifold", "rows"), MADE, ids=[case[0].__name__ for case in MADE])
def test_copies_of_an_optimizer_go_on_bitwise(make, manifold, rows):
    p, optimizer = made(make, manifold, rows)
    step(p, optimizer)
    copies = [copy.deepcopy((p, optimizer)), pickle.loads(pickle.dumps((p, optimizer)))]
    for seed in (2, 3):
        for q, other in ((p, optimizer), *copies):
            step(q, other, seed)
    for q, other in copies:
        assert torch.equal(p, q)
        assert type(other.rule) is type(optimizer.rule)


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {}, {"shape": "unit"}])
def test_a_radius_may_be_set_in_a_run(options):
    """A number moves rows to that norm, also if they were held at another one, which stays after a return to "hold"."""
    p, optimizer = made(RiemannianSGD, PSI(), lr=1e-8, momentum=0.9, **options)
    step(p, optimizer)
    for radius, expected in ((2.0, 2.0), (3.0, 3.0), ("hold", 3.0)):
        optimizer.param_groups[0]["radius"] = radius
        for seed in (2, 3):
            step(p, optimizer, seed)
        assert torch.allclose(p.norm(dim=1), torch.full((6,), expected, dtype=torch.float64))


@pytest.mark.parametrize("manifold", [Sphere(), Stiefel(), SpectralSphere(3.0), CenteredSphere()], ids=repr)
def test_without_momentum_it_is_all_one_when_a_gradient_is_projected(manifold):
    found = []
    for tangent in ("gradient", "step"):
        p, optimizer = made(RiemannianSGD, manifold, lr=0.01, transport="none", tangent=tangent)
        step(p, optimizer)
        found.append(p.detach())
    assert torch.allclose(*found, atol=1e-13)


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw"}, {"weight_decay": 0.3}]
)
def test_the_state_of_torchs_muon_loads(options):
    """A run of torch.optim.Muon goes on here, with its average and its options; None is its word for "original"."""
    w, shape = normal(9, 6).float(), Spectral(dtype=torch.bfloat16)
    theirs, ours = nn.Parameter(w.clone()), nn.Parameter(w.clone())
    muon, optimizer = torch.optim.Muon([theirs], lr=0.02, **options), optim.Muon([ours], shape=shape)

    def stepped(p, optimizer, seed):
        p.grad = normal(9, 6, seed=seed).float()
        optimizer.step()

    stepped(theirs, muon, 1)
    with torch.no_grad():
        ours.copy_(theirs)
    optimizer.load_state_dict(muon.state_dict())
    (group,) = optimizer.param_groups
    assert group["adjust_lr_fn"] == (options.get("adjust_lr_fn") or "original")
    for seed in (2, 3):
        stepped(theirs, muon, seed)
        stepped(ours, optimizer, seed)
    assert (ours - theirs).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * (theirs - w).abs().max()


def test_the_state_of_torchs_muon_is_refused_where_it_means_something_else():
    p = nn.Parameter(normal(6, 4))
    muon = torch.optim.Muon([p])
    step(p, muon)
    for other in (
        RiemannianSGD([p], momentum=0.9),
        RiemannianSGD([{"params": [p], "manifold": Euclidean(2)}], momentum=0.9, shape="spectral"),
        optim.MuonH([{"params": [p], "manifold": PSI(), "rows": WHOLE}]),
        optim.Scion([p]),
    ):
        with pytest.raises((StateError, OptionError), match="manifold|ns_"):
            other.load_state_dict(muon.state_dict())


def test_a_shape_that_is_no_dataclass_loads_its_own_state():
    class Half(Shape):
        def __call__(self, points, a):
            return 0.5 * a.sign()

    p, optimizer = made(RiemannianSGD, Euclidean(2), shape=Half())
    step(p, optimizer)
    made(RiemannianSGD, Euclidean(2), shape=Half())[1].load_state_dict(optimizer.state_dict())
    with pytest.raises(StateError, match="saved with shape Half"):
        made(RiemannianSGD, Euclidean(2), shape="sign")[1].load_state_dict(optimizer.state_dict())


def _refused(manifold, w):
    for make, options, message in (
        (RiemannianSGD, {"tangent": "none", "transport": "none"}, "tangent='none' on .* are not orthonormal"),
        (RiemannianSGD, {"tangent": "step", "transport": "none"}, "tangent='step' on .* are not orthonormal"),
        (RiemannianAdam, {"second_moment": "coordinate"}, "second moment per coordinate"),
    ):
        with pytest.raises(OptionError, match=message):
            make([{"params": [nn.Parameter(w)], "manifold": manifold}], lr=0.1, **options)


def test_coordinates_that_are_not_orthonormal_are_refused():
    """There a Euclidean gradient is no step, and a moment of a coordinate depends on the representative."""
    _refused(FixedRank(2, 5), normal(9, 2))


def test_euclidean_gradients_are_no_steps_on_the_poincare_ball():
    geoopt = pytest.importorskip("geoopt")
    _refused(from_geoopt(geoopt.PoincareBall()), 0.1 * normal(6, 3))


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"dtype": torch.float16},
        {"dtype": torch.int32},
        {"coefficients": 3},
        {"coefficients": (1, "a", 2)},
    ],
    ids=str,
)
def test_bad_values_of_spectral(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Spectral(**options)


def test_factors_without_a_shape_are_named_one_by_one():
    group = {"params": [nn.Parameter(torch.zeros(3))], "manifold": Euclidean(0), "shape": None}
    with pytest.raises(OptionError, match=r"adjust_lr_fn='original' is .* set adjust_lr_fn to None in this group"):
        optim.Muon([group])
    optim.Muon([{**group, "adjust_lr_fn": None}])


def test_a_search_is_not_differentiated():
    """Its derivative was NaN."""
    for manifold, rows in ((SpectralSphere(), Rows()), (PSI(), WHOLE)):
        with pytest.raises(OptionError, match="has no derivative; leave differentiable at False"):
            made(RiemannianSGD, manifold, rows, differentiable=True, shape=Spectral("svd", exact=True))


@pytest.mark.parametrize("manifold", [PSI(), Sphere()], ids=repr)
@pytest.mark.parametrize("make", [RiemannianAdam, optim.Rotational])
def test_rules_that_store_numbers_per_coordinate_take_the_reference_path(make, manifold):
    """By themselves, also where lists and row kernels step the manifold; these paths are refused."""
    options = (
        {"second_moment": "coordinate"} if make is RiemannianAdam else {"tangent": "gradient", "transport": "manifold"}
    )
    found = []
    for path in ({}, {"foreach": False}):
        p, optimizer = made(make, manifold, lr=0.1, **options, **path)
        assert [each.path for each in optimizer.paths()] == ["reference"]
        for seed in range(3):
            step(p, optimizer, seed)
        assert (p * optimizer.state[p]["exp_avg"]).sum(1).abs().max() < 1e-12
        found.append(p.detach())
    assert torch.equal(*found)
    for path in ("foreach", "fused"):
        with pytest.raises(OptionError, match=f"{path}=True on .* stores numbers per coordinate"):
            made(make, manifold, lr=0.1, **options, **{path: True})


def test_bad_betas_of_rotational():
    with pytest.raises(OptionError, match=r"betas=0\.9 is not a pair of numbers"):
        made(optim.Rotational, PSI(), betas=0.9)
