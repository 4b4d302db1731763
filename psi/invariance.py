"""`find`: which weights of a network are positively scale-invariant, measured.

1. Euler's identity. If L(a w) = L(w) for all a > 0, then ⟨w, ∇L⟩ = 0 (Yi 2022, Lemma 1), and conversely on a
   ray. One backward pass on the given inputs screens every parameter at every granularity, and tells how much a
   norm's eps leaks. What passes is scattered: multiplied row by row by random factors up to 128 either way, all at
   once. An invariant point satisfies the identity wherever it is, so there, on other inputs and with the eps of
   every norm set aside, a second backward pass must show it to rounding.
2. Rescaling. All that is left is enlarged by random factors, one per point, and made smaller, and the outputs must
   not change, for any of the inputs. If they do, halves are tried, down to the culprits, for
   which the next coarser cut is tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..manifolds import Rows
from ..manifolds.rows import gather
from .agreement import on_all_ranks
from .cuts import Cut, cuts
from .euler import Euler
from .probe import Probe, ProbeError
from .reasons import UNUSED, explain
from .report import Finding, Report
from .rescaling import first_agreeing, multiply, unchanged

__all__ = ["find"]

LEAKY = 0.1
"""On Euler's identity as the weights are, eps and all. Behind activations of variance 1e-4 an eps of 1e-5 leaks so much;
beyond it the norm of a row matters to the network."""
SHARE = 0.9
"""Of the points that must leak less: a few nearly dead neurons among many do not speak against the others."""
ACCIDENT = 5e-3
"""Chance that a tensor is taken for likely invariant which is not: one point must be this close to the identity; of several
each may be further off, since all must hold."""
STRICT = 1e-6
"""The same with eps set aside: what is left is rounding, and a millionth is the chance of an accident."""

_WORDS = {
    "row": "each row may be rescaled",
    "block": "each block may be rescaled",
    "tensor": "the whole may be rescaled",
}


@on_all_ranks
@torch.no_grad()
def find(model: nn.Module, *args: Any, probes: int = 2, **kwargs: Any) -> Report:
    """Measure which parameters of `model` are positively scale-invariant, at the finest granularity that holds.

    Args:
        model: any module, in the mode in which it trains: frozen running statistics leave nothing invariant.
        args, kwargs: example inputs for its forward pass; at least two samples where BatchNorm is.
        probes: number of inputs: the given one and perturbed copies of it.

    The model comes out exactly as it went in: it runs in float64 on copies of its parameters and buffers.
    That costs two backward and usually 2 × `probes` + 2 forward passes. Forward hooks run in each.

    With a process group of several processes initialized, this is a collective call: every rank has to make it, and verdicts
    that differ raise on all. To look at a model on one rank only, call it before ``init_process_group``.

    Raises:
        RetractError: ranks come to different verdicts, one of them failed, or did not come.
        ProbeError: the model failed, returned something not finite or nothing differentiable; a scripted module,
            a lazy or a meta parameter; running statistics all frozen.
    """
    if not isinstance(probes, int) or probes < 1:
        raise ProbeError(f"probes={probes!r}: an integer, and at least 1 for the given inputs")
    _refuse_frozen(model)
    probe = Probe(model, args, kwargs)
    ways = {name: list(cuts(model, name)) for name in probe.weights}
    outputs, gradients = probe.differentiate(0)
    reasons = explain(outputs, probe.weights)
    del outputs
    present = Euler(probe.weights, gradients)
    measured = {c: _Measured(present.worst(c), present.holding(c, LEAKY)) for its in ways.values() for c in its}
    likely = [c for c, its in measured.items() if present.holds(c, min(LEAKY, ACCIDENT ** (1 / max(1, its.tight[1]))))]
    for name in filter(present.dead, probe.weights):
        reasons[name] = UNUSED if reasons[name] == UNUSED else "gradient is zero: cannot tell"
        ways[name] = []
    del gradients, present
    bases = _bases(probe, probes)
    with _scattered(probe, likely, min(1, probes - 1)) as gradients:
        strict = Euler(probe.weights, gradients)
        for its in ways.values():
            for c in its:
                holding = strict.holding(c, STRICT)
                radial = strict.worst(c) if holding[1] else measured[c].leak
                measured[c] = replace(measured[c], radial=radial, holding=holding)
    del gradients, strict
    options = {name: [c for c in its if measured[c].holds] for name, its in ways.items()}
    proven = {c.name: c for c in first_agreeing(options, lambda cs: unchanged(probe, cs, bases))}
    return _report(model, proven, measured, {name: _why(reasons[name], ways[name], measured) for name in ways})


@dataclass(frozen=True)
class _Measured:
    """What the two backward passes say of a cut: as the weights are, and scattered without eps."""

    leak: float
    """Largest |⟨w, g⟩| / (‖w‖ ‖g‖) over the points as the weights are."""
    tight: tuple[int, int]
    """How many points satisfy Euler's identity there up to `LEAKY`, of how many that have a gradient."""
    radial: float = math.nan
    """The largest ratio once scattered."""
    holding: tuple[int, int] = (0, 0)
    """How many points satisfy the identity there up to `STRICT`, of how many that have a gradient."""

    @property
    def visible(self) -> bool:
        """Whether the invariance, if there is one, shows through eps."""
        return 0 < SHARE * self.tight[1] <= self.tight[0]

    @property
    def holds(self) -> bool:
        """Whether every point does; where scattering left none with a gradient, rescaling decides."""
        good, live = self.holding
        return good == live and (live > 0 or self.visible)


