r"""
Principal subspace on the Grassmann manifold
============================================

The :math:`k` directions of largest variance of centred data :math:`X` span a subspace, the minimizer over orthonormal bases
:math:`U` of :math:`f(U) = -\|XU\|^2 / \|X\|^2`. Since :math:`f(UQ) = f(U)` for orthogonal :math:`Q`, it is a function on
``Grassmann(k)``. The SVD of :math:`X` gives the subspace to compare with.
"""

import torch
from matplotlib import pyplot as plt
from retract.manifolds import Grassmann
from retract.optim import RiemannianSGD
from sklearn.datasets import load_digits

plt.style.use("tableau-colorblind10")

# %%
# scikit-learn's digits, 1,797 images of 64 pixels, and :math:`k = 10`. The variances along the principal axes, as shares of
# the total, are :math:`\lambda_1 \ge \dots \ge \lambda_{64}`.

k = 10
manifold = Grassmann(k)
X = torch.tensor(load_digits().data, dtype=torch.float64)
X -= X.mean(0)
X /= X.norm()
_, singular, axes = torch.linalg.svd(X, full_matrices=False)
principal, variances = axes[:k].T, singular.square()
best = variances[:k].sum()
print(f"{k} principal axes hold {best:.2%} of the variance; gap after them: {variances[k - 1] - variances[k]:.4f}")


# %%
# From two random starts, with the full data in every step. The logarithm towards the principal subspace has the principal
# angles :math:`\theta_1, \dots, \theta_k` as singular values, and their root sum of squares is the distance.


def run(seed, steps=300):
    start = manifold.random_point(64, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    U = torch.nn.Parameter(start)
    optimizer = RiemannianSGD([{"params": [U], "manifold": manifold}], lr=6.0, momentum=0.8)
    captured, angles = [], []
    for _ in range(steps):
        captured.append((X @ U.detach()).square().sum())
        angles.append(torch.linalg.svdvals(manifold.log(U.detach(), principal)))
        optimizer.zero_grad()
        (-(X @ U).square().sum()).backward()
        optimizer.step()
    return U.detach(), torch.stack(captured), torch.stack(angles)


first, captured, angles = run(seed=0)
second, _, _ = run(seed=1)

# %%
# How much variance is missing depends on the angles to second order, and lies between two multiples of
# :math:`s = \sum_i \sin^2\theta_i`:
#
# .. math:: (\lambda_k - \lambda_{k+1})\, s \;\le\; \textstyle\sum_{i \le k} \lambda_i + f(U) \;\le\; (\lambda_1 - \lambda_{64})\, s.
#
# What to look at: the missing variance, inside the band, falls twice as fast as the angles, down to rounding, which is left out.

missing, s = best - captured, angles.sin().square().sum(1)
low, high = (variances[k - 1] - variances[k]) * s, (variances[0] - variances[-1]) * s

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained", sharex=True)
left.semilogy(missing.where(missing > 1e-15, torch.nan), label="missing")
left.fill_between(range(len(s)), low, high, alpha=0.25, color="C0", linewidth=0, label="band")
left.set(xlabel="step", ylabel="share of the variance", ylim=(1e-16, 3))
left.legend()
right.semilogy(angles, color="C1", linewidth=1)
right.set(xlabel="step", ylabel=f"the {k} principal angles [rad]", ylim=(1e-16, 3))
for axis in (left, right):
    axis.grid(alpha=0.3)
plt.show()

# %%
# The two runs end in one subspace, with two bases. ``align`` turns one basis towards the other.

distance = manifold.dist(first, principal).item()
apart, turned = (first - second).norm().item(), (first - manifold.align(first, second)).norm().item()
print(f"variance: {captured[-1]:.6%} of {best:.6%}")
print(f"distance to the SVD's subspace: {distance:.1e} rad, largest angle {angles[-1].max():.1e} rad")
print(f"distance of the two runs: {manifold.dist(first, second).item():.1e} rad")
print(f"difference of their bases: {apart:.2f}, aligned {turned:.1e}")

rounding = 1e-14
assert ((low <= missing + rounding) & (missing <= high + rounding)).all()
assert abs(captured[-1] - best) < 1e-12
assert distance < 1e-12
assert manifold.dist(first, second).item() < 1e-12
assert apart > 1 > 1e12 * turned
