"""Everything of a model that probing must leave alone."""

import torch


def snapshot(model):
    """Everything of a model that probing must leave alone."""
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        {n: (p.requires_grad, p.grad, p.dtype, p.data_ptr()) for n, p in model.named_parameters()},
        [(m.training, list(m._forward_hooks), list(m._forward_pre_hooks), sorted(vars(m))) for m in model.modules()],
        torch.get_rng_state(),
        torch.get_default_dtype(),
    )


def equal(a, b):
    """Also where they are NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a[~a.isnan()], b[~b.isnan()])


def same(a, b):
    return all(equal(a[0][k], b[0][k]) for k in a[0]) and a[1:3] == b[1:3] and torch.equal(a[3], b[3]) and a[4] == b[4]
