"""Theorems 2 and 3 of Yi (UAI 2022), their constants computed and their bounds checked.

A network x → w₁ᵀ ELU(γ · BN(W x) + β) with squared error, in float64, without an eps, its rows at norms over four decades. Data is
cut into batches with statistics of their own, and the loss is the mean over them: only then are the gradients of single batches
unbiased (a batch's BatchNorm makes them biased for the loss of all samples at once).

Replicas of the network that differ in their batches take their steps together: row i of all of them is one parameter of as many
points, with the learning rate η_i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from retract import manifolds, optim
from torch import Tensor

__all__ = ["Blocks", "Config", "Descent", "ExpectedDescent", "theorem_2", "theorem_3"]

_ROUNDS = 8
_MARGIN = 1.02
"""Constants are taken this much larger than what was found, since the next path is another one."""


@dataclass(frozen=True)
class Config:
    """The problem, and how far to go."""

    samples: int = 100
    inputs: int = 4
    hidden: int = 10
    noise: float = 0.1
    decades: float = 4.0
    """Over which the norms of the rows are spread at the start."""
    steps: int = 1_024
    """Of Theorem 2, a power of two."""
    ratios: int = 256
    """Steps, the first ones, whose descent is compared with what the gradient promises."""
    batches: int = 5
    """Of Theorem 3."""
    seeds: int = 32
    """Replicas of Theorem 3, for its expectation."""
    covered: int = 2
    """Of these, those on whose paths the constants are computed, and followed at every fourth step."""
    horizons: tuple[int, ...] = (16, 64, 256)
    """T of Theorem 3."""
    seed: int = 0


@dataclass(frozen=True)
class Blocks:
    """Bounds of the Hessian's blocks in spectral norm, at rows of unit norm (13), and what the theorems make of them."""

    vv: Tensor
    """L^vv, (m, m)."""
    vg: Tensor
    """L^vg, (m,)."""
    gg: Tensor
    """L^gg, ()."""

    @property
    def smoothness(self) -> Tensor:
        """L̃_1, …, L̃_m and L̃_g, (m + 1,): the inverse learning rates of PSI-GD."""
        of_rows = self.vg + self.vv.sum(1)
        of_g = len(self.vg) * self.gg + self.vg.sum()
        return torch.cat([of_rows, of_g[None]])

    def with_those_of(self, other: Blocks, margin: float = 1.0) -> Blocks:
        """The larger of each, `other` times `margin`."""
        pairs = ((self.vv, other.vv), (self.vg, other.vg), (self.gg, other.gg))
        return Blocks(*(torch.maximum(mine, margin * its) for mine, its in pairs))


@dataclass(frozen=True)
class Descent:
    """Theorem 2 along one path of PSI-GD."""

    blocks: Blocks
    rounds: int
    """How often the path was followed until its constants covered it; `_ROUNDS` at most."""
    covered: bool
    losses: Tensor
    """(T + 1,)."""
    squares: Tensor
    """‖∇_{V,g} L‖² at every step, (T,)."""
    ratios: Tensor
    """(L_t − L_{t+1}) / ½ Σ η_i ‖∇_i‖²; between 1 and 3 wherever the constants hold."""

    def bound(self, steps: int) -> tuple[float, float]:
        """Both sides of (15) after `steps`: min ‖∇‖² and 2 L̃ (L₀ − L_T) / T. The paper has L* where this has L_T, which is
        stricter, and what its proof shows."""
        left = float(self.squares[:steps].min())
        right = float(2.0 * self.blocks.smoothness.max() * (self.losses[0] - self.losses[steps]) / steps)
        return left, right

    def broken(self) -> list[str]:
        """What does not hold, a line each."""
        powers = [2**k for k in range(len(self.squares).bit_length())]
        lines = [
            f"(15) after {steps} steps: {left:g} > {right:g}"
            for steps in powers
            for left, right in [self.bound(steps)]
            if not left <= right
        ]
        low, high = float(self.ratios.min()), float(self.ratios.max())
        if not self.covered:
            lines.append(f"the constants do not cover the path after {self.rounds} rounds")
        if not 1.0 <= low <= high <= 3.0:
            lines.append(f"descent between {low:g} and {high:g} times what the gradient promises, not between 1 and 3")
        return lines


@dataclass(frozen=True)
class ExpectedDescent:
    """Theorem 3 over all replicas, after T steps of PSI-SGD."""

    steps: int
    rounds: int
    covered: bool
    left: float
    """min over t of E‖∇_{V,g} L‖²."""
    right: float
    """L̃ [(L₀ − L*) + σ²/2 (1/L̃_g + Σ 1/L̃_i)] / (√T − ½), L* the smallest loss met: (16), corrected."""
    deviation: float
    """Largest |L_t − E L_{t+1} − Σ η_i ‖∇_i‖²| / ½ Σ L̃_i η_i² E‖g_i‖², the expectation over all next batches; at most 1
    wherever the constants hold."""

    def broken(self) -> list[str]:
        """What does not hold, a line each."""
        lines = [f"the constants do not cover the paths after {self.rounds} rounds"] * (not self.covered)
        if not self.left <= self.right:
            lines.append(f"(16) after {self.steps} steps: {self.left:g} > {self.right:g}")
        if not self.deviation <= 1.0:
            lines.append(
                f"expected descent, T = {self.steps}: {self.deviation:g} times as far off as the constants allow"
            )
        return lines


