from retract import psi
from retract.optim import RiemannianAdam
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from studies.split import on_pairs, relative

TITLE = "Adam on PSI and pairs, AdamW"
KNOBS = {"lr": 0.04, "rest": 4e-3, "decay": 0.1}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float, decay: float) -> list[Optimizer]:
    psi.declare(network, example)
    groups, weights, others = on_pairs(network, example)
    flat = [*relative(weights, lr, weight_decay=decay), {"params": others, "lr": rest, "weight_decay": 0.0}]
    return [RiemannianAdam(groups, lr=lr), AdamW(flat)]
