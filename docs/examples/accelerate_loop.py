"""The training of plain_loop.py under Hugging Face Accelerate, in micro-batches, interrupted and resumed."""

import tempfile
from pathlib import Path

import retract
import torch
from accelerate import Accelerator
from retract import psi
from retract.manifolds import Sphere
from retract.optim import RiemannianSGD
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 4
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)


def build(micro_batches):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro_batches)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    psi.declare(model, x[:128])  # declare before prepare
    retract.declare(model, "3.weight", Sphere())
    optimizer = RiemannianSGD(retract.param_groups(model, euclidean={"weight_decay": 5e-4}), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)
    loader = DataLoader(TensorDataset(x, y), batch_size=128 // micro_batches)
    return accelerator, *accelerator.prepare(model, optimizer, schedule, loader)


def train(accelerator, model, optimizer, schedule, loader, epochs):
    losses = []
    for _ in range(epochs):
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:  # accelerator.clip_grad_norm_ would clip in the Euclidean norm
                    accelerator.unscale_gradients(optimizer)
                    retract.optim.clip_riemannian_norm_(optimizer.optimizer, max_norm=1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        schedule.step()
    return losses


def main(folder, micro_batches=2):
    parts = build(micro_batches)
    losses = train(*parts, epochs=EPOCHS // 2)
    parts[0].save_state(folder / "checkpoint")

    parts = build(micro_batches)  # as if in a new process: declare, build and prepare as before, then load
    parts[0].load_state(folder / "checkpoint")
    losses += train(*parts, epochs=EPOCHS - EPOCHS // 2)
    print(f"Accelerate: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return parts[1], parts[2], losses


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
