"""What was declared does not train in flat space unnoticed: the mark on the tensor, wherever the tensor goes."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from retract import declare, declared, param_groups, project_, undeclare
from retract.errors import DeclarationError
from retract.manifolds import PSI, Euclidean, Rows, Sphere, Stiefel
from retract.optim import RiemannianAdam, RiemannianSGD, get_multi_avg_fn
from torch import nn
from torch.ao import quantization

FLAT = r"was declared on Sphere\(\), by the name .*weight, but its group has no manifold"
LATE = "after it was added to this optimizer, which has it on"
LOST = r"0.weight was declared on Sphere\(\), by the name .*weight, but no module of this model has the declaration"


def network():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    declare(model, "0.weight", Sphere())
    return model


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_a_file(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def assigned(model):
    model.load_state_dict(copy.deepcopy(model).state_dict(), assign=True)
    return model


def emptied(model):
    model.to_empty(device="cpu")
    model[0].reset_parameters()
    project_(model)
    return model


TRAVELS = {
    "as it is": lambda model: model,
    "deepcopy": copy.deepcopy,
    "copy of a copy": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "pickle": through_pickle,
    "a file": through_a_file,
    "another dtype": lambda model: model.double(),
    "assign": assigned,
    "to_empty and put": emptied,
    "deepcopied inside": lambda model: copy.deepcopy(nn.Sequential(*model)),
    "of a layer": lambda model: copy.deepcopy(model[0]),
}


@pytest.mark.parametrize("travel", TRAVELS)
def test_bare_parameters_are_refused(travel):
    model = TRAVELS[travel](network())
    assert all(type(p) is nn.Parameter for p in model.parameters())
    for params in (model.parameters(), model.named_parameters(), [{"params": list(model.parameters()), "lr": 0.2}]):
        with pytest.raises(DeclarationError, match=FLAT):
            RiemannianAdam(params)
    optimizer = RiemannianSGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(DeclarationError, match=FLAT):
        optimizer.add_param_group({"params": list(model.parameters())})
    assert len(optimizer.param_groups) == 1
    RiemannianAdam(param_groups(model))


def test_what_a_group_says_is_done():
    model = network()
    explicit = [{"params": [model[0].weight], "manifold": Euclidean(0)}, {"params": [model[2].weight]}]
    optimizer = RiemannianSGD(explicit, lr=0.5)
    model[0].weight.grad = torch.ones(3, 4)
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert torch.allclose(model[0].weight, before - 0.5)
    declare(model, "2.weight", Euclidean(0), Rows())
    optimizer.step()  # nothing new about the first, and the second is where it was said to be


def test_a_joined_bias_is_marked_too():
    layer = nn.Linear(4, 3)
    declare(layer, "weight", PSI(), joined=("bias",))
    with pytest.raises(DeclarationError, match=r"was declared on PSI\(\) jointly with 1 more, by the name weight"):
        RiemannianSGD([layer.bias], lr=0.1)
    declare(layer, "weight", PSI())
    RiemannianSGD([layer.bias], lr=0.1)


CHANGES = {
    "declared": lambda model: declare(model, "2.weight", Sphere()),
    "another manifold": lambda model: declare(model, "0.weight", PSI()),
    "other rows": lambda model: declare(model, "0.weight", Sphere(), Rows.whole()),
    "a bias joined": lambda model: declare(model, "0.weight", Sphere(), joined=("bias",)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_declared_under_a_running_optimizer_is_noticed(change):
    model = network()
    optimizer = RiemannianSGD(param_groups(model), lr=0.1, momentum=0.9)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    declare(model, "0.weight", Sphere())  # again, and the same
    optimizer.step()
    CHANGES[change](model)
    before = [p.detach().clone() for p in model.parameters()]
    for each in (optimizer, through_pickle((model, optimizer))[1]):
        for _ in range(2):
            with pytest.raises(DeclarationError, match=LATE):
                each.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    anew = RiemannianSGD(param_groups(model), lr=0.1)
    anew.step()


def test_an_optimizer_from_before_the_first_declaration():
    model = nn.Linear(4, 3)
    by_groups = RiemannianAdam(param_groups(model), lr=0.1)
    with torch.no_grad():
        model.weight.copy_(nn.functional.normalize(model.weight, dim=1))
    agrees = RiemannianSGD([{"params": [model.weight], "manifold": Sphere()}], lr=0.1)
    declare(model, "weight", Sphere())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    with pytest.raises(
        DeclarationError, match=rf"^weight was declared on Sphere\(\), by the name weight, {LATE} Euclidean"
    ):
        by_groups.step()
    agrees.step()


class Wrapped(nn.Linear):
    """What tool kits for LoRA or float8 do: a new module that takes over the parameters."""

    @classmethod
    def of(cls, layer):
        new = cls(layer.in_features, layer.out_features)
        new.weight, new.bias = layer.weight, layer.bias
        return new


def swapped(model):
    model[0] = Wrapped.of(model[0])
    return model


def for_quantization(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a successor
        model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        return quantization.prepare_qat(model.train())


@pytest.mark.parametrize("swap", [swapped, for_quantization, lambda model: swapped(copy.deepcopy(model))])
def test_a_module_swapped_around_its_parameter(swap):
    model = swap(network())
    for call in (param_groups, declared, project_, get_multi_avg_fn):
        with pytest.raises(DeclarationError, match=LOST):
            call(model)
    undeclare(model, "0.weight")
    assert declared(model) == {}
    declare(model, "0.weight", Sphere())
    assert list(declared(model)) == ["0.weight"]


def test_traced_and_exported_models():
    model = network()
    declare(model, "2.weight", Sphere())
    traced = torch.fx.symbolic_trace(model)
    assert set(declared(traced)) == {"0.weight", "2.weight"}  # its layers are those of the model

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x @ self.weight.T)

    root = Root()
    declare(root, "weight", Sphere())
    with pytest.raises(DeclarationError, match="traced or exported module has lost its declarations"):
        param_groups(torch.fx.symbolic_trace(root))
    declare(root, "layer.weight", Sphere())
    with pytest.raises(DeclarationError, match=r"^weight was declared on Sphere\(\)"):
        param_groups(torch.fx.symbolic_trace(root))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch to itself
        exported = torch.export.export(root, (torch.randn(2, 4),))
        models = exported.module(), torch.export.unflatten(exported)
    for model in models:
        with pytest.raises(DeclarationError, match="traced or exported module has lost its declarations"):
            param_groups(model)


def test_marks_are_plain_values():
    model = network()
    buffer = io.BytesIO()
    torch.save([model[0].weight, model.state_dict(), model.state_dict(keep_vars=True)], buffer)
    buffer.seek(0)
    weight, *_ = torch.load(buffer, weights_only=True)
    assert torch.equal(weight, model[0].weight)


def test_undeclare():
    model = network()
    declare(model, "2.weight", Sphere(), joined=("bias",))
    weights = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(DeclarationError, match="2.bias belongs to the points of weight; undeclare that"):
        undeclare(model, "2.bias")
    with pytest.raises(DeclarationError, match=r"0.bias is not declared; declared are: 0.weight, 2.weight"):
        undeclare(model, "0.bias")
    with pytest.raises(DeclarationError, match="names are those of named_parameters"):
        undeclare(model, "7.weight")
    undeclare(model, "2.weight")
    undeclare(model[0], "weight")
    assert declared(model) == {}
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    with pytest.raises(DeclarationError, match="0.weight is not declared; declared are: nothing"):
        undeclare(model, "0.weight")
    RiemannianAdam(model.parameters())
    assert all(not vars(p) for p in model.parameters())
    assert not model[0]._load_state_dict_pre_hooks
    assert not model[0]._load_state_dict_post_hooks


def test_undeclare_what_is_gone_and_what_is_tied():
    model = network()
    del model[0].weight
    undeclare(model, "0.weight")
    assert declared(model) == {}
    tied = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    tied[1].weight = tied[0].weight
    declare(tied, "0.weight", Sphere())
    declare(tied, "1.weight", Sphere())
    undeclare(tied, "0.weight")
    assert list(declared(tied)) == ["1.weight"]
    with pytest.raises(DeclarationError, match=FLAT):
        RiemannianSGD(tied.parameters(), lr=0.1)


def test_a_shallow_copy_keeps_its_own():
    layer = nn.Linear(4, 3)
    declare(layer, "weight", Sphere())
    twin = copy.copy(layer)
    undeclare(twin, "weight")
    assert declared(twin) == {}
    assert declared(layer)
    del layer
    copy.deepcopy(twin)


def test_no_cycle_keeps_a_declared_module_alive():
    import gc
    import weakref

    gc.disable()
    try:
        model = network()
        gone = weakref.ref(model[0].weight)
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_stiefel_of_a_deepcopy_keeps_its_cut():
    layer = nn.Conv2d(2, 4, 3)
    declare(layer, "weight", Stiefel(), Rows.whole(columns=0))
    twin = through_pickle(copy.deepcopy(layer))
    assert declared(twin)["weight"].rows == Rows.whole(columns=0)
