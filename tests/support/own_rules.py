"""Update rules as a user would write them: whatever they keep and read, this file is all there is of them."""

from dataclasses import dataclass

from retract.optim import Coefficients, RiemannianOptimizer, Rule
from retract.optim.rules import Momentum


@dataclass(frozen=True)
class Signed(Momentum):
    """Momentum the other way."""

    def __call__(self, *arguments):
        keep, take, along, ahead = super().__call__(*arguments)
        return Coefficients(keep, take, -along, -ahead)


@dataclass(frozen=True)
class Normalized(Rule):
    """A step of length lr / (1 + number of steps): no vector, two numbers."""

    scalars = ("length", "count")

    def __call__(self, length, memory, options):
        memory.scalars["length"].copy_(length)
        memory.scalars["count"].add_(1.0)
        return Coefficients(ahead=-options["lr"] / (length * (1.0 + memory.scalars["count"])))


@dataclass(frozen=True)
class Averaged(Rule):
    """The mean of two averages of the gradients: two vectors."""

    vectors = ("fast", "slow")
    reads_lengths = False

    def __call__(self, length, memory, options):
        half = -0.5 * options["lr"]
        return Coefficients({"fast": 0.5, "slow": 0.9}, {"fast": 0.5, "slow": 0.1}, {"fast": half, "slow": half})


@dataclass(frozen=True)
class RMSprop(Rule):
    """As in docs/extend.md: a vector, and a number that every coefficient depends on."""

    eps: float = 1e-3
    vectors = ("momentum_buffer",)
    scalars = ("square_avg",)

    def __call__(self, length, memory, options):
        square = memory.scalars["square_avg"].mul_(0.9).add_(length.square(), alpha=0.1)
        return Coefficients(keep=0.5, take=1.0 / (square.sqrt() + self.eps), along=-options["lr"])


@dataclass(frozen=True)
class Switched(Rule):
    """Momentum under an option of its own, which no path knows by name."""

    vectors = ("memory",)
    reads_lengths = False

    def needs(self, options):
        return self.vectors if options["share"] else ()

    def __call__(self, length, memory, options):
        return (
            Coefficients(keep=options["share"], take=1.0, along=-options["lr"])
            if options["share"]
            else Coefficients(ahead=-options["lr"])
        )


RULES = [Normalized(), Averaged(), RMSprop(), Signed()]


def optimizer_of(its):
    class Own(RiemannianOptimizer):
        rule = its

    return Own
