"""`find`: which weights of a network are positively scale-invariant, measured.

1. Euler's identity. If L(a w) = L(w) for all a > 0, then ⟨w, ∇L⟩ = 0 (Yi 2022, Lemma 1), and conversely on a ray. A backward
   pass next to the weights, with every eps set aside, tells of every cut of every parameter which points satisfy it.
   An invariant point satisfies it wherever it is: so two more passes are made, with the rows of all that has satisfied it so far
   multiplied by random factors up to 128 either way.
2. Of each parameter the finest cut is taken that no pass has refuted. A cut without a gradient is neither refuted nor
   confirmed, and then nothing is said of coarser ones either: "cannot tell".
3. Rescaling. All that was taken is enlarged by random factors, one per point, made smaller, and both, and the outputs must not
   change. If they do, halves are tried, down to the culprits, for which the next coarser cut is taken.
4. Leak. At the model's own weights, with its eps, doubling must not matter (`leaks`).
5. Slices. Of what is not invariant as a whole, the same backward passes tell which slices are (`slices`); rescaling confirms them.
6. Pairs. The same backward passes tell which slices of weights may be scaled, or multiplied by matrices, against each other
   (`pairs`).

Never more than `PASSES` forward passes, and `FOR_PAIRS` for acting on pairs: what is not decided within them is "cannot tell".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .agreement import on_all_ranks
from .charges import Charges
from .cuts import cuts
from .euler import Euler, Tolerances
from .leaks import leaks
from .pairs import candidates, pairs
from .probe import Probe, ProbeError
from .reasons import between, explain
from .report import Report
from .rescaling import EXPONENTS, Rescaling, changes, multiplied, spread
from .slices import slices
from .verdicts import Pairs, Search, report

__all__ = ["find"]

SCATTERED = 4
"""Backward passes with scattered weights, at most; two of them are to leave the outputs as they are."""
PASSES = 40
"""Forward passes, at most."""
EXACT = 1e-2
"""Change of the outputs, relative to what charges may differ by, up to which scattered weights leave charges exact."""
FOR_LEAKS = 12
"""Of them are kept for measuring what leaks."""
FOR_PAIRS = 20
"""Forward passes that are made for pairs beyond these, at most."""


@on_all_ranks
@torch.no_grad()
def find(
    model: nn.Module,
    args: Tensor | Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    probes: int = 2,
) -> Report:
    """Measure which parameters of `model` are positively scale-invariant, at the finest granularity that holds.

    A parameter w is, if f(a w) = f(w) for all a > 0. Then by Euler's theorem ⟨w, ∂L/∂w⟩ = 0 for every loss L of the outputs
    (Yi 2022, §3): that is what is measured, and confirmed by rescaling.

    From the same passes, `find` tells which pairs of factors may be transformed against each other, in one module or in several: u and v
    with f(a u, a⁻ᵖ v) = f(u, v), for which ⟨u, ∂L/∂u⟩ = p ⟨v, ∂L/∂v⟩, and B and A with f(B R, R⁻¹ A) = f(B, A) for invertible R, for
    which Bᵀ ∂L/∂B = ∂L/∂A Aᵀ. They are `Report.pairs`, confirmed by acting with random group elements.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from retract import psi
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        >>> report = psi.find(model, torch.randn(16, 6))
        >>> {finding.name: finding.granularity for finding in report if finding.name.endswith("weight")}
        {'0.weight': 'row', '1.weight': 'none', '3.weight': 'none'}

    Args:
        model: any module, in the mode in which it trains: frozen running statistics leave nothing invariant.
        args: example inputs of its forward pass, a tuple as for `torch.export.export`; a single tensor stands for a
            tuple of one. At least three samples where BatchNorm is, since two are normalised to ±1 whatever the
            weights are, and nothing can be told.
        kwargs: example inputs by name.
        probes: number of inputs: the given one and perturbed copies of it.

    The model comes out exactly as it went in: it runs in float64 on copies of its parameters and buffers.
    That usually costs six backward and about fifteen forward passes, and never more than 60 forward passes, 20 of them for pairs. Forward
    hooks run in each.

    With a process group of several processes initialized, this is a collective call: every rank has to make it, and verdicts
    that differ raise on all. To look at a model on one rank only, call it before ``init_process_group``.

    Returns:
        A `Report`: a `Finding` per parameter, in the order of the model. It prints as a table.

    Raises:
        TypeError: `args` is neither a tensor nor a tuple or list, or `kwargs` no mapping.
        RetractError: ranks come to different verdicts, one of them failed, or did not come.
        ProbeError: the model failed, returned something not finite or nothing differentiable; a scripted module,
            a lazy or a meta parameter; running statistics all frozen.
    """
    if not isinstance(probes, int) or probes < 1:
        raise ProbeError(f"probes={probes!r}: an integer, and at least 1 for the given inputs")
    given = _inputs(args, kwargs)
    _refuse_frozen(model)
    probe = Probe(model, *given)
    search = Search({name: cuts(model, name, probe.weights) for name in probe.weights})
    outputs, gradients = probe.differentiate(0, eps=False)
    tolerances = Tolerances(probe.precision)
    reasons, blockers = explain(outputs, probe.weights), between(outputs, probe.weights)
    bases = [[t.detach() for t in outputs]]
    del outputs
    search.look(Euler(probe.weights, gradients, tolerances))
    charges = Charges({name: tuple(w.shape) for name, w in probe.weights.items()})
    charges.add(probe.weights, gradients)
    del gradients
    bases += _perturbed(probe, probes)
    sound, found = 0, None
    for turn in range(SCATTERED):
        number = (turn + 1) % len(bases)
        with _scattered(probe, search, number, turn) as (outputs, gradients):
            gap = max(changes(outputs, bases[number]), default=0.0)
            same = gap <= tolerances.outputs
            search.look(Euler(probe.weights, gradients, tolerances), sound=same)
            sound += same
            if gap <= EXACT * tolerances.charges:
                charges.add(probe.weights, gradients)
                found = candidates(charges, probe.weights, gradients, tolerances) if sound == 2 else None
        del outputs, gradients
        if sound == 2:
            break
    if found is None:  # no last pass with exact charges
        gradients = probe.differentiate(1 % len(bases), eps=False, functional=SCATTERED + 1)[1]
        charges.add(probe.weights, gradients)
        found = candidates(charges, probe.weights, gradients, tolerances)
        del gradients
    rescaling = Rescaling(probe, bases, tolerances.outputs, PASSES - FOR_LEAKS)
    for vectors in (False, True):
        while taken := [cut for cut in search.taken() if vectors == (probe.weights[cut.name].ndim < 2)]:
            search.settle(taken, *rescaling.unchanged(taken))
    fused = slices(charges, search, tolerances, rescaling)
    del rescaling
    before = probe.passes
    paired, notes = pairs(probe, found, bases, tolerances, before + FOR_PAIRS)
    leaking = leaks(probe, [*search.proven.values(), *fused.cuts], tolerances, PASSES + probe.passes - before)
    return report(probe, search, fused, reasons, leaking, Pairs(paired, blockers, notes))


def _inputs(args: Tensor | Sequence[Any], kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional inputs and those by name. Subclasses of tuple, such as `PackedSequence`, are inputs themselves."""
    if not isinstance(args, Tensor) and type(args) not in (tuple, list):
        raise TypeError(
            f"args is of type {type(args).__name__}: give a tensor, or a tuple of what the model takes. What is a single input "
            "goes into a tuple, args=(input,), and inputs by name into kwargs={'name': input}"
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(
            f"kwargs is of type {type(kwargs).__name__}: give a mapping of inputs by name. Several inputs without names go "
            "into a tuple, args=(first, second)"
        )
    return (args,) if isinstance(args, Tensor) else tuple(args), dict(kwargs or {})


def _perturbed(probe: Probe, probes: int) -> list[list[Tensor]]:
    """Outputs without eps for the inputs from 1 on. Where the model refuses the perturbed ones (sorted lengths, targets
    in [0, 1]), the given ones serve again."""
    try:
        return [probe.run(number, eps=False) for number in range(1, probes)]
    except ProbeError:
        probe.perturbs = False
        return [probe.run(number, eps=False) for number in range(1, probes)]


@contextmanager
def _scattered(
    probe: Probe, search: Search, number: int, turn: int
) -> Iterator[tuple[list[Tensor], dict[str, Tensor]]]:
    """Outputs and gradients without eps, with the points of all that may be invariant multiplied by random factors for the time
    being: half of them enlarged, and in the next turn the other half.

    What is not invariant after all may fail for such weights; then they stay where they are, and rescaling decides.
    """

    def exponents(count: int, generator: torch.Generator) -> Tensor:
        up = torch.randint(2, (count,), generator=generator) * 2.0 - 1
        return (-1) ** turn * up * spread(*EXPONENTS)(count, generator)

    with multiplied(probe.weights, search.likely(), exponents, turn // 2):
        try:
            measured = _detached(probe, number, turn + 1)
        except ProbeError:
            measured = None
        if measured:
            yield measured
    if not measured:
        yield _detached(probe, number, turn + 1)


def _detached(probe: Probe, number: int, functional: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    outputs, gradients = probe.differentiate(number, eps=False, functional=functional)
    return [t.detach() for t in outputs], gradients


def _refuse_frozen(model: nn.Module) -> None:
    frozen = [n for n, m in model.named_modules() if getattr(m, "running_mean", None) is not None and not m.training]
    if frozen and not any(module.training for module in model.modules()):
        raise ProbeError(
            f"the model is in eval mode: with frozen running statistics ({frozen[0]}) no weight in front of them is "
            "scale-invariant. Call model.train() first"
        )
