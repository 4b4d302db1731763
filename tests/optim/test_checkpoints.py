"""`state_dict` and `load_state_dict`: copies, names, dtypes, and what is refused with which words."""

import copy
import io

import numpy as np
import pytest
import torch
from optimizers import OPTIMIZERS
from retract import declare, param_groups
from retract.errors import OptionError, StateError
from retract.manifolds import PSI, Euclidean, FixedRank, ProjectiveSpace, Sphere, Stiefel
from retract.optim import PSISGD, RiemannianAdam, RiemannianSGD
from torch import nn

NAMES = ("sgd", "adam", "psi-sgdm")
MANIFOLDS = [Euclidean(0), Sphere(), PSI(), ProjectiveSpace(), Stiefel(), FixedRank(2, 3)]


def step(optimizer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
    optimizer.step()


def one(name, manifold, dtype=torch.float32):
    torch.manual_seed(0)
    w = nn.Parameter(manifold.random_point(6, getattr(manifold, "k", 4)).to(dtype))
    return w, OPTIMIZERS[name]([{"params": [w], "manifold": manifold}], lr=0.1)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_shared_between_optimizers(name, manifold):
    (w, a), (v, b) = one(name, manifold), one(name, manifold)
    step(a)
    b.load_state_dict(a.state_dict())
    taken = a.state_dict()
    before = copy.deepcopy(b.state[v])
    for _ in range(2):
        step(a, 1)
    assert same(b.state[v], before), "a step of one changed the other"
    assert not same(a.state[w], before)
    a.load_state_dict(taken)
    assert same(a.state[w], before), "an earlier state_dict does not restore"
    step(a, 2)
    assert same(taken["state"][0], before), "a step after loading changed what was loaded"


def test_tensors_in_groups_are_copies():
    lr = torch.tensor(0.25)
    optimizer = RiemannianSGD([nn.Parameter(torch.ones(2))], lr=lr)
    taken = optimizer.state_dict()
    lr.fill_(0.5)
    assert taken["param_groups"][0]["lr"] == 0.25
    optimizer.load_state_dict(taken)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["lr"] is not taken["param_groups"][0]["lr"]


@pytest.mark.parametrize("where", ["declared", "named_parameters", "bare"])
def test_a_replaced_parameter_is_named(where):
    model = nn.Linear(5, 4)
    declare(model, "weight", Sphere())
    its = {
        "declared": lambda: param_groups(model),
        "named_parameters": lambda: [
            {"params": [("weight", model.weight)], "manifold": Sphere()},
            {"params": [("bias", model.bias)]},
        ],
        "bare": lambda: [{"params": [model.weight], "manifold": Sphere()}, {"params": [model.bias]}],
    }[where]()
    optimizer = RiemannianSGD(its, lr=0.1, momentum=0.9)
    step(optimizer)
    old = optimizer.param_groups[0]["params"][0]
    optimizer.param_groups[0]["params"][0] = nn.Parameter(old.detach().clone())
    name = "parameter 0 of its group" if where == "bare" else "weight"
    with pytest.raises(StateError, match=rf"{name} of shape \(4, 5\) has state and is in no group any more") as told:
        optimizer.state_dict()
    assert "any more; parameter 0 of group 0 was put into a group without add_param_group" in str(told.value)
    assert "Build a new optimizer from retract.param_groups(model)" in str(told.value)
    optimizer.param_groups[0]["params"][0] = old
    assert len(optimizer.state_dict()["state"]) == 2


@pytest.mark.parametrize("number", [np.float64, np.float32, np.int64, np.float16])
def test_numbers_of_numpy_load_as_weights_only(number):
    """Wherever they were set, also after the last step, and by schedulers."""
    for name in NAMES:
        w, optimizer = one(name, Sphere())
        step(optimizer)
        group = optimizer.param_groups[0]
        group.update(lr=number(1), initial_lr=number(1), maximize=np.bool_(False), _mine=(number(1), [number(2)]))
        if name == "adam":
            group["betas"] = (number(0), np.float64(0.5))
        optimizer.state[w]["note"] = {"seen": number(3)}
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=True)
        assert loaded["param_groups"][0]["lr"] == 1
        optimizer.load_state_dict(loaded)
        assert type(optimizer.param_groups[0]["lr"]) in (int, float)


