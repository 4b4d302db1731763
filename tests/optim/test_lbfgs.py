"""`RiemannianLBFGS`: torch.optim.LBFGS in flat space, tangents at one point, declared modules, lives of its state."""

import copy
import io
import itertools

import pytest
import retract
import torch
from geometries import CASES
from retract.errors import DeclarationError, OptionError
from retract.manifolds import PSI, Euclidean, QuotientManifold, Sphere, Stiefel
from retract.optim import LBFGS, RiemannianLBFGS, minimize
from retract.optim.solvers.objective import Objective
from retract.optim.solvers.pairs import Pairs
from retract.optim.solvers.space import Space
from torch import nn


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def least_squares(seed, dtype=torch.float64):
    a, b = normal(30, 12, seed=seed, dtype=dtype), normal(30, seed=100 + seed, dtype=dtype)

    def loss(parts):
        off = a @ torch.cat([part.reshape(-1) for part in parts]) - b
        return off.square().mean() + 0.1 * (off**4).mean()

    return loss


def rosenbrock(parts):
    x = torch.cat([part.reshape(-1) for part in parts])
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


def run(cls, loss, calls, shapes=((7,), (1, 5)), **options):
    params = [nn.Parameter(torch.full(shape, 0.1, dtype=torch.float64)) for shape in shapes]
    optimizer = cls(params, **options)

    def closure():
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        return value

    losses = [optimizer.step(closure).detach() for _ in range(calls)]
    state = optimizer.state[params[0]]
    return (
        torch.cat([p.detach().reshape(-1) for p in params]),
        torch.stack(losses),
        state["func_evals"],
        state["n_iter"],
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"line_search_fn": "strong_wolfe"},
        {"line_search_fn": "strong_wolfe", "history_size": 3, "max_iter": 5, "lr": 0.5},
        {"line_search_fn": "strong_wolfe", "max_eval": 4},
        {"lr": 0.05, "history_size": 4},
        {"lr": 0.05, "max_iter": 1},
    ],
    ids=str,
)
def test_it_is_torchs_in_flat_space(options, seed):
    """The same points, losses and numbers of evaluations, over several calls."""
    theirs, ours = (run(cls, least_squares(seed), 3, **options) for cls in (torch.optim.LBFGS, RiemannianLBFGS))
    assert ours[2:] == theirs[2:]
    assert torch.allclose(ours[1], theirs[1], rtol=1e-12, atol=0.0)
    assert torch.allclose(ours[0], theirs[0], rtol=0.0, atol=1e-11)


def test_it_is_torchs_for_few_iterations_and_evaluations():
    """Wherever the closure is called, and after every call."""

    def trace(cls, dtype, **options):
        params = [nn.Parameter(torch.full(shape, 0.1, dtype=dtype)) for shape in ((7,), (1, 5))]
        optimizer, loss, points = cls(params, **options), least_squares(0, dtype), []

        def closure():
            optimizer.zero_grad()
            value = loss(params)
            value.backward()
            points.append(torch.cat([p.detach().reshape(-1) for p in params]))
            return value

        for _ in range(3):
            optimizer.step(closure)
            points.append(torch.cat([p.detach().reshape(-1) for p in params]))
        return points

    for dtype, lr, max_iter, max_eval, search, size in itertools.product(
        (torch.float64, torch.float32), (0.05, 1.0), (1, 2, 3), (None, 1, 2, 3), (None, "strong_wolfe"), (1, 5)
    ):
        options = {"lr": lr, "max_iter": max_iter, "max_eval": max_eval, "line_search_fn": search, "history_size": size}
        theirs, ours = (trace(cls, dtype, **options) for cls in (torch.optim.LBFGS, RiemannianLBFGS))
        assert len(ours) == len(theirs), options
        error = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
        assert error <= 1e4 * torch.finfo(dtype).eps, (options, error)


