"""The loop of the methods that search along a direction."""

from __future__ import annotations

from .methods import LineSearchMethod
from .objective import Trial
from .run import Run

__all__ = ["descend"]


def descend(run: Run, method: LineSearchMethod) -> None:
    """Make steps until `Stopped` is raised."""
    objective = run.objective
    directions = method.start(objective.space)
    promised = 0.0
    while True:
        here = run.state
        d, slope, length, guess = directions.next(here)
        promised = max(promised, -slope)
        trial = method.search(
            lambda t: objective.along(here, d, t),  # noqa: B023 - called before the loop goes on
            Trial(0.0, here.f, slope, here),
            guess,
            run.rounding(here.f),
        )
        if trial is None or trial.state is None:
            if not directions.forget():
                raise run.exhausted(promised)
            promised = -slope
            continue
        directions.remember(here, d, length, slope, trial)
        promised = 0.0
        run.accept(trial.state, trial.t * length)
