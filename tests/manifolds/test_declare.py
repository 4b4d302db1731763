"""Declarations: where they live, what they survive, and what they refuse."""

import copy
import io
import pickle

import pytest
import torch
from networks import batches, declare_all, normed_cnn, normed_mlp, train
from retract import declare, declared, param_groups, project_
from retract.errors import DeclarationError, GeometryError
from retract.manifolds import PSI, Declaration, Euclidean, Grassmann, Rows, Sphere, Stiefel
from retract.optim import PSISGD, RiemannianSGD
from torch import nn


def mlp():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_declaring_puts_the_parameter_in_place_and_keeps_it_plain():
    model = mlp()
    weight = model[0].weight
    pointer = weight.data_ptr()
    declare(model, "0.weight", Sphere())
    declare(model[2], "weight", PSI(), rows=Rows.whole(), joined=["bias"])
    assert type(model[0].weight) is nn.Parameter
    assert model[0].weight is weight
    assert weight.data_ptr() == pointer
    Sphere().check_point(weight.detach())
    assert declared(model) == {
        "0.weight": Declaration(Sphere()),
        "2.weight": Declaration(PSI(), Rows.whole(), ("bias",)),
    }
    declare(model, "0.weight", PSI())
    assert declared(model)["0.weight"].manifold == PSI()


def test_groups():
    model = mlp()
    declare(model, "0.weight", PSI())
    declare(model, "2.weight", PSI(), joined=("bias",))
    first, rest = param_groups(model, manifold={"lr": 2.0}, euclidean={"weight_decay": 0.1})
    assert first["name"] == "PSI()"
    assert first["names"] == ["0.weight", "2.weight", "2.bias"]
    assert first["joined"] == [(model[2].weight, model[2].bias)]
    assert first["lr"] == 2.0
    assert rest["name"] == "euclidean"
    assert rest["names"] == ["0.bias", "1.weight", "1.bias"]
    optimizer = RiemannianSGD([first, rest], lr=0.1)
    assert [g["lr"] for g in optimizer.param_groups] == [2.0, 0.1]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.1]


def survives(model):
    assert declared(model) == {"0.weight": Declaration(PSI())}
    (group, _) = param_groups(model)
    assert group["params"][0] is model[0].weight


def test_declarations_survive_what_happens_to_models():
    model = mlp()
    declare(model, "0.weight", PSI())
    survives(copy.deepcopy(model))
    survives(pickle.loads(pickle.dumps(model)))
    survives(model.to(torch.float64))
    survives(model.half().float())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    survives(torch.load(buffer, weights_only=False))
    model.load_state_dict(mlp().state_dict())
    survives(model)
    model.load_state_dict(mlp().state_dict(), assign=True)
    survives(model)
    twin = copy.copy(model[0])
    declare(twin, "weight", Sphere())
    survives(model)


def test_meta_device_init():
    with torch.device("meta"):
        model = mlp()
    declare(model, "0.weight", Sphere())
    model.to_empty(device="cpu")
    for module in model:
        module.reset_parameters()
    project_(model)
    Sphere().check_point(model[0].weight.detach())
    assert declared(model) == {"0.weight": Declaration(Sphere())}


def test_put_after_a_load():
    model = mlp()
    declare(model, "0.weight", Grassmann(1))
    declare(model, "2.weight", PSI())
    other = mlp()
    model.load_state_dict(other.state_dict())
    project_(model)
    assert torch.allclose(model[0].weight, nn.functional.normalize(other[0].weight, dim=1))
    assert torch.equal(model[2].weight, other[2].weight)


def test_tied_parameters():
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    model[1].weight = model[0].weight
    declare(model, "0.weight", PSI())
    (group,) = param_groups(model)
    assert group["params"] == [model[0].weight]
    declare(model, "1.weight", PSI())
    assert len(param_groups(model)[0]["params"]) == 1
    declare(model, "1.weight", Sphere())
    with pytest.raises(DeclarationError, match=r"1.weight and 0.weight are the same parameter, declared as .*Sphere"):
        param_groups(model)
    layer = nn.Linear(3, 3, bias=False)
    layer.again = layer.weight
    declare(layer, "weight", PSI())
    with pytest.raises(DeclarationError, match="again and weight are the same parameter"):
        declare(layer, "again", Sphere())
    with pytest.raises(DeclarationError, match="name one parameter twice"):
        declare(layer, "weight", PSI(), joined=("again",))


def test_a_bias_belongs_to_one_point():
    layer = nn.Linear(3, 3)
    declare(layer, "bias", PSI(), rows=Rows.whole())
    with pytest.raises(DeclarationError, match="weight and bias are the same parameter"):
        declare(layer, "weight", PSI(), joined=("bias",))


