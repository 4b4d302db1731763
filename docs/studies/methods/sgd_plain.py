from torch import Tensor, nn
from torch.optim import SGD

from studies.split import split

TITLE = "SGD"
KNOBS = {"lr": 0.1, "rest": 0.1}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[SGD]:
    weights, others = split(network, example)
    groups = [{"params": weights, "lr": lr}, {"params": others, "lr": rest}]
    return [SGD(groups, momentum=0.9, nesterov=True)]
