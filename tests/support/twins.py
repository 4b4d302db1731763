"""A network's twin for `brute_force`: in float64 throughout, without eps, at weights in general position."""

import copy
from collections.abc import Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

TINY = 1e-22
"""What an eps is multiplied by."""
LARGEST = 1e-3
"""Of the constants that count as an eps."""
WIDE = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64}
WIDE |= {torch.complex64: torch.complex128}
ADDING = ("add", "clamp", "clip", "max")


class WithoutEps(TorchFunctionMode):
    """Makes the small constants of norms, sums and lower bounds smaller, and keeps everything in float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name in ("float", "half", "bfloat16"):
            return args[0].double()
        args = [WIDE.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
        kwargs = {key: WIDE.get(a, a) if isinstance(a, torch.dtype) else a for key, a in kwargs.items()}
        if "norm" in name or "cosine_similarity" in name:
            args = [smaller(a) if isinstance(a, float) else a for a in args]
            kwargs = {key: smaller(a) if key == "eps" and isinstance(a, float) else a for key, a in kwargs.items()}
            if name == "rms_norm" and kwargs.get("eps", args[3] if len(args) > 3 else None) is None:
                args, kwargs = args[:3], kwargs | {"eps": 1e-7 * TINY}
        elif any(word in name for word in ADDING):
            args = [smaller(a) for a in args]
            kwargs = {key: smaller(a) for key, a in kwargs.items()}
        return function(*args, **kwargs)


def smaller(value):
    constant = isinstance(value, float) or (
        isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point() and not value.requires_grad
    )
    return value * TINY if constant and 0 < value <= LARGEST else value


@contextmanager
def without_eps():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with WithoutEps():
            yield
    finally:
        torch.set_default_dtype(before)


def wide(value):
    """Inputs with every tensor of floating point in float64."""
    if isinstance(value, Tensor):
        return value.to(WIDE.get(value.dtype, value.dtype))
    if isinstance(value, Mapping):
        return type(value)({key: wide(v) for key, v in value.items()})
    if isinstance(value, tuple | list):
        return type(value)(wide(v) for v in value)
    return copy.copy(value).apply(wide) if hasattr(value, "apply") else value


@torch.no_grad()
def widened(model):
    """The model itself with every tensor it holds in float64."""
    for module in model.modules():
        for table in (module._parameters, module._buffers, vars(module)):
            for key, value in table.items():
                if isinstance(value, torch.nn.Parameter):
                    value.data = wide(value.data)
                elif isinstance(value, Tensor):
                    table[key] = wide(value)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # transformers' grouped product has no float64
    return model


@torch.no_grad()
def in_general_position(model, seed=0):
    """The model itself with noise on its weights, so that no bias is zero and no gain tiny: what is invariant there is
    invariant everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.is_floating_point() and p.numel():
            size = float(p.square().mean().sqrt())
            several = sum(n > 1 for n in p.shape) > 1
            std = (0.1 * size or p[0].numel() ** -0.5) if several else 0.2
            p.add_(std * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model
