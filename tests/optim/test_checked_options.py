"""Options are checked whenever they come: to the constructor, in a group, to a running group, in a state_dict."""

import copy
import io

import numpy as np
import pytest
import torch
from retract.errors import GradientError, OptionError, StateError
from retract.manifolds import PSI, Euclidean, Sphere, Stiefel
from retract.optim import PSISGD, SGDG, AdamG, RiemannianAdam, RiemannianOptimizer, RiemannianSGD
from retract.optim.rules import Momentum
from torch import nn

NO_NUMBERS = ["1e-1", True, np.bool_(True), None, float("nan"), 1j, [0.1], torch.ones(2), torch.tensor(True), {}]
NEGATIVE = [-0.1, np.float32(-0.1), torch.tensor(-0.1)]
WORDS = ["elsewhere", "", None, True, 1, ["retract"], np.str_("elsewhere")]
FLAGS = [1, 0, "yes", np.int64(1), 0.0, [True]]
BAD = {
    "lr": [*NO_NUMBERS, *NEGATIVE, float("inf"), 10**400],
    "momentum": [*NO_NUMBERS, *NEGATIVE, 1.0, np.float64(1.0)],
    "dampening": [*NO_NUMBERS, float("inf")],
    "weight_decay": [*NO_NUMBERS, *NEGATIVE, float("inf")],
    "orthogonality": [*NO_NUMBERS, *NEGATIVE, float("inf")],
    "eps": [*NO_NUMBERS, *NEGATIVE, float("inf")],
    "max_point_norm": [bad for bad in [*NO_NUMBERS, *NEGATIVE, 0.0] if bad is not None],
    "betas": [None, 0.9, (0.9,), (0.9, 1.0), (True, 0.9), ("0.9", 0.99), (0.9, np.float64(-0.1)), (0.9, float("nan"))],
    "motion": WORDS,
    "transport": WORDS,
    "radius": [bad for bad in WORDS if bad != 1] + [0.0, -1.0, float("inf")],
    "tangent": WORDS,
    "shape": ["elsewhere", "", True, 1, ["retract"], (), ("unit", 1), torch.ones(2)],
    "scale": [*NO_NUMBERS, *NEGATIVE, 0.0, float("inf")],
    "adjust_lr_fn": [bad for bad in WORDS if bad is not None],
    "decoupled_weight_decay": [*FLAGS, None],
    "momentum_form": WORDS,
    "eps_form": WORDS,
    "nesterov": [*FLAGS, None],
    "maximize": [*FLAGS, None],
    "capturable": [*FLAGS, None],
    "differentiable": [*FLAGS, None],
    "foreach": FLAGS,
    "fused": FLAGS,
}
ON_MANIFOLDS = [
    (PSI(), {"weight_decay": 0.5}),
    (Sphere(), {"weight_decay": np.float64(0.5)}),
    (Stiefel(), {"orthogonality": 0.1}),
    (Stiefel(), {"motion": "exp"}),
    (Stiefel(), {"transport": "parallel"}),
    (Stiefel(), {"foreach": True}),
    (Stiefel(), {"fused": True}),
    (Euclidean(0), {"foreach": True, "fused": True}),
    (Euclidean(0), {"foreach": True, "capturable": True}),
    (Euclidean(0), {"fused": True, "differentiable": True}),
    (Euclidean(0), {"nesterov": True, "momentum": 0.0}),
    (Euclidean(0), {"nesterov": True, "dampening": 0.5}),
]
UNKNOWN = {
    "wd": "weight_decay",
    "decay": "weight_decay",
    "learning_rate": "lr",
    "clip": "max_point_norm",
    "weight_decays": "weight_decay",
    "momentun": "momentum",
    "raduis": "radius",
    "note": None,
    "betas": None,
}


def groups(manifold, first=None, second=None):
    """A Euclidean group, and one on `manifold`, which comes last."""
    torch.manual_seed(0)
    return [
        {"params": [nn.Parameter(torch.ones(3))], "names": ["bias"], **(first or {})},
        {
            "params": [nn.Parameter(manifold.random_point(4, 3))],
            "manifold": manifold,
            "names": ["weight"],
            **(second or {}),
        },
    ]


def of(name):
    """An optimizer that has the option `name`."""
    adam = name in ("betas", "eps", "eps_form")
    return lambda its, **o: RiemannianAdam(its, lr=0.1, **o) if adam else RiemannianSGD(its, lr=0.1, momentum=0.9, **o)


def stepped(make, manifold):
    optimizer = make(groups(manifold))
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p).cumsum(0)
    optimizer.step()
    return optimizer


