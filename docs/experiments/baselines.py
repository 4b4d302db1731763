"""SGDP and AdamP (Heo et al., AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-Invariant Weights, ICLR 2021).

What others use against the growth of scale-invariant weights: the ordinary update, without its part along the weight. Whether
a weight is scale-invariant is guessed from the gradient at hand. Compared with, not recommended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["SGDP", "AdamP"]


class _Projected(torch.optim.Optimizer):
    """Direction of the step, projection, decoupled decay, step (their Algorithms 2 and 3)."""

    def _direction(self, p: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
        """The step of the ordinary optimizer, divided by the second value, the size of the step."""
        raise NotImplementedError

    def _decay(self, group: dict[str, Any]) -> float:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """As in `torch.optim.Optimizer`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                direction, size = self._direction(p, group)
                rows = _invariant_rows(p, p.grad, group["delta"], group["eps"]) if p.ndim > 1 else None
                decay = self._decay(group)
                if rows is not None:
                    w, d = p.reshape(rows, -1), direction.reshape(rows, -1)
                    v = w / (w.norm(dim=1, keepdim=True) + group["eps"])
                    direction = (d - v * (v * d).sum(1, keepdim=True)).view_as(p)
                    decay *= group["wd_ratio"]
                p.mul_(1.0 - decay).sub_(direction, alpha=size)
        return loss


class SGDP(_Projected):
    """SGD with momentum and projection (Heo et al., Algorithm 2).

    As there, the step is projected and the buffer is not. In timm and in the authors' code the two are one tensor without Nesterov's
    momentum, so that the buffer is projected too: with Nesterov's momentum and with none both agree.

    Args:
        params: as in `torch.optim.SGD`.
        lr: η.
        momentum: β of the heavy ball; the buffer starts at zero.
        nesterov: whether the step is ∇L + β times the new buffer, as in the authors' code; the paper has the buffer alone.
        weight_decay: λ, decoupled: weights shrink by 1 − ηλ / (1 − β), and by `wd_ratio` of it where they are projected.
        delta: δ of eq. 11: a weight counts as scale-invariant if its cosine with the gradient is below δ / √dim.
        wd_ratio: their ratio of decay on such weights.
        eps: added to norms.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        eps: float = 1e-8,
        nesterov: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, {**defaults, "delta": delta, "wd_ratio": wd_ratio, "eps": eps})

    def _direction(self, p: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
        return buffer.mul(group["momentum"]).add_(p.grad) if group["nesterov"] else buffer, group["lr"]

    def _decay(self, group: dict[str, Any]) -> float:
        return group["lr"] * group["weight_decay"] / (1.0 - group["momentum"])


class AdamP(_Projected):
    """Adam with projection (Heo et al., Algorithm 3). Arguments as in `torch.optim.AdamW` and `SGDP`; weights shrink by
    1 − ηλ."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "delta": delta, "wd_ratio": wd_ratio})

    def _direction(self, p: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        state["exp_avg"].lerp_(p.grad, 1.0 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1.0 - beta2)
        root = (state["exp_avg_sq"] / (1.0 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        return state["exp_avg"] / root, group["lr"] / (1.0 - beta1 ** state["step"])

    def _decay(self, group: dict[str, Any]) -> float:
        return group["lr"] * group["weight_decay"]


def _invariant_rows(p: Tensor, gradient: Tensor, delta: float, eps: float) -> int | None:
    """Rows of `p` that are to be projected one by one: its channels, 1 for `p` as a whole, None for none (eq. 11)."""
    for rows in (len(p), 1):
        w, g = p.reshape(rows, -1), gradient.reshape(rows, -1)
        cosine = torch.nn.functional.cosine_similarity(g, w, dim=1, eps=eps).abs().max()
        if cosine < delta / math.sqrt(w.shape[1]):
            return rows
    return None
