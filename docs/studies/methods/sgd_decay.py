from torch import Tensor, nn
from torch.optim import SGD

from studies.split import split

TITLE = "SGD with decay"
KNOBS = {"lr": 0.1, "rest": 0.1, "decay": 5e-4}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float, decay: float) -> list[SGD]:
    weights, others = split(network, example)
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "lr": rest}]
    return [SGD(groups, lr=lr, momentum=0.9, nesterov=True)]
