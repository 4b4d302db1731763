"""Slices of parameters as points: their grids against loops, and their declarations."""

import copy
import io
import itertools
import random
from math import prod

import pytest
import retract
import torch
from retract.errors import DeclarationError, GeometryError
from retract.manifolds import PSI, Factors, FixedRank, Part, Sphere
from slices import PAIRS, QUERY_KEY, UNITS, Attention, declared_network, network
from torch import nn


def by_loops(part, tensor):
    """The slices of `part`, (points, rows, columns), entry by entry."""
    dims = part.dim if isinstance(part.dim, tuple) else (part.dim,)
    sizes = [tensor.shape[a] for a in dims]
    others = [range(tensor.shape[a]) for a in range(tensor.ndim) if a not in dims]

    def indices(levels):
        return [
            sum(i * d for i, (_, d) in zip(at, levels, strict=True))
            for at in itertools.product(*(range(n) for n, _ in levels))
        ]

    def entry(index, rest):
        digits = {}
        for a, size in reversed([*zip(dims, sizes, strict=True)]):
            index, digits[a] = divmod(index, size)
        rest = iter(rest)
        return float(tensor[tuple(digits[a] if a in digits else next(rest) for a in range(tensor.ndim))])

    return [
        [
            [entry(part.start + p + r + c, rest) for c in indices(part.columns)]
            for r in indices(part.rows)
            for rest in itertools.product(*others)
        ]
        for p in indices(part.points)
    ]


def random_part(draw):
    """A part and the shape that it fits, with levels nested in random order within the dimensions that are counted together."""
    shape = [draw.randint(1, 3) for _ in range(draw.randint(1, 3))]
    dims = draw.sample(range(len(shape)), draw.randint(1, min(2, len(shape))))
    levels, distance = [], 1
    for a in reversed(dims):
        sizes = [draw.randint(1, 3) for _ in range(draw.randint(1, 3))]
        shape[a] = prod(sizes) + draw.randint(0, 1)
        inner = distance
        for n in sizes:
            levels.append((n, inner))
            inner *= n
        distance *= shape[a]
    kinds = [draw.choice(["points", "columns", "rows"]) for _ in levels]
    chosen = {
        kind: tuple(level for level, its in zip(levels, kinds, strict=True) if its == kind)
        for kind in ("points", "columns", "rows")
    }
    return Part("w", dims[0] if len(dims) == 1 else tuple(dims), 0, **chosen), shape


def test_grids_are_what_loops_give():
    draw = random.Random(0)
    for _ in range(300):
        part, shape = random_part(draw)
        tensor = torch.arange(float(prod(shape))).view(shape)
        strided = torch.empty([2 * n for n in shape])[tuple(slice(None, None, 2) for _ in shape)].copy_(tensor)
        grid = part.grid(shape)
        expected = torch.tensor(by_loops(part, tensor)).view(grid.points, grid.height, grid.k)
        for given in (tensor, strided, tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor):
            assert torch.equal(grid.split(given), expected), part
        written = torch.full(shape, -1.0)
        grid.write(written, expected)
        assert torch.equal(written, torch.where(grid.mask(), tensor, -1.0)), part


def test_levels_run_through_dimensions_that_are_counted_together():
    w = torch.arange(2.0 * 4 * 3).view(2, 4, 3)
    assert torch.equal(Part("w", (0, 1)).grid(w.shape).split(w), w.view(8, 3, 1))
    assert torch.equal(Part("w", (0, 1), columns=2).grid(w.shape).split(w), w.view(4, 2, 3).mT)
    assert torch.equal(Part("w", (0, 2)).grid(w.shape).split(w), w.movedim(2, 1).reshape(6, 4, 1))


