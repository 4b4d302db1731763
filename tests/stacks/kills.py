"""Trains in child processes that are killed at random moments, and resumes: ``kills.py FOLDER KILLS``, prints JSON.

A process of its own, which forks: importing torch takes seconds, a fork milliseconds. Nothing here may start a thread
before a fork, so the parent runs no backward pass, and OpenMP has one thread.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from experiments import checkpoint
from networks import declare_all, normed_mlp
from optimizers import OPTIMIZERS
from retract import param_groups
from retract.manifolds import PSI, Grassmann
from torch import nn

STEPS, BATCH, SAMPLES = 40, 8, 48
NAMES = ("psi-sgdm", "psi-sgdm-free", "adam", "adamg")


class Run:
    """A training run with everything that decides how it goes on; BatchNorm, dropout and shuffling included."""

    def __init__(self, name):
        torch.manual_seed(0)
        self.inputs, self.labels = torch.randn(SAMPLES, 6), torch.randint(4, (SAMPLES,))
        self.model = nn.Sequential(nn.Dropout(0.2), normed_mlp(eps=1e-5, dtype=torch.float32))
        declare_all(self.model, Grassmann(1) if name == "adamg" else PSI())
        self.optimizer = OPTIMIZERS[name](param_groups(self.model))
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 7, 0.8)
        self.shuffle = torch.Generator().manual_seed(1)
        self.order, self.losses = [], []

    def state(self):
        parts = {key: getattr(self, key).state_dict() for key in ("model", "optimizer", "scheduler")}
        return {
            **parts,
            "random": torch.get_rng_state(),
            "shuffle": self.shuffle.get_state(),
            "order": self.order,
            "losses": self.losses,
        }

    def restore(self, state):
        for key in ("model", "optimizer", "scheduler"):
            getattr(self, key).load_state_dict(state[key])
        torch.set_rng_state(state["random"])
        self.shuffle.set_state(state["shuffle"])
        self.order, self.losses = state["order"], state["losses"]

    def step(self):
        self.order = self.order or torch.randperm(SAMPLES, generator=self.shuffle).tolist()
        batch, self.order = self.order[:BATCH], self.order[BATCH:]
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.inputs[batch]), self.labels[batch])
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.losses = [*self.losses, loss.item()]


def train(name, path):
    """To the end, from the checkpoint at `path` if there is one; a checkpoint after every step."""
    run = Run(name)
    if path.exists():
        run.restore(checkpoint.load(path))
    while len(run.losses) < STEPS:
        run.step()
        checkpoint.save(run.state(), path)


def start(name, path):
    """`train` in a child; its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(name, path)
            status = 0
        finally:
            os._exit(status)
    return child


def finish(child):
    """How a child ended: 0, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def same(a, b):
    """Whether two states agree in every bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def warm_up():
    """What is compiled or imported at a first step, without a backward pass."""
    for name in NAMES:
        run = Run(name)
        for p in run.model.parameters():
            p.grad = torch.ones_like(p)
        run.optimizer.step()


def main(folder, kills):
    draw = random.Random(kills)
    warm_up()
    ends, durations = {}, {}
    for name in NAMES:
        path, begin = folder / f"{name}.pt", time.perf_counter()
        assert finish(start(name, path)) == 0
        durations[name], ends[name] = time.perf_counter() - begin, checkpoint.load(path)
        assert len(ends[name]["losses"]) == STEPS
        assert len(set(ends[name]["losses"])) == STEPS
    report = {"kills": 0, "equal": 0, "while saving": 0, "half-written": 0, "at step": []}
    while report["kills"] < kills:
        name = NAMES[report["kills"] % len(NAMES)]
        path = folder / f"{report['kills']}.pt"
        child = start(name, path)
        time.sleep(draw.uniform(0.0, durations[name]))
        os.kill(child, signal.SIGKILL)
        if finish(child) != -signal.SIGKILL:  # it was done before
            path.unlink()
            continue
        report["kills"] += 1
        report["while saving"] += Path(f"{path}.part").exists()
        try:
            report["at step"].append(len(checkpoint.load(path)["losses"]) if path.exists() else 0)
        except Exception:
            report["half-written"] += 1
        report["equal"] += finish(start(name, path)) == 0 and same(checkpoint.load(path), ends[name])
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
