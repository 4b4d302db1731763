"""Diagnostics of a training run: angular updates, norms and gradients of declared points."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MissingExtraError, OptionError, install
from ..manifolds import GeodesicManifold, Manifold, Rows, ScalingQuotient, numerics
from ..manifolds.parameters.declare import walk
from ..manifolds.parameters.rows import Layout, gather

__all__ = ["Monitor", "Observation"]


@dataclass(frozen=True)
class Observation:
    """One step of the declared points of one manifold and cut."""

    step: int
    """From 1."""
    group: str
    """Manifold, and how parameters are cut into points where that is not by dim 0."""
    points: int
    """How many there are."""
    norm_min: float
    """Smallest Euclidean norm of a point after the step: what BatchNorm's running statistics remember, and nothing else does."""
    norm_median: float
    """Their median."""
    norm_max: float
    """The largest."""
    angular_update_mean: float
    """How far the step moved a point, on average: the geodesic distance, in radians on spheres and PSI; ‖y − x‖ where there is
    none."""
    angular_update_max: float
    """The farthest."""
    gradient: float
    """Root mean square of the Riemannian gradients' norms at the points before the step: on PSI ‖w‖ ‖∇_w L‖, the gradient with
    respect to the unit row (v coordinates)."""
    leak: float
    """Largest |⟨w, ∇_w L⟩| / (‖w‖ ‖∇_w L‖) on scaling quotients, which is 0 except for what the eps of a
    normalization layer does; elsewhere NaN."""
    renormalized: int
    """Points whose norm has fallen by more than a factor of 16 since the observation before: renormalised, under ``radius="free"``."""


class _Group:
    """The points of one manifold and cut."""

    def __init__(self, manifold: Manifold, rows: Rows) -> None:
        self.manifold, self.rows = manifold, rows
        self.name = repr(manifold) if rows == Rows() else f"{manifold!r} {rows!r}"
        self.members: list[tuple[list[Tensor], list[Layout]]] = []
        self.before: list[Tensor] = []
        self.norms: Tensor | None = None
        """Of the observation before."""

    def add(self, parts: list[Tensor]) -> None:
        """Another parameter, with what is joined to it."""
        self.members.append((parts, [self.rows.layout(part, self.manifold.event_ndim) for part in parts]))

    def remember(self) -> None:
        """Before a step."""
        self.before = [gather(parts, layouts).clone() for parts, layouts in self.members]

    def observe(self, step: int) -> Observation | None:
        """After a step; None if no point has a gradient."""
        updates, gradients, leaks, norms = [], [], [], []
        ndim = self.manifold.event_ndim
        for x, (parts, layouts) in zip(self.before, self.members, strict=True):
            y = gather(parts, layouts)
            norms.append(numerics.norm(y, ndim).flatten())
            if any(part.grad is None for part in parts):
                continue
            egrad = gather([part.grad for part in parts], layouts).to(x.dtype)  # type: ignore[misc]
            if isinstance(self.manifold, GeodesicManifold):
                updates.append(self.manifold.dist(x, y).flatten())
            else:
                updates.append(numerics.norm(y - x, ndim).flatten())
            gradients.append(self.manifold.norm(x, self.manifold.riemannian_gradient(x, egrad)).flatten())
            if isinstance(self.manifold, ScalingQuotient):
                size = numerics.norm(x, ndim) * numerics.norm(egrad, ndim)
                leaks.append((numerics.dot(x, egrad, ndim).abs() / torch.where(size > 0, size, 1.0)).flatten())
        self.before = []
        if not updates:
            return None
        update, gradient, norm = torch.cat(updates), torch.cat(gradients), torch.cat(norms)
        fallen = 0 if self.norms is None else int((norm * 16 < self.norms).sum())
        self.norms = norm
        numbers = {
            "norm_min": norm.min(),
            "norm_median": norm.median(),
            "norm_max": norm.max(),
            "angular_update_mean": update.mean(),
            "angular_update_max": update.max(),
            "gradient": gradient.square().mean().sqrt(),
            "leak": torch.cat(leaks).max() if leaks else norm.new_tensor(float("nan")),
        }
        read = dict(zip(numbers, torch.stack([*numbers.values()]).tolist(), strict=True))
        return Observation(step=step, group=self.name, points=len(norm), renormalized=fallen, **read)


