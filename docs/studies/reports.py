"""Which table stands on which page, and the command that writes all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from retract.errors import RetractError

from . import earlier, mechanism_page, pages, starts_page, summary
from .batchnorm import BatchNorm
from .loop import FollowUp, Study
from .lora_study import Lora4, Lora32
from .relu_study import ReLUStudy
from .resnet20 import ResNet20, ResNet20LR, ResNet20Rates
from .starts import STARTS
from .transformers import Transformers, Transformers128, Transformers256
from .warm_up import BatchNormWarm, ReLUWarm, TransformersWarm, TransformersWarm256

__all__ = ["DOCS", "STUDIES", "filled", "tables", "write"]

DOCS = Path(__file__).parents[1]
STUDIES: tuple[type[Study], ...] = (
    BatchNorm,
    *STARTS,
    ResNet20Rates,
    ResNet20LR,
    ResNet20,
    BatchNormWarm,
    ReLUStudy,
    ReLUWarm,
    Transformers,
    Transformers128,
    Transformers256,
    TransformersWarm,
    TransformersWarm256,
    Lora4,
    Lora32,
)
"""All that the command line makes runs of, without those of how far rows turn."""


def write(results: Path, docs: Path = DOCS) -> None:
    """Write all tables and pictures that follow from the runs in `results`."""
    for page, name, text in tables(results):
        path = docs / page
        path.write_text(filled(path.read_text(), name, text))
    for study in _swept():
        if found := pages.rows(study, results / study.name):
            pages.draw(found, study, docs / "benchmarks" / f"{study.name}.svg")


def tables(results: Path) -> Iterator[tuple[str, str, str]]:
    """The page, the name of the table on it, and its Markdown."""
    for study in _swept():
        later = [other for other in STUDIES if other.after is study and not issubclass(other, FollowUp)]
        yield f"benchmarks/{study.page}.md", study.name, pages.generated(study, results / study.name, later)
        yield "does_it_help.md", study.name, summary.generated(study, results / study.name)
    yield f"benchmarks/{ResNet20.page}.md", ResNet20.name, pages.generated(ResNet20, results / ResNet20.name)
    yield "does_it_help.md", ResNet20.name, summary.generated(ResNet20, results / ResNet20.name)
    yield "benchmarks/starts.md", "starts", starts_page.generated(results)
    yield "benchmarks/mechanism.md", "mechanism", mechanism_page.generated(results)
    yield "benchmarks/protocol.md", "earlier", earlier.generated(STUDIES, results)
    yield "does_it_help.md", "total", summary.total(results)


def filled(page: str, name: str, text: str) -> str:
    """`page` with `text` between the marks of the table `name`. Raises `RetractError` if it has none."""
    mark = f"<!-- table {name}: docs/studies report -->"
    filled, count = re.subn(
        rf"({mark}\n).*?(<!-- end -->)", lambda found: f"{found[1]}{text}\n{found[2]}", page, flags=re.S
    )
    if count != 1:
        raise RetractError(
            f"the page has the table {name} {count} times: it takes one line {mark}, and <!-- end --> on another"
        )
    return filled


def _swept() -> list[type[Study]]:
    """The studies with a sweep of their own."""
    return [study for study in STUDIES if study.after is None]
