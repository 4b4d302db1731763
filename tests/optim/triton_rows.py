"""The Triton row kernels against the reference; run by test_rows_triton.py, in a process that has the interpreter or a GPU.

Tiles and pieces are made small, so that short arrays already take every way through the kernels.
"""

import numpy as np
import paths
import pytest
import torch
from own_rules import Normalized, RMSprop, optimizer_of
from retract.manifolds import PSI, Grassmann, Sphere
from retract.optim.execution.dispatch import BACKENDS
from retract.optim.kernels import triton_rows
from retract.optim.kernels.launch import update_of
from retract.optim.rules import Adam, Memory, Momentum
from retract.optim.update import update
from row_options import OPTIONS, RULES
from torch import nn

SMALL = {"STRIPS": 8, "LANES": 8, "PIECE": 128}
# Several rows to a tile, tile by tile, and in pieces; each once at multiples of 16 bytes and once not.
SHAPES = [(3, 24), (3, 21), (9, 3), (1, 72), (1, 61), (1, 136), (1, 131)]
OWN = [(3, 24), (3, 21), (2, 72), (2, 61), (2, 136), (2, 131)]
MANIFOLDS = {"psi": PSI(), "sphere": Sphere(), "lines": Grassmann(1)}
TRANSPORTS = ("manifold", "project", "parallel", "none")
OTHERS = [torch.float32, torch.bfloat16, torch.float16]
STEP = 3.0


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def registered(monkeypatch):
    """These kernels for optimizers on a CPU too."""
    monkeypatch.setitem(BACKENDS, "cpu", ("triton", "..kernels.triton_rows", (torch.float32, torch.float64)))


