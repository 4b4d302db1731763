"""The protocol on surfaces whose minimum is known, and its statistics against SciPy's."""

import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats
from studies import protocol
from studies.protocol import chosen, estimate, final_runs, interior, next_of_sweep, reached, values


def bowl(optimum, curvature=0.02, noise=0.0, edge=math.inf):
    """A loss over the nodes of a grid, infinite from `edge` on along the first knob."""

    def loss(node, seed):
        if node[0] >= edge:
            return math.inf
        distance = sum((k - best) ** 2 for k, best in zip(node, optimum, strict=True))
        return 0.8 + curvature * distance + noise * random.Random(f"{node} {seed}").gauss(0, 1)

    return loss


def swept(loss, dimension, budget, losses=None, most=None):
    """The losses of a sweep of at most `most` further runs, after `losses`."""
    losses, made = dict(losses or {}), 0
    while (run := next_of_sweep(dimension, losses, budget)) is not None and made != most:
        assert run not in losses
        losses[run] = loss(*run)
        made += 1
    return losses


@pytest.mark.parametrize("optimum", [(0, 0), (3, -2), (-4, 1), (0, 0, 0), (2, -1, 1), (-1, 2, -2)])
def test_a_sweep_finds_the_minimum_and_surrounds_it(optimum):
    losses = swept(bowl(optimum), len(optimum), 30)
    assert len(losses) == 30
    assert chosen(losses) == optimum
    assert interior(optimum, {node for node, _ in losses})
    for knob in range(len(optimum)):
        line = {
            node[knob] - optimum[knob]
            for node, _ in losses
            if node[:knob] + node[knob + 1 :] == optimum[:knob] + optimum[knob + 1 :]
        }
        assert {-1, 0, 1} <= line
        assert len(line) >= 5


def inside(losses):
    """Whether the setting that is chosen is in the interior of what was tried."""
    return interior(chosen(losses), {node for node, _ in losses})


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_every_method_gets_the_same_number_of_runs_and_more_only_to_settle_its_choice(dimension):
    def settled(runs):
        """Whether the setting that is chosen is the best, and inside."""
        losses = dict(runs)
        return inside(losses) and losses[chosen(losses), 0] == min(losses.values())

    found = set()
    for budget, optimum in itertools.product((1, 7, 12, 30, 41), range(-6, 7)):
        runs = list(swept(bowl((optimum,) * dimension), dimension, budget).items())
        assert budget <= len(runs) <= 2 * budget
        assert settled(runs) or len(runs) == 2 * budget
        assert not any(settled(runs[:count]) for count in range(budget, len(runs)))
        found.add(len(runs) == budget)
    assert found == {True, False}


def test_a_setting_that_has_fewer_seeds_than_others_is_not_passed_over():
    """It gets its seeds and its neighbours after the budget, and is chosen."""
    losses = swept(bowl((0, 0)), 2, 30)
    late = next(node for node, _ in losses if sum(other == node for other, _ in losses) == 1)
    losses[late, 0] = 0.1
    assert chosen(losses) == (0, 0)
    losses = swept(lambda node, seed: 0.1 if node == late else bowl((0, 0))(node, seed), 2, 30, losses)
    assert 30 < len(losses) < 60
    assert chosen(losses) == late
    assert inside(losses)


def test_a_seed_that_is_harder_for_all_settings_decides_nothing():
    """Else a setting with the first seed alone looks better than one that has a harder seed too."""
    plain = bowl((1, -1), noise=0.01)
    losses = swept(lambda node, seed: plain(node, seed) + 0.1 * (seed % 2), 2, 30)
    assert list(losses) == list(swept(plain, 2, 30))


@pytest.mark.parametrize("slope", [-1e-5, -1e-6, 1e-6, 1e-5])
def test_a_knob_without_effect_stays_where_it_is(slope):
    """Differences in the fifth digit decide nothing, wherever losses are: neither what is tried nor what is chosen."""
    for base in (0.0, 5e-5, 4.9e-5, 0.012345):
        two = bowl((-3, -1))
        losses = swept(lambda node, seed: base + two(node[:2], seed) + slope * node[2], 3, 45)  # noqa: B023
        assert len(losses) == 45
        assert chosen(losses) == (-3, -1, 0)
        assert {node[2] for node, _ in losses} == {-2, -1, 0, 1, 2}


