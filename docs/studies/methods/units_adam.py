from retract import psi
from retract.optim import RiemannianAdam
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from studies.split import grouped

TITLE = "Adam on units"
KNOBS = {"lr": 0.1, "rest": 0.004}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[Optimizer]:
    psi.declare(network, example, pairs=True)
    groups, others = grouped(network)
    return [RiemannianAdam(groups, lr=lr), AdamW(others, lr=rest, weight_decay=0.0)]