_Outcome = TypeVar("_Outcome", Descent, ExpectedDescent)


class _Replicas:
    """Networks with the same architecture and data: rows[i] is (replicas, inputs), g is (replicas, 3 hidden)."""

    def __init__(self, config: Config, batches: int, count: int) -> None:
        generator = torch.Generator().manual_seed(config.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        x = normal(config.samples, config.inputs)
        y = x @ normal(config.inputs) + config.noise * normal(config.samples)
        self.x, self.y = x.unflatten(0, (batches, -1)), y.unflatten(0, (batches, -1))
        exponents = torch.rand(config.hidden, 1, generator=generator, dtype=torch.float64) - 0.5
        w = manifolds.Sphere().nearest(normal(config.hidden, config.inputs)) * 10.0 ** (config.decades * exponents)
        one, zero = torch.ones(config.hidden), torch.zeros(config.hidden)
        g = torch.cat([one, zero, normal(config.hidden) / config.hidden**0.5])
        self.rows = [torch.nn.Parameter(row.repeat(count, 1)) for row in w]
        self.g = torch.nn.Parameter(g.repeat(count, 1))
        self.d = config.inputs

    def where(self) -> Tensor:
        """All parameters of each replica, (replicas, hidden · inputs + 3 hidden)."""
        return torch.cat([*self.rows, self.g], 1).detach()

    @torch.no_grad()
    def put(self, where: Tensor) -> None:
        """The reverse of `where`."""
        for parameter, part in zip((*self.rows, self.g), self._parts(where), strict=True):
            parameter.copy_(part)

    def _parts(self, flat: Tensor) -> list[Tensor]:
        m = len(self.rows)
        return [*flat[..., : m * self.d].split(self.d, -1), flat[..., m * self.d :]]

    def loss(self, flat: Tensor) -> Tensor:
        """On every batch, (…, batches); `flat` is (…, parameters) or, one for each batch, (…, batches, parameters)."""
        *rows, g = self._parts(flat)
        gain, bias, last = g.unsqueeze(-2).chunk(3, -1)
        z = self.x @ torch.stack(rows, -1)
        z = (z - z.mean(-2, keepdim=True)) / z.var(-2, correction=0, keepdim=True).sqrt()
        return ((torch.nn.functional.elu(gain * z + bias) * last).sum(-1) - self.y).square().mean(-1)

    def losses(self) -> Tensor:
        """The mean over the batches, (replicas,)."""
        return self.loss(self.where()[:, None]).mean(1)

    def gradients(self) -> Tensor:
        """Of every batch, (replicas, batches, parameters)."""
        flat = self.where()[:, None].repeat(1, len(self.x), 1).requires_grad_()
        (gradients,) = torch.autograd.grad(self.loss(flat).sum(), flat)
        return gradients

    def squares(self, gradients: Tensor) -> Tensor:
        """‖∇_i‖² of every row in v coordinates, and ‖∇_g‖², (…, m + 1); `gradients` are (replicas, …, parameters)."""
        *of_rows, of_g = self._parts(gradients)
        radii = torch.stack([row.detach().square().sum(1) for row in self.rows], -1)  # ‖w‖²
        radii = radii.view(len(radii), *[1] * (gradients.ndim - 2), -1)
        in_v = torch.stack([part.square().sum(-1) for part in of_rows], -1) * radii
        return torch.cat([in_v, of_g.square().sum(-1, keepdim=True)], -1)

    def follow(self, gradients: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """One step along `gradients`, (replicas, parameters)."""
        for parameter, part in zip((*self.rows, self.g), self._parts(gradients), strict=True):
            parameter.grad = part.contiguous()
        optimizer.step()

    def blocks(self, where: Tensor) -> Blocks:
        """The largest blocks at any of the points `where`, (points, parameters), their rows taken at unit norm."""
        *rows, g = self._parts(where)
        points = torch.cat([*(manifolds.Sphere().nearest(row) for row in rows), g], 1)
        m, edge = len(rows), len(rows) * self.d

        directions = torch.eye(points.shape[1], dtype=points.dtype)
        largest = None
        for some in points.split(8):
            flat = some[:, None].repeat(1, len(directions), 1).requires_grad_()
            total = self.loss(flat[..., None, :]).mean(-1).sum()
            (slope,) = torch.autograd.grad(total, flat, create_graph=True)
            (h,) = torch.autograd.grad((slope * directions).sum(), flat)
            vv = h[:, :edge, :edge].unflatten(1, (m, -1)).unflatten(3, (m, -1)).transpose(2, 3)
            vg = h[:, :edge, edge:].unflatten(1, (m, -1))
            found = Blocks(*(torch.linalg.matrix_norm(b, 2).amax(0) for b in (vv, vg, h[:, edge:, edge:])))
            largest = found if largest is None else largest.with_those_of(found)
        assert largest is not None
        return largest


def theorem_2(config: Config) -> Descent:
    """PSI-GD with η_i = 1 / L̃_i on all samples as one batch."""
    path = _Replicas(config, 1, 1)
    return _covered(path, lambda blocks: _descend(path, blocks, config))


def theorem_3(config: Config, steps: int) -> ExpectedDescent:
    """PSI-SGD with η_i = 1 / (L̃_i √T), T = `steps`, on batches drawn at random with replacement."""
    path = _Replicas(config, config.batches, config.seeds)
    return _covered(path, lambda blocks: _wander(path, blocks, config, steps))


def _covered(path: _Replicas, follow: Callable[[Blocks], tuple[_Outcome, Tensor]]) -> _Outcome:
    """What `follow` makes of constants that hold at the points it visits from the start of `path`."""
    start = path.where()
    blocks, rounds = path.blocks(start[:1]), 0
    while True:
        rounds += 1
        path.put(start)
        outcome, visited = follow(blocks)
        if not bool(visited.isfinite().all()):
            return replace(outcome, rounds=rounds)
        found = path.blocks(visited)
        covered = bool((found.smoothness <= blocks.smoothness).all())
        if covered or rounds == _ROUNDS:
            return replace(outcome, rounds=rounds, covered=covered)
        blocks = blocks.with_those_of(found, _MARGIN)


def _descend(path: _Replicas, blocks: Blocks, config: Config) -> tuple[Descent, Tensor]:
    smoothness = blocks.smoothness
    optimizer = psi_gd(path, 1.0 / smoothness)
    losses, squares, promised, visited = [path.losses()], [], [], [path.where()]
    for step in range(1, config.steps + 1):
        gradients = path.gradients()[:, 0]
        squares.append(path.squares(gradients)[0])
        promised.append((squares[-1] / smoothness).sum() / 2)
        path.follow(gradients, optimizer)
        losses.append(path.losses())
        if step <= config.ratios or step % 8 == 0:  # later points hardly differ
            visited.append(path.where())
    all_losses = torch.cat(losses)
    ratios = (all_losses[:-1] - all_losses[1:]) / torch.stack(promised)
    return Descent(blocks, 0, False, all_losses, torch.stack(squares).sum(1), ratios[: config.ratios]), torch.cat(
        visited
    )


def _wander(path: _Replicas, blocks: Blocks, config: Config, steps: int) -> tuple[ExpectedDescent, Tensor]:
    smoothness = blocks.smoothness
    rates = 1.0 / (smoothness * steps**0.5)
    optimizer = psi_gd(path, rates)
    draws = torch.randint(
        config.batches, (steps, config.seeds), generator=torch.Generator().manual_seed(config.seed + 1)
    )
    first = smallest = path.losses()
    squares, visited, deviation, variance = [], [path.where()[: config.covered]], 0.0, torch.zeros(())
    for step, drawn in enumerate(draws):
        here, loss, each = path.where(), path.losses(), path.gradients()
        mean = each.mean(1)
        of_mean, of_each = path.squares(mean), path.squares(each)
        squares.append(of_mean.sum(1).mean())
        variance = torch.maximum(variance, path.squares(each - mean[:, None]).mean(1).max())
        ends, next_losses = [], []
        for batch in range(config.batches):  # every next point there is
            path.put(here)
            path.follow(each[:, batch], optimizer)
            ends.append(path.where())
            next_losses.append(path.losses())
        change = loss - torch.stack(next_losses).mean(0)
        allowed = (smoothness * rates.square() * of_each.mean(1)).sum(1) / 2
        deviation = max(deviation, float(((change - (rates * of_mean).sum(1)).abs() / allowed).max()))
        path.put(torch.stack(ends, 1)[torch.arange(config.seeds), drawn])
        smallest = torch.minimum(smallest, path.losses())
        if step % 4 == 3:
            visited.append(path.where()[: config.covered])
    noise = variance / 2 * (1.0 / smoothness).sum()
    right = smoothness.max() * (first[0] - smallest.min() + noise) / (steps**0.5 - 0.5)
    outcome = ExpectedDescent(steps, 0, False, float(torch.stack(squares).min()), float(right), deviation)
    return outcome, torch.cat(visited)


def psi_gd(path: _Replicas, rates: Tensor) -> torch.optim.Optimizer:
    """PSI-SGD with a rate for each row and one for g."""
    *of_rows, of_g = rates.tolist()
    groups: list[dict[str, object]] = [
        {"params": [row], "manifold": manifolds.PSI(), "lr": lr} for row, lr in zip(path.rows, of_rows, strict=True)
    ]
    return optim.PSISGD([*groups, {"params": [path.g], "lr": of_g}], radius="free")
