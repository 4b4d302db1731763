"""`find`: which weights of a network are positively scale-invariant, measured.

1. Euler's identity. If L(a w) = L(w) for all a > 0, then ⟨w, ∇L⟩ = 0 (Yi 2022, Lemma 1), and conversely on a
   ray. One backward pass screens every parameter at every granularity. A norm's eps spoils the identity a
   little, so what passes is scaled up by 2^10, where eps is nothing, and must pass strictly there, on other
   inputs, in a second backward pass.
2. Rescaling. All candidates are multiplied by random positive factors, one per point, and the outputs must
   not change, for any of the inputs. If they do, halves of the candidates are tried, down to the culprits,
   for which the next coarser cut is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..manifolds import Rows
from ..manifolds.rows import gather
from .probe import Probe, ProbeError
from .reasons import explain
from .report import Finding, Report

__all__ = ["find"]

# All thresholds on Euler's identity are for √n |⟨w, g⟩| / (‖w‖ ‖g‖), n the coordinates of a point: for a gradient in a
# random direction that is about 1 whatever n, so a threshold t lets one point in 1/t through by accident.
SCREEN = 5e-3
"""At the present scale: the chance that a tensor passes which is not invariant. One point must be this small; of several,
each may be larger, since all of them must pass."""
LEAKY = 0.1
"""But none larger than this: an eps of 1e-5 leaks so much behind activations of variance 1e-4."""
STRICT = 1e-6
"""Scaled up: eps leaks a millionth of what it did, rounding less."""
SCALE_UP = 2.0**10
SCALE_DOWN = 2.0**-2
"""Catches what is invariant above a threshold only. An eps shows 16 times as much as at the present scale."""
LOOSE = 0.1
"""Relative change of the outputs when candidates are scaled up or down as a whole, which changes what eps leaks."""
TIGHT = 1e-6
"""Relative change of the outputs under random factors, once scaled up."""
FACTORS = 8
"""Random factors are 2^1 … 2^8: not below one, where an eps would show again."""
CHUNK = 2**17
"""Elements whose products are summed at a time."""
DEAD = 1e-12
"""‖w‖ ‖g‖ relative to the largest in the model, below which a gradient is rounding and says nothing."""


@dataclass(frozen=True)
class _Candidate:
    """A parameter with a cut and partners, for which Euler's identity may hold."""

    name: str
    granularity: str
    rows: Rows
    joined: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        path = self.name.rpartition(".")[0]
        return (self.name, *(f"{path}.{part}".lstrip(".") for part in self.joined))


@torch.no_grad()
def find(model: nn.Module, *args: Any, probes: int = 2, **kwargs: Any) -> Report:
    """Measure which parameters of `model` are positively scale-invariant, at the finest granularity that holds.

    Args:
        model: any module, in the mode in which it trains: frozen running statistics leave nothing invariant.
        args, kwargs: example inputs for its forward pass; at least two samples where BatchNorm is.
        probes: number of inputs: the given one and perturbed copies of it.

    The model comes out exactly as it went in: it runs in float64 on copies of its parameters and buffers.
    That costs two backward and usually 5 × `probes` + 1 forward passes. Forward hooks run in each.

    Raises:
        ProbeError: the forward pass failed, returned something not finite or nothing differentiable; a
            scripted module, a lazy or a meta parameter; running statistics all frozen.
    """
    if probes < 1:
        raise ProbeError(f"probes={probes}: at least the given inputs are needed")
    _refuse_frozen(model)
    probe = Probe(model, args, kwargs)
    with torch.enable_grad():
        outputs = probe.run(0)
        reasons = explain(outputs, probe.weights)
        gradients = probe.gradients(outputs)
    base = [t.detach() for t in outputs]
    del outputs
    present = _Euler(probe.weights, gradients)
    screened: dict[str, list[_Candidate]] = {}
    unproven: dict[str, tuple[float, str]] = {}
    for name, w in probe.weights.items():
        candidates = list(_candidates(model, name))
        passing = [] if present.dead(name) else [c for c in candidates if present.passes_screen(c)]
        if passing:
            screened[name] = passing
        whole = present.worst(_Candidate(name, "tensor", Rows(blocks=1), ())) if w.ndim else 1.0
        unproven[name] = whole, _reason(name, reasons[name], candidates, present)
    leaks = {c: present.worst(c) for passing in screened.values() for c in passing}
    present.forget()
    del gradients
    bases = [base, *_perturbed(probe, probes)]
    # Scaled as a whole all cuts are alike; what differs is whether a bias goes along. That is tried first: a dead bias does
    # not mind, while a live one left behind would be too small to show.
    wholes = {
        name: [_Candidate(name, "tensor", Rows(blocks=1), joined) for joined in [*_biases(model, name), ()]]
        for name in screened
    }
    kept = _first_agreeing(wholes, lambda cs: _same(probe, cs, bases, _scale_up, LOOSE))
    kept = _agreeing(kept, lambda cs: _same(probe, cs, bases, _scale_down, LOOSE))
    _apply(probe, kept, _scale_up)
    with torch.enable_grad():
        strict = _Euler(probe.weights, probe.gradients(probe.run(min(1, probes - 1))))
    holding = {c.name: [d for d in screened[c.name] if strict.holds(d, STRICT)] for c in kept}
    radial = {c: strict.worst(c) for candidates in holding.values() for c in candidates}
    strict.forget()
    bases = [[t.detach() for t in probe.run(number)] for number in range(probes)]
    proven = {
        c.name: Finding(c.name, c.granularity, c.rows, c.joined, radial[c], leaks[c], _WORDS[c.granularity], ())
        for c in _first_agreeing(holding, lambda cs: _same(probe, cs, bases, _random_factors, TIGHT))
    }
    return _report(model, proven, unproven)


