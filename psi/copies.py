"""The state of a model: copied for each pass, so that a pass changes nothing and all start alike."""

from __future__ import annotations

import copy
import random
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .trees import held

__all__ = ["State", "quiet"]

# What has no state, or none that a copy would keep apart.
_ATOMS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
    weakref.ReferenceType,
    torch.dtype,
    torch.device,
    torch.jit.ScriptFunction,
)


class State:
    """All that the modules of `model` hold.

    The modules themselves stay, since hooks and closures know them: for the time of a pass their attributes are exchanged for
    copies, which share what the attributes share. Scripted parts are copied as a whole.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = {path: m for path, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule)}
        self.scripted = {
            f"{path}.{leaf}".lstrip("."): part
            for path, module in self._modules.items()
            for leaf, part in module.named_children()
            if isinstance(part, torch.jit.ScriptModule)
        }
        """Parts whose tensors cannot be replaced, by path."""
        self.shared: dict[str, str] = {}
        """Attributes that cannot be copied, and their types: a pass sees what those before it have left there."""
        self._unfit: dict[int, Any] = {}

    @contextmanager
    def exchanged(self, tensors: dict[int, Tensor], convert: Callable[[Tensor], Tensor]) -> Iterator[_Copier]:
        """While inside, all that the modules hold is a copy: `tensors` in the place of those with these ids, others as `convert` makes
        them. Yields what copies more, the inputs, in the same way."""
        copier = _Copier(self, {**tensors, **self._unfit, **{id(m): m for m in self._modules.values()}})
        for part in self.scripted.values():
            copier.memo[id(part)] = _scripted(part, tensors, convert)
        held = [(module, vars(module)) for module in self._modules.values()]
        copies = [
            {key: copier(value, convert, f"{path}.{key}".lstrip(".")) for key, value in vars(module).items()}
            for path, module in self._modules.items()
        ]
        try:
            for (module, _), attributes in zip(held, copies, strict=True):
                object.__setattr__(module, "__dict__", attributes)
            yield copier
        finally:
            for module, attributes in held:
                object.__setattr__(module, "__dict__", attributes)

    def computed(self, returned: Iterable[Tensor]) -> dict[str, None]:
        """Paths of attributes in which a pass, seen from inside of `exchanged`, has left tensors that depend on weights, besides
        those that it has `returned`."""
        seen: dict[int, Any] = {id(t): t for t in (*returned, *self._modules.values(), *self.scripted.values())}
        found: dict[str, None] = {}
        for path, module in self._modules.items():
            for key, value in {**module._buffers, **vars(module)}.items():
                # A weight that weight_norm, spectral_norm or pruning computes is seen by the layer itself.
                own = any(f"{key}{suffix}" in module._parameters for suffix in ("_v", "_orig"))
                if any(t.grad_fn is not None for t in held(value, seen)) and not own:
                    found[f"{path}.{key}".lstrip(".")] = None
        return found


class _Copier(TorchFunctionMode):
    """`copy.deepcopy` with tensors of its own making."""

    def __init__(self, state: State, memo: dict[int, Any]) -> None:
        super().__init__()
        self.memo, self._state = memo, state
        self._convert: Callable[[Tensor], Tensor] = torch.clone

    def __call__(self, value: Any, convert: Callable[[Tensor], Tensor], path: str) -> Any:
        """A copy of `value` in which every tensor is as `convert` makes it."""
        if isinstance(value, _ATOMS):
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        if type(value) in (dict, OrderedDict) and not value:  # most of what a module holds: quickly
            return self.memo.setdefault(id(value), value.copy())
        self._convert, known = convert, len(self.memo)
        try:
            with self:
                return copy.deepcopy(value, self.memo)
        except Exception:
            for key in list(self.memo)[known:]:  # what was copied halfway
                del self.memo[key]
        return self._in_parts(value, convert, path)

    def _in_parts(self, value: Any, convert: Callable[[Tensor], Tensor], path: str) -> Any:
        """A copy that shares with `value` what cannot be copied."""
        if type(value) in (list, tuple):
            return self.memo.setdefault(id(value), type(value)(self(item, convert, path) for item in value))
        if type(value) is dict:
            return self.memo.setdefault(id(value), {key: self(item, convert, path) for key, item in value.items()})
        try:
            shell = copy.copy(value)
            held = {} if shell is value else vars(shell)
        except Exception:
            shell, held = value, {}
        if shell is value:
            self._state.shared[path] = type(value).__qualname__
            self._state._unfit[id(value)] = value
        self.memo[id(value)] = shell
        held.update({key: self(item, convert, f"{path}.{key}") for key, item in held.items()})
        return shell

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """`func`, but the deep copy of a tensor is as it was asked for, whether or not it has a graph; so is the clone that an
        unregistered parameter makes of its data."""
        if func is Tensor.__deepcopy__:
            t, memo = args
            return memo.setdefault(id(t), self._convert(t))
        result = func(*args, **(kwargs or {}))
        return self._convert(result) if func is Tensor.clone else result


def _scripted(part: torch.jit.ScriptModule, tensors: dict[int, Tensor], convert: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a scripted module, whose tensors cannot be replaced, but filled."""
    result = copy.deepcopy(part)
    for old, new in zip(part.parameters(), result.parameters(), strict=True):
        new.data = tensors[id(old)].detach()
    for b, filled in zip(part.buffers(), result.buffers(), strict=True):
        filled.data = convert(b)
    return result


@contextmanager
def quiet(default: torch.dtype, seed: int) -> Iterator[None]:
    """`default` as the default type, gradients on, compilers off, random states fixed; all put back."""
    dtype, python, numpy_state = torch.get_default_dtype(), random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        torch.set_default_dtype(default)
        # Where nothing has imported the compiler, nothing is compiled, and to import it takes seconds.
        eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        try:
            with torch.inference_mode(False), torch.enable_grad(), eager:
                yield
        finally:
            torch.set_default_dtype(dtype)
            random.setstate(python)
            np.random.set_state(numpy_state)
