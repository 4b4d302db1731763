from retract.manifolds import Grassmann
from retract.optim import SGDG
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from studies.split import on

TITLE = "SGDG"
KNOBS = {"lr": 0.2, "rest": 0.1}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[Optimizer]:
    groups, others = on(Grassmann(1), network, example)
    return [SGDG(groups, lr=lr), SGD(others, lr=rest, momentum=0.9, nesterov=True)]
