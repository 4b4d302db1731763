"""`table` and `epoch-time`: from numbers that are known."""

import json

import pytest
import torch
from experiments import cifar, epoch_time, table, training
from experiments.cli import app
from typer.testing import CliRunner


def record(accuracies, epochs=None, **changes):
    settings = {**vars(cifar.Config()), "epochs": len(accuracies) if epochs is None else epochs, **changes}
    return training.Record(
        settings, [training.Epoch(0.1, accuracy / 100, accuracy, 1.0, 1.0) for accuracy in accuracies]
    )


@pytest.fixture
def runs(tmp_path):
    found = [
        record([50.0, 90.0], seed=0),
        record([55.0, 92.0], seed=1),
        record([60.0, 91.5], method="sgd", weight_decay=5e-4),
        record([60.0, 80.0], method="sgd"),
        record([60.0, 80.0], method="sgdg", orthogonality=0.1, depth=56),
        record([60.0], method="sgd", lr=0.3, epochs=2),  # not finished
        record([60.0, 70.0], method="sgdg", weight_decay=5e-4, batch=64, bf16=True),
        record([10.0, 20.0], images=640),
        record([40.0, float("nan")], lr=3.0, held_out=True),
        record([40.0, 44.0], lr=3.0, held_out=True, seed=4),
        record([40.0, 41.0], lr=1.0, held_out=True, seed=5),
        record([40.0, float("nan")], lr=10.0, held_out=True),
    ]
    for number, one in enumerate(found):
        (tmp_path / str(number)).mkdir()
        one.write(tmp_path / str(number))
    return tmp_path


def test_rows(runs):
    """Seeds are gathered, networks and methods sorted, unfinished runs and those of sweeps left out."""
    found = table.rows(table.collect([runs]), held_out=False)
    assert [(row.network, row.title, row.told, row.published) for row in found] == [
        ("CIFAR-10 ResNet-20", "SGD", "80.00", "91.14 ± 0.10"),
        ("CIFAR-10 ResNet-20", "SGD, decay 0.0005", "91.50", "92.35"),
        ("CIFAR-10 ResNet-20, batch 64, bfloat16", "SGDG, decay of the rest 0.0005", "70.00", "–"),
        ("CIFAR-10 ResNet-20", "PSI-SGDM", "91.00 ± 1.41 (2)", "92.41 ± 0.12"),
        ("CIFAR-10 ResNet-20", "PSI-SGDM", "20.00", "–"),
        ("CIFAR-10 ResNet-56", "SGDG, α = 0.1", "80.00", "93.37"),
    ]
    trials = table.rows(table.collect([runs]), held_out=True)
    assert [row.told for row in trials] == ["41.00", "44.00, 1 diverged", "1 diverged"]


def test_diverged_runs_count_as_nothing():
    one = training.Record({"epochs": 5}, [training.Epoch(0.1, float("nan"), 33.0, 1.0, 1.0)])
    assert one.diverged
    assert one.finished
    assert one.accuracy == 0.0


def test_psi_with_decay_has_no_counterpart():
    """The paper's L2 in front of norms is refused here, so its number does not stand beside another experiment."""
    (row,) = table.rows([record([90.0], weight_decay=5e-4)], held_out=False)
    assert row.title == "PSI-SGDM, decay of the rest 0.0005"
    assert row.published == "–"


def test_published():
    """Each network has five methods, twice; the numbers at the corners of the paper's tables."""
    assert len(table.PUBLISHED) == 8 * 5 * 2
    corners = {
        ("cifar10", 20, "sgd", False): "91.14 ± 0.10",
        ("cifar100", 56, "psi-sgdm", False): "72.40 ± 0.16",
        ("cifar10", 20, "sgd", True): "92.35",
        ("cifar100", 56, "psi-sgdm", True): "72.62",
    }
    assert {key: table.PUBLISHED[key] for key in corners} == corners


def test_command(runs, tmp_path):
    plot, page = tmp_path / "t.png", tmp_path / "t.md"
    result = CliRunner().invoke(app, ["table", str(runs), "--plot", str(plot), "--markdown", str(page)])
    assert result.exit_code == 0, result.output
    assert plot.read_bytes()[1:4] == b"PNG"
    lines = [line for line in page.read_text().splitlines() if "PSI-SGDM" in line]
    assert "91.00 ± 1.41 (2)" in lines[0]
    assert "92.41 ± 0.12" in lines[0]
    assert len(lines) == 5


@pytest.mark.parametrize(
    "content", [None, "{", json.dumps({"settings": {}}), json.dumps({"settings": {}, "epochs": [{}]})]
)
def test_no_runs(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    result = CliRunner().invoke(app, ["table", str(tmp_path)])
    assert result.exit_code == 2
    text = " ".join(result.output.replace("│", "").split())
    assert ("no finished run of cifar under" if content is None else "is not the run.json of a run") in text


def test_epoch_time(tmp_path):
    """Every method takes its turn; an epoch is the median step times the number of batches; the optimizer is a part of it."""
    turns = []
    timings = epoch_time.measure(["sgd", "psi-sgdm"], 8, 3, torch.device("cpu"), turns.append, batch=16)
    assert turns == ["sgd", "psi-sgdm"] * 5
    for timing in timings:
        assert len(timing.steps) == len(timing.optimizer) == 3
        assert timing.epoch == pytest.approx(sorted(timing.steps)[1] * 50_000 / 16)
        assert 0 < timing.of_optimizer / 1e3 < sorted(timing.steps)[1]
    page = tmp_path / "time.md"
    arguments = ["epoch-time", "--depth", "8", "--batch", "16", "--rounds", "3", "--method", "psi-sgdm"]
    result = CliRunner().invoke(app, [*arguments, "--markdown", str(page), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    sgd, psi = (line.split("|") for line in page.read_text().splitlines() if line.startswith(("| SGD ", "| PSI-SGDM")))
    assert sgd[4].strip() == "1.000"
    assert psi[6].strip() == "1.09"
