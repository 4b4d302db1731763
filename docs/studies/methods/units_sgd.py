from retract import psi
from retract.optim import RiemannianSGD
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from studies.split import grouped

TITLE = "SGD on units"
KNOBS = {"lr": 0.1, "rest": 0.1}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[Optimizer]:
    psi.declare(network, example, pairs=True)
    groups, others = grouped(network)
    return [
        RiemannianSGD(groups, lr=lr, momentum=0.9, nesterov=True),
        SGD(others, lr=rest, momentum=0.9, nesterov=True),
    ]
