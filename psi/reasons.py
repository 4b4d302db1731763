"""Why a weight is not scale-invariant, read off the autograd graph for the report. No verdict depends on it."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch import Tensor

__all__ = ["STARVED", "UNUSED", "between", "explain"]

UNUSED = "not used in the forward pass"
STARVED = (
    "cannot tell: BatchNorm sees two values per channel, which become ±1 whatever the weights are; give more samples"
)

# Where two computed things meet that are no gate of each other.
_MEETING = ("Bmm", "ScaledDotProduct", "Baddbmm")
# Of normalization written by hand, what divides by a length.
_BY_HAND = ("Rsqrt", "Sqrt", "Std", "Var")
# Functions f with f(a x) ≠ a f(x), by the name of their autograd node.
_NONLINEAR = {
    "Silu": "SiLU",
    "Gelu": "GELU",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Elu": "ELU",
    "Celu": "CELU",
    "Softplus": "softplus",
    "Hardswish": "hardswish",
    "Hardsigmoid": "hardsigmoid",
    "Hardtanh": "hardtanh",
    "Mish": "Mish",
    "LogSigmoid": "log-sigmoid",
    "Softmax": "softmax",
    "LogSoftmax": "log-softmax",
    "ScaledDotProductFlashAttentionForCpu": "softmax",
    "ScaledDotProductFlashAttention": "softmax",
    "ScaledDotProductEfficientAttention": "softmax",
    "Exp": "exp",
    "Log": "log",
}


def explain(outputs: Iterable[Tensor], weights: dict[str, Tensor]) -> dict[str, str]:
    """Per weight, the first thing on its way to the outputs that stops a factor from passing through to a normalization
    layer."""
    consumers, leaves = _graph(outputs)
    return {name: _walk(leaves.get(id(w)), consumers) for name, w in weights.items()}


def between(outputs: Iterable[Tensor], weights: dict[str, Tensor]) -> dict[tuple[str, str], str]:
    """Which function stands between two weights, the second of which acts on what the first has made, and lets no factor pass."""
    consumers, leaves = _graph(outputs)
    matrices = [name for name, w in weights.items() if w.ndim > 1 and id(w) in leaves]
    views: dict[object, str] = {leaves[id(weights[name])]: name for name in matrices}
    stack = list(views)
    while stack:  # transposed, cast and reshaped weights
        for node in consumers[stack.pop()]:
            names = {views.get(source, "") for source, _ in node.next_functions if source is not None}  # type: ignore[attr-defined]
            if node not in views and len(names) == 1 and "" not in names:
                views[node] = names.pop()
                stack.append(node)
    found: dict[tuple[str, str], str] = {}
    for name in matrices:
        layer, seen = [(node, "") for node, origin in views.items() if origin == name], set(views)
        while layer:
            ahead = []
            for node, blocker in layer:
                for consumer in consumers[node]:
                    kind = _kind(consumer)
                    sources = [source for source, _ in consumer.next_functions if source is not None]  # type: ignore[attr-defined]
                    others = {views[source] for source in sources if source in views} - {name}
                    if others and blocker:
                        found |= {(name, other): blocker for other in others}
                    if consumer in seen or others or kind.startswith(_MEETING) or (kind == "Add" and _sums(consumer)):
                        continue
                    seen.add(consumer)
                    ahead.append((consumer, blocker or _NONLINEAR.get(kind, "")))
            layer = ahead
    return found


def _kind(node: object) -> str:
    """The name of the operation."""
    return re.sub(r"Backward\d*$", "", type(node).__name__)


def _graph(outputs: Iterable[Tensor]) -> tuple[dict[object, list[object]], dict[int, object]]:
    """Node → nodes that use its result; and the node of every leaf tensor, by id."""
    consumers: dict[object, list[object]] = defaultdict(list)
    leaves: dict[int, object] = {}
    stack = [t.grad_fn for t in outputs if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node
        for source, _ in node.next_functions:
            if source is not None:
                consumers[source].append(node)
                if source not in seen:
                    seen.add(source)
                    stack.append(source)
    return consumers, leaves


def _walk(leaf: object | None, consumers: dict[object, list[object]]) -> str:
    if leaf is None:
        return UNUSED
    blocker, frozen, normalized = "", False, False
    layer, seen, first = [leaf], {leaf}, True
    while layer:
        ahead = []
        for node in layer:
            for consumer in consumers[node]:
                kind = _kind(consumer)
                if (("Norm" in kind and "WeightNorm" not in kind) or kind in _BY_HAND) and not first:
                    if not (blocker or normalized) and _starved(kind, consumer):
                        return STARVED
                    normalized = True
                    frozen = frozen or (not blocker and getattr(consumer, "_saved_training", True) is False)
                elif not normalized and not blocker:
                    if kind in _NONLINEAR:
                        blocker = f"{_NONLINEAR[kind]} between weight and normalization layer"
                    elif kind == "Add" and _sums(consumer):
                        blocker = "feeds a residual sum"
                if consumer not in seen:
                    seen.add(consumer)
                    ahead.append(consumer)
        layer, first = ahead, False
    if frozen:
        return "BatchNorm is in eval mode"
    if not normalized:
        return "not followed by a normalization layer"
    return blocker or "not every path to a normalization layer scales with it"


def _starved(kind: str, node: Any) -> bool:
    """Whether `node` is a BatchNorm over two values per channel."""
    if "BatchNorm" not in kind or getattr(node, "_saved_training", True) is False:
        return False
    shape = node._input_metadata[0].shape
    return len(shape) > 1 and math.prod(shape) == 2 * shape[1]


def _sums(node: Any) -> bool:
    """Whether `node` adds two things that were computed, rather than a bias or an eps."""
    return sum(source is not None and not hasattr(source, "variable") for source, _ in node.next_functions) > 1