def _bases(probe: Probe, probes: int) -> list[list[Tensor]]:
    """Outputs without eps, one entry per input. Where the model does not stand the perturbed ones (sorted lengths, targets
    in [0, 1]), the given ones serve again."""
    given = probe.run(0, eps=False)
    try:
        return [given, *(probe.run(number, eps=False) for number in range(1, probes))]
    except ProbeError:
        probe.perturbs = False
        return [given, *(probe.run(number, eps=False) for number in range(1, probes))]


@contextmanager
def _scattered(probe: Probe, likely: list[Cut], number: int) -> Iterator[dict[str, Tensor]]:
    """Gradients without eps, with the rows of every weight in `likely` multiplied by random factors for the time being.

    What is not invariant after all may fail for such weights; then they stay where they are, and rescaling decides.
    """
    rows = [Cut(part, "row", Rows(), ()) for part in dict.fromkeys(part for c in likely for part in c.parts)]
    multiply(probe.weights, rows, "either")
    try:
        gradients = probe.differentiate(number, eps=False)[1]
    except ProbeError:
        multiply(probe.weights, rows, "either", undo=True)
        rows = []
        gradients = probe.differentiate(number, eps=False)[1]
    yield gradients
    multiply(probe.weights, rows, "either", undo=True)


def _refuse_frozen(model: nn.Module) -> None:
    frozen = [n for n, m in model.named_modules() if getattr(m, "running_mean", None) is not None and not m.training]
    if frozen and not any(module.training for module in model.modules()):
        raise ProbeError(
            f"the model is in eval mode: with frozen running statistics ({frozen[0]}) no weight in front of them is "
            "scale-invariant. Call model.train() first"
        )


def _why(words: str, ways: list[Cut], measured: dict[Cut, _Measured]) -> str:
    """Why a parameter is not invariant, should it turn out so: what was measured, else `words`."""
    for cut in ways:
        good, live = measured[cut].holding
        # What was scattered may have left a clamp's reach at some of its rows only.
        if 0 < good < live and not measured[cut].visible:
            return f"only a part is invariant: {good} of {live} {cut.granularity}s"
    return words


def _obstacle(model: nn.Module, cut: Cut, measured: _Measured) -> str | None:
    """Why an invariant parameter cannot be declared all the same: its norm matters to an eps, half of a point is frozen,
    or a row is zero now."""
    if not measured.visible:
        good, live = measured.tight
        return f"a norm's eps hides it: {live - good} of {live} {cut.granularity}s leak, up to {measured.leak:.0e}"
    parts = [model.get_parameter(part) for part in cut.parts]
    frozen = [part for part, p in zip(cut.parts, parts, strict=True) if not p.requires_grad]
    if 0 < len(frozen) < len(parts):
        return f"invariant with {', '.join(cut.joined)}, but {', '.join(frozen)} is frozen"
    points = gather([part.detach() for part in parts], [cut.rows.layout(part, 1) for part in parts])
    zero = (points == 0).all(1)
    return f"invariant, but row {int(zero.int().argmax())} is zero" if zero.any() else None


def _report(
    model: nn.Module, proven: dict[str, Cut], measured: dict[Cut, _Measured], reasons: dict[str, str]
) -> Report:
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    obstacles = {name: _obstacle(model, cut, measured[cut]) for name, cut in proven.items()}
    leads = {part: name for name, cut in proven.items() if obstacles[name] is None for part in cut.parts[1:]}
    findings = []
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        if name in proven and obstacles[name] is None:
            cut = proven[name]
            its = measured[cut]
            findings.append(
                Finding(
                    name, cut.granularity, cut.rows, cut.joined, its.radial, its.leak, _WORDS[cut.granularity], shape
                )
            )
            continue
        others = [other for other in names[id(p)] if other != name]
        if name in leads:
            reason = f"belongs to the points of {leads[name]}"
        elif name in proven:
            reason = str(obstacles[name])
        elif others:
            reason = f"shared with {others[0]}"
        else:
            reason = reasons.get(name, f"{p.dtype} is not a real floating-point type")
        whole = measured.get(Cut(name, "tensor", Rows(blocks=1), ()))
        findings.append(Finding(name, "none", Rows(), (), whole.leak if whole else math.nan, math.nan, reason, shape))
    return Report(findings)
