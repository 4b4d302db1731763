"""Verdicts of `psi.find` against `brute_force`: what is wrong, what was missed, and of what kind that is."""

import math
from collections import Counter

from brute_force import FAR, LIVE, ways

MISSES = {
    "no influence": 1.0,  # no output depends on it, so there is nothing to see and nothing to train
    "partly without influence": 1.0,  # the cut holds because some of its points are dead
    "no real numbers": 1.0,  # complex and integer parameters are passed over
    "signs only": 1.0,  # points of one coordinate have no direction
    "hidden by an eps": 1.0,  # declaring it would be wrong: doubling shows
    "cannot tell": 0.01,  # find says so
    "missed": 0.001,  # a leak was seen that brute force does not see: one random move is not like another
}
"""Kinds of misses, and the largest share of all weights that each may be. All but
the last two are right as they are."""
LEAKY = 0.01
"""Doubling a declared point may change an output by so much of what a random move of that length does."""
TIGHT = 0.001
"""What shows less than this must be found; between the two either verdict is right."""
FAINT = 1e-4
"""A tensor that a random move of its own length changes the outputs less than this: a hundredth of it is rounding in float32."""


class Survey:
    """What was found on many networks, what is wrong with it, and what was missed, by kind."""

    def __init__(self):
        self.networks = self.weights = self.invariant = 0
        self.kinds = Counter()
        self.words = {}

    def add(self, network, report, twin, actual):
        """The findings on one network. `twin` is a `BruteForce` without eps in general position, `actual` one of the network as it is."""
        self.networks += 1
        self.weights += sum(len(f.shape) > 1 for f in report)
        self.invariant += sum(len(f.shape) > 1 for f in report.invariant)
        taken = {name for f in report.invariant for name in f.names[1:]}
        for f in report:
            for kind, detail in verdict(f, twin, actual, taken):
                self.kinds[kind] += 1
                verdicts = f"{f.granularity} {f.rows} {f.joined} ({f.reason})"
                self.words.setdefault(kind, []).append(f"{network}: {f.name} {f.shape} is {verdicts}; {detail}")

    @property
    def wrong(self):
        """What must not be: everything other than a miss."""
        return {kind: words for kind, words in self.words.items() if kind not in MISSES}

    def over(self):
        """Kinds of misses that are more than their share of the weights."""
        return [kind for kind, share in MISSES.items() if self.kinds[kind] > share * self.weights]

    def __str__(self):
        counts = f"{self.networks} networks, {self.weights} weights, {self.invariant} of them invariant"
        told = [f"{count:6} {kind}" for kind, count in self.kinds.most_common()]
        return "\n".join([counts, *told, *(line for kind in self.shown() for line in self.words[kind][:20])])

    def shown(self):
        return [*self.wrong, *self.over(), *({"missed"} & self.words.keys())]


def verdict(f, twin, actual, taken):
    """What is wrong with one finding."""
    if f.granularity != "none":
        if not twin.holds(twin.cut_of(f)):
            yield "wrong positive", "does not hold"
        elif len(f.shape) > 1:
            whole, single = actual.visible(actual.cut_of(f))
            said = f"doubling changes an output by {whole:.2g} of a random move, doubling one point by {single:.2g}; leak {f.eps_leak:.0e}"
            if max(whole, single) > LEAKY:
                yield ("eps shows" if whole > LEAKY else "eps shows at a point"), said
            yield from finer(f, twin)
        return
    if len(f.shape) < 2 or not math.prod(f.shape):
        return
    if not actual.weights[f.name].is_floating_point():
        yield "no real numbers", "not looked at"
        return
    best = twin.finest(f.name, FAR)
    if best is None or (best[2] and set(best[2]) & taken):
        return
    yield kind_of_miss(f, best, twin, actual), f"{best} holds"


def finer(f, twin):
    """A cut with more points that holds, each of them alive."""
    points = 1 + int(twin.cut_of(f)[f.name].max())
    for count, rows in ways(f.shape):
        if count <= points:
            return
        for joined in twin.partners(f.name):
            cut = twin.cut(f.name, rows, joined)
            if cut is None or signs_only(cut, count):
                continue
            if twin.holds(cut) and all(alive(f.name, cut, count, twin)):
                yield "finer missed", f"{count} points of {rows} {joined} hold"
                return


def signs_only(cut, count):
    """Whether points have one coordinate: then nothing but its sign matters, and there is no direction to train."""
    return sum(part.numel() for part in cut.values()) == count


def alive(name, cut, count, twin):
    """Whether each of some points matters."""
    for i in range(min(count, 16)):
        yield twin.live(name, cut[name] == i) > LIVE


def kind_of_miss(f, best, twin, actual):
    """What a missed tensor is, by measurement: without influence, hidden by an eps, or plainly missed."""
    if twin.live(f.name) <= LIVE or actual.live(f.name) <= FAINT:
        return "no influence"
    if signs_only(twin.cut(f.name, *best[1:]), best[0]):
        return "signs only"
    if max(actual.visible(actual.cut(f.name, *best[1:]))) > TIGHT:
        return "hidden by an eps"
    if "cannot tell" in f.reason:
        return "cannot tell"
    if not all(alive(f.name, twin.cut(f.name, *best[1:]), best[0], twin)):
        return "partly without influence"
    return "missed"
