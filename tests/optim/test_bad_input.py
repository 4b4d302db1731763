"""Wrong options and parameters: a clear error at construction, and nothing changed."""

import gc
import weakref

import geoopt
import pytest
import torch
from retract import declare, param_groups, project_
from retract.errors import DeclarationError, GeometryError, OptionError
from retract.manifolds import PSI, Grassmann, Rows, Sphere, Stiefel
from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD
from torch import nn


def parameter():
    return nn.Parameter(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))


def on(manifold, **options):
    return [{"params": [parameter()], "manifold": manifold, "names": ["fc.weight"], **options}]


BAD = [
    (RiemannianSGD, {"lr": -0.1}, r"lr=-0.1 is outside \[0, inf\)"),
    (RiemannianSGD, {"lr": float("nan")}, r"lr=nan is outside \[0, inf\)"),
    (RiemannianSGD, {"lr": float("inf")}, r"lr=inf is outside \[0, inf\)"),
    (RiemannianSGD, {"lr": torch.ones(2)}, "lr as a tensor needs one element"),
    (RiemannianSGD, {"lr": "fast"}, "lr='fast' is not a number"),
    (RiemannianSGD, {"momentum": -0.1}, r"momentum=-0.1 is outside \[0, 1\)"),
    (RiemannianSGD, {"momentum": 1.0}, r"momentum=1.0 is outside \[0, 1\)"),
    (RiemannianSGD, {"weight_decay": -1.0}, r"weight_decay=-1.0 is outside"),
    (RiemannianSGD, {"dampening": float("nan")}, "dampening=nan is not a finite number"),
    (RiemannianSGD, {"nesterov": True}, "nesterov needs momentum > 0 and dampening = 0"),
    (RiemannianSGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov needs momentum > 0"),
    (RiemannianSGD, {"motion": "jump"}, "motion='jump' is not one of 'retract', 'exp'"),
    (RiemannianSGD, {"transport": "teleport"}, "transport='teleport' is not one of"),
    (RiemannianSGD, {"momentum_form": "impulse"}, "momentum_form='impulse' is not one of"),
    (RiemannianSGD, {"radius": "wide"}, "radius='wide' is not one of 'hold', 'free'"),
    (RiemannianSGD, {"max_point_norm": 0.0}, "max_point_norm=0.0 is not positive"),
    (RiemannianSGD, {"orthogonality": -1.0}, "orthogonality=-1.0 is outside"),
    (RiemannianSGD, {"foreach": True, "fused": True}, "foreach=True and fused=True: a step takes one path"),
    (RiemannianAdam, {"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\): 1.0 is outside \[0, 1\)"),
    (RiemannianAdam, {"eps": -1e-8}, "eps=-1e-08 is outside"),
    (RiemannianAdam, {"eps_form": "above"}, "eps_form='above' is not one of"),
]


@pytest.mark.parametrize(("optimizer", "options", "message"), BAD, ids=lambda v: str(v)[:40])
def test_options(optimizer, options, message):
    with pytest.raises(OptionError, match=message):
        optimizer([parameter()], **options)
    with pytest.raises(OptionError, match=message):  # per group as well
        optimizer([{"params": [parameter()], **options}])


@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1), Stiefel()], ids=repr)
def test_weight_decay_on_a_manifold(manifold):
    with pytest.raises(OptionError, match=r"weight_decay=0.1 on fc.weight: .*param_groups\(model, euclidean="):
        RiemannianSGD(on(manifold), weight_decay=0.1)


def test_motions_that_a_manifold_lacks():
    with pytest.raises(OptionError, match="Stiefel.* has no parallel transport; use transport='project'"):
        RiemannianSGD(on(Stiefel()), motion="exp")
    with pytest.raises(OptionError, match="has no parallel transport"):
        RiemannianSGD(on(Stiefel()), transport="parallel")
    with pytest.raises(OptionError, match="orthogonality=0.1 on fc.weight: it is defined between unit vectors"):
        SGDG(on(Stiefel(), transport="project"))


