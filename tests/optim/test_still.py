"""A step with zero gradients at lr = 0 changes no bit: distributed checkpointing initializes state that way."""

import itertools

import pytest
import torch
from optimizers import VARIANTS
from paths import PATHS
from retract.errors import OptionError
from retract.manifolds import PSI, Euclidean, ExponentialManifold, FixedRank, Grassmann, Sphere, Stiefel
from torch import nn

NAMES = (
    "sgd", "sgd-plain", "sgd-momentum", "sgd-velocity-project", "sgd-free", "adam", "psi-sgd", "psi-sgdm-free", "sgdg",
    "adamg",
)  # fmt: skip
MANIFOLDS = [Euclidean(0), Euclidean(1), PSI(), Sphere(), Grassmann(1), Grassmann(2), Stiefel(), FixedRank(2, 3)]


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_moves(name, manifold, dtype, tensor_lr, device):
    """Rows inside and outside the band of norms, on the manifold and off it; on every path that there is."""
    for path in PATHS.values():
        nothing_moves(VARIANTS[name], manifold, dtype, torch.tensor(0.0) if tensor_lr else 0.0, path, device)


def nothing_moves(make, manifold, dtype, lr, path, device):
    w = nn.Parameter(manifold.random_point(6, 2 if manifold.event_ndim == 2 else 4, device=device).to(dtype))
    try:
        optimizer = make([{"params": [w], "manifold": manifold, **path}], lr=lr, orthogonality=0.0)
    except OptionError:
        assert path != {} or not isinstance(manifold, ExponentialManifold)
        return
    if manifold.event_ndim != 2 or w.element_size() > 2:  # torch has no QR and SVD in half precision
        scale = torch.tensor([[3e3 if dtype == torch.float16 else 3e4], [1e-6], [0.0]], device=device)
        w.data[:3] = (torch.randn(3, w.shape[1], device=device) * scale).to(dtype)
    before = w.detach().clone()
    for _ in range(2):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    assert torch.equal(w.detach(), before)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)
def test_something_moves_otherwise(manifold, device):
    """The control: with a gradient and a rate every optimizer above moves every parameter."""
    for name, path in itertools.product(NAMES, PATHS):
        w = nn.Parameter(manifold.random_point(6, 2, dtype=torch.float64, device=device))
        try:
            group = {"params": [w], "manifold": manifold, **PATHS[path]}
            optimizer = VARIANTS[name]([group], lr=0.1, orthogonality=0.0)
        except OptionError:
            assert manifold.event_ndim == 2
            continue
        before = w.detach().clone()
        w.grad = torch.randn_like(w)
        optimizer.step()
        assert not torch.equal(w.detach(), before), (name, path)
