"""The runs of a study: a JSON file per method with a line per run, which run is next, and workers that share a study.

A run is stored as soon as it ends, and what comes next follows from what is stored. So a study may be stopped at any time and goes
on where it was; of a run that was interrupted nothing stays.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from retract.errors import RetractError

from . import protocol
from .loop import FollowUp, Study, train
from .methods import Method, load
from .protocol import Node, Run

__all__ = [
    "RESULTS",
    "Sweep",
    "again",
    "alone",
    "at_seeds",
    "check_centres",
    "chosen_in",
    "complete",
    "final_runs",
    "hours",
    "labelled",
    "losses_of",
    "made",
    "matched",
    "method_in",
    "methods_in",
    "next_run",
    "read",
    "store",
    "sweep_in",
    "work",
]

RESULTS = Path(__file__).parent / "results"

Record = dict[str, Any]


def read(folder: Path, method: str) -> list[Record]:
    """What is stored of a method, in the order of the runs."""
    path = folder / f"{method}.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


def methods_in(study: Study | type[Study], folder: Path) -> list[str]:
    """Names of the methods of a study, and of those that a reader has run in it besides."""
    besides = sorted(path.stem for path in folder.glob("*.json") if path.stem not in study.methods)
    return [*study.methods, *besides]


def hours(records: Iterable[Record]) -> float:
    """Of one core."""
    return sum(record["seconds"] for record in records) / 3600.0


def losses_of(records: Sequence[Record]) -> dict[tuple[Node, int], float]:
    """The held-out losses of the sweep, infinite for runs that diverged."""
    return {
        (tuple(record["node"]), record["seed"]): math.inf if record["loss"] is None else record["loss"]
        for record in records
        if record["phase"] == "sweep"
    }


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep that has all its runs."""

    method: Method
    """With the centres of the study."""
    losses: protocol.Losses

    @property
    def best(self) -> Node:
        """The setting that it has chosen."""
        return protocol.chosen(self.losses)

    @property
    def values(self) -> dict[str, float]:
        """Of all knobs at the best setting."""
        return protocol.values(self.method.knobs, self.best)

    @property
    def knobs(self) -> list[str]:
        """Those that it is over."""
        return [*self.method.knobs][: len(self.best)]

    @property
    def interior(self) -> bool:
        """Whether smaller and larger values than the best were tried on each knob."""
        return protocol.interior(self.best, {node for node, _ in self.losses})

    @property
    def at_multiples(self) -> dict[float, float]:
        """The mean loss, less what seeds add, by the multiple of the best `lr`, in ascending order, with all other knobs at their best
        values."""
        means, (at, *others) = protocol.means_of(self.losses), self.best
        line = {node[0]: loss for node, loss in means.items() if [*node[1:]] == others}
        return {protocol.FACTORS["lr"] ** (k - at): line[k] for k in sorted(line)}

    def at(self, node: Node) -> list[float]:
        """The losses of the runs at a setting."""
        return [loss for (other, _), loss in self.losses.items() if other == node]


def sweep_in(study: Study | type[Study], name: str, results: Path) -> Sweep | None:
    """The sweep of a method in `study`; None while it is not complete. Raises `RetractError` if it is about other centres."""
    method, records = method_in(study, name, results / study.name), read(results / study.name, name)
    if method is None:
        return None
    check_centres(method, records)
    losses = losses_of(records)
    return Sweep(method, losses) if _next_of_sweep(study, method, losses) is None else None


def chosen_in(study: Study | type[Study], name: str, results: Path) -> dict[str, float] | None:
    """The values of the knobs that the sweep of a method in `study` has chosen; None while it is not complete."""
    found = sweep_in(study, name, results)
    return None if found is None else found.values


def _next_of_sweep(study: Study | type[Study], method: Method, losses: protocol.Losses) -> tuple[Node, int] | None:
    """Setting and seed of what the sweep of a method still lacks."""
    count = min(study.swept or len(method.knobs), len(method.knobs))
    return protocol.next_of_sweep(count, losses, study.budget * count)


def method_in(study: Study | type[Study], name: str, folder: Path) -> Method | None:
    """The method of the file `name`, with the centres that it has in the study.

    They are those of its file, or what the study before this one has chosen. None while that is not known. The results of the study
    are in `folder`, those of others beside it.
    """
    method = load(name)
    if study.after is not None:
        values = chosen_in(study.after, name, folder.parent)
        return None if values is None else replace(method, knobs=values)
    if study.centre_of_rest is None or "rest" not in method.knobs:
        return method
    return replace(method, knobs={**method.knobs, "rest": study.centre_of_rest})


def next_run(study: Study | type[Study], method: Method, records: Sequence[Record]) -> Run | None:
    """What comes after the runs in `records`; None when the method, with the centres of the study, is done.

    Raises `RetractError` if these are of other centres than the method has now.
    """
    check_centres(method, records)
    if _follow_up(study) is not None:
        return matched(final_runs(study, method.knobs, (0,) * len(method.knobs)), records)[1]
    losses = losses_of(records)
    if (found := _next_of_sweep(study, method, losses)) is not None:
        node, seed = found
        return Run("sweep", protocol.values(method.knobs, node), seed, node)
    return None if study.after else matched(final_runs(study, method.knobs, protocol.chosen(losses)), records)[1]


def final_runs(study: Study | type[Study], knobs: Mapping[str, float], node: Node) -> list[Run]:
    """What is run at a setting that was chosen: all that the protocol has, or the first seeds in a `FollowUp`."""
    kind, runs = _follow_up(study), protocol.final_runs(knobs, node)
    return runs if kind is None else [run for run in runs if run.phase == "final"][: kind.seeds]


