from torch import Tensor, nn
from torch.optim import AdamW

from studies.split import split

TITLE = "AdamW"
KNOBS = {"lr": 4e-3, "rest": 4e-3, "decay": 0.1}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float, decay: float) -> list[AdamW]:
    weights, others = split(network, example)
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "lr": rest}]
    return [AdamW(groups, lr=lr, weight_decay=0.0)]