class Monitor:
    """Observes every `every`-th step of `optimizer` on the declared points of `model`.

    The optimizer may be any: with `torch.optim.SGD` it shows how scale-invariant rows grow and turn less and less. A step that
    is not observed costs nothing; one that is costs a copy of the declared weights and a few passes over them, and on a GPU
    waits for it. Parameters and gradients are only read.

    Example:
        >>> import torch, retract
        >>> model = torch.nn.Linear(6, 4)
        >>> retract.declare(model, "weight", retract.manifolds.PSI())
        >>> optimizer = retract.optim.PSISGD(retract.param_groups(model), lr=0.1)
        >>> monitor = retract.psi.Monitor(model, optimizer, every=1)
        >>> model(torch.randn(8, 6)).square().sum().backward()
        >>> optimizer.step()
        >>> [(observation.step, observation.points) for observation in monitor.observations]
        [(1, 4)]

    Args:
        model: with declarations (`retract.declare`, `psi.declare`).
        optimizer: whose steps are observed, by hooks around ``step()``.
        every: how many steps apart; the first is observed.
        writer: a ``SummaryWriter`` of torch.utils.tensorboard, or anything else with ``add_scalar(tag, value, step)``.

    Raises:
        OptionError: `model` has no declarations, or `every` is not positive.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, every: int = 100, writer: Any = None
    ) -> None:
        if every < 1:
            raise OptionError(f"every={every}: the number of steps from one observation to the next, at least 1")
        groups: dict[tuple[Manifold, Rows], _Group] = {}
        for _, _, parts, declaration, _ in walk(model):
            kind = declaration.manifold, declaration.rows
            groups.setdefault(kind, _Group(*kind)).add(list(parts))
        if not groups:
            raise OptionError("the model has no declared points to observe: declare weights first, as psi.declare does")
        self.observations: list[Observation] = []
        """In order; at a step in the order in which the groups were declared."""
        self._groups, self._every, self._writer, self._step = [*groups.values()], every, writer, 0
        self._hooks = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        if self._step % self._every == 0:
            with numerics.full_precision():
                for group in self._groups:
                    group.remember()

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        self._step += 1
        if (self._step - 1) % self._every:
            return
        with numerics.full_precision():
            found = [group.observe(self._step) for group in self._groups]
        for observation in filter(None, found):
            self.observations.append(observation)
            if self._writer is not None:
                for name, value in _numbers(observation).items():
                    self._writer.add_scalar(f"{observation.group}/{name}", value, self._step)

    def close(self) -> None:
        """Take the hooks off; what was observed stays."""
        for hook in self._hooks:
            hook.remove()

    def to_dict(self) -> list[dict[str, Any]]:
        """The observations as plain values, for JSON."""
        return [asdict(observation) for observation in self.observations]

    def to_csv(self, path: str | Path) -> None:
        """The observations as a table, a line each."""
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Observation)])
            writer.writeheader()
            writer.writerows(self.to_dict())

    def plot(self) -> Any:
        """A matplotlib figure: norms, angular updates, gradients and leaks of each group over the steps, one above the
        other, with a cross on the norms where points were renormalized. Raises `MissingExtraError` without
        matplotlib."""
        try:
            from matplotlib import pyplot as plt
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"Monitor.plot needs matplotlib: {install('figures')}") from error

        panels: dict[str, Callable[[Observation], tuple[float, float, float]]] = {
            "norm: smallest, median, largest": lambda o: (o.norm_min, o.norm_median, o.norm_max),
            "angular update (rad on spheres and PSI): mean, largest": lambda o: (
                o.angular_update_mean,
                o.angular_update_mean,
                o.angular_update_max,
            ),
            "gradient: root mean square": lambda o: (o.gradient,) * 3,
            "leak: largest": lambda o: (o.leak,) * 3,
        }
        figure, axes = plt.subplots(len(panels), 1, figsize=(6.4, 2.3 * len(panels)), layout="constrained", sharex=True)
        for axis, (title, of) in zip(axes, panels.items(), strict=True):
            for group in self._groups:
                seen = [o for o in self.observations if o.group == group.name]
                steps = [o.step for o in seen]
                low, middle, high = zip(*map(of, seen), strict=True) if seen else ((), (), ())
                (line,) = axis.plot(steps, middle, label=group.name)
                axis.fill_between(steps, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
                if axis is axes[0]:
                    back = [o for o in seen if o.renormalized]
                    axis.plot([o.step for o in back], [o.norm_median for o in back], "x", color=line.get_color())
            axis.set(title=title, yscale="log")
            axis.grid(alpha=0.3)
        axes[-1].set_xlabel("step")
        axes[0].legend(fontsize=8)
        return figure


def _numbers(observation: Observation) -> dict[str, float]:
    return {key: value for key, value in asdict(observation).items() if key not in ("step", "group", "points")}