@pytest.fixture
def small(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(triton_rows, name, value)


class Points:
    """Random points, gradients and state, one entry per shape, and what the table of a step needs of them."""

    def __init__(self, manifold, dtype, device, shapes=SHAPES, scale=1.0, held=True, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.manifold, self.dtype, self.device = manifold, dtype, device
        self.real = torch.float64 if dtype == torch.float64 else torch.float32
        self.arrays = []
        for shape in shapes:
            draw = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
            x = scale * Sphere().nearest(draw[0])
            size = x.norm(dim=1, keepdim=True)
            g, v = (x / size + draw[1] / shape[1] ** 0.5) / size, manifold.project(x, draw[2]) * size / shape[1] ** 0.5
            radius = size * (1.0 + torch.rand(size.shape, generator=generator, dtype=torch.float64))
            square = torch.rand(size.shape, generator=generator, dtype=torch.float64)
            own = (x.to(dtype), g.to(dtype), v.to(dtype))
            numbers = (radius if held else torch.full_like(radius, -1.0), square)
            self.arrays.append([a.to(device) for a in own] + [a.to(device, self.real) for a in numbers])

    def copy(self):
        """The same in other memory."""
        other = object.__new__(Points)
        other.__dict__ |= {**self.__dict__, "arrays": [[a.clone() for a in arrays] for arrays in self.arrays]}
        return other

    def step(self, rule, options, fresh=False, vector=True, **changes):
        """One step of the kernels, in place."""
        its = update_of(self.manifold, rule, options, Memory(self.dtype, fresh, step=torch.tensor(STEP)), vector)
        choices = its.choices._replace(**changes)
        rows = []
        for x, g, v, r, s in self.arrays:
            scalars = (r.data_ptr() * choices.store_radius, s.data_ptr() * choices.adam, 0)
            rows.append([x.data_ptr(), g.data_ptr(), v.data_ptr() * vector, *scalars, *x.shape])
        table = np.array(rows, dtype=np.int64)
        triton_rows.step(table, triton_rows.schedule(table), its._replace(choices=choices), self.dtype, self.device)

    def reference(self, rule, options, dtype, fresh=False, vector=True):
        """What the arrays should be after the step, computed in `dtype`."""
        result = []
        for x, g, v, r, s in self.arrays:
            x, g, v, r, s = (a.to(dtype, copy=True) for a in (x, g, v, r, s))
            memory = Memory(self.dtype, fresh, step=torch.tensor(STEP))
            if vector:
                memory.vectors[rule.vectors[0]] = v
            if rule.scalars:
                memory.scalars[rule.scalars[0]] = s
            if (r >= 0).all():
                memory.scalars["radius"] = r
            y = update(self.manifold, rule, x, g.clone(), memory, options)
            keeps = options["radius"] == "hold" and isinstance(self.manifold, PSI)
            result.append(
                [
                    y,
                    g,
                    memory.vectors.get(rule.vectors[0], v),
                    memory.scalars["radius"] if keeps else r,
                    memory.scalars[rule.scalars[0]] if rule.scalars else s,
                ]
            )
        return result


def agree(ours, exact):
    """Whether rows equal the exact ones up to rounding: of sums over a row, and of the storage."""
    sums = torch.finfo(ours.real).eps
    stored = 0.0 if ours.dtype == ours.real else torch.finfo(ours.dtype).eps
    for arrays, truths in zip(ours.arrays, exact, strict=True):
        n = arrays[0].shape[1]
        for k, (a, b) in enumerate(zip(arrays, truths, strict=True)):
            size = b.abs().amax(dim=1, keepdim=True)
            bound = 64 * sums * (8 + n**0.5) * size + (stored * b.abs() + 1e-7 * (stored > 0) if k < 3 else 0)
            off = ((a.to(b.dtype) - b).abs() / bound.clamp(min=1e-300)).max()
            assert off <= 1, f"array {k} of rows of {n} in {ours.dtype} is off by {float(off):.2g} times the bound"


def check(points, rule, options, **how):
    exact = points.reference(rule, options, torch.float64, **how)
    points.step(rule, options, **how)
    agree(points, exact)


CHOICES = [(m, motion, t) for m in MANIFOLDS for motion in ("retract", "exp") for t in TRANSPORTS]


def take(choice, turn, dtype, device):
    """A choice with a rule; the turn decides which, and about everything else."""
    manifold, motion, transport = choice
    rule, changes = list(RULES.values())[turn % len(RULES)]
    options = OPTIONS | changes | {"motion": motion, "transport": transport, "maximize": turn % 2 == 1}
    options |= {"max_point_norm": 0.1 if turn % 4 < 2 else None, "radius": "free" if turn % 3 == 1 else "hold"}
    how = {"fresh": turn % 5 == 0, "vector": bool(rule.scalars) or options["momentum"] != 0}
    # Unit vectors may have drifted; the kernels take them as they are.
    scale = (3e4 if options["radius"] == "free" else 1.7) if manifold == "psi" else 1.0 + 0.05 * (turn % 2)
    check(Points(MANIFOLDS[manifold], dtype, device, SHAPES, scale), rule, options, **how)


@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_every_choice(choice, device, small):
    turn = CHOICES.index(choice)
    take(choice, turn, torch.float64, device)
    take(choice, turn + 3, OTHERS[turn % 3], device)


@pytest.mark.long
@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_every_choice_with_every_rule(choice, device, small):
    place = CHOICES.index(choice)
    for turn in range(place, place + 3 * len(RULES)):
        take(choice, turn, torch.float64, device)
        take(choice, turn, OTHERS[turn % 3], device)


def trained(points, rule, dtype, fused, steps=2, **options):
    """Points and state after steps of an optimizer with a rule of a user's own, in `dtype`."""
    params = [nn.Parameter(x.to(dtype, copy=True)) for x, *_ in points.arrays]
    optimizer = optimizer_of(rule)([{"params": params, "manifold": points.manifold, "fused": fused}], options)
    for _ in range(steps):
        for p, (_, g, *_) in zip(params, points.arrays, strict=True):
            p.grad = g.to(dtype, copy=True)
        optimizer.step()
    assert {its.path for its in optimizer.paths()} == {"fused" if fused else "reference"}
    state = {f"{name} {i}": a for i, p in enumerate(params) for name, a in optimizer.state[p].items()}
    return {f"points {i}": p.detach() for i, p in enumerate(params)} | state


@pytest.mark.parametrize("rule", [RMSprop(), Normalized()], ids=["vector", "no-vector"])
@pytest.mark.parametrize("choice", CHOICES[1::5], ids="-".join)
def test_every_point_has_coefficients_of_its_own(choice, rule, device, small, registered):
    """Two rows of each of the three kinds at least."""
    name, motion, transport = choice
    points = Points(MANIFOLDS[name], torch.float64, device, OWN)
    options = {"lr": 0.1, "motion": motion, "transport": transport, "max_point_norm": 0.8}
    exact = trained(points, rule, torch.float64, fused=False, **options)
    for dtype in (torch.float64, torch.float32):
        ours = trained(points, rule, dtype, fused=True, **options)
        paths.agree(ours, exact, max(n for _, n in OWN), dtype)


def check_tangent(x, v, shape):
    """Rows of norm 1, and vectors at them that have no part along them."""
    x = x.double()
    assert ((x.norm(dim=1) - 1).abs() < 2e-6).all(), shape
    if v is not None:
        assert ((x * v).sum(1).abs() < 2e-6 * v.double().norm(dim=1)).all(), shape


@pytest.mark.parametrize("rule", [RMSprop(eps=1e-12), Normalized()], ids=["vector", "no-vector"])
@pytest.mark.parametrize("name", ["sphere", "lines"])
def test_coefficients_for_gradients_that_are_nearly_radial(name, rule, device, small, registered):
    """As below, where Adam takes them."""
    points = Points(MANIFOLDS[name], torch.float32, device, OWN)
    for x, g, *_ in points.arrays:
        g.copy_(x + 1e-6 * g / g.norm(dim=1, keepdim=True))
    ends = trained(points, rule, torch.float32, True, steps=1, lr=0.3, transport="project")
    for i, shape in enumerate(OWN):
        check_tangent(ends[f"points {i}"], ends.get(f"momentum_buffer {i}"), shape)


@pytest.mark.parametrize("name", ["psi", "lines"])
def test_tiles_of_the_size_that_ships(name, device):
    shapes = [(3, n) for n in (1, 27, 64, 144, 576)] + [(1, n) for n in (1152, 2048, 2050, 5000)]
    options = OPTIONS | {"motion": "retract", "transport": "none", "momentum_form": "velocity"}
    if name == "lines":
        options |= {"motion": "exp", "transport": "parallel", "max_point_norm": 0.1}
    for dtype in (torch.float32, torch.bfloat16):
        check(Points(MANIFOLDS[name], dtype, device, shapes[name == "lines" :]), Momentum(), options)


def test_a_norm_is_recorded_once(device, small):
    """Then it is held; at lr = 0 it is recorded and nothing moves."""
    options = OPTIONS | {"motion": "retract", "transport": "none"}
    for lr in (0.3, 0.0):
        points = Points(PSI(), torch.float32, device, held=False, scale=2.5)
        check(points, Momentum(), options | {"lr": lr})
        for (x, _, _, r, _), (was, *_) in zip(
            points.arrays, Points(PSI(), torch.float32, device, scale=2.5).arrays, strict=True
        ):
            assert (r - 2.5).abs().max() < 1e-5
            assert torch.equal(x, was) == (lr == 0)
    before = points.copy()
    check(points, Momentum(), options)
    assert all(torch.equal(a[3], b[3]) for a, b in zip(points.arrays, before.arrays, strict=True))


@pytest.mark.parametrize("name", MANIFOLDS)
def test_nothing_moves_without_gradient_and_lr(name, device, small):
    for motion, transport in (("retract", "none"), ("retract", "manifold"), ("exp", "project"), ("exp", "parallel")):
        points = Points(MANIFOLDS[name], torch.float32, device, SHAPES[::2])
        for _, g, v, *_ in points.arrays:
            g.zero_()
            v.zero_()
        before = points.copy()
        points.step(Momentum(), OPTIONS | {"motion": motion, "transport": transport, "lr": 0.0})
        for ours, was in zip(points.arrays, before.arrays, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, was, strict=True))


def test_free_norms_change_by_powers_of_two(device, small):
    """Which changes no bit of a direction."""
    options = OPTIONS | {"motion": "retract", "transport": "none", "radius": "free"}
    for dtype, scale in ((torch.float32, 3e5), (torch.float64, 3e5), (torch.float32, 1e-6), (torch.bfloat16, 7e4)):
        points = Points(PSI(), dtype, device, scale=scale)
        still = points.copy()
        points.step(Momentum(), options)
        still.step(Momentum(), options, hold=False, free=False, store_radius=False)
        for (x, _, v, *_), (y, _, w, *_) in zip(points.arrays, still.arrays, strict=True):
            factor = 2.0 ** -torch.frexp(torch.tensor(scale)).exponent
            assert torch.equal(x, y * factor)
            assert torch.equal(v, w * factor)


def test_vectors_that_float16_does_not_reach_stay_finite(device, small):
    points = Points(PSI(), torch.float16, device, scale=450.0)
    for _, g, *_ in points.arrays:
        g *= 450.0
    points.step(Momentum(), OPTIONS | {"motion": "retract", "transport": "none", "lr": 1e-4})
    assert max(v.abs().max() for _, _, v, *_ in points.arrays) == 65504.0
    assert all(x.isfinite().all() for x, *_ in points.arrays)


def test_what_is_not_finite_stays_in_its_row(device, small):
    """A row is finite where the reference is, zero rows of PSI among them, and its neighbours do not notice.

    Within a row the reference may lose NaN on the way through a length.
    """
    for name, changes in (
        ("psi", {"motion": "retract", "transport": "none"}),
        ("psi", {"motion": "retract", "transport": "none", "radius": "free"}),
        ("psi", {"motion": "exp", "transport": "parallel", "max_point_norm": 0.1}),
        ("sphere", {"motion": "retract", "transport": "manifold"}),
        ("lines", {"motion": "exp", "transport": "parallel", "max_point_norm": 0.1}),
    ):
        points = Points(MANIFOLDS[name], torch.float32, device, [(6, 24), (6, 72)])
        clean = points.copy()
        for x, g, v, *_ in points.arrays:
            g[1, 2], g[2, 0] = torch.nan, torch.inf
            if name == "psi":  # which an exponential in float32 does not carry with a gradient
                x[3] = 0.0
                g[3], v[3] = (0.0, 0.0) if changes["motion"] == "exp" else (g[3], v[3])
        exact = points.reference(Momentum(), OPTIONS | changes, torch.float32)
        points.step(Momentum(), OPTIONS | changes)
        clean.step(Momentum(), OPTIONS | changes)
        for ours, theirs, others in zip(points.arrays, exact, clean.arrays, strict=True):
            for a, b, c in zip(ours, theirs, others, strict=True):
                assert a.isfinite().all(1).tolist() == b.isfinite().all(1).tolist()
                assert torch.equal(a[[0, 4, 5]], c[[0, 4, 5]])
                torch.testing.assert_close(a[3], b[3], rtol=1e-4, atol=1e-5)


def test_all_have_a_vector_or_none(device, small):
    """What a kernel is compiled for holds for all of its table; an address of 0 is not to be followed."""
    points = Points(PSI(), torch.float32, device)
    options = OPTIONS | {"motion": "retract", "transport": "none"}
    update = update_of(PSI(), Momentum(), options, Memory(torch.float32, False), True)
    rows = [[x.data_ptr(), g.data_ptr(), v.data_ptr(), r.data_ptr(), 0, 0, *x.shape] for x, g, v, r, _ in points.arrays]
    rows[-1][2] = 0
    table = np.array(rows, dtype=np.int64)
    with pytest.raises(ValueError, match="some matrices have a vector and others do not"):
        triton_rows.step(table, triton_rows.schedule(table), update, torch.float32, device)


@pytest.mark.parametrize("transport", ["manifold", "parallel"])
def test_a_step_to_the_antipode(transport, device, small):
    """A radial gradient overshoots along the row itself; the vector comes along at its length and stays finite."""
    points = Points(PSI(), torch.float32, device, held=False)
    for x, g, v, *_ in points.arrays:
        x.zero_()[:, 0] = 1.0
        v.zero_()[:, -1] = 0.5
        g.copy_(3 * x - 0.9 * v)
    before = points.copy()
    points.step(Momentum(), OPTIONS | {"motion": "retract", "transport": transport, "lr": 1.0, "dampening": 0.0})
    for (x, _, v, *_), (was, *_) in zip(points.arrays, before.arrays, strict=True):
        torch.testing.assert_close(x, -2 * was)
        assert torch.isfinite(v).all()
        assert ((x * v).sum(1).abs() <= 1e-5 * v.norm(dim=1).clamp(min=1.0)).all()


@pytest.mark.parametrize("name", ["sphere", "lines"])
def test_gradients_that_are_nearly_radial(name, device, small):
    """What a projection leaves of them is rounding, which Adam brings to the length of a step."""
    points = Points(MANIFOLDS[name], torch.float32, device)
    for x, g, v, _, square in points.arrays:
        g.copy_(x + 1e-6 * g / g.norm(dim=1, keepdim=True))
        v.zero_()
        square.zero_()
    points.step(Adam(), OPTIONS | {"motion": "retract", "transport": "project", "eps": 1e-12})
    for x, _, v, *_ in points.arrays:
        check_tangent(x, v, x.shape)


def test_arrays_that_start_anywhere(device, small):
    """As the gradients in a bucket of DistributedDataParallel do."""
    options = OPTIONS | {"motion": "retract", "transport": "project"}
    points = Points(PSI(), torch.float32, device)
    for arrays in points.arrays:
        arrays[1] = torch.cat([arrays[1].new_zeros(1), arrays[1].flatten()])[1:].view_as(arrays[1])
    check(points, Momentum(), options)


def test_rows_know_nothing_of_the_table(device, small):
    """The same bits whatever else is in it, and in whichever order."""
    options = OPTIONS | {"motion": "exp", "transport": "parallel", "max_point_norm": 0.1}
    together = Points(Sphere(), torch.float32, device)
    apart = together.copy()
    together.step(Momentum(), options)
    for arrays in reversed(apart.arrays):
        one = together.copy()
        one.arrays = [arrays]
        one.step(Momentum(), options)
    for ours, others in zip(together.arrays, apart.arrays, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


def test_the_schedule_has_every_row_once(small):
    generator = np.random.default_rng(0)
    table = np.zeros((200, 8), dtype=np.int64)
    table[:, 6:] = generator.integers(1, [40, 300], size=(200, 2))
    programs, pieces, rows = (each.tolist() for each in triton_rows.schedule(table).maps(torch.device("cpu")))
    seen = [(matrix, first + i) for matrix, first, number in programs for i in range(number)]
    seen += [(matrix, row) for matrix, row, _, _ in rows]
    assert sorted(seen) == [(matrix, row) for matrix, points in enumerate(table[:, 6]) for row in range(points)]
    for index, (matrix, row, first, number) in enumerate(rows):
        assert pieces[first : first + number] == [[matrix, row, piece, index] for piece in range(number)]
        assert (number - 1) * SMALL["PIECE"] < table[matrix, 7] <= number * SMALL["PIECE"]
    assert sum(number for *_, number in rows) == len(pieces)
