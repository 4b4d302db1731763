"""A plain training loop that writes down every epoch, and goes on where it was killed."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from retract.errors import RetractError
from retract.psi.data import whole
from torch import Tensor, nn

from . import checkpoint
from .pickles import shown

__all__ = ["Batches", "Epoch", "Record", "Trainer", "drops", "finished"]

_MOST = 2**24
"""Bytes of a run.json; an epoch takes about 150."""

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Epoch:
    """What one epoch left."""

    lr: float
    loss: float
    """Mean training loss over the batches."""
    accuracy: float
    """On held-out images after the epoch, in eval mode, in percent."""
    test_loss: float
    seconds: float
    """Of training, without the evaluation."""


@dataclass
class Record:
    """A run so far: its settings and its epochs. Kept as ``run.json`` and ``epochs.csv``."""

    settings: dict[str, Any]
    epochs: list[Epoch]

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite; the run ends there."""
        return bool(self.epochs) and not math.isfinite(self.epochs[-1].loss)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.diverged or len(self.epochs) == self.settings["epochs"]

    @property
    def accuracy(self) -> float:
        """After the last epoch, in percent; 0 if the run diverged."""
        return 0.0 if self.diverged or not self.epochs else self.epochs[-1].accuracy

    def write(self, folder: Path) -> None:
        """Both files, each whole at every moment."""
        rows = [asdict(epoch) for epoch in self.epochs]
        part = folder / "epochs.csv.part"
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", *(field.name for field in fields(Epoch))])
            writer.writeheader()
            writer.writerows({"epoch": number, **row} for number, row in enumerate(rows, 1))
        part.replace(folder / "epochs.csv")
        part = folder / "run.json.part"
        part.write_text(json.dumps({"settings": self.settings, "epochs": rows}, indent=1))
        part.replace(folder / "run.json")

    @classmethod
    def read(cls, path: Path) -> Record:
        """From a ``run.json``. Raises `RetractError` naming the file that is none."""
        try:
            content = json.loads(whole(path, _MOST, "named run.json"))
            return cls.of(content)
        except (ValueError, RecursionError) as error:
            told = shown(str(error))
            raise RetractError(
                f"{path} is not the run.json of a run ({told}): delete it, or name another folder"
            ) from error

    @classmethod
    def of(cls, content: Any) -> Record:
        """From a dict of plain values with settings and epochs, as files hold it. Raises `ValueError` where it is none."""
        if not isinstance(content, dict) or not isinstance(settings := content.get("settings"), dict):
            raise ValueError("no settings in it")
        if wrong := [key for key, value in settings.items() if not isinstance(value, (str, int, float, type(None)))]:
            raise ValueError(f"its setting {shown(wrong[0])} is no plain value")
        rows, count = content.get("epochs"), settings.get("epochs")
        if type(count) is not int or not isinstance(rows, list) or len(rows) > count:
            raise ValueError(f"no list of at most as many epochs as its settings say, {shown(repr(count))}")
        names = {field.name for field in fields(Epoch)}
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or set(row) != names or any(type(v) not in (int, float) for v in row.values()):
                raise ValueError(f"its epoch {number} does not hold numbers for {', '.join(sorted(names))}")
        try:
            return cls(settings, [Epoch(**{name: float(row[name]) for name in names}) for row in rows])
        except OverflowError:
            raise ValueError("a number of its epochs is too large") from None