def snapshot(optimizer):
    """Parameters and state, bitwise, and the values of the groups."""
    buffer = io.BytesIO()
    params = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    torch.save([params, [*optimizer.state.values()]], buffer)
    return buffer.getvalue(), [{k: repr(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def refused_at_every_moment(make, manifold, changes, message):
    """In the last of two groups, so that the first would have moved."""
    with pytest.raises(OptionError, match=message):
        make(groups(manifold, second=changes))
    optimizer = stepped(make, manifold)
    before = snapshot(optimizer)
    with pytest.raises(OptionError, match=message):
        optimizer.add_param_group(groups(manifold, second=changes)[1])
    assert snapshot(optimizer) == before
    state = optimizer.state_dict()
    state["param_groups"][1].update(changes)
    # A saved shape is text, and has to be that of the optimizer.
    with pytest.raises(StateError if "shape" in changes else OptionError, match=message):
        optimizer.load_state_dict(state)
    assert snapshot(optimizer) == before
    right = {key: optimizer.param_groups[1].get(key) for key in changes}
    optimizer.param_groups[1].update(changes)
    for _ in range(2):  # not only the first step looks
        with pytest.raises(OptionError, match=message):
            optimizer.step()
    for key, value in right.items():
        if value is None and key not in ("foreach", "fused", "max_point_norm", "shape", "adjust_lr_fn"):
            del optimizer.param_groups[1][key]
        else:
            optimizer.param_groups[1][key] = value
    assert snapshot(optimizer) == before
    optimizer.step()
    assert snapshot(optimizer)[0] != before[0]


@pytest.mark.parametrize("name", BAD)
def test_bad_values(name):
    for value in BAD[name]:
        if name == "lr" and value is None:
            continue  # what None means to Adam's constructor: below
        refused_at_every_moment(of(name), Euclidean(0), {name: value}, name)
        refused_at_every_moment(of(name), Sphere(), {name: value}, name)


def test_lr_none_in_a_running_group():
    for make in (RiemannianSGD, RiemannianAdam):
        optimizer = stepped(lambda its, make=make: make(its, lr=0.1), Sphere())
        before = snapshot(optimizer)[0]
        optimizer.param_groups[1]["lr"] = None
        with pytest.raises(OptionError, match="lr=None is not a number"):
            optimizer.step()
        assert snapshot(optimizer)[0] == before
    with pytest.raises(OptionError, match="lr=None is not a number"):
        RiemannianSGD(groups(Sphere()), lr=None)


@pytest.mark.parametrize(("manifold", "changes"), ON_MANIFOLDS, ids=str)
def test_what_a_manifold_or_another_option_does_not_allow(manifold, changes):
    refused_at_every_moment(of("momentum"), manifold, changes, next(iter(changes)))


@pytest.mark.parametrize("key", UNKNOWN)
def test_unknown_keys(key):
    nearest = UNKNOWN[key]
    message = f"no option {key!r}; " + (f"did you mean {nearest!r}" if nearest else "it has lr, momentum")
    refused_at_every_moment(of("momentum"), PSI(), {key: 0.5}, message)


def test_missing_keys_and_keys_that_are_no_names():
    optimizer = stepped(of("momentum"), Sphere())
    before = snapshot(optimizer)[0]
    momentum = optimizer.param_groups[1].pop("momentum")
    with pytest.raises(OptionError, match="the option 'momentum' is missing from a group"):
        optimizer.step()
    optimizer.param_groups[1].update({"momentum": momentum, 3: 0.1})
    with pytest.raises(OptionError, match="has the key 3"):
        optimizer.step()
    assert snapshot(optimizer)[0] == before


def test_keys_of_schedulers_frameworks_and_ones_own():
    extra = {"name": "backbone", "initial_lr": 0.1, "lr_scale": 0.5, "_depth": 3}
    optimizer = RiemannianSGD(groups(Sphere(), extra, extra), lr=0.1, momentum=0.9)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p).cumsum(0)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20),
        torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1),
        torch.optim.swa_utils.SWALR(optimizer, 0.05),
    ]
    for schedule in schedules:
        for _ in range(3):
            optimizer.step()
            schedule.step()
    written = set(optimizer.param_groups[0])
    assert {"max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr", "initial_lr"} <= written
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()


def test_options_of_a_rule_of_ones_own():
    class Own(RiemannianOptimizer):
        rule = Momentum()

        def __init__(self, params):
            super().__init__(params, {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "nesterov": False,
                                      "momentum_form": "heavy_ball", "patience": 3})  # fmt: skip

    optimizer = Own(groups(Sphere(), second={"patience": 5}))
    assert [group["patience"] for group in optimizer.param_groups] == [3, 5]
    with pytest.raises(OptionError, match="no option 'patiense'; did you mean 'patience'"):
        Own(groups(Sphere(), second={"patiense": 5}))


def test_where_points_live_cannot_be_changed_in_a_running_group():
    for key, value in (("manifold", PSI()), ("manifold", "PSI()"), ("rows", "Rows.whole()"), ("joined", "0+1")):
        optimizer = stepped(of("momentum"), Sphere())
        before = snapshot(optimizer)[0]
        optimizer.param_groups[1][key] = value
        with pytest.raises(OptionError, match=f"{key}=.* in a running group"):
            optimizer.step()
        assert snapshot(optimizer)[0] == before


