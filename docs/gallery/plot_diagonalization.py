r"""
Joint diagonalization on the Stiefel manifold
=============================================

Symmetric matrices :math:`A_1, \dots, A_m` that share eigenvectors, but for noise, are diagonalized together as well as one
orthogonal matrix can: :math:`U` minimizes the off-diagonal energy
:math:`f(U) = \sum_i \|\operatorname{off}(U^\top A_i U)\|^2` over ``Stiefel()`` with square matrices. Blind source separation
is this problem for a set of covariance matrices (Cardoso and Souloumiac 1996).
"""

import torch
from matplotlib import pyplot as plt
from retract.manifolds import Grassmann, Stiefel
from retract.optim import RiemannianSGD

plt.style.use("tableau-colorblind10")

# %%
# 20 matrices of size 10 × 10: :math:`A_i = Q D_i Q^\top + E_i` with one orthogonal :math:`Q`, diagonal :math:`D_i` with
# standard normal entries, and symmetric noise :math:`E_i` whose off-diagonal entries have standard deviation
# :math:`\sigma = 0.05`.

n, m, noise, starts = 10, 20, 0.05, 16
generator = torch.Generator().manual_seed(0)
normal = {"generator": generator, "dtype": torch.float64}
Q = Stiefel().random_point(n, n, **normal)
D = torch.randn(m, n, **normal)
E = torch.randn(m, n, n, **normal) * noise
E = (E + E.mT) / 2**0.5
A = Q @ torch.diag_embed(D) @ Q.T + E


def turned(U):
    """The matrices in each of the bases U, (*batch, m, n, n)."""
    return U.mT.unsqueeze(-3) @ A @ U.unsqueeze(-3)


def energy(U):
    """(*batch,)"""
    B = turned(U)
    return (B - torch.diag_embed(B.diagonal(dim1=-2, dim2=-1))).square().sum((-3, -2, -1))


# %%
# The problem is not convex, so it is solved from 16 random starts. They are one parameter of shape (16, 10, 10): the last
# two axes are a point of ``Stiefel()``, and each start moves by itself.

U = torch.nn.Parameter(Stiefel().random_point(starts, n, n, **normal))
optimizer = RiemannianSGD([{"params": [U], "manifold": Stiefel()}], lr=0.002, momentum=0.9)
path = []
for _ in range(400):
    optimizer.zero_grad()
    energies = energy(U)
    energies.sum().backward()
    optimizer.step()
    path.append(energies.detach())
U = U.detach()

# %%
# To first order in the noise the minimum is known. With :math:`F_i = Q^\top E_i Q` and :math:`U = Q(1 + \Omega)`, up to
# order and sign of the columns,
#
# .. math:: \Omega_{jk} = -\frac{\sum_i F_{i,jk}\,(d_{ij} - d_{ik})}{\sum_i (d_{ij} - d_{ik})^2},
#
# and since this fits one number to :math:`m` entries of noise, the energy left is on average
# :math:`(1 - 1/m)\, m\, n (n - 1)\, \sigma^2`.

F = Q.T @ E @ Q
difference = D.unsqueeze(-1) - D.unsqueeze(-2)
omega = -(F * difference).sum(0) / difference.square().sum(0).where(~torch.eye(n, dtype=torch.bool), 1)
expected_angles = omega.norm(dim=0)
expected_energy = (1 - 1 / m) * m * n * (n - 1) * noise**2

order = (Q.T @ U).abs().argmax(-1)  # which column of U is which of Q, (starts, n)
columns = U.mT.gather(-2, order.unsqueeze(-1).expand(starts, n, n))
angles = Grassmann(1).dist(columns, Q.T).squeeze(-1)

# %%
# What to look at: all starts come down to one value, below the energy at :math:`Q` itself.

figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
axis.semilogy(torch.stack(path)[:150], color="C0", linewidth=0.8)
axis.axhline(energy(Q), color="C1", linestyle="--", label="at Q")
axis.set(xlabel="step", ylabel="off-diagonal energy", title=f"{starts} starts")
axis.grid(alpha=0.3)
axis.legend()
plt.show()

# %%
# Root mean squares over the 20 matrices, entry by entry, in the basis of the first start before and after:

before, after = A.square().mean(0).sqrt(), turned(U[0]).square().mean(0).sqrt()
figure, panels = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
for panel, matrix, title in zip(panels, (before, after), ("as given", "in the basis U"), strict=True):
    image = panel.imshow(matrix, norm="log", vmin=0.03, vmax=1.5, cmap="cividis")
    panel.set(title=title, xticks=[], yticks=[])
figure.colorbar(image, ax=panels, label="root mean square of the entry")
plt.show()

# %%

final = energy(U)
print(
    f"off-diagonal energy: {energy(torch.eye(n, dtype=A.dtype)):.1f} as given, {energy(Q):.4f} at Q, {final[0]:.4f} at U"
)
print(f"expected at the minimum: {expected_energy:.4f}; the 16 starts differ by {final.max() - final.min():.0e}")
print(f"angles between columns of U and Q: {angles[0].min():.4f} to {angles[0].max():.4f} rad")
print(f"largest difference from the first order: {(angles - expected_angles).abs().max():.4f} rad")
print(f"largest ‖UᵀU − 1‖: {Stiefel().point_defect(U).max():.0e}")

assert final.max() - final.min() < 1e-10
assert (final < energy(Q)).all()
assert (final / expected_energy - 1).abs().max() < 0.1
assert (order.sort().values == torch.arange(n)).all()
assert (angles - expected_angles).abs().max() < noise**2
assert Stiefel().point_defect(U).max() < 1e-13
