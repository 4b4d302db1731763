"""`PointSet`: the points of one parameter, or of several joined ones; an entry of an optimizer's table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import GradientError, StateError
from ...manifolds import Manifold, Rows
from ...manifolds.numerics import DTYPES
from ...manifolds.parameters.factors import Factors, Rest
from ...manifolds.parameters.lookup import check_memory
from ...manifolds.parameters.records import geometry, geometry_of_slices
from ...manifolds.parameters.rows import AnyLayout, overlaps
from ..rules import Rule

__all__ = [
    "PointSet",
    "State",
    "Table",
    "check_state",
    "count_steps",
    "new_scalar",
    "passed_over",
    "point_sets",
    "scalar_dtype",
]

State = dict[Tensor, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class PointSet:
    """Parts, their geometry, and a name for messages."""

    name: str
    parts: tuple[Tensor, ...]
    """The parameters of the parts; of several slices of one parameter each is a part."""
    manifold: Manifold
    rows: Rows = Rows()
    slices: Factors | Rest | None = None
    """In place of `rows`: the points are slices of the parts, and other points may be other slices of them."""
    suffix: str = ""
    """What the names of its scalars end with in the state of the first part, which may lead several sets of slices."""

    def layouts(self) -> Sequence[AnyLayout]:
        """How each part is cut into points."""
        return (self.slices or self.rows).layouts(self.parts, self.manifold.event_ndim)

    def geometries(self) -> Iterator[tuple[Tensor, str]]:
        """The parts with descriptions of their geometry, as in the marks of declarations."""
        if self.slices is None:
            text = geometry(self.manifold, self.rows, len(self.parts))
            yield from ((part, text) for part in self.parts)
        elif isinstance(self.slices, Factors):
            for p in dict.fromkeys(self.parts):
                mine = [part for part, other in zip(self.slices.parts, self.parts, strict=True) if other is p]
                yield p, geometry_of_slices(self.manifold, mine)

    def placed(self, index: Mapping[Tensor, int]) -> str:
        """The manifold and the slices, with the number of each parameter in place of its name."""
        parts = self.slices.parts if self.slices is not None else ()
        places = [f"{index[p]}{replace(part, name='')}" for p, part in zip(self.parts, parts, strict=False)]
        return f"{self.manifold!r} at {' '.join(places)}"

    def scalar_names(self, rule: Rule) -> dict[str, str]:
        """The names of scalars per point → their names in the state of the first part."""
        return {name: name + self.suffix for name in (*rule.scalars, "radius")}

    def gradients(self) -> list[Tensor]:
        """The gradients of the parts, or an empty list if none has one.

        Raises `GradientError` if only some parts have a gradient, for a gradient that is sparse or does not fit its
        parameter, and for a parameter of a dtype without updates.
        """
        grads = [part.grad for part in self.parts if part.grad is not None]
        if grads and len(grads) < len(self.parts):
            raise GradientError(
                f"{self.name} forms joint points with {len(self.parts) - 1} other parameter(s), but only some of them "
                "have a gradient; freeze all parts or none, or declare the parameter alone"
            )
        for grad, part in zip(grads, self.parts if grads else (), strict=True):
            if not _is_dense(part):
                raise GradientError(
                    f"{self.name} is {_kind(part)} and has a gradient; the updates are defined for dense real floating-point "
                    "parameters. Freeze it with requires_grad_(False) and grad = None, or convert it and build a new optimizer"
                )
            if grad.layout != torch.strided:
                raise GradientError(f"{self.name} has a {grad.layout} gradient; these updates need dense ones")
            if grad.shape != part.shape or grad.device != part.device or not grad.is_floating_point():
                raise GradientError(
                    f"{self.name} is {_describe(part)}, its gradient {_describe(grad)}; call backward() again after a "
                    "parameter has been reshaped or moved"
                )
        return grads


Table = dict[Tensor, Sequence[PointSet]]
"""The point sets of an optimizer by their first part."""


def point_sets(params: Sequence[Tensor], table: Mapping[Tensor, Sequence[PointSet]]) -> Iterator[PointSet]:
    """The point sets of a group's `params`, each once.

    Raises `StateError` for a parameter that is not in `table`: its manifold is unknown.
    """
    joined = {part for p in params for points in table.get(p, ()) for part in points.parts[1:]}
    for i, p in enumerate(params):
        if p in table:
            yield from table[p]
        elif p not in joined:
            raise StateError(
                f"parameter {i} of a group, {_describe(p)}, is not the one that the optimizer was built with, so its manifold is "
                "unknown (Accelerate replaces parameters for FSDP2 and XLA). Build the optimizer from the prepared model, with "
                "retract.param_groups, or use add_param_group"
            )


def passed_over(p: Tensor) -> bool:
    """Whether `p` is frozen and of a kind without updates (quantized, integer, complex, sparse, an expanded view).

    As in torch's optimizers, such a parameter may be in a group, and is not checked until it gets a gradient.
    """
    return not p.requires_grad and p.grad is None and (not _is_dense(p) or overlaps(p))


def _is_dense(p: Tensor) -> bool:
    return p.dtype in DTYPES and p.layout == torch.strided and not p.is_nested


def _kind(p: Tensor) -> str:
    """The dtype of `p`, with its layout if that is not strided."""
    return str(p.dtype) if p.layout == torch.strided else f"{p.dtype}, {p.layout}"


def check_state(points: PointSet, state: State, rule: Rule) -> None:
    """Raise `StateError` if `state` does not fit its parameter, `GeometryError` if the parameter cannot be written to."""
    for part in points.parts:
        check_memory(points.name, part)
        entry = state.get(part, {})
        for name in rule.stored:
            if name in entry and not (_fits(entry[name], part.shape, part.device) and entry[name].dtype == part.dtype):
                _raise_unfit(points.name, part, name, entry[name])
        counter = "step" + points.suffix
        if rule.counts_steps and counter in entry and not _fits(entry[counter], ()):
            _raise_unfit(points.name, part, counter, entry[counter])
    entry, part = state.get(points.parts[0], {}), points.parts[0]
    for name in points.scalar_names(rule).values():
        if name in entry and not _fits(entry[name], points.layouts()[0].scalar, part.device):
            _raise_unfit(points.name, part, name, entry[name])


def _fits(value: Any, shape: Sequence[int], device: torch.device | None = None) -> bool:
    """Whether `value` is a writable floating-point tensor of `shape`, on `device` or on any if that is None."""
    strided = isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point()
    return strided and value.shape == shape and device in (None, value.device) and not overlaps(value)


def _raise_unfit(label: str, part: Tensor, name: str, value: Any) -> None:
    raise StateError(
        f"{label} is {_describe(part)}, its {name} {_describe(value)}: the parameter or its state was changed under a running "
        "optimizer. Build a new one, or convert its state_dict and load that"
    )


def new_scalar(name: str, rule: Rule, layout: AnyLayout, part: Tensor) -> Tensor:
    """A scalar per point before the first step, of shape `layout.scalar`: 0, or −1 for a norm to be set."""
    fill = 0.0 if name in rule.scalars else -1.0
    return torch.full(layout.scalar, fill, dtype=scalar_dtype(layout, part), device=part.device)


def scalar_dtype(layout: AnyLayout, part: Tensor) -> torch.dtype:
    """The dtype of scalars per point: that of `part` where points are coordinates, otherwise float32 or better."""
    return part.dtype if part.dtype == torch.float64 or not layout.event else torch.float32


def count_steps(entries: Sequence[dict[str, Any]], by: int = 1, device: torch.device | None = None) -> list[Tensor]:
    """The step counters in `entries`, raised `by`; new ones start at 0, on `device` for steps that must not wait for it."""
    for entry in entries:
        if "step" not in entry:
            entry["step"] = torch.zeros((), dtype=torch.float32, device=device)
    steps: list[Tensor] = [entry["step"] for entry in entries]
    if by:
        torch._foreach_add_(steps, by)
    return steps


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
