"""The command line on screens of 80 and 60 columns: nothing is cut off, and the bar says how long it takes."""

import io
import re
import sys

import pytest
import torch
import typer
from cifar_folders import write_cifar10
from experiments import cifar, cli_networks, cli_shared, cli_small, epoch_time, toy
from experiments.cli import app
from experiments.table import Row
from experiments.training import Epoch, Record
from retract import param_groups, psi
from retract.errors import MissingExtraError
from retract.optim import PSISGD
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

EPOCH = Epoch(1e-3, 1.2345e-5, 100.0, 1.2345e-5, 3600.0)
RATES = {"lr": 0.00316, "weight_decay": 5e-4, "orthogonality": 0.1}
LONG = vars(cifar.Config(dataset="cifar100", depth=56, method="sgdg", images=45_000, batch=1024, bf16=True, **RATES))


def widest():
    """The tables of the commands with long content."""
    runs = [toy.Run(m, s, 0.00316, 3.16e-05, *[[1.23456e-05]] * 4) for s in toy.SCALES for m in toy.METHODS]
    trials = [Record({**LONG, "lr": lr}, [EPOCH]) for lr in (0.00316, 0.1)]
    settings = {key: value for key, value in LONG.items() if key != "seed"}
    return {
        "toy": cli_small.toy_table("‖∇_V‖", runs),
        "sweep": cli_networks.sweep_table("sgdg", trials),
        "table": cli_networks.accuracy_table([Row(settings, (98.76, 98.54), (1.2345e-5, 1.2e-5), 2)]),
    }


def words(table):
    return {word for column in table.columns for cell in column.cells for word in str(cell).split()}


@pytest.mark.parametrize("width", [80, 60, 40])
@pytest.mark.parametrize("name", ["toy", "sweep", "table"])
def test_no_cell_is_cut_off(name, width):
    table, file = widest()[name], io.StringIO()
    cli_shared.show([table], Console(file=file, width=width), None)
    text = file.getvalue()
    assert not {word for word in words(table) if word not in text}
    assert max(map(len, text.splitlines())) <= width


def test_the_table_of_figure_4_is_a_table_at_80_columns():
    """Not the list that narrower screens get."""
    assert cli_shared.fits(widest()["toy"], Console(file=io.StringIO(), width=80))


@pytest.mark.parametrize(
    "command", [command.callback.__name__.replace("_", "-") for command in app.registered_commands]
)
def test_help_is_not_cut_off(command):
    """Every option by its whole name, and in the list of commands a whole sentence."""
    text = CliRunner().invoke(app, [command, "--help"]).output
    assert max(map(len, text.splitlines())) <= 80
    options = typer.main.get_command(app).commands[command].params
    assert not [name for option in options for name in option.opts if option.name != "folder" and name not in text]
    listed = CliRunner().invoke(app, ["--help"]).output
    assert not re.search(r"\w\.\.\.", listed)


def test_seconds_per_epoch_on_a_narrow_screen(monkeypatch):
    """From the command itself: 12 345.7 s per epoch and 1234.57 ms of a step, whole."""
    monkeypatch.setenv("COLUMNS", "60")
    steps = {"steps": [12345.678 * 128 / 50_000] * 3, "optimizer": [1.23456789] * 3}
    monkeypatch.setattr(
        epoch_time, "measure", lambda names, *_: [epoch_time.Timing(name, 128, **steps) for name in names]
    )
    result = CliRunner().invoke(app, ["epoch-time", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert result.output.count("12345.7") == len(cli_networks.METHODS) == result.output.count("1234.57")


class Clock:
    """Time for rich, that passes when it is told to."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def bar():
    clock = Clock()
    screen = io.StringIO()
    bar = cli_shared.progress(Console(file=screen, width=60, force_terminal=True))
    bar.get_time = bar.live.get_time = clock
    return bar, clock


def shown(bar):
    file = io.StringIO()
    Console(file=file, width=60).print(bar.get_renderable())
    return file.getvalue()


def test_the_time_left_of_steps_that_take_minutes(bar):
    bar, clock = bar
    task = bar.add_task("a long description, of which a narrow screen has no room for all", total=4)
    assert "-:--:-- left" in shown(bar)
    clock.now = 100.0
    bar.update(task, advance=1)
    assert "1/4 0:01:40 0:05:00 left a long" in shown(bar)
    clock.now = 160.0
    assert "1/4 0:02:40 0:04:00 left" in shown(bar), "counts down in a step"
    clock.now = 200.0
    bar.update(task, advance=1)
    assert "0:03:20 left" in shown(bar)
    clock.now = 400.0
    bar.update(task, completed=4)
    assert "4/4 0:06:40 0:00:00 left" in shown(bar)


def test_the_time_left_of_a_run_that_goes_on(bar):
    """Six of ten steps are of a former process, and took none of this one's time."""
    bar, clock = bar
    task = bar.add_task("epochs", total=10)
    clock.now = 100.0
    bar.update(task, completed=7, earlier=6)
    assert "7/10 0:01:40 0:05:00 left" in shown(bar)


def test_cifar_tells_its_bar_what_former_processes_trained(tmp_path, monkeypatch):
    """Of three runs of four epochs one is finished, one has two epochs and one diverges in its first."""
    write_cifar10(tmp_path, (1, 1))
    seen = []
    monkeypatch.setattr("rich.progress.Progress.update", lambda self, task, **changes: seen.append(changes))
    monkeypatch.setattr(cifar, "load", lambda *_: None)
    monkeypatch.setattr(cli_networks, "training_curves", lambda *_: None)

    def train(config, split, place, out, report):
        count, first = {0: (4, 5), 1: (4, 3), 2: (1, 1)}[config.seed]
        epochs = [EPOCH] * (count - 1) + [Epoch(0.1, float("nan") if count < 4 else 1.0, 0.0, 0.0, 1.0)]
        for number in range(first, count + 1):
            report(config, number, EPOCH)
        return Record(vars(config), epochs)

    monkeypatch.setattr(cifar, "train", train)
    arguments = [
        "cifar",
        "--data-dir",
        tmp_path,
        "--epochs",
        "4",
        "--seeds",
        "3",
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    told = [(k["completed"], k["completed"] - k["earlier"]) for k in seen]
    assert told == [(4, 0), (7, 1), (8, 2), (8, 2), (9, 3), (12, 3)]


def test_plots_without_matplotlib_name_the_extra(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    report = psi.declare(model, torch.randn(8, 2))
    monitor = psi.Monitor(model, PSISGD(param_groups(model), lr=0.1))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for thing in (report, monitor):
        with pytest.raises(MissingExtraError, match=r"plot needs matplotlib: pip install '.\[figures\]' in a checkout"):
            thing.plot()
