"""Figure 1, as a user runs it: on digits, on the real MNIST (long), and bad input."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from retract.__main__ import main, table_of
from retract.psi import data, figure1


@pytest.fixture
def run(tmp_path, capsys):
    """Calls the command; outcomes by method, and what was printed."""

    def call(*arguments):
        out, plot = tmp_path / "out" / "run.json", tmp_path / "run.png"
        main(["--plot", str(plot), "--json", str(out), "--device", "cpu", *map(str, arguments)])
        assert plot.read_bytes()[1:4] == b"PNG"
        outcomes = {outcome["method"]: outcome for outcome in json.loads(out.read_text())["outcomes"]}
        return outcomes, capsys.readouterr().out

    return call


def check(outcomes, bound=None):
    """What must hold: PSI's curves bitwise equal, or within `bound`; SGD's far apart."""
    assert list(outcomes) == ["SGD", "SGDG", "PSI-SGD", "PSI-SGDM"]
    assert outcomes["SGD"]["largest_difference"] > 0.1
    for method in ("PSI-SGD", "PSI-SGDM"):
        o = outcomes[method]
        if bound is None:
            assert o["losses"]["balanced"] == o["losses"]["rescaled"]
            assert o["bitwise_equal"]
        else:
            assert o["largest_difference"] < bound
        assert o["accuracy"]["rescaled"] > 95
        assert o["epoch_means"]["balanced"][-1] < 0.5 * o["epoch_means"]["balanced"][0]
    assert outcomes["SGDG"]["largest_difference"] < 0.01


def test_digits(run, tmp_path):
    page = tmp_path / "table.md"
    outcomes, text = run("--markdown", page)
    check(outcomes)
    assert "changes the output at the rescaled start by 0 " in text
    assert "SGDG normalises its rows" in text
    assert re.search(r"PSI-SGDM .* 0, bitwise", text)
    (line,) = (line for line in page.read_text().splitlines() if line.startswith("| SGD "))
    loss, accuracy = outcomes["SGD"]["epoch_means"]["rescaled"][-1], outcomes["SGD"]["accuracy"]["rescaled"]
    assert [cell.strip() for cell in line.split("|")][3:6:2] == [f"{loss:.5f}", f"{accuracy:.2f} %"]


def test_digits_at_the_papers_scale(run):
    outcomes, _ = run("--scale", "1e4")
    check(outcomes, bound=1e-3)


def test_eps_shows_the_trap(run):
    outcomes, text = run("--eps", "1e-5", "--epochs", "5")
    assert outcomes["PSI-SGDM"]["largest_difference"] > 0.1
    leak = float(re.search(r"rescaled start by (\S+)", " ".join(text.split())).group(1))
    assert leak > 0.1


def test_seed_decides_the_run(run):
    first, _ = run("--epochs", "1")
    again, _ = run("--epochs", "1")
    other, _ = run("--epochs", "1", "--seed", "1")
    assert first == again
    assert first["SGD"]["losses"] != other["SGD"]["losses"]


@pytest.mark.long
@pytest.mark.parametrize(("scale", "bound"), [("8192", None), ("1e4", 1e-2)])
def test_mnist(run, scale, bound):
    folder = os.environ.get("MNIST")
    if not folder:
        pytest.skip("set MNIST to the folder with the four idx .gz files")
    outcomes, _ = run("--data", "mnist", "--data-dir", folder, "--epochs", "5", "--scale", scale)
    check(outcomes, bound)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_mnist_reader(tmp_path, monkeypatch):
    """The standard layout, in the folder itself or under MNIST/raw."""
    tiny = {"train": ("train-images", "train-labels", 5), "test": ("t10k-images", "t10k-labels", 2)}
    monkeypatch.setattr(data, "_MNIST", tiny)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = {}
    for x, y, count in tiny.values():
        images[x] = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(raw / x, images[x])
        write_idx(raw / y, np.arange(count, dtype=np.uint8))
    for folder in (tmp_path, raw):
        split = data.mnist(folder)
        assert np.array_equal((split.train_x * 255).round().numpy(), images["train-images"].reshape(5, -1))
        assert split.test_y.tolist() == [0, 1]
    (raw / "t10k-labels").write_bytes(gzip.compress(b"\0\0\x08\x03rubbish"))
    with pytest.raises(data.RetractError, match=r"t10k-labels is not an idx file of 1-dimensional bytes"):
        data.mnist(raw)
    write_idx(raw / "t10k-labels", np.arange(3, dtype=np.uint8))
    with pytest.raises(data.RetractError, match="not 2 images"):
        data.mnist(raw)
    (raw / "t10k-labels").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1])))
    with pytest.raises(data.RetractError, match="is cut off: 1 bytes for shape"):
        data.mnist(raw)
    (raw / "t10k-labels").write_bytes(b"not gzip")
    with pytest.raises(data.RetractError, match="is not a whole gzip file"):
        data.mnist(raw)
    (raw / "t10k-labels").unlink()
    with pytest.raises(data.RetractError, match="no file .*t10k-labels: --data-dir is the folder"):
        data.mnist(raw)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnist"], "--data mnist needs --data-dir"),
        (["--eps", "0"], "torch needs a positive eps"),
        (["--scale", "-2"], "factors in [1e-15, 1e15]"),
        (["--epochs", "0"], "--epochs 0: at least one"),
        (["--seed", "-1"], "--seed -1: seeds lie in"),
        (["--plot", "/"], "/ is a folder; name the file"),
        (["--data", "cifar"], "cifar"),
    ],
)
def test_bad_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_table_and_the_help_fit_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    losses = {start: [0.1 + place] for place, start in enumerate(figure1.STARTS)}
    outcomes = [
        figure1.Outcome(m, losses, {s: [1.2345] for s in losses}, dict.fromkeys(losses, 100.0)) for m in figure1.METHODS
    ]
    assert {len("  ".join(row)) for row in table_of(outcomes)} <= set(range(81))


def test_the_progress_says_how_far_it_is(run, capsys, monkeypatch):
    """On a terminal; the last line ends it."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    run("--epochs", "1")
    first, *_, last = screen.getvalue().split("\r")[1:]
    assert re.match(r"1 of 8, 0:\d\d:\d\d left: SGD +balanced epoch +1  loss \d", first)
    assert re.match(r"8 of 8, 0:00:00 left: PSI-SGDM +rescaled epoch +1  loss \d\S+ *\n$", last)


def test_interrupted(monkeypatch, capsys, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(figure1, "compare", stop)
    with pytest.raises(SystemExit) as stopped:
        main(["--plot", str(tmp_path / "x.png")])
    assert stopped.value.code == 130
    assert "Interrupted." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_picture_says_what_it_shows():
    outcome = figure1.Outcome("SGD", *[{start: [0.5, 0.25] for start in figure1.STARTS}] * 2)
    figure = figure1.draw([outcome], figure1.Config(epochs=2))
    assert figure.get_suptitle() == "The same function from two starts"
    assert figure.get_supylabel() == "training loss (cross-entropy, nats)"
    assert figure.get_supxlabel() == "epoch"


@pytest.mark.parametrize("missing", ["matplotlib", "sklearn"])
def test_without_the_extra_one_line_names_it(missing):
    """Even where it runs in a program that lacks a single one of the packages."""
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['retract']\nfrom retract.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path("/"), check=False)
    assert result.returncode == 1
    assert (
        result.stderr.strip()
        == f"python -m retract needs {missing}, which is not installed: add the extra with pip install '.[figures]' in a checkout of retract"
    )