def test_a_declaration_whose_parameter_is_gone():
    model = mlp()
    declare(model, "0.weight", PSI())
    del model[0].weight
    for call in (param_groups, declared, project_):
        with pytest.raises(DeclarationError, match=r"0.weight: .* has no parameter 'weight' \(it has: bias\)"):
            call(model)


def test_scripted_modules_and_lazy_parameters():
    scripted = torch.jit.script(nn.Linear(3, 2))
    with pytest.raises(DeclarationError, match="declare on the module before scripting"):
        declare(scripted, "weight", PSI())
    with pytest.raises(DeclarationError, match="is scripted: its declarations are lost"):
        param_groups(nn.Sequential(scripted))
    lazy = nn.LazyLinear(3)
    with pytest.raises(DeclarationError, match="weight is a lazy parameter without a shape; run the model once"):
        declare(lazy, "weight", PSI())


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("manifold", [PSI(), Sphere(), Grassmann(1)], ids=repr)
def test_rows_that_are_no_points(manifold, value):
    model = mlp()
    with torch.no_grad():
        model[0].weight[1] = value
    before = model[0].weight.detach().clone()
    what = "zero" if value == 0 else "not finite"
    with pytest.raises(DeclarationError, match=rf"0.weight: row 1 is {what}, which is no point of"):
        declare(model, "0.weight", manifold)
    assert torch.equal(model[0].weight.nan_to_num(), before.nan_to_num())
    assert declared(model) == {}


def test_wrong_names_shapes_and_dtypes():
    model = mlp()
    with pytest.raises(DeclarationError, match=r"0.wight: Linear has no parameter 'wight' \(it has: weight, bias\)"):
        declare(model, "0.wight", PSI())
    with pytest.raises(DeclarationError, match="0 is a module; name a parameter of it, such as 0.weight"):
        declare(model, "0", PSI())
    with pytest.raises(DeclarationError, match="'bias'"):
        declare(nn.Linear(3, 2, bias=False), "weight", PSI(), joined=("bias",))
    with pytest.raises(GeometryError, match=r"0.weight of shape \(3, 4\): .*does not divide dim 0"):
        declare(model, "0.weight", PSI(), rows=Rows(blocks=2))
    with pytest.raises(GeometryError, match="n ≥ p"):
        declare(model, "0.weight", Stiefel())
    with pytest.raises(GeometryError, match="all parts need the same number"):
        declare(nn.MultiheadAttention(4, 2), "in_proj_weight", PSI(), rows=Rows(dim=1), joined=("in_proj_bias",))
    with pytest.raises(GeometryError, match="has no joint points"):
        declare(nn.Linear(2, 4), "weight", Stiefel(), joined=("bias",))
    with pytest.raises(DeclarationError, match="complex64; the manifolds are real"):
        declare(nn.Linear(2, 4, dtype=torch.complex64), "weight", PSI())
    with pytest.raises(DeclarationError, match="representative is one of"):
        declare(model, "0.weight", PSI(), representative="small")


def trained(device):
    net = normed_mlp(eps=1e-5, device=device)
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), batches(3, 16, 6, classes=4, device=device))
    return net


def test_trained_statistics(device):
    """PSI leaves a trained network's eval output as it is, bitwise; moving rows is refused, with the remedy."""
    net = trained(device).eval()
    x = torch.randn(5, 6, dtype=torch.float64, device=device)
    before = net(x)
    declare_all(net, PSI())
    assert torch.equal(net(x), before)
    for manifold, representative in ((PSI(), "unit"), (Sphere(), "keep"), (Grassmann(1), "keep")):
        with pytest.raises(
            DeclarationError, match=r"(?s)running statistics that have been trained.*reset_running_stats.*recalibrate"
        ):
            declare(net, "0.weight", manifold, representative=representative)
        assert torch.equal(net(x), before)
        assert declared(net)["0.weight"].manifold == PSI()
    for module in net:
        if isinstance(module, nn.BatchNorm1d):
            module.reset_running_stats()
    declare(net, "0.weight", Sphere())
    fresh = normed_mlp(device=device)
    declare(fresh, "0.weight", PSI(), representative="unit")
    assert torch.allclose(fresh[0].weight.norm(dim=1), torch.ones(12, dtype=torch.float64, device=device))


def test_where_the_origin_is_a_point_zero_rows_are_welcome():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    declare(layer, "weight", Euclidean(1))
    assert declared(layer)


def test_every_declared_tensor_moves(device):
    net = declare_all(normed_cnn(device=device), PSI())
    before = {name: net.get_parameter(name).detach().clone() for name in declared(net)}
    train(net, PSISGD(param_groups(net), lr=0.1, momentum=0.9), batches(2, 16, 1, 6, 6, device=device))
    assert len(before) == 3
    for name, w in before.items():
        assert not torch.equal(net.get_parameter(name), w), name
