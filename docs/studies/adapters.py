"""Low-rank adapters, and the parameters that the methods of the studies of LoRA treat differently."""

from __future__ import annotations

from typing import Any

import retract
from retract.manifolds import Factors, FixedRank, Part
from torch import Tensor, nn

__all__ = ["Adapted", "factors", "on_fixed_rank"]

_DAMPING = 1e-2
"""What docs/lora.md recommends, for B = 0."""


class Adapted(nn.Module):
    """A frozen layer with an adapter, W + B A; B = 0 at the start, and A is drawn as the weights of a linear layer of torch are."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


def factors(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The factors A, the factors B, and all other parameters that are trained."""
    adapters = [module for module in network.modules() if isinstance(module, Adapted)]
    a = [p for adapter in adapters for p in adapter.a.parameters()]
    b = [p for adapter in adapters for p in adapter.b.parameters()]
    return a, b, [p for p in network.parameters() if p.requires_grad and p not in {*a, *b}]


def on_fixed_rank(network: nn.Module) -> tuple[list[dict[str, Any]], list[nn.Parameter]]:
    """The pairs (B, A) declared on `FixedRank` with damping, as groups of an optimizer, and all other parameters that are trained."""
    for name, module in network.named_modules():
        if isinstance(module, Adapted):
            pair = Factors((Part(f"{name}.b.weight", dim=1),), (Part(f"{name}.a.weight"),))
            retract.declare(network, pair, FixedRank(module.a.out_features, damping=_DAMPING))
    return [group for group in retract.param_groups(network) if "slices" in group], factors(network)[2]
