"""What an optimizer notices of declarations: those that a bare parameter bears, and those that came after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ..errors import DeclarationError
from ..manifolds.parameters.records import changes, geometry, marked
from .execution.points import PointSet

__all__ = ["Marks", "refuse_bare"]


def refuse_bare(name: str, p: Tensor) -> None:
    """Raise `DeclarationError` if `p`, whose group does not say where it lives, was declared."""
    mark = marked(p)
    if mark is not None:
        raise DeclarationError(
            f"{name} was declared on {mark.geometry}, by the name {mark.name}, and its group does not say so: it would "
            "train in flat space. Take the groups of retract.param_groups(model), or name the manifold in the group, be it "
            "Euclidean(0); retract.undeclare takes a declaration back"
        )


class Marks:
    """The marks that an optimizer's parameters bore when they came to it."""

    def __init__(self) -> None:
        self._geometries: dict[Tensor, str] = {}
        self._changes = -1

    def __getstate__(self) -> dict[str, object]:
        return {"_geometries": self._geometries, "_changes": -1}  # another process counts anew

    def add(self, params: Iterable[Tensor]) -> None:
        """Remember what `params` say."""
        self._geometries.update({p: mark.geometry for p in params if (mark := marked(p)) is not None})

    def check(self, table: Mapping[Tensor, PointSet]) -> None:
        """Raise `DeclarationError` for a parameter of `table` that was declared since, and lives elsewhere there.

        As long as nothing is declared anywhere, this compares two numbers.
        """
        now = changes()
        if now == self._changes:
            return
        for points in table.values():
            its = geometry(points.manifold, points.rows, len(points.parts))
            for part in points.parts:
                mark = marked(part)
                if mark is not None and mark.geometry not in (its, self._geometries.get(part)):
                    raise DeclarationError(
                        f"{points.name} was declared on {mark.geometry}, by the name {mark.name}, after it came to this "
                        f"optimizer, which has it on {its}. Build the optimizer anew, with retract.param_groups(model)"
                    )
        self._changes = now
