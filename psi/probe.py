"""Running a model on copies of its tensors, in float64 or as it is, so that nothing of the model is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import RetractError
from ..manifolds.parameters.shards import is_sharded
from .copies import State, quiet
from .exact import Exact, Lenient, widened
from .noise import disturb, vary
from .trees import Leaves

__all__ = ["Probe", "ProbeError"]

SEED = 0
FAINT = 1e-6
"""An output that is smaller beside the others is taken for rounding."""
WAYS = ((torch.float64, False), (torch.float64, True), (torch.float32, False))
"""The type to compute in, and whether state that is overwritten is kept for the backward pass, each tried if those before fail."""
MEASURED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What parameters of other types are for is known to the model alone."""


class ProbeError(RetractError, RuntimeError):
    """A model that cannot be probed, with the probe and the reason."""


class Probe:
    """Copies of a model's parameters in float64, and the model run on them.

    `weights` maps names to leaf tensors that may be changed in place. Inputs are numbered: 0 as given, the others
    perturbed copies at unit size. Every pass starts from the same state, the model's own, and sees the same random numbers.

    A single operation that refuses float64 runs in float32, and so does a model that refuses it as a whole; the first pass
    decides, and then replaces `weights`.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(model, torch.jit.ScriptModule):
            raise ProbeError(
                "a scripted module cannot be probed: its tensors cannot be replaced; pass the eager module"
            )
        self.model, self.args, self.kwargs = model, args, kwargs
        self.passes = 0
        """Forward passes so far."""
        self.perturbs = True
        """Whether inputs from 1 on differ from the given ones; some models refuse perturbed inputs."""
        self.weights: dict[str, Tensor] = {}
        self._parameters = dict(model.named_parameters())
        self._state = State(model)
        self.passed_over = {name: why for name, p in self._parameters.items() if (why := self._unmeasured(name, p))}
        """Parameters that are not measured, which are not in `weights`, with the reason."""
        self._others: dict[str, Tensor] = {}
        self._way, self._settled = WAYS[0], False
        self._used: dict[str, torch.dtype] = {}
        self._opaque: dict[str, None] = {}
        self._computed: dict[str, None] = {}
        self._allocate()

    @property
    def precision(self) -> float:
        """Rounding of the coarsest type that `run` and `differentiate` have computed in."""
        return max(torch.finfo(dtype).eps for dtype in (self._wide, *self._used.values()))

    @property
    def _wide(self) -> torch.dtype:
        return self._way[0]

    @property
    def notes(self) -> list[str]:
        """What a reader of the verdicts must know."""
        narrow = ", ".join(f"{name} in {dtype}" for name, dtype in self._used.items())
        shared = ", ".join(f"{path} ({kind})" for path, kind in self._state.shared.items())
        told = {
            **self._unseen,
            f"cannot be copied and was used as it is: {shared}": shared,
            f"scripted parts keep their eps: {', '.join(self._state.scripted)}": self._state.scripted,
            f"there is no {self._wide} for all operations; computed {narrow}": narrow,
            f"the model does not run in {torch.float64}; probed in {self._wide}": self._wide != torch.float64,
        }
        return [words for words, holds in told.items() if holds]

    @property
    def _unseen(self) -> dict[str, Any]:
        """What of the things that the model computes was not looked at, in words, and whether there is any."""
        unreturned = "attributes set in the forward pass were not looked at; return them if a loss uses them"
        return {
            f"outputs of type {', '.join(self._opaque)} were not looked at": self._opaque,
            f"{unreturned}: {', '.join(self._computed)}": self._computed,
        }

    def run(self, number: int, *, eps: bool = True) -> list[Tensor]:
        """What the model returns for input `number`, every tensor as float64 and detached; without its eps if so asked.

        Raises `ProbeError`, naming the probe, for whatever the model raises, and for outputs that are NaN. Infinities, which masks
        are made of, become zeros and a tensor of their signs.
        """
        return self._exact(number, eps, lambda outputs: [t.detach() for t in outputs])

    def differentiate(
        self, number: int, *, eps: bool = True, functional: int = SEED
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """As `run`, with the autograd graph, and the gradient of a random linear functional of the outputs, each brought to
        length 1, with respect to every weight; zero where unused.

        Raises also if no output depends on a weight in a differentiable way.
        """
        return self._exact(number, eps, lambda outputs: (outputs, self._gradients(outputs, functional)))

    def as_is(self, changed: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """As `run` for the inputs as given, with the model's own parameters, types and eps; `changed` replaces parameters by name."""
        values = self._parameters | dict(changed or {})
        tensors: dict[int, Tensor] = {
            id(p): nn.Parameter(values[name].detach().to(p.dtype, copy=True), p.requires_grad)
            for name, p in self._parameters.items()
        }
        try:
            with quiet(torch.get_default_dtype(), SEED):
                return self._pass(
                    0, tensors, None, Lenient([torch.float32]), lambda outputs: [t.detach() for t in outputs]
                )
        except ProbeError:
            raise
        except Exception as error:
            raise ProbeError(f"the model failed as it is: {type(error).__name__}: {error}") from error

    def _exact(self, number: int, eps: bool, then: Callable[[list[Tensor]], Any]) -> Any:
        """`then` of the outputs; the first pass finds out in which of `WAYS` the model runs."""
        failure: Exception | None = None
        for way in [self._way] if self._settled else WAYS:
            if way != self._way:
                self._way = way
                self._allocate()
            try:
                result = self._once(number, eps, then)
            except ProbeError:
                raise
            except Exception as error:
                failure = failure or error
            else:
                self._settled = True
                return result
        hint = "; a tuple or a list is spread over the model's inputs, and goes in as one of them by args=(input,)"
        raise ProbeError(
            f"the model failed in {_name(number)}: {type(failure).__name__}: {failure}"
            f"{hint if isinstance(failure, TypeError) else ''}"
        ) from failure

    def _once(self, number: int, eps: bool, then: Callable[[list[Tensor]], Any]) -> Any:
        dtypes = {p.dtype for p in self._parameters.values() if p.dtype in MEASURED}
        implicit = torch.finfo(torch.float64 if dtypes == {torch.float64} else torch.float32).eps
        others = [dtype for dtype in MEASURED if dtype == torch.float32 or dtype in dtypes]
        mode = Exact(self._wide, [dtype for dtype in others if dtype != self._wide], eps=eps, implicit=implicit)
        keeping = saved_tensors_hooks(_lazily, lambda t: t) if self._way[1] else nullcontext()
        with quiet(self._wide, SEED), self._lent() as tensors, keeping:
            result = self._pass(number if self.perturbs else 0, tensors, self._wide, mode, then)
        self._used |= mode.used
        return result

    def _pass(
        self,
        number: int,
        tensors: dict[int, Tensor],
        wide: torch.dtype | None,
        mode: Lenient,
        then: Callable[[list[Tensor]], Any],
    ) -> Any:
        """`then` of the outputs. It runs while the weights are in place: checkpointed parts are computed again in the
        backward pass."""
        self.passes += 1
        generator = torch.Generator().manual_seed(SEED + number)

        def given(t: Tensor) -> Tensor:
            return vary(_copy(t, wide).detach(), number, generator).requires_grad_(t.requires_grad)

        with self._state.exchanged(tensors, lambda t: _copy(t, wide)) as copied:
            args, kwargs = copied((self.args, self.kwargs), given, "the inputs")
            with mode:
                leaves = Leaves(self.model(*args, **kwargs))
            self._opaque |= leaves.opaque
            if not self._settled:
                self._computed |= self._state.computed(leaves.tensors)
            outputs = [u for t in leaves.tensors for u in _real(t, number)]
            with mode:
                return then(outputs)

    @contextmanager
    def _lent(self) -> Iterator[dict[int, Tensor]]:
        """The weights by the ids of the parameters they replace; what a pass writes to them is undone."""
        kept = {name: _lazily(w.detach()) for name, w in self.weights.items()}
        others = {name: nn.Parameter(_lazily(w.detach()), w.requires_grad) for name, w in self._others.items()}
        try:
            yield {id(self._parameters[name]): w for name, w in (self.weights | others).items()}
        finally:
            for name, w in self.weights.items():
                w.data, w.grad = kept[name], None
                w.requires_grad_()

    def _gradients(self, outputs: list[Tensor], functional: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(functional)
        live = [t for t in outputs if t.requires_grad]
        if not live:
            unseen = "".join(f"; {words}" for words, holds in self._unseen.items() if holds)
            raise ProbeError(
                "no output of the model is a floating-point tensor that depends on its parameters in a differentiable way "
                f"(torch.no_grad inside the model? integer predictions?); return logits or a loss{unseen}"
            )
        norms = [float(t.detach().norm()) for t in live]
        least = FAINT * max(norms) or 1.0
        terms = [
            (t / max(norm, least) * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device)).sum()
            for t, norm in zip(live, norms, strict=True)
        ]
        loss = torch.stack([term.to(terms[0].device) for term in terms]).sum()
        names = list(self.weights)
        # Not torch.autograd.grad, which would switch `Exact` off: checkpointed parts are computed again on the way.
        weights = tuple(self.weights[name] for name in names)
        found = torch.autograd.Variable._execution_engine.run_backward(
            (loss,), (torch.ones_like(loss),), False, False, weights, allow_unreachable=True, accumulate_grad=False
        )
        return {
            name: torch.zeros_like(self.weights[name]) if g is None else g.to_dense() if g.is_sparse else g
            for name, g in zip(names, found, strict=True)
        }

    def _unmeasured(self, name: str, p: Tensor) -> str | None:
        """Why a parameter is not measured; None if it is. Raises where that speaks against the model as a whole."""
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ProbeError(f"{name} is a lazy parameter without a shape; run the model once, then probe it")
        if is_sharded(p):
            raise ProbeError(
                f"{name} is sharded: the network is measured in one process. Probe it before fully_shard, or a copy; "
                "declarations made then hold after it"
            )
        if p.is_meta:
            raise ProbeError(f"{name} is on the meta device and has no values to measure with; initialize it first")
        if name.startswith(tuple(f"{path}." for path in self._state.scripted)):
            return "it is in a scripted part and cannot be replaced"
        if p.numel() == 0:
            return "it has no values"
        if is_traceable_wrapper_subclass(p):
            return f"{type(p).__name__} is a type of tensor that only its model knows"
        if not p.is_floating_point():
            return f"{p.dtype} is not a real floating-point type"
        if p.dtype not in MEASURED:
            return f"{p.dtype} is a type to store, not to compute in"
        return None if _is_ordinary(p) else "it has entries that are not finite"

    @torch.no_grad()
    def fill(self, *, noise: bool) -> None:
        """Set `weights` to the model's own, with a little noise or as they are."""
        generator = torch.Generator().manual_seed(SEED)
        for name, w in (self.weights | self._others).items():
            p = self._parameters[name].detach()
            w.detach().copy_(p)
            if noise and _is_ordinary(p):
                owner = self.model.get_submodule(name.rpartition(".")[0])
                beside = [q.detach() for q in owner.parameters(recurse=False) if q.dtype in MEASURED]
                disturb(w.detach(), beside, generator)

    def _allocate(self) -> None:
        """Leaves for all parameters, in the type that is computed in."""
        with torch.inference_mode(False), torch.no_grad():
            for name, p in self._parameters.items():
                measured = name not in self.passed_over
                w = nn.Parameter(_copy(p.detach(), self._wide), p.requires_grad or measured)
                (self.weights if measured else self._others)[name] = w
        self.fill(noise=True)