@pytest.mark.parametrize(
    ("manifold", "rows", "message"),
    [
        (PSI(), Rows(blocks=3), r"fc.weight of shape \(4, 3\): Rows\(dim=0, blocks=3.*does not divide dim 0"),
        (PSI(), Rows(dim=2), r"has a dimension that shape \(4, 3\) does not have"),
        (Grassmann(2), Rows(), r"n × 2 matrix, not 4 × 3"),
        (Sphere(), Rows(dim=(0, 1)), "needs at least 2 coordinates"),
        (Stiefel(), Rows(dim=1), "does not give shape"),
    ],
    ids=str,
)
def test_parameters_that_do_not_fit(manifold, rows, message):
    with pytest.raises(GeometryError, match=message):
        RiemannianSGD(on(manifold, rows=rows))


def test_wide_stiefel_matrices_are_told_to_transpose():
    with pytest.raises(GeometryError, match="n ≥ p for orthonormal columns, not 3 × 4; transpose it"):
        RiemannianSGD([{"params": [nn.Parameter(torch.eye(3, 4))], "manifold": Stiefel()}])


def test_parameters_given_twice():
    p = parameter()
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        RiemannianSGD([{"params": [p], "manifold": PSI()}, {"params": [p]}])
    with pytest.warns(UserWarning, match="duplicate"), pytest.raises(OptionError, match="is twice in one group"):
        RiemannianSGD([p, p])


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    optimizer = RiemannianSGD([parameter()], lr=0.1)
    refused = parameter()
    kept = weakref.ref(refused)
    with pytest.raises(GeometryError, match="does not divide"):
        optimizer.add_param_group({"params": [refused], "manifold": PSI(), "rows": Rows(blocks=3)})
    assert len(optimizer.param_groups) == 1
    del refused
    gc.collect()
    assert kept() is None, "the optimizer still knows the parameter of the group"


