"""Every option on every kind of group and path, against `update.update` in float64: where it has a meaning it acts once, where it has
none it does not act."""

import pytest
import torch
from optimizers import OPTIMIZERS
from retract.manifolds import (
    PSI,
    Euclidean,
    ExponentialManifold,
    FixedRank,
    GeodesicManifold,
    Grassmann,
    Sphere,
    Stiefel,
)
from retract.optim.rules import Memory
from retract.optim.update import update
from torch import nn

PATHS = {
    "reference": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}
KINDS = {
    "every coordinate": (Euclidean(0), (5, 4)),
    "flat rows": (Euclidean(1), (5, 4)),
    "psi": (PSI(), (5, 4)),
    "sphere": (Sphere(), (5, 4)),
    "lines": (Grassmann(1), (5, 4)),
    "subspaces": (Grassmann(2), (3, 5, 2)),
    "frames": (Stiefel(), (3, 5, 2)),
    "products": (FixedRank(2, 3), (3, 7, 2)),
    "units": (FixedRank(1, 3), (4, 5, 1)),
}
CHANGES = {
    "none": {},
    "decay": {"weight_decay": 0.5},
    "orthogonality": {"orthogonality": 0.3},
    "clip": {"max_point_norm": 0.1},
    "exp": {"motion": "exp", "transport": "project"},
    "transport": {"transport": "project"},
    "parallel": {"transport": "parallel"},
    "carried along": {"transport": "none"},
    "free": {"radius": "free"},
    "maximize": {"maximize": True},
    "maximize and all": {"maximize": True, "orthogonality": 0.3, "max_point_norm": 0.1, "weight_decay": 0.5},
}
FLAT = {"orthogonality": 0.0, "max_point_norm": None, "motion": "retract", "transport": "none", "radius": "hold"}
"""What the options without a meaning in flat space are set to there by those who leave them alone."""
MAKES = ("sgd", "adam", "sgdg", "adamg")


def options_for(kind, change):
    """The options of a change that the manifold of a kind can honour, or ignores."""
    manifold, _ = KINDS[kind]
    options = {
        "orthogonality": 0.0,
        "motion": "retract",
        "transport": "manifold",
        "max_point_norm": None,
        **CHANGES[change],
    }
    if not isinstance(manifold, Euclidean):
        options.pop("weight_decay", None)
    if manifold.event_ndim == 2:
        options["orthogonality"] = 0.0
        if not isinstance(manifold, GeodesicManifold) and options["transport"] == "parallel":
            options["transport"] = "project"
        if not isinstance(manifold, ExponentialManifold):
            options["motion"] = "retract"
    return options


def by_hand(optimizer, manifold, x, grads):
    """Points and state after steps of `update` alone, with options that have no meaning in flat space set aside."""
    group, rule = optimizer.param_groups[0], optimizer.rule
    options = {**group, **(FLAT if isinstance(manifold, Euclidean) else {})}
    x, vector, numbers = x.clone(), torch.zeros_like(x), {}
    for name in rule.scalars:
        numbers[name] = torch.zeros_like(manifold.inner(x, x, x))
    for t, grad in enumerate(grads):
        memory = Memory(
            x.dtype, fresh=t == 0, vectors={rule.vectors[0]: vector}, scalars=numbers, step=torch.tensor(t + 1.0)
        )
        x = update(manifold, rule, x, grad, memory, options)
        vector, numbers = memory.vectors[rule.vectors[0]], memory.scalars
    return x, vector


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", MAKES)
def test_every_option(make, kind):
    manifold, shape = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    start = manifold.random_point(*shape, generator=generator, dtype=torch.float64)
    grads = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    for change in CHANGES:
        options = options_for(kind, change)
        for name, path in PATHS.items():
            if manifold.event_ndim == 2 and name in ("foreach", "fused"):
                continue
            w = nn.Parameter(start.clone())
            optimizer = OPTIMIZERS[make]([{"params": [w], "manifold": manifold}], lr=0.1, **options, **path)
            exact = by_hand(optimizer, manifold, start, grads)
            for grad in grads:
                w.grad = grad.clone()
                optimizer.step()
            ours = w.detach(), optimizer.state[w][optimizer.rule.vectors[0]]
            for mine, theirs in zip(ours, exact, strict=True):
                assert (mine - theirs).abs().max() < 1e-12 * theirs.abs().max().clamp(min=1.0), (change, name)
