"""Tensors that are windows in larger storages, whose other elements must stay as they are, and what they hold before and after."""

import itertools
import math
import operator
import re

import torch
from hypothesis import strategies as st
from retract.errors import RetractError

FLOATS = [torch.float32, torch.float64, torch.float32, torch.float64, torch.bfloat16, torch.float16]
GUARD = 7
"""Elements of a storage on each side of its window."""

VALUES = ["normal"] * 6 + ["zero", "zero row", "nan", "inf", "subnormal", "huge", "tiny"]
OWN = ["plain", "plain", "transposed", "channels_last", "sliced"]
"""Layouts in which every element has memory of its own."""
LAYOUTS = [*OWN, "expanded", "overlapping", "sliding"]

seldom = st.sampled_from([False] * 7 + [True])


def fill(draw, tensor, values):
    """Write `values` of some kind into a window; some need an entry, or a row, to change."""
    if tensor.is_meta or tensor.numel() == 0:
        return
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return
    if tensor.dtype not in FLOATS:
        tensor.copy_(noise.abs().clamp(max=2).to(tensor.dtype))
        return
    info = torch.finfo(tensor.dtype)
    scale = {"zero": 0.0, "subnormal": info.smallest_normal / 8, "huge": info.max / 8, "tiny": info.smallest_normal * 8}
    noise = (noise * scale.get(values, 1.0)).clamp(-info.max, info.max)
    if values in ("nan", "inf"):
        noise.view(-1)[draw(st.integers(0, noise.numel() - 1))] = math.nan if values == "nan" else math.inf
    if values == "zero row" and noise.ndim:
        noise[draw(st.integers(0, len(noise) - 1))] = 0.0
    tensor.copy_(noise.to(tensor.dtype))


def window(draw, shape, dtype, layout, device="cpu"):
    """A tensor of `shape` in the middle of a storage of ones."""
    count = math.prod(shape)
    base = torch.ones(3 * count + 2 * GUARD, dtype=dtype, device=device)
    inner = base[GUARD:]
    ndim = len(shape)
    if layout == "transposed" and ndim > 1:
        return inner[:count].view(*shape[:-2], shape[-1], shape[-2]).mT
    if layout == "channels_last" and ndim in (4, 5):
        order = [0, ndim - 1, *range(1, ndim - 1)]
        moved = [shape[0], *shape[2:], shape[1]]
        return inner[:count].view(moved).permute(order)
    if layout == "sliced" and ndim:
        return inner[: 2 * count].view(*shape[:-1], 2 * shape[-1])[..., ::2]
    if layout == "expanded" and ndim:
        return inner[: count // shape[0] if shape[0] else 0].view(min(1, shape[0]), *shape[1:]).expand(shape)
    if layout == "overlapping" and ndim and count:
        return inner.as_strided(shape, [1] * ndim)
    if layout == "sliding" and ndim > 1 and count:
        strides = torch.empty(shape, device="meta").stride()
        return inner.as_strided(shape, [max(1, strides[0] - 1), *strides[1:]])
    return inner[:count].view(shape)


def bits(tensor):
    """All of a tensor's storage."""
    if tensor.is_meta:
        return None
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    whole = tensor.detach().as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)
    return whole.clone().view(torch.uint8)


def remember(params, optimizer=None):
    state = {} if optimizer is None else optimizer.state
    vectors = {
        (id(p), key): (value, bits(value) if isinstance(value, torch.Tensor) else value)
        for p, its in state.items()
        for key, value in its.items()
    }
    return [(p.detach(), bits(p)) for p in params], vectors


def unchanged(before, after):
    def equal(a, b):
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b

    return (
        all(equal(a[1], b[1]) for a, b in zip(before[0], after[0], strict=True))
        and before[1].keys() == after[1].keys()
        and all(before[1][k][0] is after[1][k][0] and equal(before[1][k][1], after[1][k][1]) for k in before[1])
    )


def outside(tensor, stored):
    """Those of the bytes `stored` of a tensor's storage that do not belong to it."""
    mask = torch.ones(tensor.untyped_storage().nbytes() // tensor.itemsize, dtype=torch.bool)
    mask.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).zero_()
    return stored[mask.repeat_interleave(tensor.itemsize)]


def owned(tensor):
    """Whether every element has memory of its own."""
    indices = itertools.product(*map(range, tensor.shape))
    return len({sum(map(operator.mul, index, tensor.stride())) for index in indices}) == tensor.numel()


def refused(error, groups):
    """Whether an error at construction is ours, or the one that torch raises for the same parameters."""
    if isinstance(error, RetractError):
        return True
    if isinstance(error, TypeError) and re.search(
        r"unexpected keyword|multiple values for argument|must be strings", str(error)
    ):
        return True
    try:
        torch.optim.SGD([{"params": group["params"]} for group in groups], lr=0.1)
    except (TypeError, ValueError) as theirs:
        return type(theirs) is type(error)
    return False


def gradient(draw, p):
    """Gives `p` a gradient of some kind, perhaps none; whether its values are usual ones."""
    if draw(seldom):
        p.grad = None
        return True
    values = draw(st.sampled_from(VALUES))
    grad = window(draw, tuple(p.shape), p.dtype, draw(st.sampled_from(LAYOUTS)), p.device)
    fill(draw, grad, values)
    if draw(seldom) and draw(seldom) and p.ndim and not p.is_meta:
        grad = grad.to_sparse()
    p.grad = grad
    return values in ("normal", "zero row", "zero", "subnormal", "tiny")
