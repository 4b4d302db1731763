"""The loop of the experiments in two processes, and ImageNet where torchvision loads."""

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from experiments import imagenet
from experiments.cli import app
from experiments.training import Trainer
from processes import together
from torch import nn
from typer.testing import CliRunner


def trained(rank, folder, share):
    """Three epochs on this process's share of every batch; the losses, the accuracies, and the weights."""
    torch.manual_seed(0)
    data = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    labels = (data[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)

    def batches(generator):
        for batch in torch.randperm(32, generator=generator).split(16):
            own = batch[rank::share]
            yield data[own], labels[own]

    trainer = Trainer(
        model,
        optimizer,
        schedule,
        torch.Generator().manual_seed(2),
        batches,
        lambda: [(data[rank::share], labels[rank::share])],
        autocast=False,
        compile=False,
    )
    told = []
    record = trainer.run(Path(folder) / f"of {share}", {"epochs": 3}, lambda number, _: told.append(number))
    numbers = [[e.loss, e.accuracy, e.test_loss, e.lr] for e in record.epochs]
    return [numbers, told, [p.detach() for p in model.parameters()]]


def test_two_processes_train_as_one(tmp_path):
    """On halves of every batch; process 0 reports, and a finished run is only read."""
    (alone,) = together(1, trained, str(tmp_path), 1)
    first, second = together(2, trained, str(tmp_path), 2)
    assert first[1] == alone[1] == [1, 2, 3]
    assert second[1] == []
    for mine in (first, second):
        torch.testing.assert_close(torch.tensor(mine[0]), torch.tensor(alone[0]), rtol=1e-5, atol=1e-6)
        for p, q in zip(mine[2], alone[2], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    again, _ = together(2, trained, str(tmp_path), 2)
    assert again[1] == []
    assert again[0] == first[0]


@pytest.fixture
def tiny(tmp_path):
    """An ImageFolder with two classes of eight images."""
    pictures = pytest.importorskip("PIL.Image")
    for part in ("train", "val"):
        for label in ("one", "two"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i in range(8):
                pictures.new("RGB", (40, 36), (30 * i, 200 * (label == "one"), 90)).save(folder / f"{i}.png")
    return tmp_path


def test_imagenet_smoke(tiny):
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not load: {error}")
    arguments = ["imagenet", "--data-dir", str(tiny), "--smoke", "--out", str(tiny / "out"), "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "1 of 1" in result.output


def test_imagenet_without_torchvision(monkeypatch, tmp_path):
    """A wheel that is missing, or that does not load beside this torch, is named, with what to do."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    result = CliRunner().invoke(app, ["imagenet", "--data-dir", str(tmp_path), "--device", "cpu"])
    assert result.exit_code == 2
    assert "torchvision does not load" in " ".join(result.output.split())


def test_imagenet_bad_input(monkeypatch, tiny):
    (tiny / "val").rename(tiny / "test")
    monkeypatch.setattr(imagenet, "_torchvision", lambda: types.SimpleNamespace())
    result = CliRunner().invoke(app, ["imagenet", "--data-dir", str(tiny), "--device", "cpu"])
    text = "".join(result.output.replace("│", "").split())
    assert result.exit_code == 2
    assert "val:--data-diristhefolderwithtrainandval" in text
