"""ResNet-20 on CIFAR-10 at full length on one GPU: five methods × three seeds side by side, in calls of under ten minutes.

    python docs/benchmarks/cifar_gpu.py DATA OUT --minutes 9 --calls 3      # the same command again until it says "finished"
    python docs/benchmarks/cifar_gpu.py DATA OUT --sweep --minutes 9        # before: the rates of PSI-SGD and PSI-SGDM

A training step of all networks is one CUDA graph, in which each has a stream of its own: launched one by one, a step of so small a
network leaves the device idle. The graph is captured anew where a rate drops. The first call measures the milliseconds of a step
and takes as many epochs as fit into all calls, at most 200:

    epochs = min(200, 0.85 · calls · minutes · 60,000 / (milliseconds · steps per epoch))

OUT holds a checkpoint per method, a few MB each, and results.json with every epoch that was evaluated. On a CPU the same steps run
without a graph, to try the script: --images 256 --epochs 2.
"""

import argparse
import json
import time
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import torch
from retract.psi.experiments import checkpoint, cifar
from retract.psi.experiments.methods import METHODS
from torch import nn

SPEED = {"bf16": True, "channels_last": True}
STUDY = [
    cifar.Config(method="sgd", lr=0.1, **SPEED),
    cifar.Config(method="sgd", lr=0.1, weight_decay=5e-4, **SPEED),
    cifar.Config(method="sgdg", lr=0.2, **SPEED),
    cifar.Config(method="psi-sgd", lr=1.0, **SPEED),
    cifar.Config(method="psi-sgdm", lr=0.1, **SPEED),
]
RATES = {"psi-sgd": (0.3, 1.0, 3.0, 10.0), "psi-sgdm": (0.03, 0.1, 0.3, 1.0)}


class Job:
    """One network in training, all of whose state lies on the device."""

    def __init__(self, config, split, device):
        self.config = config
        self.trainer, self.images = cifar.prepare(config, split, device)
        for group in self.trainer.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = device.type == "cuda"
        self.places = torch.arange(config.batch, device=device)
        self.cursor = torch.zeros((), dtype=torch.int64, device=device)
        self.loss = torch.zeros((), device=device)
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        self.drawn = None
        self.epochs = []

    def shuffle(self):
        """Another epoch, written where the graph reads it."""
        drawn = self.images.draw(self.trainer.generator)
        if self.drawn is None:
            self.drawn = drawn
        for old, new in zip(self.drawn, drawn, strict=True):
            old.copy_(new)
        self.cursor.zero_()
        self.loss.zero_()

    def step(self):
        """One step on the next batch; nothing of it is known to the host."""
        x, y = self.images.cut(self.drawn, self.cursor + self.places)
        self.trainer.optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.bf16):
            loss = nn.functional.cross_entropy(self.trainer.model(x), y)
        loss.backward()
        self.trainer.optimizer.step()
        self.loss += loss.detach()
        self.cursor += len(self.places)

    def state(self):
        """For the checkpoint."""
        t = self.trainer
        parts = [part.state_dict() for part in (t.model, t.optimizer, t.schedule)]
        return {
            "config": asdict(self.config),
            "parts": parts,
            "generator": t.generator.get_state(),
            "epochs": self.epochs,
        }

    def load(self, state):
        """From the checkpoint of a run with the same settings."""
        if state["config"] != asdict(self.config):
            raise SystemExit(f"{self.config.name}: the checkpoint is of {state['config']}; name another OUT")
        t = self.trainer
        for part, its in zip((t.model, t.optimizer, t.schedule), state["parts"], strict=True):
            part.load_state_dict(its)
        t.generator.set_state(state["generator"])
        self.epochs = state["epochs"]


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
        """One epoch of every job; the first three steps after a change are not captured, so that whatever has to be set up is."""
        for job in self.jobs:
            job.trainer.model.train()
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
        before = [job.trainer.optimizer.param_groups[0]["lr"] for job in self.jobs]
        for job in self.jobs:
            job.trainer.schedule.step()
        if before != [job.trainer.optimizer.param_groups[0]["lr"] for job in self.jobs]:
            self.graph = None  # the old rate is part of it

    def evaluate(self, number):
        """Accuracy of every job, written down."""
        for job in self.jobs:
            accuracy, loss = job.trainer.evaluate()
            job.epochs.append([number, float(job.loss) / self.steps, accuracy, loss])


