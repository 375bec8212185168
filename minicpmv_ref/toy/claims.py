"""What a claim about a picture of this world says, in any of its languages, and whether it is true."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..inputs.checks import check_type
from .scenes import PAINT, SHAPES, Scene
from .words import LANGUAGES


class Claim(NamedTuple):
    """What a claim says: an object, with or without its place, or how many objects there are."""

    color: str | None
    shape: str | None
    place: int | None  # index into PLACES
    total: int | None = None


def _pattern(words) -> re.Pattern:
    # Chinese knows no word borders; the other languages may add an s.
    parts = [word if word[0] >= "\u4e00" else rf"\b{re.escape(word)}(?=s?\b)" for word in words]
    return re.compile("|".join(sorted(parts, key=len, reverse=True)), re.IGNORECASE)


_SAYS = LANGUAGES.values()
_COLORS = {say.ask_color(shape, color)[1]: color for say in _SAYS for color in PAINT for shape in SHAPES}
_NOUNS = {say.ask_shape(0, shape)[1]: shape for say in _SAYS for shape in SHAPES}
_PLACES = {place: number for say in _SAYS for number, place in enumerate(say.places)}
_TOTALS = {start.strip(" :：").lower(): count for say in _SAYS for count, start in enumerate(say.there_are, 1)}
_COLOR, _NOUN, _PLACE = _pattern(_COLORS), _pattern(_NOUNS), _pattern(_PLACES)


def read_claim(claim: str) -> Claim | None:
    """Understand a claim of this world, in any of its languages.

    Args:
        claim: from `split_claims`.

    Returns:
        A Claim; None if it does not name exactly one color and one shape, and one place at most.

    Raises:
        TypeError: no text.

    Example:
        >>> read_claim("a red circle at the top left")
        Claim(color='red', shape='circle', place=0, total=None)
        >>> read_claim("étoile bleue en bas à droite") == read_claim("蓝色星形右下")
        True
        >>> read_claim("red red circle top") is None
        True
    """
    if total := _TOTALS.get(check_type("claim", claim, str).lower()):
        return Claim(None, None, None, total)
    colors, nouns, places = (pattern.findall(claim) for pattern in (_COLOR, _NOUN, _PLACE))
    if len(colors) != 1 or len(nouns) != 1 or len(places) > 1:
        return None
    place = _PLACES[places[0].lower()] if places else None
    return Claim(_COLORS[colors[0].lower()], _NOUNS[nouns[0].lower()], place)


def is_true(claim: str, scene: Scene) -> bool:
    """Compare a claim with the scene: object, place and number must be right. What cannot be read is not true.

    Example:
        >>> from minicpmv_ref.toy.scenes import Thing
        >>> scene = Scene((Thing("red", "circle", 0),))
        >>> [is_true(claim, scene) for claim in ("red circle", "red circle top right", "There are two shapes")]
        [True, False, False]
    """
    check_type("scene", scene, Scene)
    meaning = read_claim(claim)
    if meaning is None:
        return False
    if meaning.total is not None:
        return len(scene.things) == meaning.total
    found = [thing.place for thing in scene.things if (thing.color, thing.shape) == (meaning.color, meaning.shape)]
    return bool(found) if meaning.place is None else meaning.place in found
