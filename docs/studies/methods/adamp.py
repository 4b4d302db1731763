from experiments.baselines import AdamP
from torch import Tensor, nn

from studies.split import split

TITLE = "AdamP"
KNOBS = {"lr": 4e-3, "rest": 4e-3, "decay": 0.1}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float, decay: float) -> list[AdamP]:
    weights, others = split(network, example)
    return [AdamP([{"params": weights, "weight_decay": decay}, {"params": others, "lr": rest}], lr=lr)]
