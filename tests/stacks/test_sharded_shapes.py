"""Matrices that are sharded across two processes: gathered in one collective per group, or whole in one process, and stepped as one."""

import pytest
import torch
from processes import counted, full, together
from retract.manifolds import PSI, Euclidean, Rows, Sphere
from retract.optim import AdamH, Muon, MuonH, ObliqueAdam, PSIMuon, Rotational, Scion, Spectral
from torch import nn

WHOLE = Rows.whole()
EXACT = Spectral("svd")
# Optimizer, manifold, rows, shapes of parameters, the number of collectives in a step.
CASES = {
    "muon": (Muon, Euclidean(2), Rows(), [(6, 4), (5, 4), (6, 4)], 1),
    "experts whole in a process": (Muon, Euclidean(2), Rows(), [(4, 3, 5)], 0),
    "heads whole in a process": (MuonH, PSI(), Rows(blocks=4), [(8, 5), (8, 5)], 0),
    "heads cut": (MuonH, PSI(), Rows(blocks=3), [(6, 5)], 1),
    "muonh": (MuonH, PSI(), WHOLE, [(6, 4), (5, 4)], 1),
    "adamh": (AdamH, PSI(), WHOLE, [(6, 4), (5, 4)], 1),
    "scion": (Scion, Euclidean(2), Rows(), [(6, 4)], 1),
    "psimuon": (PSIMuon, PSI(), Rows(), [(6, 4), (5, 4)], 1),
    "rotational": (Rotational, PSI(), Rows(), [(6, 4), (5, 4)], 0),
    "oblique": (ObliqueAdam, Sphere(), Rows(), [(6, 4)], 0),
}


def run(case, dtype, place, steps_of=lambda work: work()):
    """Parameters and state after some steps."""
    make, manifold, rows, shapes, _ = CASES[case]
    torch.manual_seed(0)
    params = [nn.Parameter(place(manifold.nearest(torch.randn(s, dtype=torch.float64)).to(dtype))) for s in shapes]
    options = {"shape": EXACT} if make is Muon else {}
    optimizer = make([{"params": params, "manifold": manifold, "rows": rows}], lr=0.05, **options)
    counts = []
    for _ in range(4):
        for p in params:
            p.grad = place(torch.randn(p.shape, dtype=torch.float64).to(dtype))
        counts.append(steps_of(optimizer.step))
    result = {f"{i}": full(p.detach()) for i, p in enumerate(params)}
    for i, p in enumerate(params):
        result |= {f"{name} {i}": full(value) for name, value in optimizer.state[p].items()}
    return result, counts


def sharded(rank, dtype):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    return {
        case: run(case, dtype, lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)]), counted) for case in CASES
    }


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-6)], ids=str)
def test_two_processes_step_as_one(dtype, bound):
    found = together(2, sharded, dtype)
    for case, (*_, collectives) in CASES.items():
        exact = run(case, dtype, lambda tensor: tensor)[0]
        for result, counts in (its[case] for its in found):
            assert result.keys() == exact.keys()
            for name, value in exact.items():
                assert result[name].dtype == value.dtype
                assert (result[name] - value).abs().max() <= bound * value.abs().max(), (case, name)
            assert set(counts[1:]) == {collectives}, (case, counts)
