"""Claims are read by the same words that write the captions."""

import pytest

from minicpmv_ref.toy.claims import Claim, read_claim
from minicpmv_ref.toy.scenes import PAINT, PLACES, SHAPES
from minicpmv_ref.toy.words import LANGUAGES

everywhere = pytest.mark.parametrize("language", LANGUAGES)


@everywhere
def test_every_thing_of_the_world_is_understood(language):
    say = LANGUAGES[language]
    for color in PAINT:
        for shape in SHAPES:
            assert read_claim(say.thing(color, shape)) == Claim(color, shape, None)
            for place in range(len(PLACES)):
                expected = Claim(color, shape, place)
                for text in (say.thing_at(color, shape, place), say.a_thing_at(color, shape, place)):
                    assert read_claim(text) == expected
                    assert read_claim(text.capitalize()) == expected
    for count, text in enumerate(say.there_are, 1):
        assert read_claim(text.strip(" :：")) == Claim(None, None, None, count)


def test_plurals_are_the_same_thing():
    assert read_claim("red circles top left") == Claim("red", "circle", 0)
