"""Whatever tensors, options and gradients come: a step works, or refuses with an error of ours and leaves all as it was.

Every tensor is a window in a larger storage, whose other elements must stay as they are: a kernel that works on raw
addresses would show there. Cases are drawn by hypothesis, the same at every run.
"""

import math
import warnings

import geoopt
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from paths import PATHS
from retract import declare, param_groups, project_, psi
from retract.errors import RetractError, StepError
from retract.manifolds import PSI, Euclidean, Grassmann, Rows, Sphere, Stiefel, from_geoopt
from retract.manifolds.numerics import tolerance
from retract.manifolds.parameters.rows import gather
from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianSGD
from snapshots import same, snapshot
from torch import nn
from windows import (
    FLOATS,
    LAYOUTS,
    OWN,
    VALUES,
    bits,
    fill,
    gradient,
    outside,
    owned,
    refused,
    remember,
    seldom,
    unchanged,
    window,
)

OTHERS = [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]
MANIFOLDS = [
    *(2 * [PSI(), Sphere(), Grassmann(1)]),
    Euclidean(0),
    Euclidean(1),
    Grassmann(2),
    Stiefel(),
    from_geoopt(geoopt.PoincareBall()),
]
ROWS = [Rows(), Rows(dim=1), Rows.whole(), Rows(blocks=2), Rows(dim=(0, 1)), Rows(dim=1, groups=2), Rows(dim=())]
OPTIMIZERS = [RiemannianSGD, RiemannianAdam, PSISGD, SGDG, AdamG]
PATH = [
    *PATHS.values(),
    *PATHS.values(),
    {"capturable": True},
    {"differentiable": True},
    {"foreach": False, "fused": False},
]
odd = st.sampled_from(
    [None, "fast", "", -1, -0.5, 0, 1, 2, 1.5, 1e30, 1e-30, math.nan, math.inf, -math.inf, True, [], (), {}, (0.5,), (0.9, 0.99),
     (0.9, 0.99, 0.5), (math.nan, 0.5), ("a", "b"), 1j, object(), torch.tensor(0.1), torch.ones(2), torch.ones(0), torch.tensor(math.nan),
     torch.ones((), device="meta"), torch.tensor(1j), torch.ones(1, 1) / 8, nn.Parameter(torch.tensor(0.1)), b"x", lambda: 0.1]
)  # fmt: skip
OPTIONS = (
    "lr", "momentum", "dampening", "weight_decay", "nesterov", "momentum_form", "motion", "transport", "max_point_norm",
    "orthogonality", "radius", "maximize", "foreach", "fused", "capturable", "differentiable", "betas", "eps",
    "eps_form", "manifold", "rows", "joined", "names", "params", "param_names", "lr_", 3, "initial_lr",
)  # fmt: skip
SANE = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.sampled_from([0.0, 1e-3, 0.1, torch.tensor(0.1), torch.full((1,), 0.1)]),
        "motion": st.sampled_from(["retract", "exp"]),
        "transport": st.sampled_from(["manifold", "project", "parallel", "none"]),
        "max_point_norm": st.sampled_from([None, 0.1]),
        "orthogonality": st.sampled_from([0.0, 0.1]),
        "radius": st.sampled_from(["hold", "free"]),
        "maximize": st.booleans(),
    },
)
VECTORS = [(4, 6), (2, 3), (5, 4, 2), (4, 3, 2, 2), (3, 5), (2, 7), (2, 4, 2, 2), (2, 2, 3, 1, 2)]
MATRICES = [(4, 2), (2, 4, 2), (3, 6, 2), (1, 5, 2)]
shapes = st.one_of(st.sampled_from([*VECTORS, *MATRICES, (8,)]), st.lists(st.integers(0, 4), max_size=5).map(tuple))


TAMPERS = ["remove", "other shape", "other dtype", "text", "none", "meta", "data", "resize", "copy", "number"]


def tamper(draw, optimizer):
    """Change a tensor of the state behind the optimizer's back; whether its values may still be used."""
    places = [(its, key) for its in optimizer.state.values() for key in its]
    if not places:
        return
    its, key = draw(st.sampled_from(places))
    value = its[key]
    if not isinstance(value, torch.Tensor):
        return
    how = draw(st.sampled_from(TAMPERS))
    if how == "remove":
        del its[key]
    elif how == "data":
        value.data = torch.ones(draw(st.sampled_from([value.shape, (1,), (3, 2)])), dtype=value.dtype)
    elif how == "resize":
        value.resize_(draw(st.sampled_from([(1,), (0,), (50, 50)])))
    else:
        its[key] = {
            "other shape": lambda: torch.ones(2, 2, 2),
            "other dtype": lambda: value.to(draw(st.sampled_from([torch.float64, torch.float16, torch.int64]))),
            "text": lambda: "0.5",
            "none": lambda: None,
            "meta": lambda: value.to("meta"),
            "copy": lambda: value.clone(),
            "number": lambda: 0.5,
        }[how]()


