r"""
Rayleigh quotient on the sphere
===============================

The eigenvector of the largest eigenvalue of a symmetric matrix :math:`A` minimizes :math:`f(x) = -\tfrac12 x^\top A x` on the
unit sphere. Near the minimum the rate of convergence is known, with and without momentum, and the runs are held against it.
"""

import math

import torch
from matplotlib import pyplot as plt
from retract.manifolds import Grassmann, Sphere
from retract.optim import RiemannianSGD

plt.style.use("tableau-colorblind10")

# %%
# The matrix
# ----------
#
# 100 × 100, with eigenvalues :math:`\lambda_1 = 1` and 99 more, evenly spread over :math:`[0, 0.98]`. ``torch.linalg.eigh``
# gives the eigenvector to compare with.

n = 100
generator = torch.Generator().manual_seed(0)
basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
spectrum = torch.cat([torch.tensor([1.0], dtype=torch.float64), torch.linspace(0.98, 0, n - 1, dtype=torch.float64)])
A = basis @ torch.diag(spectrum) @ basis.T
A = (A + A.T) / 2
eigenvector = torch.linalg.eigh(A).eigenvectors[:, -1:].T

# %%
# The rates
# ---------
#
# At the minimum the Hessian of :math:`f` on the sphere has the eigenvalues :math:`\lambda_1 - \lambda_i`, between
# :math:`\mu = \lambda_1 - \lambda_2` and :math:`L = \lambda_1 - \lambda_n`. With :math:`\kappa = L/\mu` the best constant
# steps of gradient descent and of the heavy ball (Polyak 1964) contract the error, per step, by
#
# .. math::
#    \frac{\kappa - 1}{\kappa + 1} \;\text{ at }\; \eta = \frac{2}{L + \mu}, \qquad
#    \frac{\sqrt\kappa - 1}{\sqrt\kappa + 1} \;\text{ at }\;
#    \eta = \frac{4}{(\sqrt L + \sqrt\mu)^2},\; \rho = \Big(\frac{\sqrt\kappa - 1}{\sqrt\kappa + 1}\Big)^2 .

mu, L = 1 - 0.98, 1.0
kappa = L / mu
damping = (math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)
choices = {
    "gradient descent": {"lr": 2 / (L + mu)},
    "heavy ball": {"lr": 4 / (math.sqrt(L) + math.sqrt(mu)) ** 2, "momentum": damping**2},
}
predicted = {"gradient descent": (kappa - 1) / (kappa + 1), "heavy ball": damping}


# %%
# The runs
# --------
#
# A parameter of shape (1, n) is one point of ``Sphere()``. The error is the angle between the line through :math:`x` and
# that through the eigenvector, whose sign is arbitrary: the distance on ``Grassmann(1)``.


def angles(steps=900, **options):
    start = Sphere().random_point(1, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.nn.Parameter(start)
    optimizer = RiemannianSGD([{"params": [x], "manifold": Sphere()}], **options)
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        (-0.5 * (x @ A * x).sum()).backward()
        optimizer.step()
        path.append(Grassmann(1).dist(x.detach(), eigenvector).item())
    return path


runs = {
    (name, motion): angles(**options, motion=motion)
    for name, options in choices.items()
    for motion in ("retract", "exp")
}

# %%
# What to look at: slopes. Retraction and exponential differ in the third order of the step, which vanishes with the gradient.

figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for color, name in zip(("C0", "C1"), choices, strict=True):
    axis.semilogy(runs[name, "retract"], color=color, linewidth=4, alpha=0.45, label=f"{name}, retract")
    axis.semilogy(runs[name, "exp"], color=color, linestyle="--", label=f"{name}, exp")
axis.set(xlabel="step", ylabel="angle to eigenvector [rad]", ylim=(1e-16, 10))
axis.grid(alpha=0.3)
axis.legend()
plt.show()


# %%
# Measured rates, from the steps at which the angle falls below 1e-3 and below 1e-11. At its best step the heavy ball's factor
# :math:`q` is a double root, so that the error falls like :math:`t\,q^t`, and the rate is approached from above.


def rate(path):
    first, last = (next(i for i, angle in enumerate(path) if angle < bound) for bound in (1e-3, 1e-11))
    return (path[last] / path[first]) ** (1 / (last - first))


for (name, motion), path in runs.items():
    print(
        f"{name:16} {motion:7}  rate {rate(path):.4f}, predicted {predicted[name]:.4f}, last angle {path[-1]:.0e} rad"
    )
    assert path[-1] < 1e-13
    assert -1e-4 < rate(path) / predicted[name] - 1 < (0.02 if name == "heavy ball" else 1e-3)