@pytest.mark.parametrize("line_search_fn", ["strong_wolfe", None])
def test_scheduled_rates(line_search_fn):
    """As in torch for numbers. Of a tensor torch keeps the tensor as its last step, which the scheduler then changes."""

    def trained(cls, lr):
        params = [nn.Parameter(torch.full((12,), 0.1, dtype=torch.float64))]
        optimizer, loss = cls(params, lr=lr, max_iter=3, line_search_fn=line_search_fn), least_squares(0)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

        def closure():
            optimizer.zero_grad()
            value = loss(params)
            value.backward()
            return value

        for _ in range(6):
            optimizer.step(closure)
            scheduler.step()
        return params[0].detach()

    expected = trained(torch.optim.LBFGS, 0.25)
    for lr in (0.25, torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64)):
        assert torch.allclose(trained(RiemannianLBFGS, lr), expected, rtol=0.0, atol=1e-13)


def test_the_closure_is_under_the_autocast_around_the_step():
    """And nothing else is: the rows stay on the sphere to the last digits. Parameters are cast anew in every call."""

    def trained(around, inside):
        torch.manual_seed(0)
        model = nn.Linear(6, 4)
        retract.declare(model, "weight", Sphere())
        retract.project_(model)
        optimizer, losses = make(model), []

        def closure():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside or torch.is_autocast_enabled("cpu")):
                out = model(INPUTS.float())
            assert out.dtype == torch.bfloat16
            loss = out.float().square().mean()
            loss.backward()
            losses.append(loss.item())
            return loss

        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            optimizer.step(closure)
            optimizer.step(closure)
        Sphere().check_point(model.weight.detach(), "weight", 1e-6)
        return losses

    losses = trained(True, False)
    assert losses == trained(False, True)
    assert losses[-1] < losses[0]


