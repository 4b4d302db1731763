"""The weights that the methods treat differently, and the rest of the parameters, which has a rate of its own in every method."""

from __future__ import annotations

from typing import Any

import retract
from retract import psi
from retract.manifolds import Manifold, Rows
from torch import Tensor, nn

__all__ = ["on", "split"]


def split(network: nn.Module, example: Tensor) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights that `psi.find` measures to be scale-invariant, and all other parameters.

    Weights and biases of normalization layers are among the others, invariant or not, as in the papers.
    """
    invariant = {finding.name for finding in psi.find(network, example).invariant if len(finding.shape) > 1}
    parameters = [*network.named_parameters()]
    return [p for name, p in parameters if name in invariant], [p for name, p in parameters if name not in invariant]


def on(
    manifold: Manifold, network: nn.Module, example: Tensor, rows: Rows | None = None
) -> tuple[list[dict[str, Any]], list[nn.Parameter]]:
    """As `split`, with the weights declared on `manifold` and in groups of an optimizer.

    Their points are cut by `rows`, or else those of the invariance. On a manifold of matrices a weight is one matrix, outputs ×
    everything else.
    """
    weights, others = split(network, example)
    if rows is None and manifold.event_ndim == 1:
        psi.declare(network, example, manifold=manifold)
    else:
        for name, p in network.named_parameters():
            if any(p is weight for weight in weights):
                retract.declare(network, name, manifold, rows or Rows.whole(columns=tuple(range(1, p.ndim))))
    return [group for group in retract.param_groups(network) if "manifold" in group], others
