"""Figure 4 in short: what the page says, from fewer steps."""

import json
import math

import pytest
import torch
from experiments import toy
from experiments.cli import app
from typer.testing import CliRunner

SHORT = toy.Config(samples=200, steps=30)


@pytest.mark.parametrize("method", toy.METHODS)
def test_every_method_descends(method):
    adam = method == "Adam"
    run = toy.train(method, "PyTorch", 0.03 if adam else 0.3, 0.03, SHORT)
    assert len(run.loss) == len(run.grad_v) == SHORT.steps + 1
    assert run.loss[-1] < 0.3 * run.loss[0]
    assert all(math.isfinite(value) for curve in (run.loss, run.grad_w, run.grad_v, run.grad_g) for value in curve)


def test_starts_are_one_function():
    """The three starts are representatives of one point: PSI trains them alike, GD does not; ∇_W tells them apart."""
    psi = [toy.train("PSI-GDM", scale, 0.3, 0.03, SHORT) for scale in toy.SCALES]
    assert toy.spread(psi) < 1e-9
    first, he, ten = psi
    assert first.grad_w[0] == pytest.approx(10 * ten.grad_w[0]) == pytest.approx(math.sqrt(6) * he.grad_w[0])
    gd = [toy.train("GD", scale, 0.3, 0.03, SHORT) for scale in toy.SCALES]
    assert gd[0].loss[0] == pytest.approx(gd[2].loss[0], rel=1e-12)
    assert abs(gd[0].loss[-1] / gd[2].loss[-1] - 1) > 0.01
    assert toy.spread([psi[0], toy.train("PSI-GDM", "He", 0.1, 0.03, SHORT)]) == math.inf


def test_norms_are_those_of_the_definition():
    """‖∇_V‖ is the gradient at rows of unit norm, measured there."""
    run = toy.train("GD", "× 10", 0.0, 0.0, toy.Config(samples=200, steps=1))
    torch.manual_seed(0)
    x = torch.randn(200, 10, dtype=torch.float64)
    y = x @ torch.randn(10, 1, dtype=torch.float64)
    y = y + 0.1 * torch.randn_like(y)
    first, last = torch.nn.Linear(10, 100, bias=False), torch.nn.Linear(100, 1, bias=False)
    v = torch.nn.functional.normalize(first.weight.detach().double()).requires_grad_()
    z = x @ v.T
    z = (z - z.mean(0)) / z.std(0, correction=0)
    loss = (torch.nn.functional.elu(z) @ last.weight.detach().double().T - y).square().mean()
    loss.backward()
    assert run.loss[0] == pytest.approx(loss.item(), rel=1e-6)
    assert run.grad_v[0] == pytest.approx(v.grad.norm().item(), rel=1e-6)


def test_a_sweep_ends_in_the_interior(monkeypatch):
    """It follows the best of both criteria beyond the edges of the first grid, and skips what diverges."""

    def score(method, scale, lr, lr_g, config):
        a, b = math.log10(lr), math.log10(lr_g)
        grad = (a - 3.5) ** 2 + (b + 1) ** 2 + 1
        loss = math.nan if a > 3.7 else (a + 0.5) ** 2 + (b - 1) ** 2 + 1
        return toy.Run(method, scale, lr, lr_g, [loss], [1.0], [grad], [1.0])

    monkeypatch.setattr(toy, "train", score)
    runs = toy.sweep("GD", "He", SHORT, lambda _: None)
    by_grad, by_loss = (min(runs, key=key) for key in toy.CRITERIA.values())
    assert (math.log10(by_grad.lr), math.log10(by_grad.lr_g)) == pytest.approx((3.5, -1))
    assert (math.log10(by_loss.lr), math.log10(by_loss.lr_g)) == pytest.approx((-0.5, 1))
    assert len({(run.lr, run.lr_g) for run in runs}) == len(runs)


def test_command(monkeypatch, tmp_path):
    monkeypatch.setattr(toy, "METHODS", ("GD", "PSI-GD"))
    monkeypatch.setattr(toy, "SCALES", {"PyTorch": 1.0, "× 10": 10.0})
    paths = [str(tmp_path / name) for name in ("toy.png", "toy.md", "toy.json")]
    arguments = ["toy", "--steps", "5", "--plot", paths[0], "--markdown", paths[1], "--json", paths[2]]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "toy.png").read_bytes()[1:4] == b"PNG"
    assert "chosen by ‖∇_V‖" in (tmp_path / "toy.md").read_text()
    assert [len(runs) for runs in json.loads((tmp_path / "toy.json").read_text()).values()] == [4, 4]
    assert "PSI's curves from the three starts differ by at most" in " ".join(result.output.split())
