r"""
Rows of every scale
===================

In front of BatchNorm the norm of a row of weights is free. Here the rows of a network start at norms between 1e-4 and 1e4,
drawn log-uniformly, and SGD, PSI-SGDM and SGDG train it: first with an eps of BatchNorm that is small against every row,
then with the default.
"""

import math
from itertools import pairwise

import retract
import torch
from matplotlib import pyplot as plt
from retract import psi
from retract.manifolds import PSI, Grassmann
from retract.optim import PSISGD, SGDG
from sklearn.datasets import load_digits
from torch import nn

plt.style.use("tableau-colorblind10")

# %%
# Three hidden layers of 64 units, BatchNorm after every linear layer, 512 of scikit-learn's digits as one batch, float64.

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images[:512]) / 16, torch.tensor(labels[:512])
widths = (64, 64, 64, 64, 10)


def network(eps, scaled):
    torch.manual_seed(0)
    model = nn.Sequential()
    for n, m in pairwise(widths):
        linear = nn.Linear(n, m, bias=False, dtype=torch.float64)
        factors = 10 ** (8 * torch.rand(m, 1, dtype=torch.float64) - 4)
        with torch.no_grad():
            linear.weight.copy_(nn.functional.normalize(linear.weight) * (factors if scaled else 1))
        model.extend([linear, nn.BatchNorm1d(m, eps=eps, dtype=torch.float64), nn.ReLU()])
    return model[:-1]


# %%
# What eps leaves of the invariance
# ---------------------------------
#
# Lemma 1 of Yi (2022) says :math:`\langle w, \nabla_w L\rangle = 0` for scale-invariant rows. ``psi.find`` measures the
# cosine of that angle at the present scale, its *leak*, and where more than a tenth of the rows leak more than a tenth, it
# calls the tensor not invariant, with the reason.

small, default = 1e-30, 1e-5
reports = {eps: psi.find(network(eps, scaled=True), x) for eps in (small, default)}
for eps, report in reports.items():
    print(f"\neps {eps:g}")
    for finding in report:
        if len(finding.shape) == 2:
            leak = "" if math.isnan(finding.eps_leak) else f"leak {finding.eps_leak:.0e}; "
            print(f"{finding.name}  {finding.granularity:4}  {leak}{finding.reason}")

# %%
# Training
# --------
#
# The weights are declared by hand, because ``psi.declare`` would leave out what leaks. Learning rate 0.1 and momentum 0.9
# for all three. SGDG moves rows to norm 1 before its first step.

methods = ("SGD", "SGDG", "PSI-SGDM")


def train(method, eps, scaled=True, representative="keep", steps=100):
    """Losses, and for each row of the first layer its norm at the start and the angle from there to the end."""
    model = network(eps, scaled)
    start = model[0].weight.detach().clone()
    if method == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    else:
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                manifold = Grassmann(1) if method == "SGDG" else PSI()
                retract.declare(model, name, manifold, representative=representative)
        make = SGDG if method == "SGDG" else PSISGD
        optimizer = make(retract.param_groups(model), lr=0.1, momentum=0.9)
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        path.append(loss.item())
    return (
        torch.tensor(path, dtype=torch.float64),
        start.norm(dim=1),
        PSI().dist(start, model[0].weight.detach()).squeeze(),
    )


balanced = {method: train(method, small, scaled=False) for method in methods}
runs = {(method, eps): train(method, eps) for eps in (small, default) for method in methods}
unit = train("PSI-SGDM", default, representative="unit")

# %%
# Loss, from the rescaled start (lines) and from rows of norm 1 (broad bands, eps 1e-30). What to look at: whether a line runs
# in its band. With the default eps PSI-SGDM's leaves it, and ``representative="unit"``, which moves rows to norm 1 when they
# are declared, brings it back. That start is another function: at 1e-5 rows far below norm 1 had been damped by eps.

colors = {"SGD": "C0", "SGDG": "C1", "PSI-SGDM": "C3"}
figure, panels = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained", sharey=True)
for panel, eps in zip(panels, (small, default), strict=True):
    for method, color in colors.items():
        panel.semilogy(balanced[method][0], color=color, linewidth=6, alpha=0.3)
        panel.semilogy(runs[method, eps][0], color=color, label=method)
    panel.set(xlabel="step", title=f"eps {eps:g}")
    panel.grid(alpha=0.3)
panels[1].semilogy(unit[0], color="C3", linestyle=":", linewidth=2, label="PSI-SGDM, unit")
panels[0].set_ylabel("training loss")
panels[1].legend()
plt.show()

# %%
# Which rows moved
# ----------------
#
# The angle between each row of the first layer at the start and at the end. A step of SGD turns a row of norm :math:`r` by
# :math:`\arctan(\eta\,\|g_v\| / r^2)`, where :math:`g_v` is the gradient with respect to :math:`v = w/r`: rows far above 1 stay
# where they are, and rows far below 1 jump by a right angle, become long, and stay there. PSI's angle
# :math:`\arctan(\eta\,\|g_v\|)` does not know :math:`r`, unless eps damps :math:`g_v`.

figure, panels = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained", sharey=True)
for panel, eps in zip(panels, (small, default), strict=True):
    for marker, (method, color) in zip("o^s", colors.items(), strict=True):
        panel.loglog(*runs[method, eps][1:], marker, color=color, markersize=4, label=method)
    panel.set(xlabel="norm at the start", title=f"eps {eps:g}")
    panel.grid(alpha=0.3)
panels[0].set_ylabel("angle from start to end [rad]")
panels[0].legend()
plt.show()

# %%

_, norms, angle = runs["SGD", small]
long, short = norms > 10, norms < 0.1
logs = torch.stack([norms[long].log(), torch.ones_like(norms[long])], 1)
slope = torch.linalg.lstsq(logs, angle[long].log().unsqueeze(1)).solution[0].item()
apart = {method: (runs[method, small][0] - balanced[method][0]).abs().max().item() for method in methods}
final = {key: path[-1].item() for key, (path, *_) in runs.items()}
_, norms, psi_angle = runs["PSI-SGDM", default]
print("largest difference of the losses from the two starts, eps 1e-30:")
print(", ".join(f"{method} {value:.1e}" for method, value in apart.items()))
for eps in (small, default):
    print(f"final loss, eps {eps:g}: " + ", ".join(f"{method} {final[method, eps]:.4f}" for method in methods))
print(f"PSI-SGDM with the default eps from unit rows: {unit[0][-1]:.4f}")
print(f"SGD, rows above 10: angle ~ r^{slope:.2f}; below 0.1: {angle[short].min():.2f} to {angle[short].max():.2f} rad")
print(f"PSI-SGDM, default eps, smallest row (norm {norms.min():.0e}): {psi_angle[norms.argmin()]:.3f} rad")

assert apart["PSI-SGDM"] < 1e-13
assert apart["SGDG"] < 1e-13
assert final["SGD", small] > 1.5 * balanced["SGD"][0][-1]
assert final["PSI-SGDM", default] > 1.5 * final["PSI-SGDM", small]
assert abs(unit[0][-1] / final["PSI-SGDM", small] - 1) < 0.01
assert abs(slope + 2) < 0.1
assert (angle[short] - math.pi / 2).abs().max() < 0.3
assert psi_angle[norms.argmin()] < 0.1 * psi_angle.median()
assert all(f.granularity == "row" and f.eps_leak < 1e-12 for f in reports[small] if len(f.shape) == 2)
assert all(f.granularity == "none" and "eps" in f.reason for f in reports[default] if len(f.shape) == 2)
