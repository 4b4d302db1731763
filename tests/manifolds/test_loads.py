"""`load_state_dict` and `project_` on declared networks: weights end on their manifold, and running statistics are not falsified."""

import copy
import pickle

import pytest
import torch
from retract import declare, project_, undeclare
from retract.errors import DeclarationError
from retract.manifolds import PSI, Grassmann, Rows, Sphere, Stiefel
from retract.psi import recalibrate
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict


def plain():
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Conv2d(2, 3, 2), nn.Linear(5, 5))


def network():
    model = plain()
    declare(model, "0.weight", Sphere(), joined=("bias",))
    declare(model[2], "weight", Stiefel(), Rows.whole(columns=0))
    declare(model, "3.weight", PSI())
    return model


def check(model):
    joint = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach()
    Sphere().check_point(joint)
    Stiefel().check_point(model[2].weight.detach().flatten(1).mT)


LOADS = {
    "the network": lambda model, state, **options: model.load_state_dict(state, **options),
    "a wrapper": lambda model, state, **options: nn.ModuleDict({"net": model}).load_state_dict(
        {f"net.{key}": value for key, value in state.items()}, **options
    ),
    "the owners": lambda model, state, **options: [
        model[i].load_state_dict({k[2:]: v for k, v in state.items() if k.startswith(f"{i}.")}, **options)
        for i in (0, 2, 3)
    ],
    "a copy": lambda model, state, **options: model.__dict__.update(loaded(copy.deepcopy(model), state, options)),
    "a pickled copy": lambda model, state, **options: model.__dict__.update(
        loaded(pickle.loads(pickle.dumps(model)), state, options)
    ),
}


def loaded(model, state, options):
    model.load_state_dict(state, **options)
    return {"_modules": model._modules}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("how", LOADS)
def test_a_plain_checkpoint_ends_on_the_manifold(how, assign):
    model, state = network(), plain().state_dict()
    before = copy.deepcopy(state)
    LOADS[how](model, state, assign=assign)
    check(model)
    assert torch.equal(model[3].weight, state["3.weight"])  # on PSI any row will do
    joint = torch.cat([before["0.weight"], before["0.bias"][:, None]], 1)
    assert torch.allclose(model[0].weight, nn.functional.normalize(joint, dim=1)[:, :-1], atol=1e-6)
    assert all(torch.equal(state[key], before[key]) for key in state)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_its_own_checkpoint_comes_through_bitwise(dtype, assign):
    model = network().to(dtype)
    project_(model)
    state = copy.deepcopy(model).state_dict()
    other = network().to(dtype)
    other.load_state_dict(state, assign=assign)
    for key, value in other.state_dict().items():
        assert torch.equal(value, state[key])
        assert not assign or value.data_ptr() == state[key].data_ptr()


def test_a_half_checkpoint_is_put_in_the_precision_of_the_parameter():
    model = nn.Linear(8, 4)
    declare(model, "weight", Sphere())
    state = copy.deepcopy(model).half().state_dict()
    model.load_state_dict(state)
    Sphere().check_point(model.weight.detach())
    double = nn.Linear(8, 4).double()
    declare(double, "weight", Sphere())
    double.load_state_dict(state)
    Sphere().check_point(double.weight.detach())


