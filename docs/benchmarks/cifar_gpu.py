"""ResNet-20 on CIFAR-10 at full length on one GPU: five methods × three seeds side by side, in calls of under ten minutes.

    python docs/benchmarks/cifar_gpu.py DATA SWEEP --sweep         # 30 epochs at four rates each, on held-out training images
    python docs/benchmarks/cifar_gpu.py DATA OUT --rates SWEEP     # at the rates it chose; without, at the published ones

The same command again goes on where the last one ended, until it says "finished". A training step of all networks is one CUDA graph,
in which each has a stream of its own: launched one by one, a step of so small a network leaves the device idle. The graph is
captured anew where a rate drops. The first call measures an epoch and takes as many as fit into all calls:

    epochs = max(10, min(200, 0.85 · calls · minutes · 60 / (seconds of an epoch)))

OUT holds a checkpoint per method, a few MB each, plan.json, and results.json with every tenth epoch. The last images of an epoch, 80
of 50,000, which do not fill a batch, are left out. On a CPU the same steps run without a graph, to try the script.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))  # where the package experiments is
from experiments import checkpoint, cifar, table
from experiments.methods import METHODS
from experiments.training import Epoch, Record

SPEED = {"bf16": True, "channels_last": True}
STUDY = [
    cifar.Config(method="sgd", **SPEED),
    cifar.Config(method="sgd", weight_decay=5e-4, **SPEED),
    cifar.Config(method="sgdg", **SPEED),
    cifar.Config(method="psi-sgd", **SPEED),
    cifar.Config(method="psi-sgdm", **SPEED),
]
FACTORS = (0.3, 1.0, 3.0, 10.0)
"""Rates of a sweep, times the published one."""


class Job:
    """One network in training, all of whose state lies on the device."""

    def __init__(self, config, images):
        self.config, self.images = config, images
        self.trainer = cifar.prepare(config, images)
        device = images.device
        self.places = torch.arange(config.batch, device=device)
        self.cursor = torch.zeros((), dtype=torch.int64, device=device)
        self.loss = torch.zeros((), device=device)
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        self.drawn = None
        self.record = Record(asdict(config), [])

    def shuffle(self):
        """Another epoch, written where the graph reads it."""
        drawn = self.images.draw(self.trainer.generator)
        if self.drawn is None:
            self.drawn = drawn
        for old, new in zip(self.drawn, drawn, strict=True):
            old.copy_(new)
        self.cursor.zero_()
        self.loss.zero_()
        self.rate = self.lr
        self.trainer.model.train()

    def step(self):
        """One step on the next batch; nothing of it is known to the host."""
        x, y = self.images.cut(self.drawn, self.cursor + self.places)
        self.loss += self.trainer.step(x, y, self.trainer.model)
        self.cursor += len(self.places)

    @property
    def lr(self):
        """Now."""
        return self.trainer.optimizer.param_groups[0]["lr"]

    def evaluate(self, steps, seconds):
        """Write down where it stands, after an epoch."""
        accuracy, test_loss = self.trainer.evaluate()
        self.record.epochs.append(Epoch(self.rate, float(self.loss) / steps, accuracy, test_loss, seconds))


class Fleet:
    """Jobs that step together."""

    def __init__(self, jobs):
        self.jobs = jobs
        self.graph = None
        self.steps = jobs[0].images.count // jobs[0].config.batch

    def together(self):
        """One step of every job, each on its stream."""
        if self.jobs[0].stream is None:
            for job in self.jobs:
                job.step()
            return
        main = torch.cuda.current_stream()
        for job in self.jobs:
            job.stream.wait_stream(main)
            with torch.cuda.stream(job.stream):
                job.step()
        for job in self.jobs:
            main.wait_stream(job.stream)

    def epoch(self):
        """One epoch of every job; seconds. The first three steps after a change are not captured, so that whatever has to be set
        up is."""
        start = time.perf_counter()
        for job in self.jobs:
            job.shuffle()
        done = 0
        if self.graph is None:
            while done < min(3, self.steps):
                self.together()
                done += 1
            if self.jobs[0].stream is not None:
                for job in self.jobs:
                    job.trainer.optimizer.zero_grad()
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self.together()
        for _ in range(self.steps - done):
            self.graph.replay() if self.graph is not None else self.together()
        before = [job.lr for job in self.jobs]
        for job in self.jobs:
            job.trainer.schedule.step()
        if before != [job.lr for job in self.jobs]:
            self.graph = None  # the old rate is part of it
        float(self.jobs[0].loss)  # waits
        return time.perf_counter() - start


def build(images, epochs, number, rates):
    """The jobs, at their start: a sweep of `STUDY` if `rates` is None, else all seeds of it at `rates`, a list."""
    if rates is None:
        configs = [replace(c, lr=factor * METHODS[c.method].lr, held_out=True) for c in STUDY for factor in FACTORS]
    else:
        configs = [replace(c, lr=lr, seed=seed) for c, lr in zip(STUDY, rates, strict=True) for seed in range(3)]
    return [Job(replace(config, epochs=epochs, images=number), images) for config in configs]


def save(jobs, number, out):
    """A checkpoint per method, and the numbers."""
    groups = defaultdict(dict)
    for job in jobs:
        epochs = [asdict(epoch) for epoch in job.record.epochs]
        state = {**job.trainer.state(), "epochs": epochs, "number": number}
        groups[f"{job.config.method}-wd{job.config.weight_decay:g}"][job.config.name] = state
    for name, states in groups.items():
        checkpoint.save(states, out / f"{name}.pt")
    (out / "results.json").write_text(
        json.dumps([vars(job.record) | {"epochs": [asdict(e) for e in job.record.epochs]} for job in jobs])
    )


def load(jobs, out):
    """The epoch that the checkpoints in `out` are at, with the jobs put there; 0 without."""
    saved = {}
    for path in sorted(out.glob("*.pt")):
        saved.update(checkpoint.load(path, jobs[0].images.device))
    if not saved:
        return 0
    numbers = {state["number"] for state in saved.values()}
    if len(numbers) > 1 or {job.config.name for job in jobs} != set(saved):
        raise SystemExit(
            f"{out}: checkpoints of epochs {sorted(numbers)}, of {sorted(saved)}: not of one moment of these runs; delete them"
        )
    for job in jobs:
        state = saved[job.config.name]
        job.trainer.load({**state, "generator": state["generator"].cpu()})
        job.record.epochs[:] = [Epoch(**epoch) for epoch in state["epochs"]]
    return numbers.pop()


def chosen(folder):
    """The best rates of a finished sweep in `folder`, in the order of `STUDY`; says where one is at an edge."""
    records = [
        Record(one["settings"], [Epoch(**e) for e in one["epochs"]])
        for one in json.loads((folder / "results.json").read_text())
    ]
    rates = []
    for config in STUDY:
        its = [
            r
            for r in records
            if (r.settings["method"], r.settings["weight_decay"]) == (config.method, config.weight_decay)
        ]
        rates.append(cifar.best(its))
        if rates[-1] in (its[0].settings["lr"], its[-1].settings["lr"]):
            print(
                f"{config.method}, decay {config.weight_decay:g}: the best rate, {rates[-1]:g}, is at an edge; widen FACTORS"
            )
    return rates


def main():
    """One call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which this call saves and ends")
    parser.add_argument("--calls", type=int, default=3, help="of this length, that the epochs have to fit into")
    parser.add_argument("--epochs", type=int, help="instead of the formula's, or of the sweep's 30")
    parser.add_argument("--images", type=int, default=0, help="of the training set; 0 takes all")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--rates", type=Path, help="folder of the finished sweep")
    arguments = parser.parse_args()
    start = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rates = [METHODS[config.method].lr for config in STUDY]
    if arguments.sweep:
        rates = None
    elif arguments.rates:
        rates = chosen(arguments.rates)
    config = replace(STUDY[0], images=arguments.images, held_out=arguments.sweep)
    images = cifar.Images(cifar.load("cifar10", arguments.data), config, device)
    asked = {
        "epochs": arguments.epochs or (30 if arguments.sweep else None),
        "images": arguments.images,
        "rates": rates,
    }
    plan = json.loads((out / "plan.json").read_text()) if (out / "plan.json").exists() else {"asked": asked}
    if plan["asked"] != asked:
        raise SystemExit(f"{out} holds runs for {plan['asked']}, not for {asked}: name another folder")
    if "epochs" not in plan:
        plan["epochs"] = asked["epochs"]
        if plan["epochs"] is None:
            fleet = Fleet(build(images, 200, arguments.images, rates))
            fleet.epoch()
            seconds = fleet.epoch()
            plan["epochs"] = max(10, min(200, int(0.85 * arguments.calls * arguments.minutes * 60 / seconds)))
            print(
                f"{seconds:.2f} s for an epoch of {len(fleet.jobs)} networks, {1e3 * seconds / fleet.steps:.2f} ms for a step: {plan['epochs']} epochs"
            )
            del fleet
        (out / "plan.json").write_text(json.dumps(plan))
    epochs = plan["epochs"]
    jobs = build(images, epochs, arguments.images, rates)
    number, fleet = load(jobs, out), Fleet(jobs)
    while number < epochs and time.perf_counter() - start < 60 * arguments.minutes:
        seconds = fleet.epoch()
        number += 1
        if number % 10 == 0 or number == epochs:
            for job in jobs:
                job.evaluate(fleet.steps, seconds)
            save(jobs, number, out)
    save(jobs, number, out)
    done = [job.record for job in jobs if job.record.epochs]
    for row in table.rows(done, held_out=arguments.sweep):
        print(f"{row.title}, lr {row.settings['lr']:g}: {row.told} %")
    state = "finished" if number == epochs else f"{epochs - number} to go: run the same command again"
    print(f"{number} of {epochs} epochs on {device}, {time.perf_counter() - start:.0f} s in this call; {state}")


if __name__ == "__main__":
    main()
