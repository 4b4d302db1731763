"""FSDP2 on two processes: matrices cut by `Rows`, loads that put, and marks that refuse."""

import torch
from processes import together
from retract import declare, param_groups
from retract.errors import DeclarationError
from retract.manifolds import Rows, Sphere, Stiefel
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn

CUTS = {
    "filters": ((4, 2, 3, 3), Rows.whole(columns=0)),  # gathered
    "heads": ((8, 6), Rows(blocks=2, columns=0)),  # whole in each shard
    "torn": ((6, 6), Rows(blocks=3, columns=0)),  # gathered
    "experts": ((3, 2, 5), Rows(columns=1)),  # two and one
    "positions": ((4, 3, 2), Rows(dim=2, columns=1)),  # gathered
    "vectors": ((3, 2, 5), Rows(dim=(0, 1))),
}


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        for name, (shape, _) in CUTS.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, dtype=torch.float64)))

    def forward(self, targets):
        return sum((p * target).sum() + p.pow(3).sum() for p, target in zip(self.parameters(), targets, strict=True))


def declared():
    layers = Layers()
    for name, (_, rows) in CUTS.items():
        declare(layers, name, Sphere() if name == "vectors" else Stiefel(), rows)
    return layers


def trained(layers, wrapped, kind):
    optimizer = kind(param_groups(layers), lr=0.1)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        targets = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape, _ in CUTS.values()]
        optimizer.zero_grad()
        wrapped(targets).backward()
        optimizer.step()
    return optimizer


def sharded(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    results = {}
    for kind in (RiemannianSGD, RiemannianAdam):
        layers = declared()
        trained(layers, fully_shard(layers, mesh=mesh), kind)
        results[kind.__name__] = {name: p.full_tensor().detach() for name, p in layers.named_parameters()}
    try:
        RiemannianSGD(layers.parameters(), lr=0.1)
        results["bare"] = "taken"
    except DeclarationError as error:
        results["bare"] = str(error)
    raw = Layers()
    fully_shard(raw, mesh=mesh)
    layers.load_state_dict(raw.state_dict())
    results["loaded"] = {name: p.full_tensor().detach() for name, p in layers.named_parameters()}
    layers.load_state_dict({name: value.clone() for name, value in layers.state_dict().items()}, assign=True)
    results["again"] = {name: p.full_tensor().detach() for name, p in layers.named_parameters()}
    return results


def test_two_processes_do_what_one_does():
    here, there = together(2, sharded)
    for kind in (RiemannianSGD, RiemannianAdam):
        layers = declared()
        trained(layers, layers, kind)
        for name, p in layers.named_parameters():
            for results in (here, there):
                assert (results[kind.__name__][name] - p).abs().max() <= 1e-12, (kind, name)
    for results in (here, there):
        assert (
            "was declared on Stiefel() Rows(dim=0, blocks=1, groups=1, columns=0), by the name filters"
            in results["bare"]
        )
        for name, p in declared().named_parameters():
            assert torch.allclose(results["loaded"][name], p, atol=1e-12), name
            assert torch.equal(results["again"][name], results["loaded"][name])
