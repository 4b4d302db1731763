"""Who speaks? Passages of the tiny Shakespeare corpus with their speakers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

__all__ = ["LINES", "Passage", "parts", "speeches"]

LINES = 3
"""Of a passage, at most."""
_LEAST = 31
"""Characters of a passage."""
_BEFORE = (0.7, 0.85)
"""Which part of a speaker's passages are before the held-out ones and before those of the test."""

Passage = tuple[str, int]
"""A text and the number of its speaker."""


def speeches(text: str) -> Iterator[tuple[str, list[str]]]:
    """Speaker and lines of each speech: blocks between empty lines, that begin with a name and a colon."""
    for block in text.split("\n\n"):
        first, *lines = block.strip().split("\n")
        if first.endswith(":") and lines:
            yield first[:-1], lines


def parts(text: str, speakers: int) -> tuple[list[Passage], list[Passage], list[Passage]]:
    """Passages to train on, held-out ones and those of the test, of the `speakers` that have the most.

    A passage is up to `LINES` lines of one speech. Of each speaker the first passages, in the order of the plays, are for training,
    and those of the test are the last. No speech is in two parts.
    """
    cut = [(who, list(_cut(lines))) for who, lines in speeches(text)]
    counts = Counter(who for who, passages in cut for _ in passages)
    result: tuple[list[Passage], list[Passage], list[Passage]] = ([], [], [])
    for label, (speaker, count) in enumerate(counts.most_common(speakers)):
        done = 0
        for passages in (passages for who, passages in cut if who == speaker):
            part = sum(done >= share * count for share in _BEFORE)
            result[part].extend((passage, label) for passage in passages)
            done += len(passages)
    return result


def _cut(lines: Sequence[str]) -> Iterator[str]:
    for first in range(0, len(lines), LINES):
        passage = " ".join(lines[first : first + LINES])
        if len(passage) >= _LEAST:
            yield passage
