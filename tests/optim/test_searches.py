"""Line searches on functions of one variable: what they promise, and the strong Wolfe search of torch."""

import math
import random

import pytest
import torch
from retract.errors import OptionError
from retract.optim import Armijo, HagerZhang, StrongWolfe
from retract.optim.solvers.objective import State, Trial
from torch.optim.lbfgs import _strong_wolfe


def functions():
    """Functions that fall at 0: valleys, humps, kinks at which a step is too long, slow ones and fast ones."""
    yield "quadratic", lambda t: (t - 1.3) ** 2
    yield "far", lambda t: (1e-3 * t - 1.0) ** 2
    yield "near", lambda t: (1e3 * t - 1.0) ** 2
    yield "waves", lambda t: torch.sin(5 * t + 2) + 0.3 * (t - 1) ** 2
    yield "flat then steep", lambda t: torch.cosh(2 * t - 3)
    yield "rosenbrock", lambda t: (1 - t) ** 2 + 5 * (t - t**2) ** 2
    yield "log", lambda t: t - torch.log(t + 0.1)
    yield "wall", lambda t: torch.where(t < 2.0, -torch.sqrt(2.0 - t.clamp(max=1.999)) + (t - 1) ** 2, math.inf)


FUNCTIONS = dict(functions())


def curve(f):
    def at(t):
        x = torch.tensor(float(t), dtype=torch.float64, requires_grad=True)
        value = f(x)
        (slope,) = torch.autograd.grad(value, x)
        finite = bool(torch.isfinite(value) & torch.isfinite(slope))
        state = State([x.detach()], float(value.detach()), [slope], float(slope**2)) if finite else None
        return Trial(float(t), float(value.detach()), float(slope) if finite else math.nan, state)

    return at


@pytest.mark.parametrize("guess", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "search", [HagerZhang(), HagerZhang(curvature=0.1), StrongWolfe(), StrongWolfe(curvature=0.1), Armijo()], ids=repr
)
def test_what_passes(search, name, guess):
    at = curve(FUNCTIONS[name])
    start = at(0.0)
    found = search(at, start, guess, 0.0)
    assert found is not None
    assert found.f <= start.f + search.decrease * found.t * start.slope
    if not isinstance(search, Armijo):
        assert abs(found.slope) <= -search.curvature * start.slope


def against_torch(at, guess, trials, curvature):
    """Our search against torch's: the same trials in the same order, and the same end."""
    seen, mine, start = [], [], at(0.0)

    def theirs(x, t, d):
        trial = at(t)
        seen.append(trial.t)
        return trial.f, torch.tensor([trial.slope], dtype=torch.float64)

    def ours(t):
        mine.append(t)
        return at(t)

    one = torch.ones(1, dtype=torch.float64)
    slope = torch.tensor(start.slope, dtype=torch.float64)
    f, _, t, _ = _strong_wolfe(theirs, one, guess, one, start.f, one * slope, slope, c2=curvature, max_ls=trials)
    found = StrongWolfe(max_trials=trials, shortest=1e-9, curvature=curvature)(ours, start, guess, 0.0)
    assert mine == pytest.approx(seen, rel=1e-9)
    assert (found.t, found.f) == pytest.approx((float(t), f), rel=1e-9) if found else float(t) == 0.0


@pytest.mark.parametrize("guess", [1e-2, 0.3, 1.0, 7.0])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "wall"])
@pytest.mark.parametrize("trials", [1, 3, 25])
def test_strong_wolfe_is_that_of_torch(name, guess, trials):
    against_torch(curve(FUNCTIONS[name]), guess, trials, 0.9)


def test_strong_wolfe_is_that_of_torch_on_random_waves():
    """Sums of four waves, some with a hump between the first two trials."""
    numbers = random.Random(0)
    for _ in range(240):
        waves = [(numbers.uniform(-1, 1), numbers.uniform(0.5, 12), numbers.uniform(0, 6)) for _ in range(4)]
        at = curve(lambda t, waves=waves: sum(a * torch.sin(w * t + p) for a, w, p in waves))
        if at(0.0).slope < -0.1:
            against_torch(at, 0.5, 25, 0.1)


def test_slopes_decide_where_values_are_rounded():
    """A valley whose depth is lost in the digits of f, which is even higher by its last one: slopes still find the bottom."""

    def at(t):
        state = State([torch.tensor(t)], 1.0, [torch.tensor(t)], 1.0)
        return Trial(t, 1.0 + 2.3e-16 * (t > 0), 2e-20 * (t - 1.0), state)

    found = HagerZhang(curvature=0.1)(at, at(0.0), 0.01, 1e-15)
    assert found.t == pytest.approx(1.0, abs=0.1)
    assert HagerZhang(curvature=0.1)(at, at(0.0), 100.0, 1e-15).t == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("power", [-900, 900])
def test_searches_do_not_depend_on_the_unit_of_f(power):
    """Multiplied by a power of 2, f leads to the same step, also where squares of slopes are no numbers."""

    def scaled(at):
        return lambda t: (one := at(t))._replace(f=math.ldexp(one.f, power), slope=math.ldexp(one.slope, power))

    for name, f in FUNCTIONS.items():
        for search in (HagerZhang(curvature=0.1), StrongWolfe(curvature=0.1), Armijo()):
            one, two = (search(at, at(0.0), 7.0, 0.0) for at in (curve(f), scaled(curve(f))))
            assert one.t == two.t, (name, search)


def test_no_descent_gives_none():
    def rises(t):
        return Trial(t, t, -1.0 if t == 0 else 1.0, State([], t, [], 1.0))

    for search in (HagerZhang(), StrongWolfe(), Armijo()):
        assert search(rises, rises(0.0), 1.0, 0.0) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Armijo(decrease=0.7), "decrease"),
        (lambda: Armijo(contraction=1.0), "contraction"),
        (lambda: HagerZhang(curvature=1e-5), "curvature"),
        (lambda: StrongWolfe(max_trials=0), "max_trials"),
    ],
    ids=range(4),
)
def test_bad_options(make, message):
    with pytest.raises(OptionError, match=message):
        make()
