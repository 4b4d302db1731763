"""The training of plain_loop.py as a LightningModule, interrupted and resumed by the Trainer."""

import tempfile
from pathlib import Path

import pytorch_lightning as pl
import retract
import torch
from retract import psi
from retract.manifolds import Sphere
from retract.optim import RiemannianSGD
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 4
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)


class Digits(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
        psi.declare(self.net, x[:128])
        retract.declare(self.net, "3.weight", Sphere())
        self.losses = []

    def training_step(self, batch):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        groups = retract.param_groups(self, euclidean={"weight_decay": 5e-4})
        optimizer = RiemannianSGD(groups, lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm=None):
        retract.optim.clip_riemannian_norm_(
            optimizer, gradient_clip_val
        )  # in the metric; the Trainer's own is Euclidean


def fit(epochs, checkpoint=None):
    module, loader = Digits(), DataLoader(TensorDataset(x, y), batch_size=128)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_epochs=epochs, gradient_clip_val=1.0, accelerator="cpu", **quiet)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    return module, trainer


def main(folder):
    first, trainer = fit(EPOCHS // 2)
    trainer.save_checkpoint(folder / "checkpoint.ckpt")
    module, trainer = fit(EPOCHS, folder / "checkpoint.ckpt")  # a new module declares as before, the Trainer loads
    losses = first.losses + module.losses
    print(f"Lightning: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return module.net, trainer.optimizers[0], losses


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
