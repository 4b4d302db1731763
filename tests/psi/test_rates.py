"""Theorems 2 and 3 hold for PSI-GD and PSI-SGD, and the same checks fail for what is nearly them."""

import pytest
import torch
from experiments import rates
from experiments.cli import app
from typer.testing import CliRunner

SMALL = rates.Config(samples=40, steps=256, ratios=128, seeds=8, horizons=(16, 64))


def whole_tensor(group, optimizer):
    """‖W‖ instead of ‖w_i‖."""
    rows = [g["params"][0] for g in optimizer.param_groups[:-1]]
    whole = torch.stack([row.detach().square().sum(1) for row in rows]).sum(0)
    (own,) = group["params"]
    return (whole / own.detach().square().sum(1))[:, None]


def no_factor(group, optimizer):
    """Plain gradient descent."""
    (own,) = group["params"]
    return 1 / own.detach().square().sum(1, keepdim=True)


def doubled(group, optimizer):
    return 2.0


def flipped(group, optimizer):
    return -1.0


def wrong(monkeypatch, factor):
    """What moves the rows in the experiment: PSI-SGD with gradients that `factor` has spoilt."""
    make = rates.psi_gd

    def spoilt(path, learning_rates):
        optimizer = make(path, learning_rates)

        def spoil(*_):
            factors = [factor(group, optimizer) for group in optimizer.param_groups[:-1]]
            for group, its in zip(optimizer.param_groups[:-1], factors, strict=True):
                group["params"][0].grad = group["params"][0].grad * its

        optimizer.register_step_pre_hook(spoil)
        return optimizer

    monkeypatch.setattr(rates, "psi_gd", spoilt)


def test_both_hold():
    descent = rates.theorem_2(SMALL)
    assert descent.broken() == []
    assert descent.losses[-1] < 0.1 * descent.losses[0]
    for steps in SMALL.horizons:
        assert rates.theorem_3(SMALL, steps).broken() == []


@pytest.mark.parametrize("factor", [whole_tensor, no_factor, doubled, flipped])
def test_what_is_nearly_psi_fails(monkeypatch, factor):
    monkeypatch.setattr(rates, "_ROUNDS", 4)
    wrong(monkeypatch, factor)
    assert any("descent between" in line for line in rates.theorem_2(SMALL).broken())
    assert any("expected descent" in line for line in rates.theorem_3(SMALL, 16).broken())


def test_constants_against_finite_differences():
    """Blocks of the Hessian at unit rows, wherever on their rays the rows lie."""
    path = rates._Replicas(SMALL, 1, 1)
    where = path.where()
    found = path.blocks(where)
    scaled = path.blocks(torch.cat([where[:, : 4 * 10] * 7, where[:, 4 * 10 :]], 1))
    torch.testing.assert_close(found.smoothness, scaled.smoothness)

    unit = torch.cat([torch.nn.functional.normalize(where[0, :40].view(10, 4)).flatten(), where[0, 40:]])
    path.put(unit[None])
    step, columns = 1e-6, []
    for i in range(len(unit)):
        ends = []
        for sign in (1, -1):
            path.put((unit + sign * step * torch.eye(len(unit), dtype=unit.dtype)[i])[None])
            ends.append(path.gradients()[0, 0])
        columns.append((ends[0] - ends[1]) / (2 * step))
    hessian = torch.stack(columns)
    torch.testing.assert_close(torch.linalg.matrix_norm(hessian[4:8, 12:16], 2), found.vv[1, 3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.linalg.matrix_norm(hessian[4:8, 40:], 2), found.vg[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.linalg.matrix_norm(hessian[40:, 40:], 2), found.gg, rtol=1e-5, atol=1e-6)
    assert torch.allclose(found.smoothness[1], found.vg[1] + found.vv[1].sum())
    assert torch.allclose(found.smoothness[-1], 10 * found.gg + found.vg.sum())


def test_command(monkeypatch, tmp_path):
    """Prints both tables; exit code 1 where a bound fails."""
    monkeypatch.setattr(rates, "Config", lambda seed: SMALL)
    page = tmp_path / "rates.md"
    result = CliRunner().invoke(app, ["rates", "--markdown", str(page)])
    assert result.exit_code == 0, result.output
    assert "between 1 and 3 by theory" in page.read_text()
    assert page.read_text().count("\n| ") == 9 + 2 + 2
    monkeypatch.setattr(rates, "_ROUNDS", 2)
    wrong(monkeypatch, doubled)
    result = CliRunner().invoke(app, ["rates"])
    assert result.exit_code == 1
    assert "does not hold: descent between" in result.output
