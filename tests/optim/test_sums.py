"""Points whose coordinates are divided among processes, joint points and strided ones: sums are all that differs."""

import pytest
import torch
from memory import Peak
from retract.manifolds import PSI, Grassmann, Rows, Sphere
from retract.optim import PSISGD, Coefficients, RiemannianAdam, RiemannianSGD
from retract.optim.execution import rows
from retract.optim.kernels import lists, sums
from retract.optim.kernels.launch import update_of
from retract.optim.rules import Memory, Rule
from retract.optim.update import update
from torch import nn

POINTS, N, STEPS = 4, 9, 3
CUTS = [4, 0, 1, 4]  # coordinates on each process; one has none
GROUP = object()


class Averaged(Rule):
    """Two vectors, and a scalar per point: an average of the gradients' lengths, by which their averages are divided."""

    vectors, scalars = ("fast", "slow"), ("mean",)

    def __call__(self, length, memory, options):
        memory.scalars["mean"] = 0.5 * memory.scalars["mean"] + 0.5 * length
        along = -options["lr"] / (1e-3 + memory.scalars["mean"])
        return Coefficients({"fast": 0.5, "slow": 0.9}, {"fast": 0.5, "slow": 0.1}, {"fast": along, "slow": 2 * along})


class Own(RiemannianSGD):
    rule = Averaged()


RULES = {
    "plain": (RiemannianSGD, {}),
    "momentum": (RiemannianSGD, {"momentum": 0.9, "nesterov": True}),
    "clipped": (RiemannianSGD, {"momentum": 0.9, "max_point_norm": 1e-3}),
    "adam": (RiemannianAdam, {}),
    "own": (Own, {}),
}
VECTORS = ("momentum_buffer", "exp_avg", "fast", "slow")
MOVES = [(m, t) for m in ("retract", "exp") for t in ("manifold", "project", "parallel", "none")]


def gradients(kind, manifold, x, vectors):
    """Random ones; almost normal to the sphere; or long ones, a thousandth of which the vectors leave over."""
    g, square = torch.randn(x.shape, dtype=torch.float64), x.square().sum(1, keepdim=True)
    if kind == "almost normal":
        return 3.0 * x + 1e-3 * g
    if kind == "cancelling":
        g = manifold.project(x, g)
        g = 1e3 * g / g.norm(dim=1, keepdim=True) / square
        for v in vectors.values():
            v.copy_(1e-3 * v - manifold.riemannian_gradient(x, g) / 0.9)
    return g


def runs(manifold, rule, motion, transport, kind, dtype, **changes):
    """Points, vectors and scalars after each of some steps: of the processes together, and by `update` in float64."""
    torch.manual_seed(0)
    make, options = RULES[rule]
    x = manifold.nearest(torch.randn(POINTS, N, dtype=torch.float64))
    optimizer = make(
        [{"params": [nn.Parameter(x.clone())], "manifold": manifold}],
        lr=0.05,
        motion=motion,
        transport=transport,
        **options,
    )
    rule, options = optimizer.rule, {**optimizer.param_groups[0], **changes}
    names = rule.needs(options)
    vectors = {name: torch.zeros_like(x) for name in names}
    held = ["radius"] if isinstance(manifold, PSI) and options["radius"] == "hold" else []
    scalars = {name: torch.zeros(POINTS, 1, dtype=torch.float64) for name in rule.scalars}
    shares = [
        (
            part.to(dtype),
            {name: torch.zeros_like(part, dtype=dtype) for name in names},
            {
                **{name: torch.zeros(POINTS, 1, dtype=dtype) for name in rule.scalars},
                **{name: -torch.ones(POINTS, 1, dtype=dtype) for name in held},
            },
        )
        for part in map(torch.clone, x.split(CUTS, 1))
    ]
    counts = []
    for t in range(STEPS):
        g = gradients("any" if kind == "cancelling" and t == 0 else kind, manifold, x, vectors)
        for i, share in enumerate(shares):  # start where the reference is: the gradients are those there
            share[0].copy_(x.split(CUTS, 1)[i])
            for name in names:
                share[1][name].copy_(vectors[name].split(CUTS, 1)[i])
        step = torch.tensor(t + 1.0) if rule.counts_steps else None
        works = []
        for (part, its, numbers), grad in zip(shares, g.split(CUTS, 1), strict=True):
            state = ({name: [array] for name, array in arrays.items()} for arrays in (its, numbers))
            stack = lists.Stack([part], [grad.to(dtype)], *state, processes=GROUP)
            memory = Memory(dtype, t == 0, step=step)
            choices = update_of(manifold, rule, options, memory, bool(names))
            works.append(lists.step(stack, choices, rule, memory, options))
        sums.run(works, lambda messages: exchanged(messages, counts))
        assert len(counts) <= 2 * (t + 1)
        memory = Memory(dtype, t == 0, vectors, scalars, step)
        x = update(manifold, rule, x, g, memory, options)
        vectors, scalars = memory.vectors, memory.scalars
        for _, _, numbers in shares:
            for name, number in numbers.items():
                assert torch.equal(number, shares[0][2][name]), name
        ours = {"x": torch.cat([share[0] for share in shares], 1), **shares[0][2]}
        ours |= {name: torch.cat([share[1][name] for share in shares], 1) for name in names}
        yield ours, {"x": x, **vectors, **scalars}


