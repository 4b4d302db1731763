"""Euclidean points through torch's functions, with the results and the state of `torch.optim`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from ...manifolds import Euclidean, Manifold
from ..options import Options
from ..rules import Adam, CoordinateAdam, Momentum, Rule
from .operands import Arrays, Operand
from .plan import ArrayPlan
from .points import State, count_steps

__all__ = ["Torch", "torch_has"]


def torch_has(manifold: Manifold, rule: Rule, options: Options) -> bool:
    """Whether `torch.optim` has this rule on `manifold`."""
    if type(rule) in (Adam, CoordinateAdam):
        return manifold == Euclidean(0) and options["eps_form"] == "outside"
    return (
        type(rule) is Momentum
        and isinstance(manifold, Euclidean)
        and (options["momentum_form"] == "heavy_ball" or options["momentum"] == 0)
        and not (options["decoupled_weight_decay"] and options["weight_decay"])
        and (options["shape"] is None or manifold.event_ndim == 0)
    )


class Torch(ArrayPlan):
    """The plan for contiguous Euclidean points of one dtype and device on torch's *foreach*, *fused* or plain path."""

    half = True

    def __init__(self, operands: Sequence[Operand], state: State, rule: Rule, *, foreach: bool, fused: bool) -> None:
        super().__init__(operands, state, rule)
        self._paths: dict[str, Any] = {"foreach": foreach, "fused": fused}
        self.silent = fused  # torch's kernels do not raise versions

    def run(self, arrays: Arrays, params: Sequence[Tensor], fresh: Sequence[bool] | None, options: Options) -> None:
        common: dict[str, Any] = {name: options[name] for name in ("weight_decay", "maximize")}
        common["lr"] = float(options["lr"])
        if isinstance(self.rule, Adam):
            self._adam(arrays, options, common)
        else:
            self._sgd(arrays, fresh, options, common)

    def _adam(self, arrays: Arrays, options: Options, common: dict[str, Any]) -> None:
        steps = count_steps([self.state[p] for p in arrays.params], by=0)  # torch counts
        beta1, beta2 = options["betas"]
        adam(
            arrays.params,
            arrays.grads,
            arrays.vectors["exp_avg"],
            (arrays.scalars | arrays.vectors)["exp_avg_sq"],
            [],
            steps,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            eps=options["eps"],
            decoupled_weight_decay=options["decoupled_weight_decay"],
            **self._paths,
            **common,
        )

    def _sgd(self, arrays: Arrays, fresh: Sequence[bool] | None, options: Options, common: dict[str, Any]) -> None:
        params, grads, moving = arrays.params, arrays.grads, options["momentum"] != 0
        vectors: list[Any] = arrays.vectors["momentum_buffer"] if moving else [None] * len(grads)
        if self._paths["foreach"] and options["nesterov"]:
            grads = [grad.clone() for grad in grads]  # torch writes to the gradients
        for (new, _), members in self.batches(params, fresh):
            p, g, b = params, grads, vectors
            if len(members) < len(grads):
                p, g, b = ([tensors[i] for i in members] for tensors in (params, grads, vectors))
            numbers: dict[str, Any] = {
                "momentum": options["momentum"],
                # A fresh buffer is 0 here, and the first gradient enters it undamped.
                "dampening": 0.0 if new else options["dampening"],
                "nesterov": options["nesterov"],
                **common,
            }
            if self._paths["fused"]:
                # Without torch's grouping by device and dtype, which the plan has done.
                torch._fused_sgd_(p, g, b if moving else [], is_first_step=False, **numbers)
            else:
                sgd(p, g, b, **self._paths, **numbers)
