"""Euclidean points through torch's own functions: the rule, the state and the numbers of `torch.optim`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from ...manifolds import Euclidean, Manifold
from ..options import Options
from ..rules import Adam, Momentum, Rule
from .operands import New, Reading, Seat, raise_versions
from .plan import Plan
from .points import State, count_steps

__all__ = ["Torch", "torch_has"]


def torch_has(manifold: Manifold, rule: Rule, options: Options) -> bool:
    """Whether `torch.optim` has this rule on `manifold`."""
    if type(rule) is Adam:
        return manifold == Euclidean(0) and options["eps_form"] == "outside"
    return (
        type(rule) is Momentum
        and isinstance(manifold, Euclidean)
        and (options["momentum_form"] == "heavy_ball" or options["momentum"] == 0)
    )


class Torch(Plan):
    """Euclidean points that lie, of one dtype and device, on torch's *foreach*, *fused* or plain path."""

    half = True

    def __init__(self, seats: Sequence[Seat], state: State, rule: Rule, *, foreach: bool, fused: bool) -> None:
        super().__init__(seats, state, rule)
        self._paths: dict[str, Any] = {"foreach": foreach, "fused": fused}

    def step(self, found: Reading, new: Sequence[New] | None, options: Options) -> None:
        assert self.matrices is not None
        common: dict[str, Any] = {name: options[name] for name in ("weight_decay", "maximize")}
        common["lr"] = float(options["lr"])
        (self._adam if isinstance(self.rule, Adam) else self._sgd)(found.grads, new, options, common)
        if self._paths["fused"]:  # torch's own kernels do not
            raise_versions(self.matrices.written)

    def _adam(self, grads: list[Tensor], new: Any, options: Options, common: dict[str, Any]) -> None:
        its = self.matrices
        assert its is not None
        steps = count_steps([self.state[p] for p in its.params], by=0)  # torch counts
        beta1, beta2 = options["betas"]
        adam(
            its.params,
            grads,
            its.vectors["exp_avg"],
            its.scalars["exp_avg_sq"],
            [],
            steps,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            eps=options["eps"],
            **self._paths,
            **common,
        )

    def _sgd(self, grads: list[Tensor], new: Sequence[New] | None, options: Options, common: dict[str, Any]) -> None:
        its = self.matrices
        assert its is not None
        moving = options["momentum"] != 0
        vectors: list[Tensor | None] = [*its.vectors["momentum_buffer"]] if moving else [None] * len(grads)
        if self._paths["foreach"] and options["nesterov"]:
            grads = [grad.clone() for grad in grads]  # torch writes to what it is given
        for batch, members in self.batches(its.params, new):
            mine, theirs, moved = its.params, grads, vectors
            if len(members) < len(grads):
                mine, theirs = [mine[i] for i in members], [theirs[i] for i in members]
                moved = [moved[i] for i in members]
            numbers: dict[str, Any] = {
                "momentum": options["momentum"],
                # A fresh buffer is 0 here, and the first gradient enters it undamped.
                "dampening": 0.0 if batch.new.vectors else options["dampening"],
                "nesterov": options["nesterov"],
                **common,
            }
            if self._paths["fused"]:
                # Without torch's grouping by device and dtype, which a plan has behind it.
                torch._fused_sgd_(mine, theirs, moved if moving else [], is_first_step=False, **numbers)  # type: ignore[arg-type]
            else:
                sgd(mine, theirs, moved, **self._paths, **numbers)

    def step_copies(self, seats: Sequence[Seat], options: Options) -> None:
        """None: only contiguous parameters are planned here."""
        assert not seats