def test_tensors_that_change_in_place_are_read_at_every_step():
    for name, bad in (("lr", -1.0), ("momentum", 1.0), ("max_point_norm", 0.0), ("dampening", float("nan"))):
        number = torch.tensor(0.5)
        optimizer = of(name)(groups(Sphere(), second={name: number}))
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones_like(group["params"][0]).cumsum(0)
        optimizer.step()
        before = snapshot(optimizer)[0]
        number.fill_(bad)
        with pytest.raises(OptionError, match=name):
            optimizer.step()
        assert snapshot(optimizer)[0] == before
        number.fill_(0.25)
        optimizer.step()


def test_pickled_and_copied_optimizers_are_checked():
    for twin in map(copy.deepcopy, [stepped(of("momentum"), PSI())] * 2):
        twin.param_groups[1]["weight_decay"] = 0.5
        with pytest.raises(OptionError, match="weight_decay=0.5 on weight"):
            twin.step()


def test_groups_that_are_taken_out():
    optimizer = stepped(of("momentum"), Sphere())
    del optimizer.param_groups[0]
    optimizer.step()
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(OptionError, match="lr=-1.0"):
        optimizer.step()


@pytest.mark.parametrize("number", [np.float64, np.float32, np.int64, np.array], ids=lambda f: f.__name__)
def test_numbers_of_numpy_are_numbers(number):
    """They become Python's, in groups and where they are set later."""
    half = 0 if number is np.int64 else 0.5
    for make, options in (
        (RiemannianSGD, {"lr": number(1), "momentum": number(half), "dampening": number(half)}),
        (RiemannianAdam, {"lr": number(1), "betas": (number(half), number(half)), "eps": number(1)}),
    ):
        built = make(groups(Sphere()), **options, maximize=np.bool_(True))
        changed = make(groups(Sphere()))
        for group in changed.param_groups:
            group.update(options, maximize=np.bool_(True))
        for optimizer in (built, changed):
            for group in optimizer.param_groups:
                group["params"][0].grad = torch.ones_like(group["params"][0])
            optimizer.step()
            for group in optimizer.param_groups:
                values = [value for key in (*options, "maximize") for value in np.atleast_1d(group[key]).tolist()]
                assert all(type(value) in (int, float, bool) for value in values)
                assert all(type(group[key]) in (int, float, tuple, bool) for key in (*options, "maximize"))
        for ours, its in zip(built.param_groups, changed.param_groups, strict=True):
            assert torch.equal(ours["params"][0], its["params"][0])


FROZEN = {
    "uint8": lambda: torch.zeros(3, 3, dtype=torch.uint8),
    "int64": lambda: torch.tensor(3),
    "bool": lambda: torch.zeros(3, 3, dtype=torch.bool),
    "complex": lambda: torch.zeros(3, 3, dtype=torch.complex64),
    "float8_e4m3fn": lambda: torch.zeros(3, 3).to(torch.float8_e4m3fn),
    "float8_e5m2": lambda: torch.zeros(3, 3).to(torch.float8_e5m2),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "expanded": lambda: torch.ones(3, 1).expand(3, 4),
    "empty": lambda: torch.zeros(0, 3),
    "empty int8": lambda: torch.zeros(0, dtype=torch.int8),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:torch.quantize")
@pytest.mark.parametrize("kind", FROZEN)
@pytest.mark.parametrize("make", [RiemannianSGD, RiemannianAdam, PSISGD, SGDG, AdamG])
def test_frozen_parameters_that_no_update_is_defined_for(make, kind):
    frozen = nn.Parameter(FROZEN[kind](), requires_grad=False)
    w, v = nn.Parameter(Sphere().random_point(4, 3)), nn.Parameter(Sphere().random_point(2, 3))
    optimizer = make([{"params": [w], "manifold": Sphere()}, {"params": [frozen, v]}], lr=0.1)
    for _ in range(2):
        for p in (w, v):
            p.grad = torch.ones_like(p).cumsum(0)
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert frozen not in optimizer.state


def test_a_gradient_of_such_a_parameter_is_refused():
    with pytest.raises(OptionError, match=r"complex64; the updates.*requires_grad_\(False\)"):
        RiemannianSGD([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    for dtype in (torch.complex64, torch.float8_e4m3fn):
        late, w = nn.Parameter(torch.zeros(3, 3).to(dtype), requires_grad=False), nn.Parameter(torch.ones(3))
        optimizer = RiemannianSGD([{"params": [w]}, {"params": [late], "names": ["late"]}], lr=0.1)
        late.requires_grad_(True)
        w.grad = torch.ones(3)
        optimizer.step()
        late.grad = torch.zeros_like(late)
        before = w.detach().clone()
        with pytest.raises(GradientError, match=f"late is {dtype} and has a gradient"):
            optimizer.step()
        assert torch.equal(w.detach(), before)
