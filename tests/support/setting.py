"""What a law is given, and how it says that it does not hold."""

import functools

import torch

LAWS = []
"""(class whose hypothesis it belongs to, law). A manifold runs every law of every class that it inherits."""


def law(cls):
    """Register a function of a `Setting` as a law of `cls`; what it raises names the law."""

    def register(function):
        @functools.wraps(function)
        def named(setting):
            setting.law = function.__name__
            function(setting)

        LAWS.append((cls, named))
        return named

    return register


class Setting:
    """A case with points, tangents and a test function drawn for it."""

    def __init__(self, case, generator, device, dtype=torch.float64, manifold=None, thorough=False):
        self.case, self.generator, self.device, self.dtype = case, generator, device, dtype
        self.law = "no law"
        self.thorough = thorough
        """Whether laws that take long look everywhere, or only where faults show most."""
        self.m = manifold or case.manifold
        self.batch, self.event = case.shape[:1], case.shape[1:]
        if self.m.event_ndim == 0:
            self.batch, self.event = case.shape, ()
        self.x = self.point()
        # Well inside the injectivity radius, of different lengths.
        self.u = self.tangent(0.7)
        self.v, self.w = self.tangent(1.3), self.tangent(0.4)
        self.c = self.noise(*case.invariant(self.x).shape)

    @property
    def tol(self):
        """Rounding of a handful of operations on numbers of order one."""
        return 2000 * torch.finfo(self.dtype).eps

    def point(self):
        shape = (*self.batch, *self.event)
        return self.m.random_point(*shape, generator=self.generator, dtype=self.dtype, device=self.device)

    def noise(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype, device=self.device)

    def tangent(self, length):
        u = self.m.random_tangent(self.x, generator=self.generator)
        return u * (length / self.m.norm(self.x, u))

    def f(self, x):
        """A smooth function, constant on classes, whose gradient and Hessian are of order one."""
        z = self.case.invariant(x)
        return (self.c * z).sin().sum() + 0.5 * (self.c * z).sum().square() / z.numel()

    def egrad(self):
        x = self.x.clone().requires_grad_()
        return torch.autograd.grad(self.f(x), x)[0]

    def holds(self, condition, what):
        """Raise, naming the law, the manifold and the input, unless `condition`."""
        if not condition:
            where = f"{self.m!r}, points of shape {tuple(self.x.shape)} in {self.dtype}"
            raise AssertionError(f"{self.law} does not hold for {where}: {what}")

    def within(self, gap, limit, what):
        """`gap` is a number at most `limit`; NaN is not."""
        gap = float(gap)
        self.holds(gap <= limit, f"{what} is off by {gap:.3g} (tolerance {limit:.3g})")

    def between(self, value, low, high, what):
        value = float(value)
        self.holds(low < value < high, f"{what} is {value:.4g}, not between {low:.4g} and {high:.4g}")

    def same(self, a, b, what, tol=None):
        """Equal within tol, relative to size; the message has the worst entry of either."""
        size, gap = max(1.0, float(b.abs().max())), (a - b).abs().nan_to_num(nan=torch.inf)
        worst = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
        there = f"{what}, at {worst} {float(a.expand_as(gap)[worst]):.6g} for {float(b.expand_as(gap)[worst]):.6g},"
        self.within(gap.max(), (tol or self.tol) * size, there)

    def bitwise(self, a, b, what):
        self.holds(torch.equal(a, b), f"{what} is not equal bitwise; off by {float((a - b).abs().max()):.3g}")

    def finite(self, a, what):
        self.holds(bool(torch.isfinite(a).all()), f"{what} has {int((~torch.isfinite(a)).sum())} entries not finite")

    def on(self, y, what, tol=None):
        self.within(self.m.point_defect(y).max(), tol or self.tol, f"point_defect of {what}")

    def tangent_at(self, y, v, what, tol=None):
        self.within(self.m.tangent_defect(y, v).max(), tol or self.tol, f"tangent_defect of {what}")
