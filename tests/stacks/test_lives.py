"""Random lives of optimizers on all paths in lockstep; see `lives`."""

import pytest
import torch
from lives import Life

QUICK, LONG, LONG_HALF = 40, 2_400, 300


@pytest.mark.parametrize(
    ("dtype", "seeds"),
    [
        (torch.float64, range(QUICK - 16)),
        (torch.float16, range(8)),
        (torch.bfloat16, range(8)),
        pytest.param(torch.float64, range(QUICK, QUICK + LONG), marks=pytest.mark.long),
        pytest.param(torch.float16, range(QUICK, QUICK + LONG_HALF), marks=pytest.mark.long),
        pytest.param(torch.bfloat16, range(QUICK, QUICK + LONG_HALF), marks=pytest.mark.long),
    ],
    ids=lambda value: f"{len(value)}-lives" if isinstance(value, range) else str(value),
)
def test_lives(dtype, seeds):
    for seed in seeds:
        Life(seed, dtype).live()