def _follow_up(study: Study | type[Study]) -> type[FollowUp] | None:
    """The class of a study that is a `FollowUp`."""
    kind = study if isinstance(study, type) else type(study)
    return kind if issubclass(kind, FollowUp) else None


def matched(wanted: Sequence[Run], records: Iterable[Record]) -> tuple[list[Record], Run | None]:
    """What is stored of the runs `wanted`, none of the sweep, and the first of them that is not there.

    A run at a multiple of an earlier choice serves as one at the choice, and the other way round: they do the same.
    """
    found = {(r["seed"], *r["values"].items()): r for r in records if r["phase"] != "sweep"}
    pairs = [(run, found.get((run.seed, *run.values.items()))) for run in wanted]
    there = [{**record, "phase": run.phase} for run, record in pairs if record is not None]
    return there, next((run for run, record in pairs if record is None), None)


def at_seeds(
    values: Mapping[str, float], seeds: Iterable[int], records: Iterable[Record]
) -> tuple[list[Record], Run | None]:
    """What is stored of final runs with `seeds` at a setting, and the first of them that is not there."""
    return matched([Run("final", dict(values), seed, ()) for seed in seeds], records)


def check_centres(method: Method, records: Sequence[Record]) -> None:
    """Raise `RetractError` if the runs in `records` are of other centres than `method` has now."""
    for record in records:
        node, count = tuple(record["node"]), len(method.knobs)
        if record["phase"] == "sweep" and record["values"] != protocol.values(method.knobs, node[:count]):
            raise RetractError(
                f"{method.name}: a run at {record['values']} is stored as node {record['node']}, which is not about the centres "
                f"{method.knobs}: they have changed. Restore them, or remove the file of the results"
            )


def work(
    study: Study, methods: Sequence[str], minutes: float, folder: Path, tell: Callable[[str], None] = print
) -> None:
    """Make the runs of `methods` one by one, until all are done or `minutes` are over.

    Results are in `folder`. A method that another worker is running is skipped.
    """
    end = time.monotonic() + 60.0 * minutes
    for name in methods:
        method = method_in(study, name, folder)
        if method is None:
            tell(f"{name}: not yet swept in the study before this one")
            continue
        if not complete(folder, method, partial(next_run, study, method), partial(made, study, method), end, tell):
            return


def complete(
    folder: Path,
    method: Method,
    next_after: Callable[[Sequence[Record]], Run | None],
    record_of: Callable[[Run], Record],
    end: float,
    tell: Callable[[str], None],
) -> bool:
    """Make the runs of a method that are missing, and store each in `folder` as soon as it ends.

    Args:
        folder: of the results.
        method: which is skipped if another worker is running it.
        next_after: the run that comes after those that are stored, or None.
        record_of: makes a run.
        end: no run begins after this time, by `time.monotonic`.
        tell: is called with a line after each run, and when the method is done or skipped.

    Returns:
        Whether there was time for all of them.
    """
    name = method.name
    with alone(folder, name) as free:
        if not free:
            tell(f"{name}: another worker is at it")
            return True
        while (run := next_after(records := read(folder, name))) is not None:
            if time.monotonic() > end:
                return False
            store(folder, method, [*records, record := record_of(run)])
            shown = ", ".join(f"{knob} {value:g}" for knob, value in run.values.items())
            tell(f"{name} {len(records)}: {run.phase}, {shown}, seed {run.seed}: {_outcome(record)}")
        tell(f"{name} is done: {len(records)} runs")
    return True


def _outcome(record: Record) -> str:
    """How a run ended, and its seconds."""
    ended = "diverged" if record["loss"] is None else f"loss {record['loss']:.4f}"
    return f"{ended}, {record['seconds']} s"


def again(name: str, index: int, folder: Path, record_of: Callable[[Run], Record]) -> dict[str, tuple[Any, Any]]:
    """Repeat the stored run `index` of a method, from 0, by `record_of`.

    Returns:
        Where it differs, as pairs of the stored value and the new one. Time does not count.

    Raises:
        RetractError: if there is no such run.
    """
    records = read(folder, name)
    if not 0 <= index < len(records):
        raise RetractError(
            f"{name} has {len(records)} runs in {folder}, so there is none of number {index}: count from 0"
        )
    old = records[index]
    new = json.loads(json.dumps(record_of(Run(old["phase"], old["values"], old["seed"], tuple(old["node"])))))
    keys = [key for key in {**old, **new} if key != "seconds"]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def made(study: Study, method: Method, run: Run) -> Record:
    """The record of a run."""
    return labelled(run, train(study, method, run.values, run.seed, run.phase != "sweep"))


def labelled(run: Run, result: Mapping[str, Any]) -> Record:
    """A result with the run that it is of, and what its last bits depend on."""
    on = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread"
    return {"phase": run.phase, "values": run.values, "seed": run.seed, "node": run.node, **result, "on": on}


def store(folder: Path, method: Method, records: Sequence[Record]) -> None:
    """Replace the file at once, so that no reader finds half of it."""
    head = f'{{"method": {json.dumps(method.name)}, "centres": {json.dumps(method.knobs)}, "runs": [\n'
    text = head + ",\n".join(json.dumps(record) for record in records) + "\n]}\n"
    temporary = folder / f"{method.name}.json.new"
    temporary.write_text(text)
    os.replace(temporary, folder / f"{method.name}.json")


@contextmanager
def alone(folder: Path, name: str) -> Iterator[bool]:
    """Whether no other worker is at this method; the lock goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