def optimizer_case(draw):
    """One optimizer on one to three parameters, and a few steps. Of most cases one side at most is odd, so that no other
    hides it."""
    odd_side = draw(
        st.sampled_from(["layout", "option", "values", "shape", "rows", "dtype", "layout", "all"] + ["none"] * 5)
    )

    def side(name, usual, unusual):
        return draw(unusual if odd_side in (name, "all") else usual)

    manifold = draw(st.sampled_from(MANIFOLDS))
    rows = side("rows", st.just(Rows()), st.sampled_from(ROWS))
    dtype = side("dtype", st.sampled_from(FLOATS), st.sampled_from(OTHERS))
    device = "meta" if draw(seldom) and draw(seldom) else "cpu"
    make, path, options = draw(st.sampled_from(OPTIMIZERS)), draw(st.sampled_from(PATH)), dict(draw(SANE))
    module, params, usual = nn.Module(), [], True
    fitting = st.sampled_from(MATRICES if manifold.event_ndim == 2 else VECTORS)
    for i in range(draw(st.integers(1, 3))):
        shape = side("shape", fitting, shapes)
        layout = side("layout", st.sampled_from(OWN), st.sampled_from(LAYOUTS))
        values = side("values", st.just("normal"), st.sampled_from(VALUES))
        tensor = window(draw, shape, dtype, layout, device)
        fill(draw, tensor, values)
        usual &= values == "normal"
        p = nn.Parameter(tensor, requires_grad=dtype.is_floating_point and not path.get("differentiable"))
        params.append(p)
        setattr(module, f"p{i}", p)
    if make in (SGDG, AdamG) and not isinstance(manifold, Sphere | PSI) and manifold != Grassmann(1):
        options.setdefault("orthogonality", 0.0)
    if make in (RiemannianSGD, PSISGD) and draw(st.booleans()):
        options["momentum"] = 0.9
    options.update(path)
    if odd_side in ("option", "all"):
        options[draw(st.sampled_from(OPTIONS))] = draw(odd)
        usual = False
    before = remember(params)
    try:
        declared = draw(st.booleans()) or (odd_side == "none" and not isinstance(manifold, PSI | Euclidean))
        if declared:
            for i in range(len(params)):
                declare(module, f"p{i}", manifold, rows)
    except RetractError:
        # Those that were declared before have moved; no other, and nothing beside them.
        for p, (_, stored) in zip(params, before[0], strict=True):
            assert p.is_meta or torch.equal(outside(p, bits(p)), outside(p, stored))
        declared = False
        usual &= isinstance(manifold, Euclidean)
    chosen = [*params, params[0]] if draw(seldom) and draw(seldom) else params
    groups = param_groups(module) if declared else [{"params": chosen, "manifold": manifold, "rows": rows}]
    if "lr_" not in options and draw(st.booleans()) and draw(seldom):
        groups = [{**group, **options} for group in groups]
        options = {}
    before = remember(params)
    try:
        optimizer = make(groups, **options)
        repr(optimizer)
    except Exception as error:
        if not refused(error, groups):
            raise
        assert unchanged(before, remember(params))
        return
    moving = [p for p in params if p.requires_grad]
    assert all(map(owned, moving)), "a parameter was taken whose elements cannot move on their own"
    for _ in range(draw(st.integers(1, 4))):
        for p in params:
            usual &= gradient(draw, p)
        if draw(seldom) and draw(seldom):
            tamper(draw, optimizer)
            usual = False
        step(optimizer, params, usual, manifold, rows)


def step(optimizer, params, usual, manifold, rows):
    before, grads = remember(params, optimizer), [(p.grad, None if p.grad is None else bits(p.grad)) for p in params]
    try:
        optimizer.step()
    except StepError:
        raise
    except RetractError:
        assert unchanged(before, remember(params, optimizer))
        return
    finally:
        for p, (grad, stored) in zip(params, grads, strict=True):
            assert p.grad is grad
            assert stored is None or torch.equal(bits(grad), stored)
    for p, (_, stored), (grad, _) in zip(params, before[0], grads, strict=True):
        if p.is_meta:
            continue
        assert torch.equal(outside(p, bits(p)), outside(p, stored)), "memory beside the parameter has changed"
        if grad is None:
            assert torch.equal(bits(p), stored)
        if usual and p.is_floating_point():  # what else there may be is passed over
            assert torch.isfinite(p.detach().float()).all()
            if p.numel():
                points = gather([p.detach()], [rows.layout(p, manifold.event_ndim)])
                assert manifold.point_defect(points).max() <= max(tolerance(p.dtype), 1e-5)


