"""Matrices of rank 3 from linear measurements, at four condition numbers: python docs/benchmarks/low_rank.py [seeds]

A 40 × 30 matrix with singular values from 1 down to 1/κ is recovered from 1,050 Gaussian measurements (sensing) or from
60 % of its entries (completion) by minimizing the squared error over its factors: 500 steps, float64, no noise. Sensing
starts at the spectral estimate, the best approximation of rank 3 of the back-projected measurements. For completion that
estimate misses the smallest directions from κ = 100 on, and no method here finds them again; it starts in the basin of its
theory, at factors off by one smallest singular value in Tong, Ma & Chi's distance. Balanced factors have BᵀB = A Aᵀ;
unbalanced ones are those, multiplied by R and R⁻¹ with singular values from 100 to 1/100.

FixedRank with RiemannianSGD has one learning rate for everything, 0.5; the other methods have the best of a grid for each row.
Printed is the largest number of steps over the seeds after which the loss is below 1e-20, or the largest loss after 500 steps.
ScaledGD (Tong, Ma & Chi 2021) is the same iteration without the library, so it must agree; with momentum there is no namesake.
"""

import sys

import torch
from retract.manifolds import FixedRank
from retract.optim import RiemannianSGD
from torch import nn

N, M, K = 40, 30, 3
MANIFOLD = FixedRank(K, N)
LEARNING_RATE, GOAL, STEPS = 0.5, 1e-20, 500
CONDITIONS = (1, 10, 100, 1000)


def factors(matrix):
    """Balanced factors of the best approximation of rank K, as a point."""
    left, singular, right = torch.linalg.svd(matrix)
    root = singular[:K].sqrt()
    return torch.cat([left[:, :K] * root, right[:K].T * root])


def problem(kind, condition, seed):
    """The loss as a function of the point, and a balanced start."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    left, right = torch.linalg.qr(normal(N, K))[0], torch.linalg.qr(normal(M, K))[0]
    singular = float(condition) ** -torch.linspace(0, 1, K, dtype=torch.float64)
    target = (left * singular) @ right.T
    if kind == "sensing":
        count = 5 * K * (N + M)
        operator = normal(count, N * M) / count**0.5
        return _loss(lambda gap: operator @ gap.flatten(), target), factors(
            (operator.T @ (operator @ target.flatten())).view(N, M)
        )
    seen = torch.rand(N, M, generator=generator, dtype=torch.float64) < 0.6
    off = normal(N + M, K)
    start = factors(target) + singular[-1] / singular.sqrt() * off / off.norm()
    return _loss(lambda gap: gap[seen] / 0.6**0.5, target), start


def _loss(measure, target):
    def loss(x):
        b, a = MANIFOLD.split(x)
        return 0.5 * measure(b @ a.T - target).square().sum()

    return loss


def unbalanced(x, seed):
    """Another representative of the point, with R of condition 1e4."""
    generator = torch.Generator().manual_seed(1000 + seed)
    left, right = (torch.linalg.qr(torch.randn(K, K, generator=generator, dtype=x.dtype))[0] for _ in range(2))
    return MANIFOLD.act((left * torch.logspace(2, -2, K, dtype=x.dtype)) @ right, x)


class ScaledGD(torch.optim.Optimizer):
    """B ← B − η ∇_B (A Aᵀ)⁻¹, A ← A − η (BᵀB)⁻¹∇_A."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                b, a, to_b, to_a = p[:N].clone(), p[N:].clone(), p.grad[:N], p.grad[N:]
                p[:N] -= group["lr"] * to_b @ torch.linalg.inv(a.T @ a)
                p[N:] -= group["lr"] * to_a @ torch.linalg.inv(b.T @ b)


def quotient(w, lr, **options):
    return RiemannianSGD([{"params": [w], "manifold": MANIFOLD}], lr=lr, **options)


METHODS = {
    "FixedRank, lr 0.5": (quotient, (LEARNING_RATE,)),
    "with momentum 0.5, lr 0.25": (lambda w, lr: quotient(w, lr, momentum=0.5), (0.25,)),
    "ScaledGD, lr 0.5": (lambda w, lr: ScaledGD([w], lr), (LEARNING_RATE,)),
    "SGD": (lambda w, lr: torch.optim.SGD([w], lr), (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3)),
    "Adam": (lambda w, lr: torch.optim.Adam([w], lr), (1e-3, 3e-3, 1e-2, 3e-2)),
}


def run(make, lr, loss, start):
    """Steps until the loss is below GOAL, or infinity, and the last loss."""
    w = nn.Parameter(start.clone())
    optimizer = make(w, lr)
    for step in range(STEPS + 1):
        value = loss(w)
        if value < GOAL:
            return step, float(value.detach())
        if step == STEPS or not value.isfinite():
            break
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return float("inf"), float(value.detach().nan_to_num(nan=torch.inf))


if __name__ == "__main__":
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(f"| problem | κ | factors | {' | '.join(METHODS)} |")
    print("| --- " * (3 + len(METHODS)) + "|")
    for kind in ("sensing", "completion"):
        for condition in CONDITIONS:
            problems = [problem(kind, condition, seed) for seed in range(seeds)]
            for balance in ("balanced", "unbalanced"):
                cells = []
                for make, rates in METHODS.values():
                    worst = []
                    for lr in rates:
                        ends = [
                            run(make, lr, loss, start if balance == "balanced" else unbalanced(start, seed))
                            for seed, (loss, start) in enumerate(problems)
                        ]
                        worst.append(tuple(map(max, zip(*ends, strict=True))))
                    steps, last = min(worst)
                    cells.append(f"{steps} steps" if steps < float("inf") else f"{last:.0e}")
                print(f"| {kind} | {condition} | {balance} | {' | '.join(cells)} |", flush=True)