def milliseconds(jobs, fleet):
    """Of a step of all jobs, from the second epoch's first hundred steps of a graph."""
    fleet.epoch()
    for job in jobs:
        job.trainer.model.train()
        job.shuffle()
    count = min(100, fleet.steps)
    start = time.perf_counter()
    for _ in range(count):
        fleet.graph.replay() if fleet.graph is not None else fleet.together()
    for job in jobs:
        float(job.loss)
    return 1e3 * (time.perf_counter() - start) / count


def build(split, device, epochs, images, sweep):
    """The jobs, at their start."""
    if sweep:
        trials = [replace(c, lr=lr, held_out=True) for c in STUDY for lr in RATES.get(c.method, ())]
        configs = [replace(c, epochs=epochs, images=images) for c in trials]
    else:
        configs = [replace(c, epochs=epochs, images=images, seed=seed) for c in STUDY for seed in range(3)]
    return [Job(config, split, device) for config in configs]


def save(jobs, number, out):
    """A checkpoint per method, and the numbers."""
    groups = defaultdict(list)
    for job in jobs:
        groups[f"{job.config.method}-wd{job.config.weight_decay:g}"].append(job.state())
    for name, states in groups.items():
        checkpoint.save({"number": number, "states": states}, out / f"{name}.pt")
    numbers = {job.config.name: {"settings": asdict(job.config), "epochs": job.epochs} for job in jobs}
    (out / "results.json").write_text(json.dumps(numbers))


def load(jobs, out):
    """The epoch that the checkpoints in `out` are at, with the jobs put there; 0 without."""
    files = sorted(out.glob("*.pt"))
    saved = {
        repr(sorted(state["config"].items())): state for file in files for state in checkpoint.load(file)["states"]
    }
    for job in jobs if files else ():
        job.load(saved[repr(sorted(asdict(job.config).items()))])
    return checkpoint.load(files[0])["number"] if files else 0


def main():
    """One call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which this call saves and ends")
    parser.add_argument("--calls", type=int, default=3, help="of this length, that the epochs have to fit into")
    parser.add_argument("--epochs", type=int, help="instead of the formula's")
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument(
        "--sweep", action="store_true", help="30 epochs at each rate of PSI-SGD and PSI-SGDM, on held-out images"
    )
    arguments = parser.parse_args()
    start = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    split = cifar.load("cifar10", arguments.data)
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    plan = out / "plan.json"
    if not plan.exists():
        epochs = arguments.epochs or (30 if arguments.sweep else None)
        if epochs is None:
            jobs = build(split, device, 200, arguments.images, arguments.sweep)
            fleet = Fleet(jobs)
            ms = milliseconds(jobs, fleet)
            budget = 0.85 * arguments.calls * arguments.minutes * 60_000
            epochs = max(10, min(200, int(budget / (ms * fleet.steps))))
            print(f"{ms:.2f} ms for a step of {len(jobs)} networks: 0.85 · {arguments.calls} · {arguments.minutes:g} · 60,000 / "
                  f"({ms:.2f} · {fleet.steps}), at most 200: {epochs} epochs")  # fmt: skip
            del jobs, fleet
        plan.write_text(json.dumps({"epochs": epochs}))
    epochs = json.loads(plan.read_text())["epochs"]
    jobs = build(split, device, epochs, arguments.images, arguments.sweep)
    number, fleet = load(jobs, out), Fleet(jobs)
    while number < epochs and time.perf_counter() - start < 60 * arguments.minutes:
        fleet.epoch()
        number += 1
        if number % 10 == 0 or number == epochs:
            fleet.evaluate(number)
        if number % 5 == 0 or number == epochs:
            save(jobs, number, out)
    save(jobs, number, out)
    for job in jobs:
        told = ", ".join(f"{accuracy:.2f} % at {at}" for at, _, accuracy, _ in job.epochs[-2:])
        title, lr = METHODS[job.config.method].title, job.config.lr
        print(
            f"{title}, decay {job.config.weight_decay:g}, lr {lr:g}, seed {job.config.seed}: {told or 'not evaluated yet'}"
        )
    state = "finished" if number == epochs else f"{epochs - number} to go: run the same command again"
    print(f"{number} of {epochs} epochs on {device}, {time.perf_counter() - start:.0f} s in this call; {state}")


if __name__ == "__main__":
    main()
