"""Update rules of norm geometry in float64, written from their papers: what the presets are tested against.

Plain torch, nothing of this library.  Matrices are (out, in).  Every method takes the start ``W``, the gradients (a
function W ↦ G or a sequence, one per step) and the learning rates (one per step), then its hyperparameters with the
published defaults, and returns ``[W₀, W₁, …]`` with W₀ as the method first moves it onto its manifold.  ``sign`` is the
matrix sign of the method: `msign`, exact, unless a test asks for `newton_schulz` or `polar_express`.

Notation: N(X) = X / ‖X‖_F, rows(X) each row over its length, both 0 at 0; msign(X) = U Vᵀ of X = U Σ Vᵀ; η the rate.
Methods on Stiefel and spectral spheres: `norm_references_manifold`.  Exact tangent maximisers: `norm_references_lmo`.
"""

import math

import torch
from norm_references_lmo import msign
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan 2024
POLAR_EXPRESS = (  # Amsel et al. 2025 (2505.16932), as in "Modular manifolds"; all but the last are damped by 1.01
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)


def run(W: Tensor, gradients, rates, step) -> list[Tensor]:
    """[W₀, W₁, …] with W₊ = step(W, G, η)."""
    iterates = [W]
    for t, rate in enumerate(rates):
        G = gradients(iterates[-1]) if callable(gradients) else gradients[t]
        iterates.append(step(iterates[-1], G, rate))
    return iterates


def unit(X: Tensor) -> Tensor:
    """N(X), over the whole matrix."""
    norm = torch.linalg.matrix_norm(X)
    return X / norm if norm else torch.zeros_like(X)


def lengths(X: Tensor) -> Tensor:
    return torch.linalg.vector_norm(X, dim=1, keepdim=True)


def rows(X: Tensor) -> Tensor:
    norm = lengths(X)
    return torch.where(norm > 0, X / norm.where(norm > 0, 1), 0)


def row_tangent(W: Tensor, Z: Tensor) -> Tensor:
    """Each row of Z less its part along that row of W, whose rows are of unit length."""
    return Z - W * torch.sum(W * Z, dim=1, keepdim=True)


def newton_schulz(G: Tensor, steps: int = 5, coefficients=QUINTIC, eps: float = 1e-7) -> Tensor:
    """X ← a X + (b X Xᵀ + c (X Xᵀ)²) X from G / max(‖G‖_F, eps), as in `torch.optim.Muon`.

    Jordan's code divides by ‖G‖_F + eps.  Both cast G to bfloat16 before they divide.  Singular values end between 0.68
    and 1.21 where they began above 0.002, so this is no msign: compare with it only through this function.
    """
    return _polynomials(G / torch.linalg.matrix_norm(G).clamp(min=eps), [coefficients] * steps)


