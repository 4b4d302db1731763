"""Running statistics: `radius="hold"` keeps eval mode right, `recalibrate` recomputes them."""

import copy
import os
from pathlib import Path

import pytest
import torch
from networks import declare_all, normed_mlp
from retract import param_groups, psi
from retract.errors import RetractError
from retract.manifolds import PSI
from retract.optim import PSISGD
from retract.psi.data import digits, mnist
from torch import nn


def network(device, inputs=64, hidden=50):
    return declare_all(normed_mlp(0, hidden, inputs, 10, 1e-5, torch.float32, device), PSI())


def accuracy(model, x, y):
    """Percent right in eval mode."""
    model.eval()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).double().mean()
    model.train()
    return 100 * float(right)


def gaps(data, model, epochs, batch, lr, radius):
    """Accuracy of eval mode against the same network with recalibrated statistics, after every epoch."""
    optimizer = PSISGD(param_groups(model), lr=lr, momentum=0.9, radius=radius)
    found = []
    for _ in range(epochs):
        for index in torch.randperm(len(data.train_x)).to(data.train_x.device).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.train_x[index]), data.train_y[index]).backward()
            optimizer.step()
        twin = copy.deepcopy(model)
        psi.recalibrate(twin, data.train_x.split(batch))
        found.append(abs(accuracy(model, data.test_x, data.test_y) - accuracy(twin, data.test_x, data.test_y)))
    return found


def repeated_digits(device):
    """An epoch of 190 steps: a running average at momentum 0.1 needs dozens of steps to have followed at all."""
    data = digits().to(device)
    x, y = torch.cat([data.train_x, data.test_x]), torch.cat([data.train_y, data.test_y])
    return data._replace(train_x=data.train_x.repeat(8, 1), train_y=data.train_y.repeat(8), test_x=x, test_y=y)


def test_hold_keeps_eval_mode_right(device):
    assert max(gaps(repeated_digits(device), network(device), epochs=6, batch=64, lr=0.1, radius="hold")) <= 0.5


@pytest.mark.long
def test_hold_keeps_eval_mode_right_on_mnist(device):
    """And the control: rows that grow freely leave the statistics behind.

    At lr 0.01 what is left is noise. At 0.1 the running average also lags behind weights that turn by 0.14 per step,
    whatever their norm (docs/measured.md), so the bound is not asked there.
    """
    folder = os.environ.get("MNIST")
    if not folder:
        pytest.skip("set MNIST to the folder with the four idx .gz files")
    data = mnist(Path(folder)).to(device)
    assert max(gaps(data, network(device, 784, 100), epochs=5, batch=128, lr=0.01, radius="hold")) <= 0.5
    assert max(gaps(data, network(device, 784, 100), epochs=5, batch=128, lr=0.1, radius="free")) > 5


def test_recalibrate_repairs_moved_rows(device):
    """The control: moving a trained network's rows ruins eval mode and not the network; recalibrating mends it."""
    data = repeated_digits(device)
    model = network(device)
    gaps(data, model, epochs=1, batch=64, lr=0.1, radius="hold")
    psi.recalibrate(model, data.train_x.split(64))
    before = accuracy(model, data.test_x, data.test_y)
    with torch.no_grad():
        for name in ("0.weight", "3.weight"):
            weight = model.get_parameter(name)
            weight.mul_(torch.logspace(-1, 2, len(weight), device=device)[:, None])
    assert accuracy(model, data.test_x, data.test_y) < before - 20
    model.eval()
    modes = [m.training for m in model.modules()]
    assert psi.recalibrate(model, data.train_x.split(64)) == 188
    assert [m.training for m in model.modules()] == modes
    assert abs(accuracy(model, data.test_x, data.test_y) - before) <= 0.2


def test_recalibrate_averages_and_restores(device):
    norm = nn.BatchNorm1d(3, momentum=0.3).to(device)
    model = nn.Sequential(nn.Dropout(0.5), norm).train()
    x = torch.randn(4, 8, 3, device=device)
    assert psi.recalibrate(model, [(x[0],), [x[1]], {"input": x[2]}, x[3]]) == 4
    assert torch.allclose(norm.running_mean, x.mean(1).mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, x.var(1).mean(0), atol=1e-6)
    assert norm.momentum == 0.3
    assert model[0].training
    instance = nn.InstanceNorm1d(3, track_running_stats=True).to(device)
    psi.recalibrate(instance, [x[0].T, x[1].T])
    assert torch.allclose(instance.running_mean, x[:2].mean(1).mean(0), atol=1e-6)


def test_recalibrate_leaves_layers_alone_that_eval_mode_does_not_call():
    """Such as the auxiliary heads of Inception."""

    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aux = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.main(x) + (self.aux(x) if self.training else 0)

    model = Auxiliary()
    model(torch.randn(8, 3) + 5)
    before = copy.deepcopy(model.aux.state_dict())
    with pytest.warns(UserWarning, match="aux: not called in 1 batches in eval mode"):
        psi.recalibrate(model, [torch.randn(8, 3)])
    assert all(torch.equal(value, before[key]) for key, value in model.aux.state_dict().items())
    assert abs(float(model.main.running_mean.mean())) < 1


def test_recalibrate_leaves_statistics_alone_when_it_fails():
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(8, 3))
    before = copy.deepcopy(norm.state_dict())

    def unchanged():
        return all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())

    with pytest.raises(RetractError, match="batches is empty"):
        psi.recalibrate(norm, [])
    assert unchanged()
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        psi.recalibrate(norm, [torch.randn(8, 3), torch.randn(3)])
    assert unchanged()
    with pytest.raises(TypeError, match=r"is passed as \(x for x, _ in loader\)"):
        psi.recalibrate(norm, [(torch.randn(8, 3), torch.ones(8))])
    assert unchanged()
    assert norm.training
    with pytest.raises(RetractError, match="no layer of this model keeps running statistics"):
        psi.recalibrate(nn.Linear(3, 3), [torch.randn(8, 3)])
