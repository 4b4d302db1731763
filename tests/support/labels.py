"""The labels of the zoo: (granularity, Rows, joined)."""

from retract.manifolds import Rows

ROW = ("row", Rows(), ())
COLUMN = ("row", Rows(dim=1), ())
WHOLE = ("tensor", Rows.whole(), ())
WITH_BIAS = ("bias",)
WHOLE_JOINT = ("tensor", Rows.whole(), WITH_BIAS)
ROW_JOINT = ("row", Rows(), WITH_BIAS)


def blocks(g, joined=()):
    return ("block", Rows(blocks=g), joined)
