"""Agreement of processes: all of them have to find the same, or their replicas drift apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from torch import distributed

from ..errors import RetractError

if TYPE_CHECKING:
    from .report import Report

__all__ = ["agreed", "on_all_ranks"]

P = ParamSpec("P")
T = TypeVar("T")


def on_all_ranks(find: Callable[P, Report]) -> Callable[P, Report]:
    """`find`, compared over all processes as `agreed` has it."""

    @wraps(find)
    def found(*args: P.args, **kwargs: P.kwargs) -> Report:
        return agreed("psi.find", partial(find, *args, **kwargs), _verdicts)

    return found


def agreed(what: str, work: Callable[[], T], verdicts: Callable[[T], Mapping[Any, str]]) -> T:
    """What `work` returns, once all processes have done it and agree.

    Alone, that is ``work()``. With a process group initialized it is a collective call, which every process has to make.
    Verdicts are compared key by key; a key that only one process has, as in the stages of a pipeline, is its own affair.

    Raises what `work` raises; on the other processes `RetractError` with its message, so that none is left waiting.
    `RetractError` on all for verdicts that differ, and where others do not come before the group's timeout.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return work()
    try:
        result = work()
    except Exception as error:
        _exchange(what, (f"{type(error).__name__}: {error}", {}))
        raise
    gathered = _exchange(what, (None, verdicts(result)))
    for rank, (failure, _) in enumerate(gathered):
        if failure is not None:
            raise RetractError(f"{what} failed on rank {rank}, and is given up on all: {failure}")
    _compare(what, [found for _, found in gathered])
    return result


def _exchange(what: str, result: tuple[str | None, Mapping[Any, str]]) -> list[tuple[str | None, Mapping[Any, str]]]:
    """What every process says, by rank."""
    gathered: list[Any] = [None] * distributed.get_world_size()
    try:
        distributed.all_gather_object(gathered, result)
    except RuntimeError as error:
        raise RetractError(
            f"{what} compares what all processes find, and the others did not come ({error}). Call it on every rank, or before "
            "init_process_group"
        ) from error
    return gathered


def _compare(what: str, gathered: list[Mapping[Any, str]]) -> None:
    differing = []
    for key in dict.fromkeys(key for verdicts in gathered for key in verdicts):
        said = {rank: verdicts[key] for rank, verdicts in enumerate(gathered) if key in verdicts}
        first = min(said)
        other = next((rank for rank in said if said[rank] != said[first]), None)
        if other is not None:
            differing.append(f"{key[0]} (rank {first}: {said[first]}; rank {other}: {said[other]})")
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise RetractError(
            f"{what} comes out differently on different ranks: {', '.join(differing[:3])}{more}. Replicas would be trained "
            "differently, and drift apart: give every rank the same model and the same inputs, such as rank 0's, broadcast"
        )


def _verdicts(report: Report) -> dict[Any, str]:
    found = {f.name for f in report.invariant}
    rows = {
        (f.name, f.shape): " ".join(
            [f.granularity, *([repr(f.slices or f.rows), *f.joined] if f.name in found else [])]
        )
        for f in report
    }
    pairs = {f.name: [f"{p.group} of {p.factors!r}" for p in report.pairs if f.name in p.names] for f in report}
    return rows | {(f.name, f.shape, "pairs"): ", ".join(pairs[f.name]) or "no pair" for f in report}
