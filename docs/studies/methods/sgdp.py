from experiments.baselines import SGDP
from torch import Tensor, nn

from studies.split import split

TITLE = "SGDP"
KNOBS = {"lr": 0.1, "rest": 0.1, "decay": 5e-4}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float, decay: float) -> list[SGDP]:
    weights, others = split(network, example)
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "lr": rest}]
    return [SGDP(groups, lr=lr, momentum=0.9, nesterov=True)]