def three(order, sizes=(4, 4, 5)):
    """Three parameters of which two have the same shape, in any order, each with a gradient of its own."""
    torch.manual_seed(0)
    params = {name: nn.Parameter(torch.randn(size)) for name, size in zip("abc", sizes, strict=True)}
    for i, p in enumerate(params.values()):
        p.grad = torch.full_like(p, i + 1.0)
    return [(name, params[name]) for name in order]


@pytest.mark.parametrize("named", ["named_parameters", "names"])
@pytest.mark.parametrize("order", ["abc", "bac", "cab"])
def test_parameters_in_another_order_are_matched_by_name(order, named):
    def make(order):
        pairs = three(order)
        group = (
            {"params": pairs} if named == "named_parameters" else {"params": [p for _, p in pairs], "names": [*order]}
        )
        return RiemannianSGD([group], lr=0.1, momentum=0.9), dict(pairs)

    saved, _ = make("abc")
    saved.step()
    other, params = make(order)
    other.load_state_dict(saved.state_dict())
    for i, name in enumerate("abc"):
        assert torch.equal(other.state[params[name]]["momentum_buffer"], torch.full_like(params[name], i + 1.0))
    if named == "named_parameters":
        assert other.param_groups[0]["param_names"] == [*order]


def test_groups_and_joint_points_in_another_order_are_matched_by_name():
    def make(reverse):
        torch.manual_seed(0)
        layers = nn.ModuleDict({name: nn.Linear(3, 2) for name in "ab"})
        for name in "ab":
            declare(layers, f"{name}.weight", PSI(), joined=("bias",))
        (psi,) = param_groups(layers)
        if reverse:
            psi["params"] = psi["params"][2:] + psi["params"][:2]
            psi["names"] = psi["names"][2:] + psi["names"][:2]
            psi["joined"] = psi["joined"][::-1]
        flat = {"params": [nn.Parameter(torch.ones(3))], "names": ["c"], "lr": 0.5}
        return PSISGD([flat, psi] if reverse else [psi, flat], lr=0.1, momentum=0.9), layers

    saved, layers = make(False)
    step(saved)
    other, twins = make(True)
    other.load_state_dict(saved.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.1]
    for (name, p), (_, twin) in zip(layers.named_parameters(), twins.named_parameters(), strict=True):
        assert same(saved.state[p], other.state[twin]), name
    step(other)


def test_parameters_of_other_names_are_refused():
    saved, other = (
        RiemannianSGD(
            [{"params": [nn.Parameter(torch.ones(3)) for _ in names], "names": [*names]}], lr=lr, momentum=0.9
        )
        for names, lr in (("ab", 0.1), ("ac", 0.2))
    )
    step(saved)
    state = saved.state_dict()
    with pytest.raises(StateError, match="other parameters than group 0 of this optimizer: b only there, c only here"):
        other.load_state_dict(state)
    assert other.param_groups[0]["lr"] == 0.2
    assert not other.state
    del state["param_groups"][0]["names"]
    other.load_state_dict(state)
    assert other.param_groups[0]["lr"] == 0.1
    with pytest.raises(StateError, match="a group of the state_dict has 2 parameters, that of this optimizer 1"):
        RiemannianSGD([nn.Parameter(torch.ones(3))]).load_state_dict(state)


def test_wrappers_do_not_change_names():
    def make(prefix):
        w = nn.Parameter(torch.ones(3))
        return RiemannianSGD([{"params": [(f"{prefix}fc.weight", w)]}], lr=0.1, momentum=0.9), w

    saved, _ = make("module._orig_mod.")
    step(saved)
    other, w = make("")
    other.load_state_dict(saved.state_dict())
    assert "momentum_buffer" in other.state[w]


