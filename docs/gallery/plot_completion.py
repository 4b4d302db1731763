r"""
Completion of a matrix of low rank
==================================

Of a matrix :math:`T` of rank :math:`k` some entries :math:`\Omega` are known. Factors :math:`B` and :math:`A` minimize
:math:`f(B, A) = \tfrac12\sum_{(i,j)\in\Omega}((BA)_{ij} - T_{ij})^2`. As :math:`f(BR, R^{-1}A) = f(B, A)` for every invertible
:math:`R`, this is a function on ``FixedRank(k)``. In flat space the speed of descent depends on the condition number of
:math:`T` and on which factors one starts from; on the quotient on neither.
"""

import torch
from matplotlib import pyplot as plt
from retract.manifolds import FixedRank
from retract.optim import RiemannianSGD

plt.style.use("tableau-colorblind10")

# %%
# A 40 × 30 matrix of rank 3 with singular values from 1 down to :math:`1/\kappa`, of which 60 % of the entries are known. The start
# is near the solution; from far away no method here finds the small directions of an ill-conditioned matrix.

n, m, k = 40, 30, 3
manifold = FixedRank(k, n)


def problem(condition):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    left, right = torch.linalg.qr(normal(n, k))[0], torch.linalg.qr(normal(m, k))[0]
    values = float(condition) ** -torch.linspace(0, 1, k, dtype=torch.float64)
    known = torch.rand(n, m, generator=generator, dtype=torch.float64) < 0.6
    solution = torch.cat([left * values.sqrt(), right * values.sqrt()])
    noise = normal(n + m, k)
    start = solution + values[-1] / values.sqrt() * noise / noise.norm()
    b, a = manifold.split(solution)
    return b @ a.T, known, start


# %%
# Unbalanced factors of the same matrix: :math:`R` has singular values 100, 1 and 1/100.

turn = torch.linalg.qr(torch.randn(k, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
R = turn * torch.logspace(2, -2, k, dtype=torch.float64)


def run(condition, make, unbalanced, steps=400):
    target, known, start = problem(condition)
    w = torch.nn.Parameter(manifold.act(R, start) if unbalanced else start)
    optimizer, losses = make(w), []
    for _ in range(steps):
        optimizer.zero_grad()
        b, a = manifold.split(w)
        loss = 0.5 * ((b @ a.T - target)[known]).square().sum() / 0.6
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


methods = {
    "RiemannianSGD on FixedRank": lambda w: RiemannianSGD([{"params": [w], "manifold": manifold}], lr=0.5),
    "SGD": lambda w: torch.optim.SGD([w], lr=0.3),
    "Adam": lambda w: torch.optim.Adam([w], lr=3e-3),
}

# %%
# What to look at: on ``FixedRank`` one learning rate serves all, and the curves of balanced and unbalanced factors are the same. SGD at
# this rate diverges from unbalanced factors, and is the slower the worse the condition; Adam stops where its steps stop.

figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained", sharey=True)
ends = {}
for axis, (name, make) in zip(axes, methods.items(), strict=True):
    for i, condition in enumerate((1, 10, 100, 1000)):
        for unbalanced in (False, True):
            losses = torch.tensor(run(condition, make, unbalanced))
            ends[name, condition, unbalanced] = losses[-1].item()
            shown = losses.where(losses < 1e3, torch.nan)
            style = {"color": f"C{i}", "linestyle": ":" if unbalanced else "-", "linewidth": 2.5 if unbalanced else 1}
            axis.semilogy(shown, label=f"κ = {condition}{', unbalanced' * unbalanced}", **style)
    axis.set(title=name, xlabel="step", ylim=(1e-32, 10))
    axis.grid(alpha=0.3)
axes[0].set(ylabel="loss")
axes[0].legend(fontsize=6)
plt.show()

# %%
# The losses after 400 steps.

for (name, condition, unbalanced), loss in ends.items():
    print(f"{name:27} κ = {condition:4} {'unbalanced' if unbalanced else 'balanced':10} {loss:.0e}")
assert all(loss < 1e-20 for (name, *_), loss in ends.items() if "FixedRank" in name)
assert all(not loss < 1e-20 for (name, condition, _), loss in ends.items() if name == "SGD" and condition > 1)
