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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from retract.errors import RetractError

from . import protocol
from .loop import FollowUp, Study, train
from .methods import Method, load
from .protocol import Node, Run

__all__ = ["RESULTS", "again", "next_run", "read", "setting", "store", "sweep", "work"]

RESULTS = Path(__file__).parent / "results"

Record = dict[str, Any]


def read(folder: Path, method: str) -> list[Record]:
    """What is stored of a method, in the order of the runs."""
    path = folder / f"{method}.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


def sweep(records: Sequence[Record]) -> dict[tuple[Node, int], float]:
    """The held-out losses of the sweep, infinite for runs that diverged."""
    return {
        (tuple(record["node"]), record["seed"]): math.inf if record["loss"] is None else record["loss"]
        for record in records
        if record["phase"] == "sweep"
    }


def next_run(method: Method, budget: int, records: Sequence[Record]) -> Run | None:
    """What comes after the runs in `records`; None when the method is done.

    Raises `RetractError` if these are of other centres than the method has now.
    """
    _check_centres(method, records)
    losses = sweep(records)
    found = protocol.next_of_sweep(len(method.knobs), losses, budget)
    if found is not None:
        node, seed = found
        return Run("sweep", protocol.values(method.knobs, node), seed, node)
    return _missing(protocol.final_runs(method.knobs, protocol.chosen(losses)), records)


def setting(method: Method, budget: int, records: Sequence[Record]) -> Node:
    """What the sweep in `records` has chosen. Raises `RetractError` if it is not complete, or of other centres."""
    _check_centres(method, records)
    losses = sweep(records)
    if protocol.next_of_sweep(len(method.knobs), losses, budget) is not None:
        raise RetractError(
            f"{method.name}: its setting is chosen by a sweep of {budget} runs in another study, which has {len(losses)}; run that first"
        )
    return protocol.chosen(losses)


def _missing(runs: Sequence[Run], records: Sequence[Record]) -> Run | None:
    done = [(record["phase"], record["values"], record["seed"]) for record in records]
    return next((run for run in runs if (run.phase, run.values, run.seed) not in done), None)


def _check_centres(method: Method, records: Sequence[Record]) -> None:
    """Raise `RetractError` if the runs in `records` are of other centres than `method` has now."""
    for record in records:
        if record["phase"] == "sweep" and record["values"] != protocol.values(method.knobs, tuple(record["node"])):
            raise RetractError(
                f"{method.name}: a run at {record['values']} is stored as node {record['node']}, which is "
                f"{protocol.values(method.knobs, tuple(record['node']))} about the centres {method.knobs}: they have changed. Restore "
                "them, or remove the file of the results"
            )


def work(
    study: Study, methods: Sequence[str], minutes: float, folder: Path, tell: Callable[[str], None] = print
) -> None:
    """Make the runs of `methods` one by one, until all are done or `minutes` are over.

    Results are in `folder`. A method at which another worker is is passed over.
    """
    end = time.monotonic() + 60.0 * minutes
    for name in methods:
        with _alone(folder, name) as free:
            if not free:
                tell(f"{name}: another worker is at it")
                continue
            method = load(name)
            while (run := _next(study, method, folder, records := read(folder, name))) is not None:
                if time.monotonic() > end:
                    return
                record = _made(study, method, run)
                store(folder, method, [*records, record])
                shown = ", ".join(f"{knob} {value:g}" for knob, value in run.values.items())
                told = "diverged" if record["loss"] is None else f"loss {record['loss']:.4f}"
                tell(f"{name} {len(records)}: {run.phase}, {shown}, seed {run.seed}: {told}, {record['seconds']} s")
            tell(f"{name} is done: {len(records)} runs")


def _next(study: Study, method: Method, folder: Path, records: Sequence[Record]) -> Run | None:
    if isinstance(study, FollowUp):
        node = setting(method, study.budget, read(folder.parent / study.settings_of, method.name))
        return _missing(protocol.final_runs(method.knobs, node)[: study.seeds], records)
    return next_run(method, study.budget, records)


def again(study: Study, name: str, index: int, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Repeat a stored run; what differs, as pairs of the stored value and the new one. Time does not count."""
    stored = read(folder, name)[index]
    run = Run(stored["phase"], stored["values"], stored["seed"], tuple(stored["node"]))
    made = json.loads(json.dumps(_made(study, load(name), run)))
    return {
        key: (stored.get(key), made.get(key))
        for key in {**stored, **made}
        if key != "seconds" and stored.get(key) != made.get(key)
    }


def _made(study: Study, method: Method, run: Run) -> Record:
    """The record of a run, with what its last bits depend on."""
    record = train(study, method, run.values, run.seed, run.phase != "sweep")
    machine = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread"
    return {"phase": run.phase, "values": run.values, "seed": run.seed, "node": run.node, **record, "on": machine}


def store(folder: Path, method: Method, records: Sequence[Record]) -> None:
    """Replace the file at once, so that no reader finds half of it."""
    head = f'{{"method": {json.dumps(method.name)}, "centres": {json.dumps(method.knobs)}, "runs": [\n'
    text = head + ",\n".join(json.dumps(record) for record in records) + "\n]}\n"
    temporary = folder / f"{method.name}.json.new"
    temporary.write_text(text)
    os.replace(temporary, folder / f"{method.name}.json")


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[bool]:
    """Whether no other worker is at this method; the lock goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
