"""What the pages say of the ReLU networks and of ResNet-20, and how the latter takes its rates."""

from types import SimpleNamespace

import pytest
import retract
import torch
from made_runs import make
from retract import psi
from studies import pages, protocol, runs
from studies.batchnorm import BatchNorm, convolutional
from studies.methods import load
from studies.relu_study import ReLUStudy
from studies.resnet20 import ResNet20, ResNet20LR, ResNet20Rates

NO_DATA = SimpleNamespace()
"""In place of a study with its data."""


def sizes(network, names):
    return sum(p.numel() for name, p in network.named_parameters() if name in names)


def test_units_are_points_as_the_page_says():
    """16 and 48 of them, in all convolutions and two of their biases."""
    network = ReLUStudy.network(NO_DATA)
    assert sum(p.numel() for p in network.parameters()) == 41_530
    assert sizes(network, network.hidden) == 41_040
    report = psi.find(network, torch.randn(8, 3, 32, 32))
    assert not report.invariant
    assert [pair.points for pair in report.pairs] == [16, 32, 48, 48]
    for name in ("units_sgd", "units_adam"):
        network = ReLUStudy.network(NO_DATA)
        load(name).optimizers(network, torch.randn(8, 3, 32, 32), lr=0.1, rest=0.1)
        assert [*retract.declared(network)] == [
            "2.weight[dim 1] × 0.weight + 0.bias",
            "6.weight[dim 1] × 4.weight + 4.bias",
        ]


def test_the_network_without_normalization_has_the_convolutions_of_the_other():
    shapes = [[p.shape for p in convolutional(normalized).parameters() if p.ndim == 4] for normalized in (True, False)]
    assert shapes[0] == shapes[1]


def test_sizes_of_resnet_20_are_those_of_the_page():
    network = ResNet20.network(NO_DATA)
    found = {finding.name for finding in psi.find(network, torch.randn(8, 3, 32, 32)).invariant}
    convolutions = {name for name, p in network.named_parameters() if p.ndim == 4}
    assert found >= convolutions
    assert sum(p.numel() for p in network.parameters()) == 269_722
    assert sizes(network, convolutions) == 267_696


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Runs by a formula in place of training: of the small network with the least loss at twice `lr` and four times `rest` of the
    centres, of short runs of ResNet-20 at half of that `lr` and of that `rest`, of long ones at twice that `lr` under one method and
    at a quarter under the other. Accuracies of the final ones are 90, 91 and 92, and half a point more."""
    for study, *best in (
        (BatchNorm, (1, 2), (1, 2)),
        (ResNet20Rates, (-1, -1), (-1, -1)),
        (ResNet20LR, (-2,), (1,)),
        (ResNet20, (), ()),
    ):
        monkeypatch.setattr(study, "methods", ("sgd_plain", "psi_sgdm"))
        for name, more, at in zip(study.methods, (0.0, 0.5), best, strict=True):

            def loss(run, at=at):
                away = sum((k - b) ** 2 for k, b in zip(run.node, at, strict=False))
                return 1.0 + 0.1 * away + 0.01 * (run.seed - 100) * (run.phase == "final")

            def final(run, more=more, loss=loss):
                return {"test accuracy": 90.0 + run.seed % 5 + more, "test loss": loss(run)}

            make(study, name, tmp_path, loss, final)
    return tmp_path


def test_rates_of_resnet_20_are_those_of_long_runs_about_those_of_short_ones(results):
    for name, factor in (("sgd_plain", 0.25), ("psi_sgdm", 2.0)):
        centre = load(name).knobs
        short, long, final = (runs.read(results / study.name, name) for study in (ResNet20Rates, ResNet20LR, ResNet20))
        assert short[0]["values"] == {"lr": 2 * centre["lr"], "rest": 4 * centre["rest"]}
        assert len(short) == 2 * ResNet20Rates.budget
        found = {"lr": centre["lr"], "rest": 2 * centre["rest"]}
        assert long[0]["values"] == found
        assert len(long) == ResNet20LR.budget == protocol.VALUES
        assert [record["seed"] for record in final] == [*protocol.FINAL_SEEDS[:3]]
        assert [record["values"] for record in final] == [{**found, "lr": found["lr"] * factor}] * 3


def test_the_tables_of_resnet_20(results):
    small = pages.generated(BatchNorm, results / "batchnorm", (ResNet20Rates,))
    assert "| best lr, rest (held-out loss, runs); every lr within 0.02 of it | small network" in small
    assert "| PSI-SGDM | 0.2, 0.4 (1.000, 7) | 0.1, 0.2 (1.000, 2) |" in small
    text = pages.generated(ResNet20, results / "resnet20")
    assert "| PSI-SGDM | 0.2 | 0.2 | 91.50 ± 0.58 | **+0.50 [+0.50, +0.50]** | 1.0100 ± 0.0058 |" in text
    assert "| held-out loss at | ¼ | ½ | 1 | 2 | 4 | 8 × the chosen lr |" in text
    assert "| PSI-SGDM | 1.400 | 1.100 | 1.000 | 1.100 | 1.400 | – |" in text
    assert "| SGD | – | 1.100 | 1.000 | 1.100 | 1.400 | 1.900 |" in text
    assert "| test accuracy in %, seed | 100 | 101 | 102 |\n| --- | ---: | ---: | ---: |" in text
    assert "\n| PSI-SGDM | 90.50 | 91.50 | 92.50 |\n| SGD | 90.00 | 91.00 | 92.00 |\n" in text
    assert "svg" not in text
    assert text.endswith(
        "16 runs, 0.2 hours of one core (a machine). The median run takes 36 s (ResNet-20, sweep of twenty epochs), 36 s (ResNet-20, "
        "twenty epochs)."
    )


def test_a_method_without_all_its_seeds_is_not_compared(results):
    found = runs.read(results / "resnet20", "psi_sgdm")
    runs.store(results / "resnet20", load("psi_sgdm"), found[1:])
    assert "Not finished: PSI-SGDM (2 runs)." in pages.generated(ResNet20, results / "resnet20")


def test_a_rate_at_an_edge_of_the_sweep_before_is_told(results):
    """Where losses fall and fall with the rate."""
    found = make(ResNet20LR, "psi_sgdm", results, lambda run: 1.0 + 0.01 * run.node[0], None)
    assert len(found) == 2 * ResNet20LR.budget
    make(ResNet20, "psi_sgdm", results, lambda run: 1.0, lambda run: {"test accuracy": 90.0, "test loss": 1.0})
    text = pages.generated(ResNet20, results / "resnet20")
    assert "| PSI-SGDM (at an edge) | " in text
    assert "| SGD | 0.025 | 0.2 |" in text
