"""`cifar`, as a user runs it: real training on little data, kills, other data sets, and what goes wrong."""

import csv
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from cifar_folders import write_cifar10, write_cifar100
from experiments import checkpoint, cifar, cifar_files, methods, training
from experiments.cli import app
from retract.errors import RetractError
from retract.manifolds import Rows
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
COUNTS = (400, 60)
SMALL = ["--images", "640", "--epochs", "2", "--batch", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CIFAR-10 in small, 5 × 400 images to train: noise around one picture per class."""
    root = tmp_path_factory.mktemp("cifar")
    write_cifar10(root, COUNTS)
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(cifar_files, name, getattr(cifar_files, name)._replace(images=COUNTS))
    monkeypatch.setattr(cifar, "_HELD_OUT", 200)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│ ", "").replace(" │", "").split())


def records(out):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(out.rglob("run.json"))}


def test_psi_sgdm_and_sgdg(folder, tmp_path):
    """Two methods learn, from one command; everything that was promised lies there."""
    text = run("cifar", "--data-dir", folder, *SMALL, "--method", "psi-sgdm", "--method", "sgdg", "--out", tmp_path)
    found = records(tmp_path)
    assert [r["settings"]["method"] for r in found.values()] == ["psi-sgdm", "sgdg"]
    for name, record in found.items():
        first, last = record["epochs"]
        assert last["loss"] < 0.9 * first["loss"]
        assert f"{name}: 2 of 2" in text
        with (tmp_path / name / "epochs.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [float(row["loss"]) for row in rows] == [first["loss"], last["loss"]]
        assert [int(row["epoch"]) for row in rows] == [1, 2]
        assert not (tmp_path / name / "checkpoint.pt").exists()
    assert (tmp_path / "cifar.png").read_bytes()[1:4] == b"PNG"
    assert "Accuracy in % on the test set" in text
    assert "published: 200 epochs" in text


DRIVER = """
import sys
from pathlib import Path
sys.path.append({docs!r})
import torch
torch.set_num_threads(1)
from experiments import cifar, cifar_files
cifar_files.CIFAR10 = cifar_files.CIFAR10._replace(images=({train}, {test}))
split = cifar.load("cifar10", Path(sys.argv[1]))
config = cifar.Config(method=sys.argv[3], images=192, epochs=3, batch=64, weight_decay=1e-3, channels_last=True)
def tell(config, number, epoch):
    print(number, flush=True)
cifar.train(config, split, torch.device("cpu"), Path(sys.argv[2]), tell)
"""


@pytest.mark.parametrize("method", ["psi-sgdm", "adamp"])
def test_a_killed_run_goes_on_bitwise(folder, tmp_path, method):
    """Killed after its first epoch, somewhere in the second, and in a new process on to the numbers of an undisturbed run."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(docs=str(Path(cifar.__file__).parents[1]), train=COUNTS[0], test=COUNTS[1]))

    def start(out):
        command = [sys.executable, "-W", "ignore", str(driver), str(folder), str(tmp_path / out), method]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    with start("whole") as whole, start("killed") as killed:
        assert killed.stdout.readline() == "1\n"
        time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        with start("killed") as resumed:
            assert resumed.communicate()[0].split() in (["2", "3"], ["3"])
        assert resumed.returncode == 0
        assert whole.communicate()[0].split() == ["1", "2", "3"]
    (one,), (two,) = (list(records(tmp_path / out).values()) for out in ("whole", "killed"))
    for record in (one, two):
        for epoch in record["epochs"]:
            epoch.pop("seconds")
    assert one == two


def test_a_finished_run_is_read(folder, tmp_path):
    arguments = ["cifar", "--data-dir", folder, *SMALL, "--epochs", "1", "--images", "64", "--out", tmp_path]
    run(*arguments)
    before = records(tmp_path)
    assert "1 of 1" not in run(*arguments)
    assert records(tmp_path) == before
    assert "1 of 1" in run(*arguments, "--lr", "0.2")  # another run
    assert "a run with batch 64 instead of 32" in run(*arguments, "--batch", "32", code=2)


def test_a_sweep_is_widened_and_chosen_from(folder, tmp_path, monkeypatch):
    """Trials are scored on held-out training images and never on the test set; while an edge is best, further rates follow."""
    seen = []

    def score(config, split, device, out, report):
        seen.append(config.lr)
        assert config.held_out
        accuracy = {0.03: 30.0, 0.1: 40.0, 0.3: 50.0, 1.0: 60.0, 3.0: 70.0, 10.0: 65.0}[config.lr]
        epoch = training.Epoch(config.lr, 1.0, accuracy, 1.0, 1.0)
        return training.Record({"lr": config.lr, "epochs": 1}, [epoch])

    monkeypatch.setattr(cifar, "train", score)
    found = cifar.sweep(cifar.Config(method="psi-sgdm"), None, None, None, None)
    assert seen == [0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    assert [record.settings["lr"] for record in found] == sorted(seen)
    assert cifar.best(found) == 3.0


def test_the_command_sweeps_and_its_bar_comes_to_its_end(folder, tmp_path):
    """With the rates that were added and, the second time, with nothing left to train."""
    tiny = ["--depth", "8", "--images", "32", "--batch", "16", "--epochs", "2", "--device", "cpu", "--out", tmp_path]
    for _ in range(2):
        text = run("cifar", "--data-dir", folder, *tiny, "--sweep", "--sweep-images", "32", "--sweep-epochs", "1")
        trials = [r for r in records(tmp_path).values() if r["settings"]["held_out"]]
        (final,) = (r for r in records(tmp_path).values() if not r["settings"]["held_out"])
        scores = {r["settings"]["lr"]: r["epochs"][-1]["accuracy"] for r in trials}
        assert scores[final["settings"]["lr"]] == max(scores.values())
        assert len(trials) >= 4
        assert f"{len(trials) + 2}/{len(trials) + 2} " in text


def test_held_out_images_are_training_images(folder):
    split = cifar.load("cifar10", folder)
    images = cifar.Images(split, cifar.Config(held_out=True), torch.device("cpu"))
    scored = torch.cat([y for _, y in images.test()])
    trained = torch.cat([y for _, y in images.train(torch.Generator())])
    assert len(scored) == 200
    assert len(scored) + len(trained) == 5 * COUNTS[0]
    assert torch.equal(torch.cat([scored, trained]).bincount(), split.train_y.bincount())


def test_crops_are_windows_of_the_padded_image(folder):
    """Every batch is cut from the images it says, mirrored or not, and normalized by the training set's own statistics."""
    split = cifar.load("cifar10", folder)
    images = cifar.Images(split, cifar.Config(images=40), torch.device("cpu"))
    order = torch.randperm(len(split.train_x), generator=torch.Generator().manual_seed(0))[:40]
    x = split.train_x[order].double()
    mean, std = x.mean((0, 2, 3)), x.permute(1, 0, 2, 3).flatten(1).std(1, correction=0)
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    windows = torch.cat([padded, padded.flip(3)]).unfold(2, 32, 1).unfold(3, 32, 1)  # (80, 3, 9, 9, 32, 32)
    windows = (windows - mean.view(3, 1, 1, 1, 1)) / std.view(3, 1, 1, 1, 1)
    shown = set()
    for batch, _ in images.train(torch.Generator().manual_seed(1)):
        for image in batch[:20].double():
            off = (windows - image[:, None, None]).abs().amax((1, 4, 5))
            assert off.min() < 1e-5
            which, window = divmod(int(off.argmin()), 81)
            shown.add((which >= 40, window))
    assert min(sum(mirrored for mirrored, _ in shown), sum(not mirrored for mirrored, _ in shown)) > 2
    assert len({window for _, window in shown}) > 5


@pytest.mark.parametrize("option", ["--bf16", "--channels-last", pytest.param("--compile", marks=pytest.mark.long)])
def test_options_of_speed(folder, tmp_path, option, monkeypatch):
    """Each is part of the run's settings, reaches the network, and leads to nearly the same losses."""
    step, seen, starts = training.Trainer.step, [], []

    def look(self, x, y, forward):
        if len(starts) > len(seen):
            weight = self.model[0].weight
            fast = {
                "--bf16": self.autocast,
                "--channels-last": weight.is_contiguous(memory_format=torch.channels_last) and x.stride(1) == 1,
                "--compile": hasattr(forward, "_orig_mod"),
            }
            seen.append(fast[option])
        return step(self, x, y, forward)

    monkeypatch.setattr(training.Trainer, "step", look)
    tiny = ["--depth", "8", "--images", "32", "--batch", "16", "--epochs", "1", "--device", "cpu"]
    for more, out in (([], "plain"), ([option], "fast")):
        starts.append(out)
        run("cifar", "--data-dir", folder, *tiny, *more, "--out", tmp_path / out)
    (plain,), (fast,) = (list(records(tmp_path / out).values()) for out in ("plain", "fast"))
    differing = [key for key, value in plain["settings"].items() if fast["settings"][key] != value]
    assert differing == [option[2:].replace("-", "_")]
    assert seen == [False, True]
    (one,), (two,) = plain["epochs"], fast["epochs"]
    assert two["loss"] == pytest.approx(one["loss"], rel=0.02)
    if option == "--bf16":
        assert two["loss"] != one["loss"]


def test_cifar100(tmp_path):
    write_cifar100(tmp_path, COUNTS)
    text = run(
        "cifar",
        "--data-dir",
        tmp_path,
        "--dataset",
        "cifar100",
        *SMALL,
        "--images",
        "0",
        "--epochs",
        "1",
        "--out",
        tmp_path / "o",
    )
    assert "CIFAR-100 ResNet-20" in text
    assert "68.41 ± 0.21" in text


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_moves_every_parameter(name):
    torch.manual_seed(0)
    model = cifar.cifar_resnet(20, 10)
    x, y = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    alpha = 0.1 if name in ("sgdg", "adamg") else 0.0
    optimizer = methods.build(model, x[:4], name, methods.METHODS[name].lr, 1e-4, alpha)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert all(not torch.equal(p, before[key]) for key, p in model.named_parameters())
    on_manifold = [g for g in optimizer.param_groups if "Euclidean" not in str(g.get("manifold", "Euclidean"))]
    count = sum(len(g["params"]) for g in on_manifold)
    assert count == (19 if methods.METHODS[name].manifold else 0), "the convolutions, and nothing else"
    assert all(g["weight_decay"] == 0 for g in on_manifold)


def test_convolutions_whose_points_are_not_rows_are_refused():
    """In front of GroupNorm; not those on images of one pixel, of whose kernels only the middle has a gradient."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4))
    optimizer = methods.build(model, torch.randn(16, 3, 1, 1), "psi-sgdm", 0.1, 0.0, 0.0)
    assert optimizer.param_groups[0]["rows"] == repr(Rows())
    model[1] = torch.nn.GroupNorm(2, 4)
    with pytest.raises(
        RetractError, match=r"0.weight is not .* \(block, Rows\(dim=0, blocks=2.* take a network with BatchNorm"
    ):
        methods.build(model, torch.randn(16, 3, 4, 4), "psi-sgdm", 0.1, 0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-dir", "/nowhere"], "no file /nowhere/data_batch_1: CIFAR-10 is read from .* unpack it"),
        (["--depth", "21"], r"depth 21: these networks have 6n \+ 2 layers"),
        (["--sweep", "--lr", "0.1"], "--sweep chooses the rate: leave out --lr"),
        (["--orthogonality", "0.1"], "orthogonality 0.1: PSI-SGDM has no such penalty"),
        (["--lr", "0"], r"lr 0: a learning rate lies in \(0, ∞\)"),
        (["--images", "100000"], "100000 images: the training set has 2000"),
    ],
)
def test_bad_input(folder, tmp_path, arguments, message):
    text = run("cifar", "--data-dir", folder, "--device", "cpu", "--out", tmp_path, *arguments, code=2)
    assert re.search(message, text), text


def test_interrupted(folder, tmp_path, monkeypatch):
    """Ctrl-C in the second epoch says where the first is, and the same command goes on from there."""
    epoch = training.Trainer.epoch

    def interrupt(self, forward):
        if self.schedule.last_epoch == 1:
            raise KeyboardInterrupt
        return epoch(self, forward)

    arguments = ["cifar", "--data-dir", folder, *SMALL, "--images", "128", "--out", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "epoch", interrupt)
        text = run(*arguments, code=130)
    assert "Interrupted. Finished epochs are in" in text
    assert "the same command goes on from there" in text
    text = run(*arguments)
    assert "1 of 2" not in text
    assert "2 of 2" in text


def test_killed_between_checkpoint_and_record(folder, tmp_path, monkeypatch):
    """After the last checkpoint and before its numbers: they are written by the next call, which trains nothing."""
    write = training.Record.write

    def broken(self, where):
        if len(self.epochs) == 2:
            raise OSError("no space left")
        write(self, where)

    arguments = ["cifar", "--data-dir", folder, *SMALL, "--images", "64", "--out", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(training.Record, "write", broken)
        assert isinstance(CliRunner().invoke(app, list(map(str, arguments))).exception, OSError)
    monkeypatch.setattr(training.Trainer, "epoch", None)
    run(*arguments)
    (record,) = records(tmp_path).values()
    assert len(record["epochs"]) == 2


def test_a_record_without_its_checkpoint_starts_afresh(folder, tmp_path, monkeypatch):
    """Epochs whose weights are gone do not count."""
    arguments = ["cifar", "--data-dir", folder, *SMALL, "--images", "64", "--out", tmp_path]
    run(*arguments)
    (path,) = tmp_path.rglob("run.json")
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "epochs": whole["epochs"][:1]}))
    run(*arguments)
    again = json.loads(path.read_text())
    assert [e["loss"] for e in again["epochs"]] == [e["loss"] for e in whole["epochs"]]


def test_the_script_for_a_gpu(folder, tmp_path, monkeypatch):
    """On a CPU: a sweep chooses rates; full runs that are cut off and go on end with the numbers of runs that were not."""
    spec = importlib.util.spec_from_file_location("cifar_gpu", ROOT / "docs" / "benchmarks" / "cifar_gpu.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    small = [cifar.Config(method=name, depth=8, batch=16) for name in ("sgd", "psi-sgdm")]
    monkeypatch.setattr(script, "STUDY", small)

    def call(out, *arguments):
        monkeypatch.setattr(
            sys, "argv", ["cifar_gpu.py", str(folder), str(tmp_path / out), "--images", "32", *arguments]
        )
        script.main()
        return json.loads((tmp_path / out / "results.json").read_text())

    trials = call("sweep", "--sweep", "--epochs", "1")
    assert len(trials) == 8
    assert all(one["settings"]["held_out"] and len(one["epochs"]) == 1 for one in trials)
    rates = script.chosen(tmp_path / "sweep")
    whole = call("whole", "--rates", str(tmp_path / "sweep"), "--epochs", "2")
    assert [one["settings"]["lr"] for one in whole] == [rate for rate in rates for _ in range(3)]
    clock = itertools.count(0, 20)  # seconds, of which a minute is over after one epoch
    with monkeypatch.context() as patch:
        patch.setattr(script, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
        parts = call("parts", "--rates", str(tmp_path / "sweep"), "--epochs", "2", "--minutes", "1")
    assert all(one["epochs"] == [] for one in parts)
    numbers = {state["number"] for p in (tmp_path / "parts").glob("*.pt") for state in checkpoint.load(p).values()}
    assert numbers == {1}
    parts = call("parts", "--rates", str(tmp_path / "sweep"), "--epochs", "2")
    for one, two in zip(whole, parts, strict=True):
        (its,), (others,) = one["epochs"], two["epochs"]
        assert (its["loss"], its["accuracy"]) == (others["loss"], others["accuracy"])
    with pytest.raises(SystemExit, match="name another folder"):
        call("parts", "--epochs", "3")