@dataclass
class Trainer:
    """A model in training. Everything random comes from `generator`, so a run depends on nothing but its settings."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator
    """On the CPU."""
    train: Callable[[torch.Generator], Batches]
    """The batches of one epoch, on the model's device."""
    test: Callable[[], Batches]
    autocast: bool
    """Whether to compute in bfloat16 where torch's autocast does."""
    compile: bool
    """Whether to compile the model."""

    def run(self, folder: Path, settings: dict[str, Any], after_epoch: Callable[[int, Epoch], None]) -> Record:
        """Train to ``settings["epochs"]``, from the checkpoint in `folder` where there is one.

        Leaves ``run.json``, ``epochs.csv`` and, until the run is finished, ``checkpoint.pt`` in `folder` after every epoch, and
        calls ``after_epoch(number, epoch)``. A run that was killed goes on to the same numbers, seconds apart, where the device
        computes the same twice, as a CPU with as many threads does. Where processes have joined a group, all of them train
        (DistributedDataParallel), each on its own batches, and process 0 writes and reports.

        Raises `RetractError` if `folder` holds a run with other settings, or files that are not those of a run.
        """
        found = finished(folder, settings)
        if found is not None:
            return found
        record, path = Record(settings, []), folder / "checkpoint.pt"
        if path.is_file():
            record = self._resume(path, settings)
        alone = not dist.is_initialized()
        first = alone or dist.get_rank() == 0
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            record.write(folder)
        forward = self.model if alone else nn.parallel.DistributedDataParallel(self.model)
        if self.compile:
            forward = torch.compile(forward)  # type: ignore[assignment]
        while not record.finished:
            record.epochs.append(self.epoch(forward))
            self.schedule.step()
            if first:
                epochs = [asdict(epoch) for epoch in record.epochs]
                checkpoint.save({**self.state(), "settings": settings, "epochs": epochs}, path)
                record.write(folder)
                after_epoch(len(record.epochs), record.epochs[-1])
        if first:
            path.unlink(missing_ok=True)
        return record

    def state(self) -> dict[str, Any]:
        """All that changes, as plain values."""
        return {"parts": [part.state_dict() for part in self._parts()], "generator": self.generator.get_state()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        for part, saved in zip(self._parts(), state["parts"], strict=True):
            part.load_state_dict(saved)
        self.generator.set_state(state["generator"])

    def _resume(self, path: Path, settings: dict[str, Any]) -> Record:
        state = checkpoint.load(path)
        try:
            record = Record.of(state)
        except ValueError as error:
            raise RetractError(
                f"{path} is not the checkpoint of a run ({error}): delete it, and the run starts afresh"
            ) from None
        _same(record.settings, settings, path.parent)
        usual = self._after_a_step()
        place = _differs({key: state.get(key) for key in usual}, usual)
        if place is not None:
            raise RetractError(
                f"{path} does not fit this run (at {shown(place)}): delete it, and the run starts afresh"
            )
        try:
            self.load(state)
        except (
            Exception
        ) as error:  # modules, optimizers and schedules raise what a foreign state happens to meet in them
            told = shown(f"{type(error).__name__}: {error}")
            raise RetractError(
                f"{path} does not fit this run ({told}): delete it, and the run starts afresh"
            ) from error
        return record

    def _after_a_step(self) -> dict[str, Any]:
        """What `state` is like, with other numbers. The step is of zeros, on weights that are about to be replaced."""
        for p in self.model.parameters():
            p.grad = torch.zeros_like(p)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.state()

    def _parts(self) -> tuple[Any, ...]:
        return self.model, self.optimizer, self.schedule

    def step(self, x: Tensor, y: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        """One step on a batch; its loss, (), on the device."""
        self.optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            loss = nn.functional.cross_entropy(forward(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def epoch(self, forward: Callable[[Tensor], Tensor]) -> Epoch:
        """Train on the batches of one epoch, and evaluate."""
        lr = self.optimizer.param_groups[0]["lr"]
        start = time.perf_counter()
        self.model.train()
        losses = [self.step(x, y, forward) for x, y in self.train(self.generator)]
        total, steps = _over_processes(torch.stack(losses).double().sum(), len(losses))  # the one wait for a GPU
        seconds = time.perf_counter() - start
        if dist.is_initialized():  # each process has running statistics of its own; those of process 0 are kept
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)
        accuracy, test_loss = self.evaluate()
        return Epoch(lr, total / steps, accuracy, test_loss, seconds)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Accuracy in percent and mean loss, in eval mode."""
        self.model.eval()
        device = next(self.model.parameters()).device
        right, loss, count = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for x, y in self.test():
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
                output = self.model(x).float()
            right += (output.argmax(1) == y).sum()
            loss += nn.functional.cross_entropy(output, y, reduction="sum")
            count += len(y)
        hits, images = _over_processes(right, count)
        total, _ = _over_processes(loss, count)
        return 100.0 * hits / images, total / images


def finished(folder: Path, settings: dict[str, Any]) -> Record | None:
    """The run in `folder`, if it has come to its end. Raises `RetractError` if it has other settings."""
    if not (folder / "run.json").is_file():
        return None
    record = Record.read(folder / "run.json")
    _same(record.settings, settings, folder)
    return Record(settings, record.epochs) if record.finished else None


def drops(
    optimizer: torch.optim.Optimizer, epochs: int, shares: Sequence[float]
) -> torch.optim.lr_scheduler.LRScheduler:
    """The paper's schedule: × 0.2 after those shares of the epochs."""
    milestones = [max(1, round(share * epochs)) for share in shares]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, 0.2)


def _over_processes(value: Tensor, count: int) -> tuple[float, float]:
    """Both, summed over the processes of the group if there is one."""
    both = torch.stack([value.double(), torch.tensor(count, dtype=torch.float64, device=value.device)])
    if dist.is_initialized():
        dist.all_reduce(both)
    first, second = both.tolist()
    return first, second


def _differs(found: Any, usual: Any, place: str = "state") -> str | None:
    """Where `found` has other keys, lengths, types or shapes than `usual`, if anywhere."""
    if isinstance(usual, Tensor):
        same = isinstance(found, Tensor) and (found.shape, found.dtype) == (usual.shape, usual.dtype)
        return None if same else place
    if isinstance(usual, float):
        return None if type(found) in (int, float) else place
    if not isinstance(found, type(usual)):
        return place
    if isinstance(usual, (list, tuple)):
        usual, found = dict(enumerate(usual)), dict(enumerate(found))
    if not isinstance(usual, dict):
        return None
    if usual.keys() != found.keys():
        return place
    parts = (_differs(found[key], usual[key], f"{place}[{key!r}]") for key in usual)
    return next((part for part in parts if part is not None), None)


def _same(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing:
        told = ", ".join(f"{key} {shown(repr(found.get(key)))} instead of {wanted[key]!r}" for key in differing)
        raise RetractError(f"{folder} holds a run with {told}: name another folder with --out, or delete this one")