def polar_express(G: Tensor, steps: int = 8) -> Tensor:
    """Polar Express from N(G) / 1.01: one polynomial per step, damped as x ↦ p(x / 1.01) but for the last, repeated."""
    damped = [(a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in POLAR_EXPRESS[:-1]] + [POLAR_EXPRESS[-1]] * steps
    return _polynomials(unit(G) / 1.01, damped[:steps])


def _polynomials(X: Tensor, coefficients) -> Tensor:
    """Odd quintics in the singular values, one after the other, on the wide side."""
    if X.shape[0] > X.shape[1]:
        return _polynomials(X.mT, coefficients).mT
    for a, b, c in coefficients:
        XX = X @ X.mT
        X = a * X + (b * XX + c * XX @ XX) @ X
    return X


def ema(beta: float, nesterov: bool):
    """M ← β M + (1 − β) G from 0, without bias correction; with Nesterov (1 − β) G + β M with the *new* M."""
    M = 0.0

    def average(G):
        nonlocal M
        M = beta * M + (1 - beta) * G
        return (1 - beta) * G + beta * M if nesterov else M

    return average


def heavy_ball(momentum: float):
    """B ← ρ B + G from 0."""
    B = 0.0

    def average(G):
        nonlocal B
        B = momentum * B + G
        return B

    return average


def adam(betas: tuple[float, float], eps: float):
    """m̂ / (√v̂ + eps) per coordinate, m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ) (Kingma & Ba 2015, algorithm 1)."""
    m, v, t, (beta1, beta2) = 0.0, 0.0, 0, betas

    def average(G):
        nonlocal m, v, t
        m, v, t = beta1 * m + (1 - beta1) * G, beta2 * v + (1 - beta2) * G * G, t + 1
        return m / (1 - beta1**t) / (torch.sqrt(v / (1 - beta2**t)) + eps)

    return average


def muon(W, gradients, rates, beta=0.95, nesterov=True, decay=0.0, adjust="original", sign=msign):
    """Muon: U = msign((1 − β) G + β M),  W ← (1 − η λ) W − η s U.

    Published: η 0.02, β 0.95, Nesterov, λ 0, five Newton–Schulz steps, s = √max(1, out/in).
    `torch.optim.Muon` (2.13): η 1e-3, λ 0.1, the same s as ``"original"``, and ``"match_rms_adamw"``
    s = 0.2 √max(out, in) (Liu et al. 2025, 2502.16982); the decay takes η without s.

    Source: Jordan 2024, "Muon: an optimizer for hidden layers in neural networks", and its repository.
    Differences: the post has B ← μ B + G and no s.  Its B is M / (1 − β), so msign is the same; the code's form (above)
    is what torch has.  The code's `grad.lerp_` overwrites ``p.grad``.
    """
    out, into = W.shape
    s = {"original": math.sqrt(max(1, out / into)), "match_rms_adamw": 0.2 * math.sqrt(max(out, into))}[adjust]
    average = ema(beta, nesterov)
    return run(W, gradients, rates, lambda W, G, eta: (1 - eta * decay) * W - eta * s * sign(average(G)))


def hyperball(W, gradients, rates, direction, radius=None):
    """W ← R N(W − η R N(U)), R = ‖W₀‖_F unless given, U = direction(G) of any base optimizer; no weight decay.

    Source: Wen, Dang, Lyu, Ma, Liang 2026 (2606.16899), eq. 1.  The gradient is not projected.
    Differences: the authors' code (Levanter) takes R from the current W, equal but for rounding, and divides by
    max(‖U‖, 1e-10).  A port for torch takes every norm over the columns; NVIDIA's takes one R for all parameters.
    """
    R = torch.linalg.matrix_norm(W) if radius is None else radius
    return run(R * unit(W), gradients, rates, lambda W, G, eta: R * unit(W - eta * R * unit(direction(G))))


def muon_h(W, gradients, rates, beta=0.95, nesterov=True, radius=None, sign=msign):
    """MuonH: `hyperball` around U = msign((1 − β) G + β M); any factor s of Muon's cancels.

    Published: η 0.018 (Marin's nanoGPT runs; the rule of the code is √(η λ) of a tuned Muon with decay λ), β 0.95,
    Nesterov, five Newton–Schulz steps.  Difference: the code averages B ← β B + G, the same direction.
    """
    average = ema(beta, nesterov)
    return hyperball(W, gradients, rates, lambda G: sign(average(G)), radius)


def adam_h(W, gradients, rates, betas=(0.9, 0.95), eps=1e-8, radius=None):
    """AdamH: `hyperball` around U = m̂ / (√v̂ + eps), per coordinate of the Euclidean gradient.

    Published: η 0.018, β (0.9, 0.95), eps 1e-8 outside the root.  Difference: a port for torch multiplies the
    *normalised* step by 1 / (1 − β₁ᵗ), ten times too long at t = 1.
    """
    return hyperball(W, gradients, rates, adam(betas, eps), radius)


def hyperspherical_descent(W, gradients, rates, by_row=False, hold=False):
    """a = N(G − W ⟨W, G⟩),  W ← N(W − η a): steepest descent on the unit sphere, of the matrix or of each row.

    Published: η 0.1, linear to 0 (η_t = 0.1 (1 − t / T), t from 0); W₀ ← N(W₀); no momentum.  The whole matrix is one
    point.  ``hold`` keeps the length of W₀ instead of 1: then a is taken at N(W), and R N(N(W) − η a).

    Source: Bernstein 2025, "Modular manifolds" (Thinking Machines), first section and `hyperspherical_descent.py`,
    which divides by ‖a‖ + 1e-12; the post writes the retraction as a division by √(1 + η²), the same number.
    """
    shape = W.shape
    W = W if by_row else W.reshape(1, -1)
    R = lengths(W) if hold else torch.ones_like(lengths(W))

    def step(W, G, eta):
        w = rows(W)
        return R * rows(w - eta * rows(row_tangent(w, G.reshape(W.shape))))

    as_matrix = (lambda W: gradients(W.reshape(shape))) if callable(gradients) else gradients
    return [W.reshape(shape) for W in run(R * rows(W), as_matrix, rates, step)]


def oblique_sgd(W, gradients, rates, momentum=0.9):
    """B ← ρ B + G,  W ← rows(W − η (B − W ⟨W, B⟩_row)): the buffer is Euclidean and is projected where it is used.

    Published: η 1e-3, ρ 0.9, decay 0.  Source: NVIDIA Emerging-Optimizers, `ObliqueSGD` (no paper; it cites Boumal
    2023).  Differences: its default normalises the *columns* of an (out, in) matrix, and it never moves W₀ onto the
    manifold; here W₀ ← rows(W₀).
    """
    average = heavy_ball(momentum)
    return run(rows(W), gradients, rates, lambda W, G, eta: rows(W - eta * row_tangent(W, average(G))))


def oblique_adam(W, gradients, rates, betas=(0.9, 0.99), eps=1e-8):
    """U = m̂ / (√v̂ + eps) of the Euclidean gradient,  W ← rows(W − η (U − W ⟨W, U⟩_row)).

    Published: η 1e-3, β (0.9, 0.99), eps 1e-8, decay 0.  Source: NVIDIA Emerging-Optimizers, `ObliqueAdam`.
    Difference: it divides √v by 1 − β₂ᵗ, not by its root, so its first step is √(1 − β₂) = 0.1 as long as Adam's.
    """
    average = adam(betas, eps)
    return run(rows(W), gradients, rates, lambda W, G, eta: rows(W - eta * row_tangent(W, average(G))))


def scion(W, gradients, rates, weight=0.1, shape="spectral", rho=50.0, constrained=True, sign=msign):
    """d ← (1 − α) d + α G,  W ← (1 − γ) W − γ ρ D(d); without the factor 1 − γ where not ``constrained``.

    D(d) = √(out/in) msign(d) (hidden), sign(d) / in (head, or an embedding's transpose), rows(d) / √in.
    Published: α 0.1 is the weight of the *new* gradient (β 0.9); nanoGPT γ 2⁻¹², ρ 50 hidden, 3000 for the sign head.
    No Nesterov.  W₀ is to lie in the ball, at ρ times an orthogonal matrix or random signs of the same scale; it is
    left as given here.

    Source: Pethick et al. 2025 (2502.07529), SCG and uSCG (unconstrained) with the norms of Scion; repository LIONS-EPFL/scion.
    Differences: the code adds 1e-8 to each row's length, and its class has α = 1 (no average) and γ 1e-3 by default.
    """
    out, into = W.shape
    average = ema(1 - weight, nesterov=False)
    ball = {
        "spectral": lambda d: math.sqrt(out / into) * sign(d),
        "sign": lambda d: torch.sign(d) / into,
        "row": lambda d: rows(d) / math.sqrt(into),
    }[shape]
    return run(W, gradients, rates, lambda W, G, gamma: (1 - gamma * constrained) * W - gamma * rho * ball(average(G)))


def nero(W, gradients, rates, beta=0.999):
    """v ← β v + (1 − β) ‖g‖² per row,  w ← w − η g / √v̂, then w ← w − mean(w), w ← w / ‖w‖.

    v̂ = v / (1 − βᵗ); no eps: 0 / 0 is 0.  The gradient is not projected, neither for v nor for the step.
    Published: η 0.01, β 0.999.  W₀ is centred and normalised first, so that the paper's scale σ is 1 for matrices.

    Source: Liu, Bernstein, Meister, Yue 2021 (2102.07227); its repository agrees to the last bit.
    """
    v, t = 0.0, 0

    def balanced(W):
        return rows(W - W.mean(dim=1, keepdim=True))

    def step(W, G, eta):
        nonlocal v, t
        v, t = beta * v + (1 - beta) * lengths(G) ** 2, t + 1
        return balanced(W - eta * torch.nan_to_num(G / torch.sqrt(v / (1 - beta**t)), nan=0.0))

    return run(balanced(W), gradients, rates, step)


def rotational(
    W, gradients, rates, decay, rule="adam", betas=(0.9, 0.999), eps=1e-8, momentum=0.9, keep=0.9, mean=True
):
    """Rotational variants: each row turns by η_r on average, as weight decay would make it turn in equilibrium.

    d = m̂ / (√v̂ + eps), or B ← ρ B + G, of the Euclidean gradient; centred per row (``mean``), then less its part along
    w; n² ← κ n² + (1 − κ) ‖d‖², n̂² = n² / (1 − κᵗ);  w ← R N(w − η_r R d / (n̂ + 1e-8)), R the row's first length and

        η_r = √(2 η λ (1 − β₁) / (1 + β₁))  for Adam,      η_r = √(2 η λ / (1 + ρ))  for momentum.

    Published: η 1e-3, λ 1e-2, β (0.9, 0.999), κ 0.9, rows centred (also W₀, at its old length).  λ decays nothing: it
    only sets η_r.

    Source: Kosson, Messmer, Jaggi 2024 (2305.17212), the rotational variants; repository epfml/REQ, whose wrapper
    centres after the projection: the same, since w is centred.
    """
    average = adam(betas, eps) if rule == "adam" else heavy_ball(momentum)
    factor = (1 - betas[0]) / (1 + betas[0]) if rule == "adam" else 1 / (1 + momentum)
    R, square, t = lengths(W), 0.0, 0

    def centred(X):
        return X - X.mean(dim=1, keepdim=True) if mean else X

    def step(W, G, eta):
        nonlocal square, t
        d, t = row_tangent(rows(W), centred(average(G))), t + 1
        square = keep * square + (1 - keep) * lengths(d) ** 2
        turn = math.sqrt(2 * eta * decay * factor)
        return R * rows(W - turn * R * d / (torch.sqrt(square / (1 - keep**t)) + 1e-8))

    return run(R * rows(centred(W)), gradients, rates, step)