def test_empty_wrong_and_complex_parameters():
    with pytest.raises(ValueError, match="empty parameter list"):
        RiemannianSGD([])
    with pytest.raises(TypeError, match="param_group must be a dict"):
        RiemannianSGD([parameter()]).add_param_group([parameter()])
    with pytest.raises(OptionError, match="complex64; the updates are defined for real"):
        RiemannianSGD([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    with pytest.raises(OptionError, match="are strings, as in the param_groups of an optimizer"):
        RiemannianSGD(RiemannianSGD(on(PSI())).param_groups)


@pytest.mark.parametrize("preset", [PSISGD, SGDG, AdamG])
def test_presets_are_not_silently_euclidean(preset):
    model = nn.Linear(3, 4)
    for groups in (model.parameters(), param_groups(model)):
        with pytest.raises(OptionError, match=f"{preset.__name__} got no parameter on a manifold"):
            preset(groups)
    with pytest.raises(DeclarationError, match="the model declares none; call retract.declare first"):
        param_groups(model, manifold={"lr": 1.0})


@pytest.mark.parametrize("dim", [-1, (0, 0), 1.5])
def test_rows_that_fit_nothing(dim):
    with pytest.raises(GeometryError, match="dim is one non-negative dimension"):
        Rows(dim=dim)
    with pytest.raises(GeometryError, match="blocks is a number"):
        Rows(blocks=0)
    with pytest.raises(GeometryError, match="with dim=1 only"):
        Rows(groups=2)


def test_weights_that_were_never_put_on_their_manifold():
    layer = nn.Linear(3, 4)
    declare(layer, "weight", Sphere())
    layer.reset_parameters()
    with pytest.raises(
        GeometryError, match=r"weight is not on Sphere\(\): row \d is off by .*retract.project_\(model\)"
    ):
        RiemannianSGD(param_groups(layer))
    project_(layer)
    RiemannianSGD(param_groups(layer))
    RiemannianSGD(param_groups(layer.to(torch.float64)))  # rounding of another dtype is no reason to refuse
    with pytest.raises(DeclarationError, match="row 2 is zero"):
        RiemannianSGD([{"params": [nn.Parameter(torch.eye(3, 2))], "manifold": PSI()}])


def test_options_of_others_and_slips_of_the_pen():
    with pytest.raises(OptionError, match="no option 'raduis'; did you mean 'radius'"):
        RiemannianSGD(on(PSI(), raduis="free"))
    with pytest.raises(OptionError, match="no option 'nesterov'; it has lr, betas"):
        RiemannianAdam(on(PSI(), nesterov=True))
    with pytest.raises(OptionError, match="no option 'amsgrad'; it has lr, betas"):
        RiemannianAdam(on(PSI(), amsgrad=True))
    RiemannianSGD(on(PSI(), initial_lr=0.1, max_lr=1.0, lr_scale=0.5, _note="mine"))
    with pytest.raises(OptionError, match="set the manifold, or leave them out"):
        RiemannianSGD([{"params": [parameter()], "rows": Rows(blocks=2)}])
    with pytest.raises(OptionError, match="names has 1 entries for 2 parameters"):
        RiemannianSGD([{"params": [parameter(), parameter()], "names": ["a"], "manifold": PSI()}])
    w, b = parameter(), nn.Parameter(torch.ones(4))
    with pytest.raises(OptionError, match="joined names a parameter that is not in the group's params"):
        RiemannianSGD([{"params": [b], "joined": [(w, b)], "manifold": PSI()}])
    short = nn.Parameter(torch.ones(3))
    with pytest.raises(GeometryError, match="all parts need the same number"):
        RiemannianSGD([{"params": [w, short], "joined": [(w, short)], "manifold": PSI()}])


def test_what_is_no_manifold():
    for manifold, remedy in ((geoopt.Sphere(), "from_geoopt"), (PSI, "pass an instance such as")):
        with pytest.raises(DeclarationError, match=f"weight: .* is not a Manifold; .*{remedy}"):
            declare(nn.Linear(2, 3), "weight", manifold)
        with pytest.raises(DeclarationError, match="is not a Manifold"):
            RiemannianSGD(on(manifold))
    with pytest.raises(DeclarationError, match="rows=1 is not a Rows"):
        declare(nn.Linear(2, 3), "weight", PSI(), rows=1)
    with pytest.raises(DeclarationError, match="5.weight: Sequential has no attribute"):
        declare(nn.Sequential(nn.Linear(2, 3)), "5.weight", PSI())
    with pytest.raises(GeometryError, match="needs at least 2 coordinates"):
        declare(nn.BatchNorm1d(4), "weight", PSI())


def test_traced_modules_have_lost_their_declarations():
    layer = nn.Sequential(nn.Linear(2, 3))
    declare(layer, "0.weight", PSI())
    exported = torch.export.export(layer, (torch.ones(2, 2),)).module()
    with pytest.raises(DeclarationError, match="a traced or exported module has lost its declarations"):
        param_groups(exported)


def test_subclasses_of_geoopts_parameters_are_recognised():
    class Mine(geoopt.ManifoldParameter):
        pass

    w = Mine(nn.functional.normalize(torch.randn(2, 3), dim=1), manifold=geoopt.Sphere())
    assert "Sphere" in RiemannianSGD([w]).param_groups[0]["manifold"]


@pytest.mark.parametrize("capturable", [False, True])
def test_a_closure_that_waits_for_the_device_in_a_capture(capturable):
    def closure():
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    optimizer = RiemannianSGD([nn.Parameter(torch.ones(2))], capturable=capturable)
    with pytest.raises(
        OptionError if capturable else RuntimeError, match="waits for the device" if capturable else "not permitted"
    ):
        optimizer.step(closure)


@pytest.mark.parametrize("name", ["amsgrad", "momentum", "_depth"])
@pytest.mark.parametrize("optimizer", [RiemannianAdam, AdamG])
def test_unknown_keywords_of_a_constructor(optimizer, name):
    """As for any function; keys of one's own, with an underscore, belong into groups."""
    with pytest.raises(TypeError, match=f"{optimizer.__name__} got an unexpected keyword argument.*{name}"):
        optimizer([nn.Parameter(torch.ones(2))], **{name: True})
