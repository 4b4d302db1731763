from torch import Tensor, nn
from torch.optim import SGD

from studies.adapters import factors

TITLE = "SGD"
KNOBS = {"lr": 0.1, "rest": 0.1}


def optimizers(network: nn.Module, example: Tensor, lr: float, rest: float) -> list[SGD]:
    a, b, others = factors(network)
    return [SGD([{"params": [*a, *b], "lr": lr}, {"params": others, "lr": rest}], momentum=0.9, nesterov=True)]
