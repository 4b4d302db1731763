"""`optimizer.paths()`: which path each parameter takes, and why."""

import torch
from retract.manifolds import PSI, Euclidean, Rows, Stiefel
from retract.optim import RiemannianSGD
from torch import nn


def test_every_parameter_says_its_path_before_and_after_a_step():
    sets = {
        "w": (PSI(), (4, 6)),
        "frame": (Stiefel(), (4, 2)),
        "b": (Euclidean(0), (7,)),
        "line": (Euclidean(1), (3, 2)),
    }
    groups = [
        {"params": [nn.Parameter(m.random_point(*shape))], "names": [name], "manifold": m}
        for name, (m, shape) in sets.items()
    ]
    optimizer = RiemannianSGD(groups, lr=0.1, momentum=0.9)
    before = optimizer.paths()
    assert [path.name for path in before] == [*sets]
    assert [path.path for path in before[1:]] == ["reference", "torch foreach", "torch foreach"]
    assert before[0].path in ("fused", "foreach")
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.paths() == before
    for group in optimizer.param_groups:
        group["capturable"] = True
    assert {(path.path, path.reason) for path in optimizer.paths()} == {("reference", "capturable=True")}
    head, *rows = repr(before).splitlines()
    assert head.split() == ["parameter", "on", "path", "why"]
    assert len(rows) == 4
    assert rows[1].startswith("frame      Stiefel()")


def test_strided_rows_take_lists_and_joint_ones_the_kernel_if_there_is_one():
    w, b, columns = (nn.Parameter(torch.ones(shape)) for shape in ((4, 6), 4, (6, 4)))
    groups = [
        {"params": [w, b], "joined": [(w, b)], "manifold": PSI()},
        {"params": [columns], "rows": Rows(dim=1), "manifold": PSI()},
    ]
    joint, strided = RiemannianSGD(groups, lr=0.1).paths()
    assert joint.path == RiemannianSGD([{"params": [w], "manifold": PSI()}], lr=0.1).paths()[0].path
    assert (strided.path, strided.reason) == ("foreach", "its rows are strided, and kernels would copy them")


def test_what_is_passed_over():
    codes = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    optimizer = RiemannianSGD([{"params": [codes, nn.Parameter(torch.ones(2))], "names": ["codes", "w"]}], lr=0.1)
    assert [path.path for path in optimizer.paths()] == ["none", "torch foreach"]
