"""The weights that the methods treat differently, and the rest of the parameters, which has a rate of its own in every method."""

from __future__ import annotations

from typing import Any

import retract
from retract import psi
from retract.errors import RetractError
from retract.manifolds import FixedRank, Manifold, Rows
from torch import Tensor, nn

__all__ = ["grouped", "on", "on_pairs", "relative", "split"]


def split(network: nn.Module, example: Tensor) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights that methods differ in, and all other parameters.

    They are those that `network` names in ``hidden``, and of a network without it those that `psi.find` measures to be
    scale-invariant. Weights and biases of normalization layers are among the others, invariant or not, as in the papers.
    """
    names = _weights(network, example)
    parameters = [*network.named_parameters()]
    return [p for name, p in parameters if name in names], [p for name, p in parameters if name not in names]


def on(
    manifold: Manifold, network: nn.Module, example: Tensor, rows: Rows | None = None
) -> tuple[list[dict[str, Any]], list[nn.Parameter]]:
    """The weights of `split` declared on `manifold`, in groups of an optimizer, and all other parameters.

    Their points are cut by `rows`, or else those of the invariance, and then a weight that is not invariant is one point. On a
    manifold of matrices a weight is one matrix, outputs × everything else, and biases are among the others.
    """
    found = rows is None and manifold.event_ndim == 1
    if found:
        psi.declare(network, example, manifold=manifold)
    missing = _weights(network, example) - {*retract.declared(network)}
    for name, p in network.named_parameters():
        if name in missing and p.ndim >= manifold.event_ndim:
            whole = Rows.whole() if found else Rows.whole(columns=tuple(range(1, p.ndim)))
            retract.declare(network, name, manifold, rows or whole)
    return grouped(network)


def on_pairs(
    network: nn.Module, example: Tensor
) -> tuple[list[dict[str, Any]], list[nn.Parameter], list[nn.Parameter]]:
    """Groups of what is declared, the other weights of `split`, and all other parameters, with the pairs of weights declared on
    `FixedRank`."""
    names = _weights(network, example)
    for pair in psi.find(network, example).pairs:
        if names.issuperset(pair.names):
            retract.declare(network, pair.factors, FixedRank(pair.k, degree=pair.degree))
    groups, rest = grouped(network)
    weights, others = split(network, example)
    left = {id(p) for p in rest}
    return groups, [p for p in weights if id(p) in left], others


def grouped(network: nn.Module) -> tuple[list[dict[str, Any]], list[nn.Parameter]]:
    """Groups of what is declared, and the parameters of which nothing is."""
    groups = [group for group in retract.param_groups(network) if "manifold" in group or "slices" in group]
    taken = {id(p) for group in groups for p in group["params"]}
    return groups, [p for p in network.parameters() if id(p) not in taken]


def relative(weights: list[nn.Parameter], lr: float, **options: float) -> list[dict[str, Any]]:
    """A group for each of `weights`, with the rate at which a step of Adam, of ±1 in each number, has `lr` times its norm."""
    return [{"params": [p], "lr": lr * p.detach().square().mean().sqrt().item(), **options} for p in weights]


def _weights(network: nn.Module, example: Tensor) -> set[str]:
    if hidden := getattr(network, "hidden", None):
        return {*hidden}
    report = psi.find(network, example)
    matrices = [finding for finding in report if len(finding.shape) > 1]
    if felt := [finding for finding in matrices if finding.granularity == "none" and " eps " in finding.reason]:
        raise RetractError(
            "which weights are scale-invariant depends on the start: "
            + "; ".join(f"{finding.name}: {finding.reason}" for finding in felt)
            + ". Make eps smaller, so that methods have the same weights from every start"
        )
    return {finding.name for finding in report.invariant if len(finding.shape) > 1}
