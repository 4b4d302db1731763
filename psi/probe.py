"""Running a model in float64 on copies of its tensors, so that nothing of the model is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..manifolds.errors import RetractError

__all__ = ["Probe", "ProbeError"]

SEED = 0
# Invariance holds for all weights or for none, so it is measured next to the weights rather than at them: a bias, a
# residual branch or a gain that is zero at initialization would hide what it does.
WEIGHT_NOISE = 0.1
INPUT_NOISE = 0.1


class ProbeError(RetractError, RuntimeError):
    """A model that cannot be probed, with the probe and the reason."""


class Probe:
    """Copies of a model's parameters in float64, and the model run on them.

    `weights` maps names to leaf tensors that may be changed in place; `reset` brings them back. Inputs are
    numbered: 0 as given, the others perturbed copies.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(model, torch.jit.ScriptModule):
            raise ProbeError(
                "a scripted module cannot be probed: its tensors cannot be replaced; pass the eager module"
            )
        self.model, self.args, self.kwargs = model, args, kwargs
        self.weights: dict[str, Tensor] = {}
        for name, p in model.named_parameters():
            if isinstance(p, nn.parameter.UninitializedParameter):
                raise ProbeError(f"{name} is a lazy parameter without a shape; run the model once, then probe it")
            if p.is_meta:
                raise ProbeError(f"{name} is on the meta device and has no values to measure with; initialize it first")
            if p.is_floating_point():
                self.weights[name] = torch.empty_like(p, dtype=torch.float64).requires_grad_()
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """The model's weights with a little noise: always the same."""
        generator = torch.Generator().manual_seed(SEED)
        for name, p in self.model.named_parameters():
            if name in self.weights:
                w = self.weights[name].copy_(p)
                size = float(w.norm()) / max(1, w.numel()) ** 0.5
                noise = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w.device)
                w.add_(noise, alpha=WEIGHT_NOISE * (size or 1.0))

    def run(self, number: int) -> list[Tensor]:
        """The floating-point tensors that the model returns for input `number`, in float64.

        Every run sees the same random numbers, so dropout draws the same mask. Raises `ProbeError`, naming
        the probe, for whatever the model raises, and for outputs that are not finite.
        """
        generator = torch.Generator().manual_seed(SEED + number)
        args = _map(self.args, lambda t: _prepare(t, number, generator))
        kwargs = _map(self.kwargs, lambda t: _prepare(t, number, generator))
        buffers = {
            name: b.detach().double() if b.is_floating_point() else b.detach().clone()
            for name, b in self.model.named_buffers()
        }
        with _untouched(self.model):
            try:
                outputs = functional_call(self.model, {**self.weights, **buffers}, args, kwargs)
            except Exception as error:
                raise ProbeError(
                    f"the forward pass failed in {_name(number)}: {type(error).__name__}: {error}"
                ) from error
        tensors = [t for t in _leaves(outputs) if t.is_floating_point()]
        if not all(torch.isfinite(t).all() for t in tensors):
            raise ProbeError(f"the model returned values that are not finite in {_name(number)}")
        return tensors

    def gradients(self, outputs: list[Tensor]) -> dict[str, Tensor]:
        """Gradient of a random linear functional of `outputs` with respect to every weight; zero where unused.

        Raises `ProbeError` if no output depends on a weight in a differentiable way.
        """
        generator = torch.Generator().manual_seed(SEED)
        live = [t for t in outputs if t.requires_grad]
        if not live:
            raise ProbeError(
                "no output of the model is a floating-point tensor that depends on its parameters in a differentiable way "
                "(torch.no_grad inside the model? integer predictions?); return logits or a loss"
            )
        loss = sum(
            (t * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device)).sum() for t in live
        )
        names = list(self.weights)
        found = torch.autograd.grad(loss, [self.weights[name] for name in names], allow_unused=True)  # type: ignore[arg-type]
        return {n: torch.zeros_like(self.weights[n]) if g is None else g for n, g in zip(names, found, strict=True)}


def _name(number: int) -> str:
    return f"probe {number} ({'the inputs as given' if number == 0 else 'a perturbed copy of the inputs'}, float64)"


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Float64 by default, gradients on, a fixed random state; all put back, and with it what the model's forward
    pass leaves on its modules (plain tensor attributes, training flags)."""
    attributes = [
        (module, {key: value for key, value in vars(module).items() if isinstance(value, Tensor | bool)})
        for module in model.modules()
    ]
    dtype = torch.get_default_dtype()
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
        torch.manual_seed(SEED)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            torch.set_default_dtype(dtype)
            for module, kept in attributes:
                for key in [k for k, v in vars(module).items() if isinstance(v, Tensor) and k not in kept]:
                    del module.__dict__[key]
                module.__dict__.update(kept)


def _prepare(t: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Input `number` made of `t`: floats in float64, from 1 on with noise; integers (token ids) shuffled."""
    t = t.detach()
    if t.is_floating_point():
        t = t.double()
        if number and t.numel():
            noise = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device)
            t = t + INPUT_NOISE * number * noise * t.square().mean().sqrt()
        return t
    if number and t.dtype != torch.bool and not t.is_complex():
        order = torch.randperm(t.numel(), generator=generator).to(t.device)
        return t.reshape(-1)[order].reshape(t.shape)
    return t.clone()


def _map(value: Any, function: Any) -> Any:
    """`function` applied to every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return type(value)({key: _map(v, function) for key, v in value.items()})  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(v, function) for v in value))
    if isinstance(value, tuple | list):
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
