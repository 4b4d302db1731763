from retract.optim import RiemannianSGD
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from studies.adapters import on_fixed_rank

TITLE = "SGD on FixedRank"
KNOBS = {"lr": 0.02, "rest": 0.1}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[Optimizer]:
    groups, others = on_fixed_rank(network)
    return [
        RiemannianSGD(groups, lr=lr, momentum=0.9, nesterov=True),
        SGD(others, lr=rest, momentum=0.9, nesterov=True),
    ]
