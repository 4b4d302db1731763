r"""
How far a step turns a row
==========================

Rows :math:`w = r v` in front of BatchNorm matter by their direction :math:`v` only. A step of SGD or PSI-SGD with learning
rate :math:`\eta` turns them, and lengthens them: with the gradient :math:`g_v = r\,\nabla_w L` with respect to :math:`v`,
which is orthogonal to :math:`v`,

.. math::
   \text{SGD:}\quad \text{angle} = \arctan\frac{\eta\,\|g_v\|}{r^2}, \quad
   r^2 \leftarrow r^2 \Big(1 + \frac{\eta^2 \|g_v\|^2}{r^4}\Big);
   \qquad
   \text{PSI-SGD:}\quad \text{angle} = \arctan(\eta\,\|g_v\|), \quad
   r^2 \leftarrow r^2 (1 + \eta^2 \|g_v\|^2).

SGD's rows grow and turn less and less, whatever the schedule says. ``psi.Monitor`` shows it.
"""

import math
import pprint

import retract
import torch
from matplotlib import pyplot as plt
from retract import psi
from retract.optim import PSISGD
from sklearn.datasets import load_digits
from torch import nn

plt.style.use("tableau-colorblind10")

# %%
# Linear–BatchNorm–ReLU–Linear with 64 hidden units on scikit-learn's digits, of which three in ten get a random label, so
# that gradients do not vanish. All rows start at norm 1, where SGD and PSI-SGD take the same first step. The learning rate
# is 2, and 0.2 after 20 of 30 epochs, of 28 steps each; there is no momentum and no weight decay.

images, labels = load_digits(return_X_y=True)
generator = torch.Generator().manual_seed(0)
x, y = torch.tensor(images) / 16, torch.tensor(labels)
y = torch.where(torch.rand(len(y), generator=generator) < 0.3, torch.randint(10, y.shape, generator=generator), y)


def train(make_optimizer, epochs=30, batch=64):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64, eps=1e-12), nn.ReLU(), nn.Linear(64, 10)
    ).double()
    psi.declare(model, x[:batch], representative="unit")
    optimizer = make_optimizer(model)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20], gamma=0.1)
    monitor = psi.Monitor(model, optimizer, every=7)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=order)[: len(x) // batch * batch].split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            before = model[0].weight.detach().clone()
            optimizer.step()
        schedule.step()
    monitor.close()
    return monitor, (before, model[0].weight.grad, model[0].weight.detach())


# %%
# PSI-SGD holds every row at its norm by default; ``radius="free"`` lets rows grow, as in the paper.

makers = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=2.0),
    "PSI-SGD": lambda model: PSISGD(retract.param_groups(model), lr=2.0),
    "PSI-SGD, free": lambda model: PSISGD(retract.param_groups(model), lr=2.0, radius="free"),
}
runs = {name: train(make) for name, make in makers.items()}
seen = {name: monitor.observations for name, (monitor, _) in runs.items()}

# %%
# What to look at: the turns before the drop at step 560. PSI-SGD's follow the schedule; SGD's fall by themselves, while its
# rows grow. PSI-SGD's free rows grow even more, and turn as those that are held, to rounding.
#
# The growth anneals SGD by itself, which is not only a loss: PSI-SGD needs a schedule to come to rest.

looks = {"SGD": ("C0", "-"), "PSI-SGD": ("C1", "-"), "PSI-SGD, free": ("C3", ":")}
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained", sharex=True)
for name, (color, line) in looks.items():
    steps = [o.step for o in seen[name]]
    left.semilogy(steps, [o.angular_update_mean for o in seen[name]], line, color=color, label=name)
    right.semilogy(steps, [o.norm_median for o in seen[name]], line, color=color)
left.set(xlabel="step", ylabel="mean angular update [rad]")
right.set(xlabel="step", ylabel="median norm of a row")
left.legend()
for axis in (left, right):
    axis.grid(alpha=0.3)
plt.show()

# %%
# ``to_dict()`` gives the observations as plain values, ``plot()`` draws them, and a ``writer`` would send them to TensorBoard.

pprint.pp(runs["SGD"][0].to_dict()[-1])
figure = runs["SGD"][0].plot()
plt.show()

# %%
# Row by row
# ----------
#
# The last step of each run against the laws above, with the rate of 0.2 that it was taken at:


def law(name):
    """Largest relative errors of the angle and, but for held rows, of the growth of r²."""
    before, gradient, after = runs[name][1]
    square, eta = before.square().sum(1), 0.2
    g = square.sqrt() * gradient.norm(dim=1)
    tangent = eta * g / (square if name == "SGD" else 1)
    angle = psi.PSI().dist(before, after).squeeze()
    growth = after.square().sum(1) / square - 1
    return (angle / tangent.atan() - 1).abs().max().item(), (growth / tangent.square() - 1).abs().max().item()


laws = {name: law(name) for name in makers}
for name, (angle, growth) in laws.items():
    print(f"{name:14} angle to {angle:.0e}" + ("" if name == "PSI-SGD" else f", growth to {growth:.0e}"))


# %%
# The rate at which rows turn, tan(mean angular update) over the root mean square of the gradients, relative to the
# first step: on average over the four epochs before the drop, and after it. The schedule says 1 and 0.1.


def rate(observations):
    return sum(math.tan(o.angular_update_mean) / o.gradient for o in observations) / len(observations)


rates = {}
for name, observations in seen.items():
    before = [o for o in observations if 448 < o.step <= 560]
    after = [o for o in observations if o.step > 560]
    rates[name] = tuple(rate(some) / rate(observations[:1]) for some in (before, after))
    norm = f"median norm at the end {observations[-1].norm_median:.1f}"
    print(f"{name:14} {rates[name][0]:.3f} before the drop, {rates[name][1]:.3f} after; {norm}")

first = {name: observations[0] for name, observations in seen.items()}
pairs = list(zip(seen["PSI-SGD"], seen["PSI-SGD, free"], strict=True))
assert abs(first["SGD"].angular_update_mean / first["PSI-SGD"].angular_update_mean - 1) < 1e-9
assert all(abs(held.angular_update_mean / free.angular_update_mean - 1) < 1e-9 for held, free in pairs)
assert rates["SGD"][0] < 0.2
assert rates["SGD"][1] < 0.02
assert abs(rates["PSI-SGD"][0] - 1) < 0.1
assert abs(rates["PSI-SGD"][1] - 0.1) < 0.01
assert all(angle < 1e-11 for angle, _ in laws.values())
assert all(growth < 1e-6 for name, (_, growth) in laws.items() if name != "PSI-SGD")
assert seen["PSI-SGD, free"][-1].norm_median > seen["SGD"][-1].norm_median > 2 * first["SGD"].norm_median
assert all(o.norm_median < 1.05 for o in seen["PSI-SGD"])
