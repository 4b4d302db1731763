"""What torch's parametrizations compute a weight from, declared; and a declaration below one made later."""

import pytest
import torch
from networks import batches, train
from retract import declare, declared, param_groups, project_
from retract.errors import DeclarationError
from retract.manifolds import PSI, Rows, Sphere, Stiefel
from retract.optim import PSISGD
from torch import nn
from torch.nn.utils import parametrizations, parametrize


def test_what_is_below_a_parametrization(device):
    """weight_norm's direction is scale-invariant, spectral_norm's matrix up to one factor: both are declared by the names
    that they have now. `parametrize` changes where the parameter is, not what it is."""
    torch.manual_seed(0)
    layers = nn.ModuleDict(
        {
            "weight": parametrizations.weight_norm(nn.Linear(6, 5)),
            "spectral": parametrizations.spectral_norm(nn.Linear(6, 5)),
            "orthogonal": parametrizations.orthogonal(nn.Linear(5, 5)),
        }
    ).to(device)
    declare(layers, "weight.parametrizations.weight.original1", PSI())
    declare(layers, "spectral.parametrizations.weight.original", PSI(), rows=Rows.whole())
    optimizer = PSISGD(param_groups(layers), lr=0.1, momentum=0.9)
    directions = layers["weight"].parametrizations["weight"].original1
    start, held = directions.detach().clone(), directions.detach().norm(dim=1)
    for _ in range(10):
        optimizer.zero_grad()
        layers["orthogonal"](layers["weight"](torch.randn(16, 6, device=device)).tanh()).square().sum().backward()
        layers["spectral"](torch.randn(16, 6, device=device)).square().sum().backward()
        optimizer.step()
    assert not torch.allclose(directions, start, atol=1e-2)
    optimizer.param_groups[0]["lr"] = 1e-12
    optimizer.param_groups[0]["momentum"] = 0.0
    optimizer.step()
    assert torch.allclose(directions.detach().norm(dim=1), held)
    Stiefel().check_point(layers["orthogonal"].weight.detach())


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize(
    ("wrap", "leaf", "rows"),
    [
        (parametrizations.weight_norm, "original1", Rows()),
        (parametrizations.spectral_norm, "original", Rows.whole()),
    ],
    ids=["weight_norm", "spectral_norm"],
)
def test_the_size_below_a_parametrization_is_no_part_of_the_training(wrap, leaf, rows, scale, device):
    ends = []
    for size in (1.0, scale):
        torch.manual_seed(0)
        net = nn.Sequential(wrap(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 4)).to(device, torch.float64)
        net.get_parameter(f"0.parametrizations.weight.{leaf}").data.mul_(size)
        declare(net, f"0.parametrizations.weight.{leaf}", PSI(), rows)
        before = net[0].weight.detach()
        train(
            net,
            PSISGD(param_groups(net), lr=0.1, momentum=0.9),
            list(batches(10, 16, 6, classes=4, dtype=torch.float64, device=device)),
        )
        assert not torch.allclose(net[0].weight, before, atol=1e-2)
        ends.append(net[0].weight.detach())
    assert torch.allclose(*ends, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
    ids=["weight_norm", "spectral_norm", "orthogonal"],
)
def test_a_parametrization_over_a_declaration_is_an_error(wrap, device):
    layer = nn.Linear(5, 5).to(device)
    declare(layer, "weight", Sphere())
    wrap(layer)
    message = (
        r"weight is computed by a parametrization, from parametrizations.weight.original.*: parametrize before you"
    )
    for call in (param_groups, declared, project_, lambda layer: declare(layer, "weight", Sphere())):
        with pytest.raises(DeclarationError, match=message):
            call(layer)
    parametrize.remove_parametrizations(layer, "weight")
    project_(layer)
    (group, _) = param_groups(layer)
    assert group["params"] == [layer.weight]
    Sphere().check_point(layer.weight.detach())