def test_state_of_another_shape_is_refused_before_anything_is_written():
    for name, key in (("sgd", "momentum_buffer"), ("adam", "exp_avg"), ("adam", "exp_avg_sq"), ("psi-sgdm", "radius")):
        w, optimizer = one(name, PSI())
        step(optimizer)
        state = optimizer.state_dict()
        state["state"][0][key] = state["state"][0][key][:2]
        state["param_groups"][0]["lr"] = 7.0
        before = copy.deepcopy(optimizer.state[w])
        with pytest.raises(
            StateError, match=rf"of shape \(6, 4\) needs {key} of shape \(6, .\), but the state_dict has \(2,"
        ):
            optimizer.load_state_dict(state)
        assert same(optimizer.state[w], before)
        assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_numbers_have_the_dtype_that_they_would_have_here(name, manifold):
    """A load across dtypes leaves each array in the dtype in which the optimizer itself would have made it."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for there in dtypes:
        for here in dtypes:
            if isinstance(manifold, Stiefel) and {there, here} & {torch.bfloat16, torch.float16}:
                continue  # rounded further off than a group takes
            (_, saved), (w, other), (v, fresh) = (one(name, manifold, dtype) for dtype in (there, here, here))
            step(saved)
            step(fresh)
            other.load_state_dict(saved.state_dict())
            expected = {key: value.dtype for key, value in fresh.state[v].items()}
            assert {key: value.dtype for key, value in other.state[w].items()} == expected, (there, here)
            step(other)
            assert {key: value.dtype for key, value in other.state[w].items()} == expected, (there, here)


def test_state_dicts_of_other_rules():
    w = nn.Parameter(torch.ones(3))
    with pytest.raises(StateError, match="needs betas, and has no amsgrad"):
        RiemannianAdam([w]).load_state_dict(torch.optim.Adam([w], amsgrad=True).state_dict())
    with pytest.raises(OptionError, match="no option 'momentum_decay'"):
        RiemannianAdam([w]).load_state_dict(torch.optim.NAdam([w]).state_dict())


def test_a_state_dict_of_the_first_versions():
    """Without names, and with numbers as the versions up to 0.1 kept them."""
    w, optimizer = one("psi-sgdm", PSI())
    group = {
        "lr": 0.3,
        "momentum": 0.8,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "radius": "hold",
        "momentum_form": "velocity",
        "motion": "retract",
        "transport": "none",
        "max_grad_norm": 0.5,
        "orthogonality": 0.0,
        "maximize": False,
        "foreach": None,
        "fused": None,
        "compile": False,
        "capturable": False,
        "differentiable": False,
        "name": "PSI()",
        "manifold": "PSI()",
        "rows": repr(optimizer.param_groups[0]["rows"]).strip("'"),
        "joined": "",
        "params": [0],
    }
    state = {0: {"momentum_buffer": torch.ones(6, 4), "radius": torch.full((6, 1), 2.0)}}
    optimizer.load_state_dict({"state": state, "param_groups": [group]})
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.param_groups[0]["max_point_norm"] == 0.5
    assert "max_grad_norm" not in optimizer.param_groups[0]
    assert same(optimizer.state[w], state[0])
    step(optimizer)


@pytest.mark.parametrize(
    ("key", "former"), [("manifold", "Grassmann(1)"), ("rows", "Rows(axis=0, blocks=None, groups=1)")]
)
def test_a_state_dict_with_former_words(key, former):
    """What manifolds and rows were called in the versions up to 0.1."""
    (w, a), (v, b) = (one("sgd", ProjectiveSpace()) for _ in range(2))
    step(a)
    saved = a.state_dict()
    word = saved["param_groups"][0][key]
    saved["param_groups"][0][key] = former
    b.load_state_dict(saved)
    assert b.param_groups[0][key] == word
    assert same(b.state[v], a.state[w])
    saved["param_groups"][0][key] = f"Other{former}"
    with pytest.raises(StateError, match=f"saved with {key} 'Other"):
        b.load_state_dict(saved)


@pytest.mark.parametrize("foreach", [False, None])
def test_adamw_is_continued(foreach):
    """A state_dict of torch's AdamW loads with its decoupled decay, and the run goes on as there."""
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2))
    other = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.5)
    optimizer = RiemannianAdam([ours], lr=0.3, foreach=foreach)

    def step():
        ours.grad = theirs.grad = torch.randn(6)
        for each in (other, optimizer):
            each.step()

    theirs.grad = torch.randn(6)
    other.step()
    with torch.no_grad():
        ours.copy_(theirs)
    optimizer.load_state_dict(other.state_dict())
    for _ in range(3):
        step()
        assert torch.equal(ours, theirs) if foreach is not False else torch.allclose(ours, theirs)
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True
