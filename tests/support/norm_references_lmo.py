"""Linear maximisation over tangent spectral balls, slow but sure and each with a certificate, in float64.

argmax ⟨G, A⟩ over ‖A‖₂ ≤ 1 and A tangent.  For a subspace of tangents T with normal space N, Lagrange duality gives

    max_{A ∈ T, ‖A‖₂ ≤ 1} ⟨G, A⟩  =  min_{Z ∈ N} ‖G + Z‖_*,

so that any feasible A and any normal Z enclose the optimum: ⟨G, A⟩ ≤ optimum ≤ ‖G + Z‖_*.  Every solver here returns
`Optimum(A, value, bound)` with A tangent and ‖A‖₂ ≤ 1 to rounding; ``bound - value`` is the certificate.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Optimum(NamedTuple):
    """A feasible A, its ⟨G, A⟩ and an upper bound of ⟨G, ·⟩ over the tangent ball (the dual's value)."""

    A: Tensor
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """How far A may be from the optimum, relative to the bound."""
        return 1 - self.value / self.bound if self.bound else 0.0


def msign(X: Tensor) -> Tensor:
    """U Vᵀ of X = U Σ Vᵀ over the singular values that are not zero to rounding; msign(0) = 0.  (m, n) → (m, n)"""
    U, sigma, Vh = torch.linalg.svd(X, full_matrices=False)
    return (U * (sigma > sigma[0] * max(X.shape) * torch.finfo(X.dtype).eps)) @ Vh


def sym(X: Tensor) -> Tensor:
    return (X + X.mT) / 2


def stiefel_tangent(W: Tensor, Z: Tensor) -> Tensor:
    """Z − W sym(Wᵀ Z): the orthogonal projection onto {A : Wᵀ A + Aᵀ W = 0}, for W (n, p) with Wᵀ W = I."""
    return Z - W @ sym(W.mT @ Z)


def stiefel_lmo(W: Tensor, G: Tensor, tolerance: float = 1e-10) -> Optimum:
    """Steepest tangent of Stiefel under the spectral norm: Wᵀ W = I, W and G (n, p), n ≥ p (a wide W is transposed).

    The normal space is {W S : S = Sᵀ}.  With Q R = G − W Wᵀ G, the nuclear norm of G + W S is that of the small
    X(S) = [Wᵀ G + S; R], whatever n.  The dual min ‖X(S)‖_* is smoothed to Σ √(σᵢ² + μ²), whose minimiser makes
    A = X (Xᵀ X + μ²)^(−1/2) tangent *and* ‖A‖₂ < 1, with a gap of at most p μ; μ falls from 1, the root mean
    square of G's singular values, to 1e-12 and each problem, smooth and convex, is solved by Newton's method from the last solution.  G is scaled to ‖G‖ = √p first, so that the answer does not depend on its scale.

    Square W: S = −sym(Wᵀ G) is optimal at once, A = W msign(skew(Wᵀ G)) (Modula docs, "Orthogonal manifold").
    For p > 32 Newton's equations are solved by conjugate gradients, which may stop early where n < 2 p and X is singular
    at the optimum: look at `Optimum.gap`.

    Source: Bernstein 2025, "Modular manifolds", and the Modula docs, "Stiefel manifold" (the dual); the smoothing and
    the certificate are ours.  Published solvers leave the tangent space: see `manifold_muon`.
    """
    if W.shape[0] < W.shape[1]:
        A, value, bound = stiefel_lmo(W.mT, G.mT, tolerance)
        return Optimum(A.mT, value, bound)
    p, scale = W.shape[1], torch.linalg.matrix_norm(G).item()
    if scale == 0:
        return Optimum(torch.zeros_like(G), 0.0, 0.0)
    if W.shape[0] == p:
        A, bound = W @ msign(W.mT @ G - G.mT @ W), torch.linalg.matrix_norm(G - W @ sym(W.mT @ G), "nuc").item()
        return Optimum(A, torch.sum(G * A).item(), bound)
    C = W.mT @ G * (p**0.5 / scale)
    Q, R = torch.linalg.qr(G * (p**0.5 / scale) - W @ C)
    S, mu, best = -sym(C), 1.0, Optimum(torch.zeros_like(G), 0.0, float("inf"))
    while best.gap > tolerance and mu > 1e-12:
        S = _newton(C, R, S, mu)
        A = _smoothed(C, R, S, mu)[1]
        A = stiefel_tangent(W, W @ A[:p] + Q @ A[p:])
        A = A / torch.linalg.matrix_norm(A, 2).clamp(min=1)
        value = torch.sum(G * A).item()
        bound = min(best.bound, torch.linalg.matrix_norm(G + W @ S * (scale / p**0.5), "nuc").item())
        best = Optimum(A, value, bound) if value > best.value else best._replace(bound=bound)
        mu /= 4
    return best


def hyperplane_lmo(N: Tensor, G: Tensor) -> Optimum:
    """argmax ⟨G, A⟩ over ‖A‖₂ ≤ 1 and ⟨N, A⟩ = 0, for one normal N: bisection over the multiplier.  (m, n) → (m, n)

    The dual λ ↦ ‖G + λ N‖_* is convex; its derivative h(λ) = ⟨N, msign(G + λ N)⟩ does not decrease and changes sign
    between ±2 ‖G‖_* / ‖N‖_*.  Where G + λ* N is singular, as it is for most square matrices, h *jumps* across zero and
    no λ gives a tangent msign: the optimum is then the convex combination of the two one-sided msigns that is tangent.
    """
    scale = torch.linalg.matrix_norm(G, "nuc").item()
    if scale == 0 or not N.any():
        A = msign(G)
        return Optimum(A, torch.sum(G * A).item(), scale)
    high = 2 * scale / torch.linalg.matrix_norm(N, "nuc").item()
    low = -high
    for _ in range(200):
        middle = (low + high) / 2
        if torch.sum(N * msign(G + middle * N)) < 0:
            low = middle
        else:
            high = middle
    below, above = msign(G + low * N), msign(G + high * N)
    h_low, h_high = torch.sum(N * below).item(), torch.sum(N * above).item()
    A = (below * h_high - above * h_low) / (h_high - h_low) if h_high > h_low else below
    A = A - N * (torch.sum(N * A) / torch.sum(N * N))
    A = A / torch.linalg.matrix_norm(A, 2).clamp(min=1)
    return Optimum(A, torch.sum(G * A).item(), torch.linalg.matrix_norm(G + high * N, "nuc").item())


def frobenius_sphere_lmo(W: Tensor, G: Tensor) -> Optimum:
    """Steepest tangent of the sphere ‖W‖_F = R under the spectral norm: ⟨W, A⟩ = 0."""
    return hyperplane_lmo(W, G)


def spectral_sphere_lmo(W: Tensor, G: Tensor) -> Optimum:
    """Steepest tangent of the spectral sphere σ₁(W) = R under the spectral norm: ⟨u₁ v₁ᵀ, A⟩ = 0.

    Source: Xie et al. 2026 (2601.08393), eq. 4 and 5, where σ₁ is simple.  Their solver stops at the jump of h (above),
    so that on square matrices it returns a direction that is not tangent.
    """
    return hyperplane_lmo(leading_pair(W)[1], G)


def leading_pair(W: Tensor) -> tuple[Tensor, Tensor]:
    """σ₁ and Θ = u₁ v₁ᵀ."""
    U, sigma, Vh = torch.linalg.svd(W, full_matrices=False)
    return sigma[0], U[:, :1] @ Vh[:1]


def _smoothed(C: Tensor, R: Tensor, S: Tensor, mu: float):
    """Σ √(σᵢ² + μ²) of X = [C + S; R], A = X (Xᵀ X + μ²)^(−1/2) and the factors of X; sym(A[:p]) is the gradient in S."""
    U, sigma, Vh = torch.linalg.svd(torch.cat([C + S, R]), full_matrices=False)
    root = torch.sqrt(sigma**2 + mu**2)
    return root.sum(), (U * (sigma / root)) @ Vh, (U, sigma, root, Vh)


def _hessian(D: Tensor, mu: float, factors) -> Tensor:
    """Derivative of sym(A[:p]) along a symmetric D: divided differences of σ/√(σ² + μ²), without cancellation."""
    (U, sigma, root, Vh), p = factors, D.shape[-1]
    E = U[:p].mT @ D @ Vh.mT
    cross = sigma[:, None] * root[None, :]
    cross, total, product = cross + cross.mT, sigma[:, None] + sigma[None, :], root[:, None] * root[None, :]
    even, odd = mu**2 * total / (product * cross), cross / (product * total)
    core = even * sym(E) + odd * (E - sym(E))
    outside = torch.nn.functional.pad(D @ Vh.mT, (0, 0, 0, U.shape[0] - p)) - U @ E
    return sym(((U @ core + outside / root) @ Vh)[..., :p, :])


def _newton(C: Tensor, R: Tensor, S: Tensor, mu: float) -> Tensor:
    """The S that minimises the smoothed dual: damped Newton steps."""
    f, A, factors = _smoothed(C, R, S, mu)
    g = sym(A[: C.shape[0]])
    for _ in range(30):
        least = torch.linalg.matrix_norm(g)
        if least < 1e-12 * C.shape[0] ** 0.5:
            break
        D = _direct(-g, mu, factors) if len(g) <= 32 else _conjugate_gradients(-g, mu, factors)
        slope, t = torch.sum(g * D), 1.0
        while t > 1e-6:
            f_t, A_t, factors_t = _smoothed(C, R, S + t * D, mu)
            g_t = sym(A_t[: C.shape[0]])
            # below the rounding of f, the gradient alone tells whether the step was one forward
            if f_t <= f + 1e-4 * t * slope or (f_t <= f * (1 + 1e-13) and torch.linalg.matrix_norm(g_t) < least):
                break
            t /= 2
        else:
            break
        S, f, g, factors = S + t * D, f_t, g_t, factors_t
    return S


def _direct(b: Tensor, mu: float, factors) -> Tensor:
    """Hessian⁻¹ b in the basis of symmetric unit matrices."""
    p = len(b)
    i, j = torch.triu_indices(p, p)
    basis = torch.zeros(len(i), p, p, dtype=b.dtype)
    basis[torch.arange(len(i)), i, j] = 1
    basis = sym(basis) * torch.where(i == j, 1, 2**0.5)[:, None, None]
    H = torch.einsum("kij,lij->kl", basis, _hessian(basis, mu, factors))
    return torch.einsum("k,kij->ij", torch.linalg.solve(sym(H), torch.einsum("kij,ij->k", basis, b)), basis)


def _conjugate_gradients(b: Tensor, mu: float, factors) -> Tensor:
    """Hessian⁻¹ b, preconditioned by D ↦ D P + P D with P = (Xᵀ X + μ²)^(−1/2), which bounds the Hessian from above."""
    _, _, root, Vh = factors

    def precondition(r):
        return Vh.mT @ (Vh @ r @ Vh.mT / (1 / root[:, None] + 1 / root[None, :])) @ Vh

    x, r, d = torch.zeros_like(b), b, precondition(b)
    rz = torch.sum(r * d)
    stop = rz * min(1e-4, rz.item())
    for _ in range(400):
        Hd = _hessian(d, mu, factors)
        curvature = torch.sum(d * Hd)
        if curvature <= 0:
            break
        x, r = x + rz / curvature * d, r - rz / curvature * Hd
        z = precondition(r)
        rz, before = torch.sum(r * z), rz
        if rz <= stop:
            break
        d = z + rz / before * d
    return x if x.any() else b
