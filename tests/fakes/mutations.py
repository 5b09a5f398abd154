"""Endless wrong input: right input with a few things done to it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_STRANGE = "\0\t\n\r \"'\\%/:@?#[]{}<>,;=-_.~*+&|^`$\x7f\x80\xa0\u0130\u0660\u200b\ufeff\ud800\U0001f600"


def mutated(corpus: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Texts made of the corpus by cutting, doubling, swapping and inserting; for ever."""
    while True:
        text = rng.choice(corpus)
        for _ in range(rng.randrange(4)):
            at, to = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
            match rng.randrange(6):
                case 0:
                    text = text[:at] + text[to:]
                case 1:
                    text = text[:at] + text[at:to] * rng.choice((2, 2, 20)) + text[to:]
                case 2:
                    text = text[:at] + "".join(rng.choices(_STRANGE, k=rng.randrange(1, 4))) + text[at:]
                case 3:
                    text = text[:at] + rng.choice(corpus) + text[to:]
                case 4:
                    text = text[:at] + chr(rng.randrange(0x250)) + text[at + 1 :]
                case _:
                    text = text[:at] + str(rng.choice((0, -1, 2**31, 2**63, 2**64, 10**30))) + text[to:]
        yield text[:4000]
