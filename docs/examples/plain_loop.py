"""A plain training loop on scikit-learn's digits, with weights on two manifolds, interrupted and resumed."""

import tempfile
from pathlib import Path

import retract
import torch
from retract import psi
from retract.manifolds import Sphere
from retract.optim import RiemannianSGD
from sklearn.datasets import load_digits
from torch import nn

EPOCHS = 4
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    psi.declare(model, x[:128])  # measures that the rows of 0.weight are scale-invariant, and puts them on PSI
    retract.declare(model, "3.weight", Sphere())  # by hand: rows of norm 1
    groups = retract.param_groups(model, euclidean={"weight_decay": 5e-4})  # one per manifold, and the rest
    optimizer = RiemannianSGD(groups, lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)
    return model, optimizer, schedule


def train(model, optimizer, schedule, epochs):
    losses = []
    for _ in range(epochs):
        for start in range(0, len(x), 128):
            loss = nn.functional.cross_entropy(model(x[start : start + 128]), y[start : start + 128])
            optimizer.zero_grad()
            loss.backward()
            retract.optim.clip_riemannian_norm_(optimizer, max_norm=1.0)  # in the metric of each manifold
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
    return losses


def main(folder):
    parts = build()
    losses = train(*parts, epochs=EPOCHS // 2)
    torch.save([part.state_dict() for part in parts], folder / "checkpoint.pt")

    parts = build()  # as if in a new process: declare and build as before, then load
    for part, state in zip(parts, torch.load(folder / "checkpoint.pt"), strict=True):
        part.load_state_dict(state)
    losses += train(*parts, epochs=EPOCHS - EPOCHS // 2)
    print(f"plain loop: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return parts[0], parts[1], losses


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
