"""Slices of parameters that are sharded by FSDP2: two processes against one, and the state that both can load."""

import retract
import torch
from processes import together
from retract.optim import RiemannianAdam, RiemannianSGD
from slices import declared_network, network

STEPS = 4
MAKES = {
    "SGD": lambda groups: RiemannianSGD(groups, lr=0.05),
    "momentum": lambda groups: RiemannianSGD(groups, lr=0.02, momentum=0.9, transport="project"),
    "Adam": lambda groups: RiemannianAdam(groups, lr=0.01),
}


def full(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def run(make, model, steps_of=lambda work: work()):
    """Weights, state and the results of `steps_of` after some steps."""
    x, y = torch.randn(2, 5, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    optimizer, counts = make(retract.param_groups(model)), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        counts.append(steps_of(optimizer.step))
    found = {name: full(p.detach()) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        found |= {f"{name} {key}": full(value) for key, value in optimizer.state[p].items()}
    return found, counts


def counted(work):
    from torch.distributed.tensor.debug import CommDebugMode

    with CommDebugMode() as talk:
        work()
    return talk.get_total_counts()


def sharded(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, found = init_device_mesh("cpu", (2,)), {}
    for name, make in MAKES.items():
        model = declared_network()
        fully_shard(model, mesh=mesh)
        found[name] = run(make, model, counted)
    return found


def test_two_processes_step_as_one_with_one_collective_per_group():
    found = together(2, sharded)
    for name, make in MAKES.items():
        exact, _ = run(make, declared_network())
        start = dict(network().named_parameters())
        for result, counts in (each[name] for each in found):
            assert result.keys() == exact.keys()
            for key, value in exact.items():
                assert result[key].shape == value.shape
                assert (result[key] - value).abs().max() <= 1e-12 * max(1.0, float(value.abs().max())), (name, key)
            assert all(not torch.equal(result[key], p) for key, p in start.items())
            assert max(counts) <= 2