def _is_ordinary(p: Tensor) -> bool:
    """Whether noise can be added to `p`."""
    knows = p.dtype in MEASURED or p.is_complex()
    return knows and p.numel() > 0 and not is_traceable_wrapper_subclass(p) and bool(torch.isfinite(p).all())


def _copy(t: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy of `t`, with the types that `dtype` stands for widened to it, and without its graph."""
    wide = t.dtype if dtype is None else widened(t.dtype, dtype)
    return (t.detach().clone() if wide == t.dtype else t.detach().to(wide)).requires_grad_(t.requires_grad)


def _lazily(t: Tensor) -> Tensor:
    """A copy of `t` that takes memory and time only once one of the two is written to."""
    return torch._lazy_clone(t)


def _real(t: Tensor, number: int) -> list[Tensor]:
    """An output as real float64. Whatever is returned must not change under rescaling, flags and indices included."""
    if t.is_nested:
        return [u for part in t.unbind() for u in _real(part, number)]
    if t.layout != torch.strided:
        t = t.to_dense()
    if t.is_quantized:
        t = t.dequantize()
    if t.is_complex():
        t = torch.view_as_real(t.resolve_conj())
    t = t.to(torch.float64)
    if torch.isnan(t).any():
        raise ProbeError(f"the model returned values that are not finite in {_name(number)}")
    finite = torch.isfinite(t)
    return [t] if finite.all() else [torch.where(finite, t, 0.0), torch.where(finite, 0.0, t.sign())]


def _name(number: int) -> str:
    return f"probe {number} ({'the inputs as given' if number == 0 else 'a perturbed copy of the inputs'}, float64)"
