"""Vectors cut across three processes, one of which has no coordinates, stepped in place with sums over all."""

import torch
from processes import counted, full, together
from retract.manifolds import PSI, Sphere
from retract.optim import PSISGD, Coefficients, RiemannianAdam, RiemannianSGD
from retract.optim.rules import Rule
from torch import nn

STEPS = 4
SHAPES = [(5, 4), (3, 2)]  # 2, 2 and 0 coordinates; 1, 1 and 0


class Averaged(Rule):
    """Two vectors: the mean of two averages of the gradients."""

    vectors, reads_lengths = ("fast", "slow"), False

    def __call__(self, length, memory, options):
        along = -options["lr"]
        return Coefficients({"fast": 0.5, "slow": 0.9}, {"fast": 0.5, "slow": 0.1}, {"fast": along, "slow": along})


class Own(RiemannianSGD):
    rule = Averaged()


CASES = {
    "momentum": (PSI(), torch.float64, lambda p: PSISGD(p, lr=0.1, momentum=0.9, transport="parallel")),
    "free": (PSI(), torch.float64, lambda p: PSISGD(p, lr=0.1, momentum=0.9, radius="free")),
    "clipped": (Sphere(), torch.float64, lambda p: RiemannianSGD(p, lr=0.1, momentum=0.9, max_point_norm=1e-3)),
    "adam": (Sphere(), torch.float64, lambda p: RiemannianAdam(p, lr=0.1)),
    "own": (Sphere(), torch.float64, lambda p: Own(p, lr=0.1)),
    "stopped": (Sphere(), torch.float64, lambda p: RiemannianSGD(p, lr=0.1, momentum=0.9)),
    "half": (PSI(), torch.float16, lambda p: PSISGD(p, lr=0.1, momentum=0.9)),
}


def run(case, place, steps_of=lambda work: work()):
    """Parameters and state after some steps, the second parameter without a gradient in the first, and the results of `steps_of`."""
    manifold, dtype, make = CASES[case]
    torch.manual_seed(0)
    params = [nn.Parameter(place(manifold.nearest(torch.randn(s, dtype=torch.float64)).to(dtype))) for s in SHAPES]
    optimizer = make([{"params": params, "manifold": manifold, "names": ["w", "z"]}])
    counts = []
    for t in range(STEPS):
        if case == "stopped" and t == 1:
            optimizer.param_groups[0]["momentum"] = 0.0  # the second parameter never gets a buffer
        for p in params[: 1 if t == 0 else None]:
            x, noise = full(p.detach()), torch.randn(p.shape, dtype=torch.float64).to(dtype)
            radial = x * (x * noise).sum(1, keepdim=True) / x.square().sum(1, keepdim=True)
            p.grad = place(3.0 * x + 1e-3 * noise if isinstance(manifold, Sphere) else 0.1 * (noise - radial))
        counts.append(steps_of(optimizer.step))
    result = {f"{i}": full(p.detach()) for i, p in enumerate(params)}
    for i, p in enumerate(params):
        result |= {f"{name} {i}": full(value) for name, value in optimizer.state[p].items()}
    return result, counts


def sharded(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (3,))
    return {case: run(case, lambda tensor: distribute_tensor(tensor, mesh, [Shard(1)]), counted) for case in CASES}


def test_three_processes_step_as_one_with_two_sums_per_group():
    """Also if the parameters of a group have made different numbers of steps, or only some have a buffer."""
    found = together(3, sharded)
    for case, (_, dtype, _) in CASES.items():
        exact = run(case, lambda tensor: tensor)[0]
        for result, counts in (its[case] for its in found):
            assert result.keys() == exact.keys()
            for name, value in exact.items():
                assert result[name].shape == value.shape
                assert result[name].dtype == value.dtype
                scale = 3.0 if name.split()[0] in ("exp_avg", "fast", "slow") else value.abs().max()
                bound = 1e-12 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
                assert (result[name] - value).abs().max() <= bound * scale, (case, name)
            expected = 1 if case in ("free", "half") else 2  # additive steps need no dot products with the step
            assert counts == [expected] * STEPS, case
