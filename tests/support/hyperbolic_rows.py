"""One step of the row kernels of hyperbolic rows against the reference, for any backend."""

import itertools
import math

import numpy as np
import torch
from retract.manifolds import Lorentz, PoincareBall
from retract.optim.kernels.launch import hyperbolic_update_of
from retract.optim.rules import Adam, Memory, Momentum
from retract.optim.update import update
from row_options import OPTIONS, RULES

MANIFOLDS = {
    "ball": PoincareBall(),
    "wider": PoincareBall(curvature=-0.25),
    "sheet": Lorentz(),
    "narrower": Lorentz(curvature=-4.0),
}
SHAPES = [(70, 3), (130, 5), (9, 2), (5, 33), (3, 300)]
"""Blocks that are full and not, of narrow and of wide rows."""
STEP = 3.0
LIMIT = 12.0
"""Of `Points.excess`."""


class Points:
    """Points at the distance `far` R from the origin, gradients and tangents about R `long`, second moments; an entry per shape."""

    def __init__(self, manifold, device, far=1.0, long=1.0, shapes=SHAPES, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.manifold, self.device, self.arrays = manifold, device, []
        for shape in shapes:
            draw = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
            x = manifold.nearest(self.at(draw[0], far).float()).double()
            g, v = (manifold.project(x, a) for a in draw[1:])
            g, v = (a * (long * manifold.radius) / manifold.norm(x, a) for a in (g, v))
            # The gradient in the ambient space of the Riemannian gradient g, and some of its normal part.
            e = g / manifold.conformal_factor(x) if isinstance(manifold, PoincareBall) else g + 0.1 * x
            if isinstance(manifold, Lorentz):
                e[:, 0] = -e[:, 0]
            square = torch.rand(shape[0], 1, generator=generator, dtype=torch.float64) * manifold.radius**2
            self.arrays.append([a.float().to(device) for a in (x, e, v, square)])

    def at(self, a, far):
        """The points at the distance `far` R in the directions `a`."""
        manifold = self.manifold
        origin = torch.zeros_like(a)
        if isinstance(manifold, Lorentz):
            origin[:, 0], a[:, 0] = manifold.radius, 0.0
        return manifold.exp(origin, a * (far * manifold.radius / manifold.norm(origin, a)))

    def update(self, rule, options, fresh=False, moving=True):
        memory = Memory(torch.float32, fresh, step=torch.tensor(STEP))
        return hyperbolic_update_of(self.manifold, rule, OPTIONS | options, memory, moving)

    def table(self, its):
        rows = []
        for x, g, v, s in self.arrays:
            moving, adam = its.choices.moving, its.choices.adam
            rows.append([x.data_ptr(), g.data_ptr(), v.data_ptr() * moving, 0, s.data_ptr() * adam, 0, *x.shape])
        return np.array(rows, dtype=np.int64)

    def step(self, kernel, rule, options, fresh=False, moving=True):
        """One step by the `kernel`, in place."""
        its = self.update(rule, options, fresh, moving)
        table = self.table(its)
        kernel.step(table, kernel.schedule(table), its, torch.float32, self.device)

    def reference(self, rule, options, dtype, fresh=False, moving=True):
        """Points, vectors and second moments after the step by the maps, computed in `dtype`."""
        ends = []
        for arrays in self.arrays:
            x, e, v, s = (a.to(dtype, copy=True) for a in arrays)
            if isinstance(self.manifold, Lorentz):
                x, v = self.manifold.nearest(x), self.lifted(x, v)
            memory = Memory(torch.float32, fresh, step=torch.tensor(STEP))
            if moving:
                memory.vectors[rule.vectors[0]] = v
            if rule.scalars:
                memory.scalars[rule.scalars[0]] = s
            y = update(self.manifold, rule, x, e, memory, OPTIONS | options)
            scalar = memory.scalars[rule.scalars[0]] if rule.scalars else s
            ends.append([y, memory.vectors.get(rule.vectors[0], v), scalar])
        return ends

    def lifted(self, x, v):
        """The tangent at the point `x` of the sheet with the coordinates of `v` but the first."""
        space = x[:, 1:]
        time = (self.manifold.radius**2 + space.square().sum(1, True)).sqrt()
        return torch.cat([(space * v[:, 1:]).sum(1, True) / time, v[:, 1:]], 1)

    def ends(self):
        """Points, vectors and second moments."""
        return [[x, v, s] for x, _, v, s in self.arrays]

    def excess(self, ends, exact):
        """Errors of points, of vectors and of second moments, as multiples of what rounding coordinates costs.

        A point at the distance r from the origin is moved by ε R exp(r/unit), and a tangent turned by as much on the sheet.
        """
        rounding, worst = torch.finfo(torch.float32).eps, []
        ball, unit = isinstance(self.manifold, PoincareBall), self.manifold.radius
        for (y, w, s), (to, v, square) in zip(ends, exact, strict=True):
            origin = torch.zeros_like(to)
            origin[:, 0] = 0.0 if ball else unit
            stretch = (self.manifold.dist(origin, to) / unit).exp()
            apart = self.manifold.dist(y.double(), to) / (unit * stretch)
            gap = w.double() - v
            off = self.manifold.norm(to, gap if ball else self.lifted(to, gap)) / self.manifold.norm(to, v).clamp(
                min=unit
            )
            off = off if ball else torch.maximum(off / stretch, gap.abs().amax(1, True) / v.abs().amax(1, True))
            moments = (s.double() - square).abs() / square
            worst.append([float(error.max()) / rounding for error in (apart, off, moments)])
        return [max(errors) for errors in zip(*worst, strict=True)]


CHOICES = list(itertools.product(MANIFOLDS, ("retract", "exp"), ("manifold", "project", "none")))
CHOICES = [choice for choice in CHOICES if "none" not in choice or choice[0] in ("ball", "wider")]


def check(kernel, choice, name, device, turn, **how):
    """A step of `kernel` is one in float64 up to the rounding of coordinates."""
    manifold, motion, transport = choice
    rule, changes = RULES[name]
    options = {**changes, "motion": motion, "transport": transport, "maximize": turn % 2 == 1}
    options["max_point_norm"] = 0.4 if turn % 4 < 2 else None
    how |= {"fresh": turn % 5 == 0, "moving": bool(rule.scalars) or (OPTIONS | options)["momentum"] != 0}
    points = Points(MANIFOLDS[manifold], device, far=(0.5, 2.0, 6.0)[turn % 3], long=(0.3, 3.0)[turn % 2])
    exact = points.reference(rule, options, torch.float64, **how)
    points.step(kernel, rule, options, **how)
    errors = points.excess(points.ends(), exact)
    assert max(errors) < LIMIT, errors


def check_still(kernel, device):
    """Without a gradient and at lr = 0 no bit changes."""
    for name, manifold in MANIFOLDS.items():
        for motion in ("retract", "exp"):
            points = Points(manifold, device, far=3.0)
            for _, g, v, _ in points.arrays:
                g.zero_()
                v.zero_()
            before = [[a.clone() for a in arrays] for arrays in points.arrays]
            points.step(kernel, Momentum(), {"motion": motion, "lr": 0.0})
            pairs = zip(itertools.chain(*points.arrays), itertools.chain(*before), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), (name, motion)


def check_rows_apart(kernel, device):
    """NaN and infinity stay in their row; with a huge gradient a point stays one, where it is clipped, at a tiny rate, and in Adam."""
    for name, manifold in MANIFOLDS.items():
        for rule, options in (
            (Momentum(), {"max_point_norm": 0.5}),
            (Momentum(), {"lr": 1e-26}),
            (Adam(), {"lr": 0.1}),
        ):
            points, clean = (Points(manifold, device, shapes=[(70, 5), (6, 33)]) for _ in range(2))
            for _, g, _, _ in points.arrays:
                g[1, 2], g[2, 1] = torch.nan, torch.inf
                g[-1] *= 1e25 / g[-1].norm()
            points.step(kernel, rule, options)
            clean.step(kernel, rule, options)
            for ours, others in zip(points.ends(), clean.ends(), strict=True):
                for a, b in zip(ours, others, strict=True):  # up to rounding: it may be smaller beside such a row
                    torch.testing.assert_close(a[3:-1], b[3:-1], rtol=1e-5, atol=1e-6)
                assert not ours[0][1].isfinite().all()
                assert ours[0][-1].isfinite().all(), name
                assert manifold.point_defect(ours[0][-1:]).max() < 1e-5, name


def check_boundary(kernel, device):
    """Long steps end in the ball, where its floats end, and on the sheet."""
    for name, manifold in MANIFOLDS.items():
        for motion in ("retract", "exp"):
            points = Points(manifold, device, far=12.0, long=25.0)
            points.step(kernel, Momentum(), {"motion": motion, "lr": 1.0})
            for y, w, _ in points.ends():
                assert y.isfinite().all()
                assert w.isfinite().all()
                assert manifold.point_defect(y.double()).max() < 1e-6, (name, motion)
                if isinstance(manifold, PoincareBall):
                    gap = 1.0 - y.double().square().sum(1) / manifold.radius**2
                    assert gap.min() > 1.5 * torch.finfo(torch.float32).eps, (name, motion)


def check_middle(kernel, device):
    """A step in the ball from far out to the origin, where large terms cancel: a hundredth of what the rounding of x costs there."""
    far = 14.0
    for manifold in (MANIFOLDS["ball"], MANIFOLDS["wider"]):
        for motion in ("retract", "exp"):
            points = Points(manifold, device, far=far)
            for x, e, _, _ in points.arrays:
                wide = x.double()
                u = -manifold.log(wide, torch.zeros_like(wide))
                theta = manifold.norm(wide, u) / manifold.radius
                u = u * theta.sinh() / theta if motion == "retract" else u
                e.copy_(u / manifold.conformal_factor(wide))
            options = {"motion": motion, "lr": 1.0, "momentum": 0.0}
            exact = points.reference(Momentum(), options, torch.float64, moving=False)
            points.step(kernel, Momentum(), options, moving=False)
            assert points.excess(points.ends(), exact)[0] < 0.01 * math.exp(far), motion
