"""The loop of the methods that search along a direction."""

from __future__ import annotations

from .algorithms import LineSearchMethod
from .objective import Trial
from .progress import Run

__all__ = ["descend"]


def descend(run: Run, method: LineSearchMethod) -> None:
    """Make steps until `Stopped` is raised."""
    objective = run.objective
    directions = method.start(objective.space)
    promised: float | None = None
    while True:
        here = run.state
        d, slope, length, guess = directions.next(here)
        if promised is None:
            promised = -slope * guess

        def curve(t: float) -> Trial:
            trial = objective.along(here, d, t)  # noqa: B023 - called before the loop goes on
            run.check_bounded(trial.f)
            return trial

        trial = method.search(curve, Trial(0.0, here.f, slope, here), guess, run.rounding(here.f))
        if trial is None or trial.state is None:
            if not (directions.forget() or run.coarser()):
                raise run.exhausted(promised)
            continue
        directions.remember(here, d, length, slope, trial)
        promised = None
        run.accept(trial.state, trial.t * length)