def exchanged(messages, counts):
    """The numbers of all processes, which run in one here."""
    counts.append(len(messages))
    assert all(group is GROUP for group, _ in messages)
    return [torch.stack([numbers for _, numbers in messages])] * len(messages)


KINDS = [(m, kind) for m in (PSI(), Sphere(), Grassmann(1)) for kind in ("any", "almost normal", "cancelling")]
KINDS.remove((PSI(), "almost normal"))  # gradients of scale-invariant functions are tangent


@pytest.mark.parametrize(("manifold", "kind"), KINDS, ids=repr)
@pytest.mark.parametrize("rule", RULES)
def test_processes_that_have_some_coordinates_each_step_as_one(manifold, rule, kind):
    for i, (motion, transport) in enumerate(MOVES):
        for dtype in (torch.float64, torch.float32) if kind == "any" else (torch.float64,):
            changes = {"radius": "free"} if i % 2 and isinstance(manifold, PSI) else {}
            bound = 1e-12 if dtype == torch.float64 else 64 * torch.finfo(dtype).eps * (8 + N**0.5)
            for ours, exact in runs(manifold, rule, motion, transport, kind, dtype, **changes):
                assert ours.keys() == exact.keys()
                for name, value in exact.items():
                    # Vectors that almost cancel are compared with the terms of which they are the difference.
                    scale = 1e3 if kind == "cancelling" and name in VECTORS else value.abs().max()
                    error = (ours[name] - value).abs().max() / scale
                    assert error <= bound, (name, motion, transport, dtype, float(error))


@pytest.mark.parametrize("layout", ["joint", "strided"])
@pytest.mark.parametrize("make", [PSISGD, RiemannianAdam])
def test_joint_and_strided_points_are_stepped_in_place(make, layout, device):
    """A product of two arrays is as large as a point set; copies of points, gradients and state would be three or four."""
    shapes, cut = {"joint": ([(64, 512), (64,)], Rows()), "strided": ([(512, 64)], Rows(dim=1))}[layout]
    params = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    optimizer = make(
        [{"params": params, "manifold": PSI(), "rows": cut, **JOINED[layout](params)}], lr=0.1, foreach=True
    )
    for _ in range(2):
        for p in params:
            p.grad = torch.randn_like(p)
        with Peak() as peak:
            optimizer.step()
    assert peak.most <= 1.5 * 4 * sum(p.numel() for p in params)


def test_sets_of_joint_points_are_cut_between_points(monkeypatch):
    monkeypatch.setattr(rows, "PIECE", 60)
    ends = []
    for path in ({"foreach": True}, {"foreach": False}):
        torch.manual_seed(0)
        shapes = ((6, 24), (3, 5), (4, 9), (2, 70))  # some are cut, and some pieces have points of two sets
        pairs = [
            tuple(nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in (shape, shape[:1])) for shape in shapes
        ]
        params = [part for pair in pairs for part in pair]
        optimizer = RiemannianAdam([{"params": params, "joined": pairs, "manifold": PSI()}], lr=0.1, **path)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
        ends.append([p.detach() for p in params])
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(*ends, strict=True))


JOINED = {"joint": lambda params: {"joined": [tuple(params)]}, "strided": lambda params: {}}