def _perturbed(probe: Probe, probes: int) -> list[list[Tensor]]:
    """Outputs for the perturbed inputs. Where the model does not stand them (sorted lengths, targets in [0, 1]), the
    given ones serve again."""
    try:
        return [[t.detach() for t in probe.run(number)] for number in range(1, probes)]
    except ProbeError:
        probe.perturbs = False
        return [[t.detach() for t in probe.run(number)] for number in range(1, probes)]


def _refuse_frozen(model: nn.Module) -> None:
    frozen = [n for n, m in model.named_modules() if getattr(m, "running_mean", None) is not None and not m.training]
    if frozen and not any(module.training for module in model.modules()):
        raise ProbeError(
            f"the model is in eval mode: with frozen running statistics ({frozen[0]}) no weight in front of them is "
            "scale-invariant. Call model.train() first"
        )


def _candidates(model: nn.Module, name: str) -> Iterator[_Candidate]:
    """Every cut of a parameter, from the finest to the whole tensor, each alone and with its module's bias."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    shape = owner._parameters[leaf].shape  # type: ignore[union-attr]
    cuts: list[tuple[str, Rows]] = []
    if shape:
        cuts.append(("row", Rows()))
        if len(shape) > 1:
            groups = getattr(owner, "groups", 1) if getattr(owner, "transposed", False) else 1
            cuts.append(("row", Rows(axis=1, groups=groups)))
        cuts += [("block", Rows(blocks=g)) for g in range(shape[0] - 1, 1, -1) if shape[0] % g == 0]
        cuts.append(("tensor", Rows(blocks=1)))
    partners = _biases(model, name)
    for granularity, rows in cuts:
        yield _Candidate(name, granularity, rows, ())
        points = rows.layout(owner._parameters[leaf], 1).batch  # type: ignore[arg-type]
        for joined in partners:
            size = owner._parameters[joined[0]].shape[0]  # type: ignore[union-attr]
            divides = size % rows.blocks == 0 if rows.blocks is not None else (size,) == points
            if divides:
                yield _Candidate(name, granularity, rows, joined)


def _biases(model: nn.Module, name: str) -> list[tuple[str, ...]]:
    """Parameters of the same module that may scale along: vectors beside a matrix, the shift beside a gain."""
    path, _, leaf = name.rpartition(".")
    parameters = model.get_submodule(path)._parameters
    vectors = [key for key, q in parameters.items() if q is not None and q.ndim == 1 and key != leaf]
    p = parameters[leaf]
    if p is None or p.ndim == 0:
        return []
    return [(key,) for key in vectors if p.ndim > 1 or ("bias" in key and "weight" in leaf)]


class _Euler:
    """Euler's identity for any candidate at given weights and gradients.

    Keeps sums per row and per channel only, from which blocks and whole tensors follow, so that the gradients
    can go: they are as large as the weights.
    """

    def __init__(self, weights: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        self.weights = weights
        self._gradients = gradients
        self._sums: dict[tuple[str, Rows], Tensor] = {}
        influence = {n: float(w.detach().norm() * gradients[n].norm()) for n, w in weights.items()}
        self._influence = influence
        self._floor = DEAD * max(influence.values(), default=0.0)

    def forget(self) -> None:
        """Let the gradients go; candidates not asked for before cannot be asked for now."""
        self._gradients = {}

    def dead(self, name: str) -> bool:
        """Whether the gradient is nothing but rounding."""
        return self._influence[name] <= self._floor

    def ratios(self, candidate: _Candidate) -> tuple[Tensor, int]:
        """|⟨w, g⟩| / (‖w‖ ‖g‖) of every point that has a gradient, and the number of coordinates."""
        sums = torch.stack([self._point_sums(part, candidate.rows) for part in candidate.parts]).sum(0)
        product, w2, g2 = sums
        size = (w2 * g2).sqrt()
        live = size > self._floor
        n = sum(self.weights[part].numel() for part in candidate.parts) // max(1, product.numel())
        return product.abs()[live] / size[live], n

    def holds(self, candidate: _Candidate, threshold: float) -> bool:
        """Whether every point with a gradient satisfies the identity, and there is one."""
        ratios, n = self.ratios(candidate)
        return ratios.numel() > 0 and float(ratios.max()) * math.sqrt(n) <= threshold

    def passes_screen(self, candidate: _Candidate) -> bool:
        """Whether the identity may hold but for what an eps leaks."""
        points = self.ratios(candidate)[0].numel()
        return points > 0 and self.holds(candidate, min(LEAKY, SCREEN ** (1 / points)))

    def worst(self, candidate: _Candidate) -> float:
        """Largest ratio over the points, 0 if none has a gradient."""
        ratios, _ = self.ratios(candidate)
        return float(ratios.max()) if ratios.numel() else 0.0

    def _point_sums(self, name: str, rows: Rows) -> Tensor:
        """⟨w, g⟩, ‖w‖², ‖g‖² per point of one parameter, (3, points)."""
        if rows.blocks is not None:
            return self._point_sums(name, Rows(axis=0)).view(3, rows.blocks, -1).sum(-1)
        key = name, rows
        if key not in self._sums:
            w, g = self.weights[name].detach(), self._gradients[name]
            layout = rows.layout(w, 1)
            if w.ndim == 0:
                self._sums[key] = torch.stack([w * g, w * w, g * g]).view(3, 1)
                return self._sums[key]
            a, b = layout.arrange(w), layout.arrange(g)
            sums = w.new_empty(3, *layout.arranged[: layout.axes])
            step = max(1, CHUNK * a.shape[0] // max(1, a.numel()))
            inside = tuple(range(layout.axes, a.ndim))
            for start in range(0, a.shape[0], step):
                part = slice(start, start + step)
                for row, (s, t) in zip(sums, ((a, b), (a, a), (b, b)), strict=True):
                    product = s[part] * t[part]
                    row[part] = product.sum(inside) if inside else product
            self._sums[key] = sums.view(3, -1)
        return self._sums[key]


Factors = Callable[[int], Tensor]


def _scale_up(points: int) -> Tensor:
    return torch.full((points, 1), SCALE_UP, dtype=torch.float64)


def _scale_down(points: int) -> Tensor:
    return torch.full((points, 1), SCALE_DOWN, dtype=torch.float64)


def _random_factors(points: int) -> Tensor:
    """Powers of two, which can be undone without a trace."""
    generator = torch.Generator().manual_seed(points)
    return 2.0 ** torch.randint(1, FACTORS + 1, (points, 1), generator=generator).double()


def _apply(probe: Probe, candidates: Sequence[_Candidate], factors: Factors, *, undo: bool = False) -> None:
    """Multiply (or divide) the points of all `candidates` by their factors, in place."""
    for candidate in candidates:
        for part in candidate.parts:
            w = probe.weights[part]
            layout = candidate.rows.layout(w, 1)
            number = factors(layout.batch[0]).to(w.device)
            points = layout.arrange(w)
            number = number.view(layout.arranged[: layout.axes] + (1,) * layout.coordinates)
            points.div_(number) if undo else points.mul_(number)


Test = Callable[[list[_Candidate]], bool]


def _agreeing(candidates: list[_Candidate], test: Test) -> list[_Candidate]:
    """Those of `candidates` that pass `test`, tried all together, then in halves."""
    if not candidates or test(candidates):
        return candidates
    if len(candidates) == 1:
        return []
    half = len(candidates) // 2
    return _agreeing(candidates[:half], test) + _agreeing(candidates[half:], test)


def _first_agreeing(options: dict[str, list[_Candidate]], test: Test) -> list[_Candidate]:
    """Per parameter the first of its candidates, in the order given, that passes as in `_agreeing`."""
    pending = {name: list(candidates) for name, candidates in options.items() if candidates}
    kept: list[_Candidate] = []
    while pending:
        good = _agreeing([candidates[0] for candidates in pending.values()], test)
        kept += good
        done = {c.name for c in good}
        pending = {name: rest[1:] for name, rest in pending.items() if name not in done and len(rest) > 1}
    return kept


def _same(
    probe: Probe, candidates: list[_Candidate], bases: Sequence[list[Tensor]], factors: Factors, tolerance: float
) -> bool:
    """Whether the points of all `candidates` may be multiplied by their factors without changing any output."""
    _apply(probe, candidates, factors)
    runs = [_outputs(probe, number) for number in range(len(bases))]
    _apply(probe, candidates, factors, undo=True)
    return all(_gap(run, base) <= tolerance for run, base in zip(runs, bases, strict=True))


def _outputs(probe: Probe, number: int) -> list[Tensor] | None:
    try:
        return [t.detach() for t in probe.run(number)]
    except ProbeError:
        return None  # what runs for the weights as they are and fails for rescaled ones is not invariant


def _gap(run: list[Tensor] | None, base: list[Tensor]) -> float:
    """Largest change of an output tensor relative to its norm."""
    if run is None or len(run) != len(base):
        return math.inf
    gaps = [
        float((t - b).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny)) for t, b in zip(run, base, strict=True)
    ]
    return max(gaps, default=0.0)


_WORDS = {
    "row": "each row may be rescaled",
    "block": "each block may be rescaled",
    "tensor": "the whole may be rescaled",
}
_UNUSED = "not used in the forward pass"


def _reason(name: str, words: str, candidates: Sequence[_Candidate], present: _Euler) -> str:
    """Why a parameter is not invariant, should it turn out so."""
    if present.dead(name):
        return words if words == _UNUSED else "gradient is zero: cannot tell"
    for candidate in candidates:
        ratios, n = present.ratios(candidate)
        good = int((ratios * math.sqrt(n) <= SCREEN).sum())
        # By accident one point in 1/SCREEN is good, so a fifth of them is a part of the tensor.
        if n > 1 and 0.2 * ratios.numel() <= good < ratios.numel() and good > 1:
            return f"only a part is invariant: {good} of {ratios.numel()} {candidate.granularity}s"
    return words


def _obstacle(model: nn.Module, finding: Finding) -> str | None:
    """Why an invariant parameter cannot be declared all the same: half of a point is frozen, or a row is zero now."""
    path, _, leaf = finding.name.rpartition(".")
    owner = model.get_submodule(path)
    parts = [owner.get_parameter(part) for part in (leaf, *finding.joined)]
    if len({part.requires_grad for part in parts}) > 1:
        frozen = [name for name, part in zip((leaf, *finding.joined), parts, strict=True) if not part.requires_grad]
        return f"invariant with {', '.join(finding.joined)}, but {', '.join(frozen)} is frozen"
    points = gather([part.detach() for part in parts], [finding.rows.layout(part, 1) for part in parts])
    zero = (points == 0).all(1)
    return f"invariant, but row {int(zero.int().argmax())} is zero" if zero.any() else None


def _report(model: nn.Module, proven: dict[str, Finding], unproven: dict[str, tuple[float, str]]) -> Report:
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    proven_free = {name: f for name, f in proven.items() if _obstacle(model, f) is None}
    leads = {
        f"{f.name.rpartition('.')[0]}.{part}".lstrip("."): f.name for f in proven_free.values() for part in f.joined
    }
    findings = []
    for name, p in model.named_parameters():
        if name in proven:
            obstacle = _obstacle(model, proven[name])
            found = replace(proven[name], shape=tuple(p.shape))
            none = {"granularity": "none", "rows": Rows(), "joined": (), "leak": math.nan}
            findings.append(replace(found, **none, reason=obstacle) if obstacle else found)  # type: ignore[arg-type]
            continue
        radial, reason = unproven.get(name, (math.nan, f"{p.dtype} is not a real floating-point type"))
        others = [other for other in names[id(p)] if other != name]
        if name in leads:
            reason = f"belongs to the points of {leads[name]}"
        elif others:
            reason = f"shared with {others[0]}"
        findings.append(Finding(name, "none", Rows(), (), radial, math.nan, reason, tuple(p.shape)))
    return Report(findings)