def test_it_is_torchs_on_a_curved_valley():
    """Ten iterations on Rosenbrock's function, before rounding errors are amplified."""
    options = {"line_search_fn": "strong_wolfe", "max_iter": 10}
    theirs, ours = (run(cls, rosenbrock, 1, **options) for cls in (torch.optim.LBFGS, RiemannianLBFGS))
    assert ours[2:] == theirs[2:]
    assert torch.allclose(ours[0], theirs[0], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_pairs_are_tangent_at_one_point(case):
    """After every step all pairs are tangent at the new point, with the products of their own steps."""
    m, space = case.manifold, Space([case.manifold])
    x = m.random_point(3, *case.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = normal(*x.shape, seed=2)
    # Gradients of quotients are horizontal for functions of classes.
    canonical = m.canonical if isinstance(m, QuotientManifold) else lambda x: x
    objective = Objective(lambda x: (weights * canonical(x[0])).sin().sum(), space)
    here, pairs = objective.start([x]), Pairs(space, 4, lambda sy, ss, square: True)
    for i in range(3):
        u = [0.1 * m.project(here.x[0], normal(*x.shape, seed=3 + i))]
        there = objective.state(space.each("retract", here.x, u))
        expected = there.gradient[0] - m.transport(here.x[0], u[0], here.gradient[0])
        pairs.carry(here.x, here.gradient, u, there.x, 1.0)
        pairs.append(there.gradient)
        assert torch.allclose(pairs.stacks[0][-1, 1], expected, atol=1e-10)
        assert torch.allclose(pairs.stacks[0][-1, 0], m.transport(here.x[0], u[0], u[0]), atol=1e-12)
        for vector in pairs.stacks[0].flatten(0, 1):
            assert float(m.tangent_defect(there.x[0], vector).max()) < 1e-9
        here = there


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("length", [0.02, 0.2])
def test_directions_are_those_of_the_bfgs_formula(case, length):
    """−H g by products with rank-two updates, from the pairs as they are stored, for short steps, on which projections may wait, and
    long ones; it is tangent, and its slope and length are those of the metric."""
    m, space = case.manifold, Space([case.manifold])
    x = m.random_point(3, *case.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = m.random_point(3, *case.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    canonical = m.canonical if isinstance(m, QuotientManifold) else lambda x: x
    objective = Objective(lambda x: (canonical(x[0]) - canonical(target)).square().sum(), space)
    here, pairs = objective.start([x]), Pairs(space, 3, lambda sy, ss, square: sy > 0)
    for i in range(5):
        v = m.project(here.x[0], normal(*x.shape, seed=3 + i))
        u = [length * v / float(space.inner(here.x, [v], [v])) ** 0.5]
        there = objective.state(space.each("retract", here.x, u))
        pairs.carry(here.x, here.gradient, u, there.x, length)
        pairs.append(there.gradient)
        here = there
        found = pairs.direction(here.x, here.gradient, here.square)
        if found is None:
            continue
        y, g = here.x[0], here.gradient[0]
        s, change = pairs.stacks[0].unbind(1)

        def dot(a, b, y=y):
            return float(m.inner(y, a, b).sum())

        def inverse(q, j, dot=dot, s=s, change=change):
            """H q from the first j pairs."""
            if j == 0:
                return q * dot(s[-1], change[-1]) / dot(change[-1], change[-1])
            a, b = s[j - 1], change[j - 1]
            rho = 1.0 / dot(a, b)
            middle = inverse(q - rho * dot(a, q) * b, j - 1)
            return middle - rho * dot(b, middle) * a + rho * dot(a, q) * a

        (d,), slope, long = found
        assert torch.allclose(d, -m.project(y, inverse(g, len(s))), rtol=2e-2, atol=2e-2 * float(d.abs().max()))
        assert float(m.tangent_defect(y, d).max()) < 1e-9
        assert slope == pytest.approx(dot(d, g), rel=2e-2)
        assert long == pytest.approx(dot(d, d) ** 0.5, rel=2e-2)
        if not space.projects or space.flat:
            assert torch.allclose(d, -inverse(g, len(s)), rtol=1e-8, atol=1e-8 * float(d.abs().max()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_slopes_are_products_with_the_carried_direction(case):
    """At the end of a trial; and the square is that of the gradient there."""
    m, space = case.manifold, Space([case.manifold])
    x = m.random_point(3, *case.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    canonical = m.canonical if isinstance(m, QuotientManifold) else lambda x: x
    weights = normal(*x.shape, seed=2)
    objective = Objective(lambda x: (weights * canonical(x[0])).sin().sum(), space)
    here, d = objective.start([x]), m.project(x, normal(*x.shape, seed=3))
    trial = objective.along(here, [d], 0.3)
    y, gradient = trial.state.x[0], trial.state.gradient[0]
    assert torch.equal(y, m.retract(x, 0.3 * d))
    assert trial.slope == pytest.approx(float(m.inner(y, gradient, m.transport(x, 0.3 * d, d)).sum()), rel=1e-9)
    assert trial.state.square == pytest.approx(float(m.inner(y, gradient, gradient).sum()), rel=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_table_is_that_of_the_metric(case):
    m, space = case.manifold, Space([case.manifold])
    x = m.random_point(3, *case.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, v = (torch.stack([m.project(x, normal(*x.shape, seed=s + i)) for i in range(3)]) for s in (10, 20))
    table = space.table([x], [u], [v])
    for i in range(3):
        for j in range(3):
            expected = m.inner(x, u[i], v[j]).sum()
            assert torch.allclose(table[i, j], expected, rtol=1e-10, atol=1e-12)
            assert torch.allclose(space.inner([x], [u[i]], [v[j]]), expected, rtol=1e-10, atol=1e-12)


def network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 1)
    ).to(dtype)
    retract.declare(model, "0.weight", PSI())
    retract.declare(model, "3.weight", Stiefel())
    retract.project_(model)
    return model


INPUTS, TARGETS = normal(40, 6, seed=5), normal(40, 1, seed=6)


def trained(model, optimizer, calls):
    def closure():
        optimizer.zero_grad()
        loss = (model(INPUTS.to(model[3].weight.dtype)) - TARGETS.to(model[3].weight.dtype)).square().mean()
        loss.backward()
        return loss

    return [float(optimizer.step(closure).detach()) for _ in range(calls)]


def make(model, **options):
    options = {"max_iter": 5, "line_search_fn": "strong_wolfe", **options}
    return RiemannianLBFGS(retract.param_groups(model), **options)


@pytest.mark.parametrize("line_search_fn", ["strong_wolfe", None])
def test_a_declared_network(line_search_fn):
    model = network()
    losses = trained(model, make(model, lr=1.0 if line_search_fn else 0.05, line_search_fn=line_search_fn), 8)
    assert losses[-1] < (0.1 if line_search_fn else 0.9) * losses[0]
    Stiefel().check_point(model[3].weight.detach(), "weight", 1e-10)


def test_scaled_rows_train_alike():
    """Rows in front of BatchNorm (with ε = 0) at other norms: the same losses."""
    model = network()
    model[1].eps = 1e-30
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight *= torch.logspace(-2, 2, 8, dtype=torch.float64).unsqueeze(1)
    one, two = (trained(m, make(m), 3) for m in (model, other))
    assert one == pytest.approx(two, rel=1e-7)


def test_a_run_goes_on_from_its_state():
    """Saved, loaded by torch.load and pickled: the next calls are those of the run that went on."""
    model = network()
    optimizer = make(model)
    trained(model, optimizer, 2)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = trained(model, optimizer, 3)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network(seed=9)
    other.load_state_dict(saved["model"])
    again = make(other)
    again.load_state_dict(saved["optimizer"])
    assert trained(other, again, 3) == expected


def test_parameters_that_have_moved_start_anew():
    """Pairs belong to a point; parameters that were changed between two calls are another one."""
    model = network()
    optimizer = make(model)
    trained(model, optimizer, 2)
    with torch.no_grad():
        model[0].weight.copy_(normal(8, 6, seed=8))
    other = copy.deepcopy(model)
    fresh = make(other)
    fresh.state[fresh.param_groups[0]["params"][0]].update(n_iter=1, func_evals=0)
    assert trained(model, optimizer, 2) == pytest.approx(trained(other, fresh, 2), rel=1e-12)


def test_half_precision_is_computed_in_float32():
    model = network(dtype=torch.bfloat16)
    losses = trained(model, make(model), 3)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert model[0].weight.dtype == torch.bfloat16


def test_frozen_parameters_stay():
    model = network()
    model[3].requires_grad_(False)
    before = model[3].weight.clone()
    losses = trained(model, make(model), 3)
    assert losses[-1] < losses[0]
    assert torch.equal(model[3].weight, before)


def test_it_agrees_with_minimize_on_a_sphere():
    a = torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64))
    x0 = Sphere().random_point(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = nn.Parameter(x0.clone().unsqueeze(0))
    group = {"params": [p], "manifold": Sphere()}
    optimizer = RiemannianLBFGS([group], max_iter=200, tolerance_change=0.0, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = p[0] @ a @ p[0]
        loss.backward()
        return loss

    optimizer.step(closure)
    found = minimize(lambda x: x @ a @ x, x0, Sphere(), LBFGS())
    assert float(closure().detach()) == pytest.approx(found.fun, abs=1e-13)
    assert p.grad.shape == (1, 8)


def test_bad_options():
    p = nn.Parameter(torch.ones(3, 3))
    for options in (
        {"lr": -1.0},
        {"max_iter": 0},
        {"history_size": 1.5},
        {"line_search_fn": "armijo"},
        {"tolerance_grad": -1},
    ):
        with pytest.raises(OptionError, match=next(iter(options))):
            RiemannianLBFGS([p], **options)
    with pytest.raises(OptionError, match="lr in a group"):
        RiemannianLBFGS([{"params": [p], "manifold": Euclidean(1), "lr": 0.1}])
    with pytest.raises(OptionError, match="weight_decay in a group"):
        RiemannianLBFGS([{"params": [p], "weight_decay": 0.1}])
    model = network()
    with pytest.raises(DeclarationError, match="was declared on PSI"):
        RiemannianLBFGS(model.parameters())
