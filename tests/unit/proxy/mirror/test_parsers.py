"""No text from outside makes a parser fail in a way that it does not declare."""

import random
from contextlib import suppress

import pytest
from fakes.mirror_parsers import PARSERS
from fakes.mutations import mutated

INPUTS = 3000  # load_tests/fuzz.py does the same with millions


@pytest.mark.parametrize("name", PARSERS)
def test_wrong_input_is_refused_in_the_declared_way(name: str) -> None:
    parser = PARSERS[name]
    texts = mutated(parser.corpus, random.Random(name))
    for _, text in zip(range(INPUTS), texts, strict=False):
        with suppress(*parser.errors):
            parser.parse(text)


@pytest.mark.parametrize("name", PARSERS)
def test_the_corpus_is_right_input(name: str) -> None:
    """The first text of each corpus is taken, so that what is mutated is near to something."""
    PARSERS[name].parse(PARSERS[name].corpus[0])
