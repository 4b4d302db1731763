from torch import Tensor, nn
from torch.optim import AdamW

from studies.adapters import factors

TITLE = "AdamW"
KNOBS = {"lr": 8e-3, "rest": 0.016, "decay": 0.1}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float, decay: float) -> list[AdamW]:
    a, b, others = factors(network)
    groups = [{"params": [*a, *b], "weight_decay": decay}, {"params": others, "lr": rest}]
    return [AdamW(groups, lr=lr, weight_decay=0.0)]