def test_declarations_are_on_the_lowest_module_and_name_both_factors():
    found = retract.declared(declared_network())
    names = "3.weight[dim 1] × 1.weight + 1.bias", "0.out.weight[dim 1] × 0.qkv.weight[16:] + 0.qkv.bias[16:]"
    assert {*names} < {*found}
    assert found[names[0]].manifold == FixedRank(1, n=8)
    assert found[names[1]].manifold == FixedRank(4, n=8)
    assert sorted(d.manifold.n for d in found.values()) == [8, 8, 9]


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "assign", "meta"])
def test_declarations_of_slices_survive(way):
    model = declared_network()
    if way == "deepcopy":
        model = copy.deepcopy(model)
    elif way == "pickle":
        file = io.BytesIO()
        torch.save(model, file)
        model = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    elif way == "assign":
        model.load_state_dict(network().state_dict(), assign=True)
    else:
        with torch.device("meta"):
            model = nn.Sequential(Attention(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh())
        for factors, manifold in PAIRS.items():
            retract.declare(model, factors, manifold)
        model = model.to_empty(device="cpu")
        model.load_state_dict(network().state_dict())
    assert retract.declared(model) == retract.declared(declared_network())
    (group,) = [group for group in retract.param_groups(model) if group["name"] == "slices"]
    assert {id(p) for p in group["params"]} <= {id(p) for p in model.parameters()}
    with pytest.raises(DeclarationError, match="its group has no manifold"):
        retract.optim.RiemannianSGD(model.parameters(), lr=0.1)


def test_undeclared_slices_leave_the_others():
    model = declared_network()
    retract.undeclare(model, QUERY_KEY)
    retract.undeclare(model, "3.weight[dim 1] × 1.weight + 1.bias")
    with pytest.raises(DeclarationError, match="its group has no manifold"):
        retract.optim.RiemannianSGD([model[0].qkv.weight], lr=0.1)
    assert [*retract.declared(model)] == ["0.out.weight[dim 1] × 0.qkv.weight[16:] + 0.qkv.bias[16:]"]
    retract.declare(model, "1.weight", Sphere())
    with pytest.raises(DeclarationError, match="is not declared"):
        retract.undeclare(model, UNITS)


def test_slices_of_a_sphere_are_put_there_and_what_is_loaded_too():
    model = network()
    retract.declare(model, Part("0.qkv.weight", points=16), Sphere())
    ours = model[0].qkv.weight
    assert torch.allclose(ours[:16].norm(dim=1), torch.ones(16).double())
    assert torch.equal(ours[16:], network()[0].qkv.weight[16:])
    model.load_state_dict(network().state_dict())
    assert torch.allclose(ours[:16].norm(dim=1), torch.ones(16).double())
    with torch.no_grad():
        ours.mul_(2.0)
    retract.project_(model)
    assert torch.allclose(ours[:16].norm(dim=1), torch.ones(16).double())


ERRORS = {
    "a name that is none": (
        Factors((Part("0.nothing", 1),), (Part("1.weight"),)),
        FixedRank(1),
        DeclarationError,
        "nothing",
    ),
    "another inner size": (
        Factors((Part("3.weight", 1),), (Part("0.out.weight"),)),
        FixedRank(1),
        GeometryError,
        r"\[16, 8\] points",
    ),
    "columns that do not fit": (
        Factors((Part("3.weight", 1, columns=3),), (Part("1.weight"),)),
        FixedRank(2),
        GeometryError,
        "3 columns",
    ),
    "beyond the end": (Part("0.qkv.weight", 0, 20, 2, 4), PSI(), GeometryError, "index 27"),
    "no such dimension": (Part("1.bias", 1), PSI(), GeometryError, "dimension"),
    "a remainder": (Part("0.qkv.weight", columns=5), PSI(), GeometryError, "say how many points"),
    "overlapping levels": (Part("0.qkv.weight", points=((3, 2),), columns=4), PSI(), GeometryError, "in common"),
    "overlapping parts": (Factors((Part("1.weight"),), (Part("1.weight"),)), FixedRank(1), GeometryError, "in common"),
    "one factor": (Part("1.weight"), FixedRank(1), GeometryError, "two factors"),
    "two factors of rows": (Factors((Part("3.weight", 1),), (Part("1.weight"),)), PSI(), GeometryError, "FixedRank"),
    "another n": (UNITS, FixedRank(1, n=3), GeometryError, "8 rows"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_slices_are_refused_and_nothing_is_declared(case):
    slices, manifold, error, words = ERRORS[case]
    model = network()
    with pytest.raises(error, match=words):
        retract.declare(model, slices, manifold)
    assert retract.declared(model) == {}
    assert [group["name"] for group in retract.param_groups(model)] == ["euclidean"]


def test_a_parameter_is_declared_as_a_whole_or_in_slices_without_entries_in_common():
    model = declared_network()
    before = retract.declared(model)
    for slices, manifold in ((Part("0.qkv.weight", points=8), PSI()), (Part("0.qkv.bias", start=23), FixedRank(1))):
        with pytest.raises(GeometryError):
            retract.declare(model, slices, manifold)
    retract.declare(model, "1.weight", Sphere())
    with pytest.raises(DeclarationError, match="same parameter"):
        retract.declared(model)
    retract.undeclare(model, "1.weight")
    assert retract.declared(model) == before
    whole = network()
    retract.declare(whole, "1.weight", PSI())
    with pytest.raises(DeclarationError, match="declared as a whole"):
        retract.declare(whole, UNITS, FixedRank(1))


@pytest.mark.parametrize(
    "wrong", [{"dim": -1}, {"dim": ()}, {"start": -1}, {"points": 0}, {"columns": ((2, 0),)}, {"rows": ((0, 1),)}]
)
def test_numbers_that_are_no_indices_are_refused(wrong):
    with pytest.raises(GeometryError, match=next(iter(wrong))):
        Part("w", **wrong)
