"""Update rules of norm geometry on Stiefel, spectral spheres and products of rows; conventions of `norm_references`."""

import math

import torch
from norm_references import ema, lengths, row_tangent, rows, run
from norm_references_lmo import leading_pair, msign, spectral_sphere_lmo, stiefel_lmo, stiefel_tangent
from torch import Tensor


def manifold_muon(W, gradients, rates, beta=0.0):
    """W ← msign(W − η A),  A = argmax ⟨M, A⟩, ‖A‖₂ ≤ 1, Wᵀ A + Aᵀ W = 0: steepest spectral descent on Stiefel.

    Published: η 0.1, linear to 0; W₀ ← msign(W₀); M = G (no momentum; here M ← β M + (1 − β) G is allowed, whose normal
    part A does not see).  Wide matrices are transposed.

    Source: Bernstein 2025, "Modular manifolds".  Differences: its dual ascent (Λ₀ = −(Wᵀ G + Gᵀ W) / 4, 100 steps of
    0.01 falling to 0, tolerance 1e-6) and the ADMM of Buchanan 2025, "Speeding up manifold Muon with ADMM" (ρ 4,
    10 steps) return a direction that is not tangent and depends on the scale of G; here A is the exact maximiser.
    """
    average = ema(beta, nesterov=False)
    return run(msign(W), gradients, rates, lambda W, G, eta: msign(W - eta * stiefel_lmo(W, average(G)).A))


def spel(W, gradients, rates, beta=0.95, nesterov=False):
    """SPEL, the spectral MCSD on Stiefel: M ← β M + (1 − β) G,  W ← msign(W − η msign(P_W M)).

    M averages Euclidean gradients and is projected where it is used, P_W M = M − W sym(Wᵀ M); msign(P_W M) is *not*
    projected again.  W₀ ← msign(W₀); wide matrices are transposed.
    Published: deterministic in the first place (β = 0); NVIDIA's class η 3e-4, β 0.95, five Newton–Schulz steps, decay
    0.1, which on Stiefel only lengthens the step.

    Source: Yang & Lai 2026 (2601.21487), MCSD and its stochastic momentum variant.  Difference: NVIDIA's `Spel` takes
    msign(M) without P_W.
    """
    average = ema(beta, nesterov)
    return run(msign(W), gradients, rates, lambda W, G, eta: msign(W - eta * msign(_tangent(W, average(G)))))


def _tangent(W: Tensor, Z: Tensor) -> Tensor:
    return stiefel_tangent(W, Z) if W.shape[0] >= W.shape[1] else stiefel_tangent(W.mT, Z.mT).mT


def intrinsic_muon(W, gradients, rates):
    """W ← msign(W − η (W K + H)),  K = msign(skew(Wᵀ G)),  H = msign((I − W Wᵀ) G): steepest under max(‖K‖₂, ‖H‖₂).

    The spectral norm lifted by the metric, here block by block of the tangent A = W K + H: its ball is larger than the
    one of `manifold_muon`, ‖A‖₂ ≤ √2.  In general ξ = G_x^(−1/2) msign(G_x^(−1/2) G) for a metric ⟨G_x ·, ·⟩; `psi_muon`
    follows it.  No momentum.  W₀ ← msign(W₀), tall.

    Source: Li et al. 2026 (2605.09238), the Stiefel update and appendix H.3; code `imuon_direction`, with a polar (or
    QR) retraction and skew(K) again.
    """

    def step(W, G, eta):
        WG = W.mT @ G
        K, normal = msign(WG - WG.mT), G - W @ WG
        large = torch.linalg.matrix_norm(normal) > 1e-14 * torch.linalg.matrix_norm(G)
        return msign(W - eta * (W @ (K - K.mT) / 2 + (msign(normal) if large else 0)))

    return run(msign(W), gradients, rates, step)


def sso(W, gradients, rates, beta=0.9, nesterov=True, radius_scale=1.0, exact=True, sign=msign):
    """SSO (``exact``) and MuonSphere: W ← (R / σ₁) (W − η R Φ), the last factor returning to σ₁(W) = R.

    Φ = argmax ⟨M, Φ⟩ over ‖Φ‖₂ ≤ 1, ⟨u₁ v₁ᵀ, Φ⟩ = 0 (SSO), Φ = msign(M) (MuonSphere); R = c √(out/in), W₀ ← R W₀ / σ₁.
    M = (1 − β) G + β M as in Muon; its norm, which the paper divides by, does not matter.
    Published: c 1 (2 in the ablations), β 0.9, Nesterov, η 0.02 in `sso.py` (5e-3 … 1e-2 in the runs), eight Polar
    Express steps in float32, bisection to 2e-4 in 20 steps, no decay.

    Source: Xie et al. 2026 (2601.08393), eq. 2–7 and algorithm 1.  Differences: the code returns to the sphere at the
    *start* of the next step, so that the loss is taken off the sphere; here at the end of each step, eq. 7.  Along
    given gradients both meet after each return.  Where h jumps across 0 (square matrices) its Φ is not tangent:
    `spectral_sphere_lmo`.
    """
    R = radius_scale * math.sqrt(W.shape[0] / W.shape[1])
    average = ema(beta, nesterov)

    def returned(W):
        return W * (R / leading_pair(W)[0])

    def step(W, G, eta):
        M = average(G)
        return returned(W - eta * R * (spectral_sphere_lmo(W, M).A if exact else sign(M)))

    return run(returned(W), gradients, rates, step)


def psi_muon(W, gradients, rates, momentum=0.9, form="velocity", nesterov=True, scale=1.0, sign=msign):
    """PSIMuon: intrinsic Muon in the metric of PSI, the rows w = r u of one matrix, their lengths held.

    In unit rows u, with g the Euclidean gradient and P_u a = a − u ⟨u, a⟩ (all per row):

        c ← ρ P_u c + η r P_u g  (``"velocity"``)  or  ρ P_u c + r P_u g  (``"heavy_ball"``)  or
            β P_u c + (1 − β) r P_u g  (``"ema"``, β = ρ)
        C = ρ c + the same term once more, or c without Nesterov,
        A = P_u msign(C),   u' = u − η s A,   u ← u' / ‖u'‖,   c ← c / ‖u'‖,   w = r u.

    PSI's metric is ⟨a, b⟩ / r², its gradient r² P_u g and its velocity b = r c, so that c = b / r: the rows of the step
    are r times those of A.  The velocity is carried to the longer row w + r u' and scaled back with it, as PSI-SGDM's.  Rescaling rows of W changes r and divides g by as much: C, A and u stay.
    The rate multiplies the shaped step, since msign forgets the length of C; in ``"velocity"`` it also weights the
    gradients among each other, which matters under a schedule only.

    Source: none published.  The shape is that of 2605.09238 with G_x = 1 / r² per row, followed by the row projection.
    """
    r, c = lengths(W), torch.zeros_like(W)

    def step(W, G, eta):
        nonlocal c
        u = rows(W)
        new = {"velocity": eta, "heavy_ball": 1.0, "ema": 1 - momentum}[form]
        c = row_tangent(u, momentum * c + new * r * G)
        ahead = row_tangent(u, momentum * c + new * r * G) if nesterov else c
        moved = u - eta * scale * row_tangent(u, sign(ahead))
        c = c / lengths(moved)
        return r * rows(moved)

    return run(W, gradients, rates, step)
