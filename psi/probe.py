"""Running a model in float64 on copies of its tensors, so that nothing of the model is touched."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..manifolds.errors import RetractError
from ..manifolds.shards import is_sharded
from .exact import Exact

__all__ = ["Probe", "ProbeError"]

SEED = 0
# Invariance holds for all weights or for none, so it is measured next to the weights rather than at them: a bias, a
# residual branch or a gain that is zero at initialization would hide what it does.
WEIGHT_NOISE = 0.1
SMALL_GAIN = 0.05
"""Root mean square below which a gain counts as one that starts near zero, such as LayerScale."""
INPUT_NOISE = 0.1
FAINT = 1e-6
"""An output that is smaller beside the others is taken for rounding."""


class ProbeError(RetractError, RuntimeError):
    """A model that cannot be probed, with the probe and the reason."""


class Probe:
    """Copies of a model's parameters in float64, and the model run on them.

    `weights` maps names to leaf tensors that may be changed in place. Inputs are numbered: 0 as given, the others
    perturbed copies at unit size.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(model, torch.jit.ScriptModule):
            raise ProbeError(
                "a scripted module cannot be probed: its tensors cannot be replaced; pass the eager module"
            )
        self.model, self.args, self.kwargs = model, args, kwargs
        self.passes = 0
        """Forward passes so far."""
        self.precision = torch.finfo(torch.float64).eps
        """Rounding of the coarsest floating-point type that a pass has computed in; `as_is` does not count."""
        self.notes: list[str] = []
        """What a reader of the verdicts must know: outputs that were not looked at, state that could not be copied."""
        self.passed_over: dict[str, str] = {}
        """Parameters that cannot be measured, which are not in `weights`, with the reason."""
        self.perturbs = True
        """Whether inputs from 1 on differ from the given ones; some models do not stand it."""
        self.weights: dict[str, Tensor] = {}
        for name, p in model.named_parameters():
            if isinstance(p, nn.parameter.UninitializedParameter):
                raise ProbeError(f"{name} is a lazy parameter without a shape; run the model once, then probe it")
            if is_sharded(p):
                raise ProbeError(
                    f"{name} is sharded: the network is measured in one process. Probe it before fully_shard, or a copy; "
                    "declarations made then hold after it"
                )
            if p.is_meta:
                raise ProbeError(f"{name} is on the meta device and has no values to measure with; initialize it first")
            if not p.is_floating_point():
                self.passed_over[name] = f"{p.dtype} is not a real floating-point type"
            else:
                self.weights[name] = torch.empty_like(p, dtype=torch.float64).requires_grad_()
        names = {id(p): name for name, p in model.named_parameters()}
        # One slot per place that holds a parameter: a module used twice is one place, tied modules are two.
        self._slots = {
            f"{prefix}.{leaf}".lstrip("."): names[id(p)]
            for prefix, module in model.named_modules()
            for leaf, p in module._parameters.items()
            if p is not None and names[id(p)] in self.weights
        }
        self.fill(noise=True)

    @torch.no_grad()
    def fill(self, *, noise: bool) -> None:
        """Set `weights` to the model's own, with a little noise or as they are."""
        generator = torch.Generator().manual_seed(SEED)
        parameters = dict(self.model.named_parameters())
        for name, w in self.weights.items():
            w.copy_(parameters[name])
            if not noise:
                continue
            size = self._noise(name, parameters)
            w.add_(torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w.device).mul_(size))

    def _noise(self, name: str, parameters: dict[str, nn.Parameter]) -> Tensor | float:
        """Standard deviation of the noise: a tenth of a row's own size; but a bias or gain is made as large as what it is
        added to or multiplied with, lest it be too small to show."""
        p = parameters[name]
        own = _rms(p)
        if p.numel() > max(p.shape, default=1):
            rows = WEIGHT_NOISE * _row_norms(p) / p[0].numel() ** 0.5
            return torch.where(rows > 0, rows, WEIGHT_NOISE * own or 1.0)
        owner = self.model.get_submodule(name.rpartition(".")[0])
        beside = [_row_norms(q).flatten() for q in owner._parameters.values() if q is not None and q.ndim > 1]
        if beside and p.ndim == 1:
            sizes = [size if size.shape == p.shape else size.square().mean().sqrt() for size in beside]
            largest = torch.stack(torch.broadcast_tensors(*sizes)).amax(0)
            return torch.where(largest > 0, largest.clamp(min=WEIGHT_NOISE * own), own or 1.0)
        return WEIGHT_NOISE * own if own > SMALL_GAIN else 1.0

    def run(self, number: int, *, eps: bool = True) -> list[Tensor]:
        """What the model returns for input `number`, every tensor as float64 and detached; without its eps if so asked.

        Every run sees the same random numbers, so dropout draws the same mask. Raises `ProbeError`, naming
        the probe, for whatever the model raises, and for outputs that are not finite.
        """
        return self._call(number, eps, lambda outputs: [t.detach() for t in outputs])

    def differentiate(
        self, number: int, *, eps: bool = True, functional: int = SEED
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """As `run`, with the autograd graph, and the gradient of a random linear functional of the outputs, each brought to
        length 1, with respect to every weight; zero where unused.

        Raises also if no output depends on a weight in a differentiable way.
        """
        return self._call(number, eps, lambda outputs: (outputs, self._gradients(outputs, functional)))

    def as_is(self, changed: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """What the model returns for the inputs as given, with its own parameters, dtypes and eps, every tensor as float64.

        `changed` replaces parameters by name. Every run sees the same random numbers. Raises `ProbeError` as `run` does.
        """
        changed = changed or {}
        parameters = dict(self.model.named_parameters())
        tensors = {
            f"model.{prefix}.{leaf}".replace("..", "."): b.detach().clone()
            for prefix, module in self.model.named_modules()
            for leaf, b in module._buffers.items()
            if b is not None
        }
        for slot, name in self._slots.items():
            p = parameters[name].detach()
            tensors[f"model.{slot}"] = changed[name].to(p.dtype, copy=True) if name in changed else p.clone()
        self.passes += 1
        with _untouched(self.model, torch.get_default_dtype()):
            try:
                args, kwargs = (_map(given, lambda t: t.detach().clone()) for given in (self.args, self.kwargs))
                runner = _Runner(self.model, lambda outputs: [t.detach().double() for t in _tensors(outputs, 0)])
                return functional_call(runner, tensors, (args, kwargs), tie_weights=False)
            except ProbeError:
                raise
            except Exception as error:
                raise ProbeError(f"the model failed as it is: {type(error).__name__}: {error}") from error

    def _call(self, number: int, eps: bool, then: Callable[[list[Tensor]], Any]) -> Any:
        """`then` of the outputs. It runs while the weights are in place: checkpointed parts are computed again in the
        backward pass."""
        self.passes += 1
        shown = number if self.perturbs else 0
        generator = torch.Generator().manual_seed(SEED + number)
        tensors = {
            f"model.{prefix}.{leaf}".replace("..", "."): _copy(b)
            for prefix, module in self.model.named_modules()
            for leaf, b in module._buffers.items()
            if b is not None
        }
        tensors |= {f"model.{slot}": self.weights[name] for slot, name in self._slots.items()}
        with _untouched(self.model), Exact(eps=eps):
            try:
                args = _map(self.args, lambda t: _prepare(t, shown, generator))
                kwargs = _map(self.kwargs, lambda t: _prepare(t, shown, generator))
                runner = _Runner(self.model, lambda outputs: then(_tensors(outputs, number)))
                return functional_call(runner, tensors, (args, kwargs), tie_weights=False)
            except ProbeError:
                raise
            except Exception as error:
                hint = (
                    "; arguments that are not psi.find's or psi.declare's own go to the model"
                    if isinstance(error, TypeError)
                    else ""
                )
                raise ProbeError(
                    f"the model failed in {_name(number)}: {type(error).__name__}: {error}{hint}"
                ) from error

    def _gradients(self, outputs: list[Tensor], functional: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(functional)
        live = [t for t in outputs if t.requires_grad]
        if not live:
            raise ProbeError(
                "no output of the model is a floating-point tensor that depends on its parameters in a differentiable way "
                "(torch.no_grad inside the model? integer predictions?); return logits or a loss"
            )
        norms = [float(t.detach().norm()) for t in live]
        least = FAINT * max(norms) or 1.0
        loss = sum(
            (t / max(norm, least) * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device)).sum()
            for t, norm in zip(live, norms, strict=True)
        )
        names = list(self.weights)
        found = torch.autograd.grad(loss, [self.weights[name] for name in names], allow_unused=True)  # type: ignore[arg-type]
        return {n: torch.zeros_like(self.weights[n]) if g is None else g for n, g in zip(names, found, strict=True)}


class _Runner(nn.Module):
    """A model and what is to be done with what it returns, as one module."""

    def __init__(self, model: nn.Module, then: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.then = model, then

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`then` of the model's outputs."""
        return self.then(self.model(*args, **kwargs))


def _tensors(outputs: Any, number: int) -> list[Tensor]:
    """Every tensor in `outputs`, as real float64. Whatever is returned must not change under rescaling, flags and indices
    included."""
    tensors = [torch.view_as_real(t) if t.is_complex() else t for t in _leaves(outputs)]
    tensors = [t if t.is_floating_point() else t.double() for t in tensors]
    if not all(torch.isfinite(t).all() for t in tensors):
        raise ProbeError(f"the model returned values that are not finite in {_name(number)}")
    return tensors


def _name(number: int) -> str:
    return f"probe {number} ({'the inputs as given' if number == 0 else 'a perturbed copy of the inputs'}, float64)"


@contextmanager
def _untouched(model: nn.Module, default: torch.dtype = torch.float64) -> Iterator[None]:
    """`default` as the default type, gradients on, compilers off, fixed random states; all put back, and with it what the model's forward
    pass leaves on its modules (plain attributes, in place or rebound)."""
    attributes = [
        (module, {key: (value, _snapshot(value)) for key, value in vars(module).items()}) for module in model.modules()
    ]
    dtype, python, numpy_state = torch.get_default_dtype(), random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(SEED)
        random.seed(SEED)
        np.random.seed(SEED)
        torch.set_default_dtype(default)
        try:
            with torch.inference_mode(False), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            torch.set_default_dtype(dtype)
            random.setstate(python)
            np.random.set_state(numpy_state)
            for module, kept in attributes:
                for key in [key for key in vars(module) if key not in kept]:
                    del module.__dict__[key]
                for key, (value, content) in kept.items():
                    module.__dict__[key] = value
                    _restore(value, content)


def _snapshot(value: Any) -> Any:
    """A copy of the content of what a module may change in place: tensors, lists, dicts, sets."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if isinstance(value, list | dict | set) else None


def _restore(value: Any, content: Any) -> None:
    if isinstance(value, Tensor):
        if not torch.equal(value.detach(), content):
            value.detach().copy_(content)
    elif isinstance(value, list):
        value[:] = content
    elif isinstance(value, dict | set) and value != content:
        value.clear()
        value.update(content)


def _copy(t: Tensor) -> Tensor:
    """A copy, in float64 where `t` is of floating point."""
    t = t.detach()
    return t.to(torch.float64, copy=True) if t.is_floating_point() else t.clone()


def _rms(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t.detach(), dtype=torch.float64)) / max(1, t.numel()) ** 0.5


def _row_norms(t: Tensor) -> Tensor:
    """Norm of each row along axis 0, (rows, 1…)."""
    if t.ndim < 2:
        return t.detach().double().abs()
    return torch.linalg.vector_norm(t.detach(), dim=tuple(range(1, t.ndim)), keepdim=True, dtype=torch.float64)


def _prepare(t: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Input `number` made of `t`: a copy in float64; from 1 on, floats brought to unit size and given noise, and
    batches of integers (token ids) shuffled. Masks, lengths and offsets stay as they are."""
    t = _copy(t)
    if number == 0 or t.layout != torch.strided or t.numel() == 0:
        return t
    if t.is_floating_point():
        flags = bool(((t == 0) | (t == 1)).all())
        if flags or not torch.isfinite(t).all():
            return t
        noise = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device)
        return t / (_rms(t) or 1.0) + INPUT_NOISE * number * noise
    if t.ndim > 1 and t.dtype != torch.bool:
        return t[torch.randperm(t.shape[0], generator=generator).to(t.device)]
    return t


def _map(value: Any, function: Any) -> Any:
    """`function` applied to every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        result = value.copy()
        result.update({key: _map(v, function) for key, v in value.items()})
        return result
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(v, function) for v in value))
    if type(value) in (tuple, list):
        return type(value)(_map(v, function) for v in value)
    return value


def _leaves(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _leaves(getattr(value, field.name))