def test_what_torch_refuses_it_still_refuses():
    model = network()
    weight = model[0].weight.detach().clone()
    state = plain().state_dict()
    state["0.weight"] = torch.randn(5, 8)
    with pytest.raises(RuntimeError, match="size mismatch for 0.weight"):
        model.load_state_dict(state)
    del state["0.weight"]
    assert torch.equal(model[0].weight, weight)
    with pytest.raises(RuntimeError, match='Missing key.*"0.weight"'):
        model.load_state_dict(state)
    check(model)  # torch has loaded the bias, and the rest of its points has come along
    weight = model[0].weight.detach().clone()
    missing = model.load_state_dict({"3.weight": torch.ones(5, 5)}, strict=False).missing_keys
    assert "0.weight" in missing
    assert torch.equal(model[0].weight, weight)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_rows_that_are_no_points(value):
    model, state = network(), plain().state_dict()
    state["0.weight"][2] = state["0.bias"][2] = value
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DeclarationError, match="0.weight: row 2 is (zero|not finite), which is no point of Sphere"):
        model.load_state_dict(state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_hooks_are_not_doubled_and_go_with_the_declaration():
    model = network()
    counts = [len(m._load_state_dict_pre_hooks) for m in model.modules()]
    for _ in range(2):
        model = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        declare(model, "0.weight", Grassmann(1), joined=("bias",))
        declare(model, "2.weight", Stiefel(), Rows.whole(columns=0))
        assert [len(m._load_state_dict_pre_hooks) for m in model.modules()] == counts
        assert [len(m._load_state_dict_post_hooks) for m in model.modules()] == counts
    own = model.register_load_state_dict_pre_hook(lambda *_: None)
    for name in ("0.weight", "2.weight", "3.weight"):
        undeclare(model, name)
    assert [len(m._load_state_dict_pre_hooks) for m in model.modules()] == [1, 0, 0, 0, 0]
    own.remove()
    state = plain().state_dict()
    model.load_state_dict(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def normalized():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 2))
    for _ in range(100):
        net(torch.randn(32, 6) * 3 + 1)
    return net


def trained():
    """On the sphere since before it was trained."""
    net = normalized()
    net[1].reset_running_stats()
    declare(net, "0.weight", Sphere())
    for _ in range(20):
        net(torch.randn(32, 6))
    return net


def test_trained_statistics_refuse_a_load_that_moves_rows():
    """In front of a BatchNorm whose statistics come along, eval mode would be wrong, and nothing would say so."""
    state = normalized().state_dict()
    net = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 2))
    declare(net, "0.weight", Sphere())
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        DeclarationError, match=r"(?s)moving the rows of 0.weight.*\(1.running_var\).*Load it before you declare"
    ):
        net.load_state_dict(state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    # The remedy.
    undeclare(net, "0.weight")
    net.load_state_dict(state)
    x = torch.randn(64, 6) * 3 + 1
    recalibrate(net, [x])
    wanted = net.eval()(x)
    net.train()[1].reset_running_stats()
    declare(net, "0.weight", Sphere())
    recalibrate(net, [x])
    assert torch.allclose(net.eval()(x), wanted, atol=1e-3)
    # What was trained on the sphere loads, statistics and all.
    again = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 2))
    declare(again, "0.weight", Sphere())
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(x), net(x))


@pytest.mark.parametrize("how", ["load", "assign", "wrapper", "checkpoint"])
def test_the_networks_own_statistics_refuse_weights_that_come_alone(how):
    """Moving the rows that are loaded would not be seen by statistics that are not."""
    net = trained()
    before = copy.deepcopy(net.state_dict())
    weights = {"0.weight": 3 * torch.randn(5, 6)}

    def load(state):
        if how == "checkpoint":
            return set_model_state_dict(net, state, options=StateDictOptions(strict=False))
        model = nn.ModuleDict({"net": net}) if how == "wrapper" else net
        state = {f"net.{key}": value for key, value in state.items()} if how == "wrapper" else state
        return model.load_state_dict(state, strict=False, assign=how == "assign")

    with pytest.raises(
        DeclarationError, match=r"(?s)moving the rows of (net.)?0.weight.*1.running_var.*not among what is loaded"
    ):
        load(dict(weights))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    # What moves no row, and statistics that come along, are welcome.
    load({"0.weight": nn.functional.normalize(weights["0.weight"])})
    load({"2.weight": torch.randn(2, 5)})
    load({**weights, **{f"1.{key}": value for key, value in nn.BatchNorm1d(5).state_dict().items()}})
    Sphere().check_point(net[0].weight.detach())


def test_statistics_refuse_weights_that_are_loaded_into_a_part_of_the_network():
    model = nn.Sequential(nn.Sequential(nn.Sequential(*trained()[:2]), nn.ReLU()), nn.Linear(5, 2))
    declare(model, "0.0.0.weight", Sphere())
    for part, name in ((model[0], "0.0.weight"), (model[0][0], "0.weight")):
        with pytest.raises(DeclarationError, match="moving the rows of"):
            part.load_state_dict({name: 3 * torch.randn(5, 6)}, strict=False)
    undeclare(model, "0.0.0.weight")
    model[0].load_state_dict({"0.0.weight": torch.full((5, 6), 3.0)}, strict=False)
    assert (model[0][0][0].weight == 3.0).all()


