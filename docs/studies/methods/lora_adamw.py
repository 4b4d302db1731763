from torch import Tensor, nn
from torch.optim import AdamW

from studies.adapters import factors

TITLE = "AdamW"
KNOBS = {"lr": 2e-3, "rest": 0.016}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[AdamW]:
    a, b, others = factors(network)
    return [AdamW([{"params": [*a, *b], "lr": lr}, {"params": others, "lr": rest}], weight_decay=0.0)]
