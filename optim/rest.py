"""The options of the rest of parameters that are cut into slices, which is in the group of the slices and flat.

They are those of a group in flat space. A group stores under ``"euclidean"`` what differs from its own options. The rate is
stored as ``"lr_scale"``, a multiple of the group's, so that schedulers change both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import OptionError
from .options import Options, check_known, check_together, number, valid

__all__ = ["KEY", "check_rest", "options_of_rest", "rest_of"]

KEY = "euclidean"
"""The key of the group."""
_SCALE = "lr_scale"


def rest_of(group: Options, wanted: Options) -> dict[str, Any]:
    """What a `group` stores for its rest to have the options `wanted`.

    Raises `OptionError` for invalid values, and for a rate other than 0 in a group whose own is 0.
    """
    found: dict[str, Any] = {}
    for name, value in wanted.items():
        own, value = group[name], valid(name, value)
        if value is own or value == own:
            continue
        if name == "lr":
            base = number("lr", own)
            if base == 0:
                raise OptionError(
                    f"lr={own} in a group with slices, and {value} for what is left of its parameters: the second is kept as a "
                    "multiple of the first. To hold the slices, freeze their parameters, or leave them undeclared"
                )
            found[_SCALE] = number("lr", value) / base
        else:
            found[name] = value
    return found


def options_of_rest(group: Options) -> Options:
    """The options for the rest of a `group`.

    Raises `OptionError` for values outside their intervals.
    """
    own = group.get(KEY) or {}
    if not own:
        return group
    found = {name: valid(name, value) for name, value in own.items() if name != _SCALE}
    return {**group, **found, "lr": group["lr"] * number(_SCALE, valid("lr", own.get(_SCALE, 1.0)))}


def check_rest(group: Options, defaults: Options) -> None:
    """Raise `OptionError` for what a `group` of an optimizer with these `defaults` stores for its rest, if it is not valid."""
    own = group.get(KEY, {})
    if not isinstance(own, Mapping):
        raise OptionError(f"{KEY}={own!r} is no dict of options for what is left of the parameters")
    check_known(own, {_SCALE: 1.0, **{name: value for name, value in defaults.items() if name != "lr"}})
    check_together(options_of_rest(group))