def test_the_remedies_for_weights_that_come_alone():
    net, weights, x = trained(), {"0.weight": 3 * torch.randn(5, 6)}, torch.randn(64, 6)
    net[0].load_state_dict({"weight": torch.randn(2, 6)[[0, 0, 0, 1, 1]]})
    Sphere().check_point(net[0].weight.detach())
    net[1].reset_running_stats()
    net.load_state_dict(weights, strict=False)
    recalibrate(net, [x])
    hidden = nn.functional.linear(x, nn.functional.normalize(weights["0.weight"]))
    assert torch.allclose(net[1].running_var, hidden.var(0), atol=1e-5)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_part_of_joint_points_takes_the_rest_along(part, assign):
    net = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4))
    declare(net, "0.weight", Sphere(), joined=("bias",))
    state = {f"0.{part}": 3 * torch.randn_like(net[0].get_parameter(part))}
    expected = {**net.state_dict(), **copy.deepcopy(state)}
    joint = nn.functional.normalize(torch.cat([expected["0.weight"], expected["0.bias"][:, None]], 1), dim=1)
    missing = net.load_state_dict(state, strict=False, assign=assign).missing_keys
    assert sorted(missing) == sorted({"0.weight", "0.bias", "1.weight", "1.bias"} - {f"0.{part}"})
    assert torch.allclose(net[0].weight, joint[:, :-1], atol=1e-6)
    assert torch.allclose(net[0].bias, joint[:, -1], atol=1e-6)


@pytest.mark.parametrize("names", [("0", "1"), ("1",), ("0",)])
@pytest.mark.parametrize("shared", ["parameter", "module"])
def test_tied_names(shared, names):
    """The tensor is loaded once for each of its names, whichever was declared, and the last counts."""
    first = nn.Linear(4, 4, bias=False)
    net = nn.Sequential(first, first if shared == "module" else nn.Linear(4, 4, bias=False))
    net[1].weight = first.weight
    declare(net, "0.weight", Sphere())
    state = {f"{name}.weight": torch.randn(4, 4) for name in names}
    net.load_state_dict(state, strict=False)
    assert torch.allclose(first.weight, nn.functional.normalize(state[f"{names[-1]}.weight"]), atol=1e-6)
    assert net[1].weight is first.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_half_precision_is_no_move(dtype):
    """Networks and their checkpoints in half precision pass under trained statistics; a move beyond that does not."""
    net = trained()
    narrow = copy.deepcopy(net).to(dtype)
    project_(narrow)
    net.load_state_dict(narrow.state_dict())
    Sphere().check_point(net[0].weight.detach())
    net.load_state_dict({"0.weight": narrow[0].weight.detach()}, strict=False)
    with pytest.raises(DeclarationError, match="moving the rows of 0.weight"):
        net.load_state_dict({"0.weight": narrow[0].weight.detach() * 1.03}, strict=False)


def test_put_refuses_what_declare_refuses():
    net = normalized()
    net[1].reset_running_stats()
    declare(net, "0.weight", Sphere())
    declare(net, "2.weight", PSI())
    for _ in range(100):
        net(torch.randn(32, 6))
    with torch.no_grad():
        net[0].weight.mul_(3)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        DeclarationError,
        match=r"(?s)moving the rows of 0.weight.*reset_running_stats\(\).*retract.project_\(model\), and then",
    ):
        project_(net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net[1].reset_running_stats()
    project_(net)
    Sphere().check_point(net[0].weight.detach())


def test_put_mends_rounding_under_trained_statistics():
    """A trip through half precision moves rows by less than any statistics know."""
    net = normalized()
    net[1].reset_running_stats()
    declare(net, "0.weight", Sphere())
    net(torch.randn(32, 6))
    net.half().float()
    project_(net)
    Sphere().check_point(net[0].weight.detach())
