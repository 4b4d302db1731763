"""The ways in which a step can run on a CPU, as the options that ask for them, and whether two of them agree."""

import copy

import torch
from retract.manifolds import Euclidean, Rows
from retract.manifolds.parameters.rows import gather, scatter_
from torch import nn

PATHS = {
    "reference": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}
CONV, LONG = (6, 4, 3, 2), (3, 9001)
LAYOUTS = {
    "rows": ([CONV], Rows(), torch.contiguous_format),
    "channels_last": ([CONV], Rows(), torch.channels_last),
    "blocks": ([CONV], Rows(blocks=2), torch.contiguous_format),
    "whole": ([CONV], Rows.whole(), torch.channels_last),
    "transposed": ([CONV], Rows(dim=1), torch.contiguous_format),
    "groups": ([CONV], Rows(dim=1, groups=3), torch.contiguous_format),
    "joint": ([CONV, (6,)], Rows(), torch.contiguous_format),
    "columns": ([(24, 5)], Rows(dim=1), torch.contiguous_format),
    "long": ([LONG], Rows(), torch.contiguous_format),
}


def start(manifold, layout, dtype, device):
    """Parameters on the manifold, in a layout, and their group."""
    shapes, rows, memory_format = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in shapes:
        w = torch.randn(shape, generator=generator, dtype=torch.float32)
        w = w.to(memory_format=memory_format) if w.ndim == 4 else w
        params.append(nn.Parameter(w.to(device, dtype)))
    if not isinstance(manifold, Euclidean):
        layouts = [rows.layout(p, manifold.event_ndim) for p in params]
        with torch.no_grad():
            scatter_(manifold.nearest(gather(params, layouts).clone()), params, layouts)
    group = {"params": params, "manifold": manifold, "rows": rows}
    if len(params) > 1:
        group["joined"] = [tuple(params)]
    return params, group


def run(make, manifold, layout, dtype, device, *paths, steps=3, **options):
    """Parameters and state after `steps` from the same start, on the paths in turn, through their state_dicts."""
    params, group = start(manifold, layout, dtype, device)
    generator = torch.Generator().manual_seed(1)
    optimizer, former = None, None
    for t in range(steps):
        path = paths[t % len(paths)]
        if path is not former:
            saved = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
            optimizer, former = make([group], lr=0.03, **path, **options), path
            if saved is not None:
                for its, mine in zip(saved["param_groups"], optimizer.param_groups, strict=True):
                    its.update({key: mine[key] for key in ("foreach", "fused")})
                optimizer.load_state_dict(saved)
        optimizer.param_groups[0]["lr"] = 0.03 / (1 + t)
        for p in params:
            grad = (torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5).to(device, dtype)
            # One step has gradients in an order of their own.
            p.grad = grad if t == 1 else torch.empty_like(p).copy_(grad)
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True)), "p.grad was written to"
    result = {f"parameter {i}": p.detach() for i, p in enumerate(params)}
    for i, p in enumerate(params):
        result |= {f"{name} {i}": value for name, value in optimizer.state[p].items()}
    return result


def agree(ours, exact, n, dtype):
    """Whether arrays are equal up to the rounding of sums over `n` products in `dtype`."""
    assert ours.keys() == exact.keys()
    bound = 64 * torch.finfo(dtype).eps * (8 + n**0.5)
    for name, value in exact.items():
        assert ours[name].shape == value.shape, name
        error = (ours[name].to(value.dtype) - value).abs().max() / value.abs().max().clamp(min=1e-3)
        assert error <= bound, f"{name} is off by {float(error):.2g}, more than {bound:.2g}"


def sizes(manifold, layout):
    params, group = start(manifold, layout, torch.float32, "cpu")
    return sum(group["rows"].layout(p, manifold.event_ndim or 1).event[0] for p in params)


def forget_plans(optimizer):
    """Make the next step look at everything anew: no plan outlives a state that is another dict."""
    for p, its in list(optimizer.state.items()):
        optimizer.state[p] = dict(its)