def test_the_best_settings_get_several_seeds_and_only_such_are_chosen():
    """With noise a single lucky run is not chosen over a mean."""
    losses = swept(bowl((1, 0), noise=0.02), 2, 30)
    counts = {node: [seed for other, seed in losses if other == node] for node, _ in losses}
    assert len(counts[chosen(losses)]) == max(map(len, counts.values())) >= protocol.SEEDS
    assert sum(len(seeds) >= protocol.SEEDS for seeds in counts.values()) >= protocol.REPEATED
    assert chosen({((0,), 0): 0.5, ((1,), 0): 0.6, ((1,), 1): 0.7}) == (1,)


def test_a_sweep_that_stopped_anywhere_goes_on_as_if_it_had_not():
    loss = bowl((2, -1, 1), noise=0.01)
    whole = swept(loss, 3, 30)
    for stop in range(31):
        assert list(swept(loss, 3, 30, swept(loss, 3, 30, most=stop))) == list(whole)


def test_the_order_in_which_results_are_stored_does_not_matter():
    losses = swept(bowl((2, -1), noise=0.01), 2, 30)
    for count in range(30):
        part = list(losses.items())[:count]
        assert next_of_sweep(2, dict(part[::-1]), 30) == list(losses)[count]


def test_runs_that_diverge_count_and_lead_to_smaller_rates():
    losses = swept(bowl((-5, 0), edge=-3), 2, 30)
    assert chosen(losses) == (-5, 0)
    assert inside(losses)
    assert sum(math.isinf(loss) for loss in losses.values()) >= 3
    nothing = swept(lambda node, seed: math.inf, 2, 12)
    assert [node for node, _ in nothing] == [(-k, 0) for k in range(24)]


def test_an_optimum_at_the_end_of_the_budget_is_told():
    losses = swept(bowl((30, 0)), 2, 12)
    assert len(losses) == 24
    assert not inside(losses)


def test_rates_that_are_nearly_as_good_have_no_worse_one_between():
    """By hand: along the other knob and beyond a worse rate they do not count, and the second seed adds 1 to all."""
    along = {-3: 0.0, -2: 0.4, -1: 0.1, 0: 0.0, 1: 0.2, 2: 0.2, 3: 0.3}
    losses = {((k, 0), 0): loss for k, loss in along.items()} | {((0, 0), 1): 1.0, ((-1, 1), 0): 0.0}
    assert protocol.flat(losses, (0, 0), 0.25) == ((-1, 0), (2, 0))
    assert protocol.flat(losses, (0, 0), 0.05) == ((0, 0), (0, 0))
    assert protocol.flat(losses, (0, 0), 1.0) == ((-3, 0), (3, 0))


def test_values_and_final_runs():
    knobs = {"lr": 0.1, "rest": 0.2, "decay": 1e-3}
    assert values(knobs, (1, -2, 2)) == {"lr": 0.2, "rest": 0.05, "decay": 1.6e-2}
    runs = final_runs(knobs, (1, 0, 0))
    assert [run.seed for run in runs if run.phase == "final"] == [100, 101, 102, 103, 104]
    assert sorted({run.values["lr"] for run in runs}) == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8])
    assert [run.seed for run in runs if run.phase == "rates"] == [100, 101] * 4
    assert {tuple(run.values.items())[1:] for run in runs} == {(("rest", 0.2), ("decay", 1e-3))}
    assert not {run.seed for run in runs} & {seed for _, seed in swept(bowl((0,)), 1, 60)}


@pytest.mark.parametrize("count", range(2, 11))
def test_intervals_are_those_of_scipy(count):
    sample = np.random.default_rng(count).normal(3.0, 2.0, count)
    found = estimate(sample.tolist())
    assert found.mean == pytest.approx(sample.mean(), rel=1e-12)
    assert found.error == pytest.approx(stats.sem(sample), rel=1e-12)
    low, high = stats.t.interval(0.95, count - 1, sample.mean(), stats.sem(sample))
    assert (found.low + found.high) / 2 == pytest.approx(found.mean)
    assert found.high - found.low == pytest.approx(high - low, rel=2e-6)


def test_an_interval_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, error 1/√3, t = 4.30265."""
    found = estimate([1.0, 2.0, 3.0])
    assert found.error == pytest.approx(3**-0.5)
    assert (found.low, found.high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5))


def test_when_a_target_is_reached():
    curve = [2.0, 1.0, 0.5, 0.4]
    assert reached(curve, 0.75) == pytest.approx(2.5 / 4)
    assert reached(curve, 0.4) == 1.0
    assert reached(curve, 3.0) == 0.25
    assert reached(curve, 0.39) == math.inf