def declare_case(draw):
    """`declare`, `project_` and `param_groups` on anything."""
    module, names = nn.Module(), ["a", "b", "c"]
    for name in names[: draw(st.integers(1, 3))]:
        dtype = draw(st.sampled_from(FLOATS + OTHERS))
        device = "meta" if draw(seldom) and draw(seldom) else "cpu"
        tensor = window(draw, draw(shapes), dtype, draw(st.sampled_from(LAYOUTS)), device)
        fill(draw, tensor, draw(st.sampled_from(VALUES)))
        setattr(module, name, nn.Parameter(tensor, requires_grad=dtype.is_floating_point))
    if draw(seldom):
        module.tied = module.a
    params = list(module.parameters())
    for _ in range(draw(st.integers(1, 3))):
        arguments = {
            "name": draw(st.sampled_from([*names, "tied", "a.b", "", "."])),
            "manifold": draw(st.sampled_from(MANIFOLDS)),
            "rows": draw(st.sampled_from([Rows()] * 4 + ROWS)),
            "joined": draw(st.sampled_from([()] * 6 + [("b",), ("a", "b"), ("nowhere",), "b"])),
            "representative": draw(st.sampled_from(["keep", "unit"])),
        }
        if draw(seldom):
            arguments[draw(st.sampled_from(sorted(arguments)))] = draw(odd)
        attempt(lambda its=arguments: declare(module, **its), params)
    for p in params:
        if draw(seldom) and p.is_floating_point() and not p.is_meta:
            p.data = window(
                draw, draw(st.sampled_from([tuple(p.shape), (3, 2)])), p.dtype, draw(st.sampled_from(LAYOUTS))
            )
            fill(draw, p.data, draw(st.sampled_from(VALUES)))
    attempt(lambda: project_(module), params)
    attempt(lambda: param_groups(module), params)


def attempt(call, params):
    before = remember(params)
    try:
        call()
    except RetractError:
        assert unchanged(before, remember(params))
    for p, (_, stored) in zip(params, before[0], strict=True):
        assert p.is_meta or torch.equal(outside(p, bits(p)), outside(p, stored)), (
            "memory beside the parameter has changed"
        )


def find_case(draw):
    """`psi.find` and `psi.declare` on small networks and odd inputs."""
    width = 4
    makers = [
        lambda: nn.Linear(width, width),
        lambda: nn.Linear(width, width, bias=False),
        lambda: nn.BatchNorm1d(width),
        lambda: nn.LayerNorm(width),
        lambda: nn.LayerNorm(width, elementwise_affine=False),
        lambda: nn.ReLU(),
        lambda: nn.Dropout(0.5),
        lambda: nn.Identity(),
        lambda: nn.Embedding(5, width),
        lambda: nn.Unflatten(-1, (2, 2)),
        lambda: nn.Flatten(),
        lambda: nn.GroupNorm(2, width),
    ]
    torch.manual_seed(draw(st.integers(0, 99)))
    model = nn.Sequential(*(draw(st.sampled_from(makers))() for _ in range(draw(st.integers(0, 5)))))
    if draw(seldom):
        model.eval()
    for p in model.parameters():
        if draw(seldom):
            fill(draw, p.data, draw(st.sampled_from(VALUES)))
        if draw(seldom) and draw(seldom):
            p.data = window(draw, tuple(p.shape), p.dtype, draw(st.sampled_from(LAYOUTS)))
        p.requires_grad_(not draw(seldom))
    if draw(seldom):
        model = model.to(draw(st.sampled_from([torch.bfloat16, torch.float64, torch.float16])))
    shape = draw(st.sampled_from([(6, width)] * 4 + [(1, width), (0, width), (width,), (), (2, 3, width), (6, 3)]))
    inputs = torch.randn(shape)
    fill(draw, inputs, draw(st.sampled_from(VALUES)))
    inputs = draw(
        st.sampled_from([inputs] * 5 + [inputs.abs().long(), inputs.to("meta"), inputs.bool(), None, "x", [inputs]])
    )
    options = {"probes": draw(odd)} if draw(seldom) else {}
    for run in (lambda: psi.find(model, inputs, **options), lambda: psi.declare(model, inputs)):
        before = snapshot(model)
        try:
            report = run()
            assert len(report) == len(list(model.named_parameters()))
            assert str(report)
        except (RetractError, TypeError):
            assert same(before, snapshot(model)), "a refused call has changed the model"


@pytest.mark.parametrize(
    ("case", "cases"),
    [
        pytest.param(case, count, id=f"{case.__name__}-{count}", marks=[pytest.mark.long] if long else [])
        for case, counts in ((optimizer_case, (220, 9000)), (declare_case, (50, 2000)), (find_case, (30, 600)))
        for count, long in zip(counts, (False, True), strict=True)
    ],
)
def test_fuzz(case, cases):
    count = 0

    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data):
        nonlocal count
        count += 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate parameters")
            case(data.draw)

    run()
    assert count >= cases
