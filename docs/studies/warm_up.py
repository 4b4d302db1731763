"""Studies with a warm-up over a tenth of the steps: sweeps of `lr` for baselines and for the most accurate method, which tell whether
its absence decides."""

from __future__ import annotations

from .batchnorm import BatchNorm
from .loop import RateSweep, Study
from .relu_study import ReLUStudy
from .transformers import Transformers, Transformers256

__all__ = ["BatchNormWarm", "ReLUWarm", "TransformersWarm", "TransformersWarm256"]


class BatchNormWarm(RateSweep, BatchNorm):
    """The small network with BatchNorm."""

    name = "batchnorm-warm"
    title = "small network, warm-up"
    methods: tuple[str, ...] = ("sgd_decay", "adamw_decay", "muon_decay")
    warm_up = round(BatchNorm.steps / 10)
    after: type[Study] | None = BatchNorm


class ReLUWarm(RateSweep, ReLUStudy):
    """The same without BatchNorm."""

    name = "relu-warm"
    title = "warm-up"
    methods: tuple[str, ...] = ("sgd_decay", "adamw_decay", "muon_decay")
    warm_up = round(ReLUStudy.steps / 10)
    after: type[Study] | None = ReLUStudy


class TransformersWarm(RateSweep, Transformers):
    """Transformers of width 64."""

    name = "transformers-warm"
    title = "width 64, warm-up"
    methods: tuple[str, ...] = ("adamw_decay", "muon_decay")
    warm_up = round(Transformers.steps / 10)
    after: type[Study] | None = Transformers


class TransformersWarm256(TransformersWarm):
    """And of four times the width."""

    name = "transformers-256-warm"
    title = "width 256, warm-up"
    width = Transformers256.width
