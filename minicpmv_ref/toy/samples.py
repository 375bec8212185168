"""What a sample of the world is: pictures, a conversation about them, and which split they belong to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from PIL import Image

from ..inputs.checks import check_type, shown
from .questions import QA
from .words import Language

HELD_OUT = 10  # one content in so many belongs to the test split


@dataclass(frozen=True)
class Sample:
    """Pictures and one conversation about them."""

    image: Image.Image  # of several pictures or frames the first one
    messages: list[dict]  # as the Processor takes them; the last turn is the answer
    kind: str
    language: str
    key: str  # the content that decides the split
    held_out: bool
    facts: Any  # what is shown: a Scene, a Document, an Album, a Clip or a Layout
    topics: tuple[str, ...] = ()  # of the questions, one per turn

    @property
    def prompt(self) -> list[dict]:
        """The conversation without its last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"]

    @property
    def images(self) -> list[Image.Image]:
        """All pictures, and all frames of a clip, in their order."""
        parts = [part for part in self.messages[0]["content"] if not isinstance(part, str)]
        return [image for part in parts for image in (part if isinstance(part, list) else [part])]


class Wanted(NamedTuple):
    """What `draw` was asked for, as the functions of the kinds read it."""

    say: Language
    held_out: bool
    topic: str | None
    turns: int
    aligned: bool
    view: int
    scale: float
    count: int | None = None  # of pictures, of frames or of shapes; None draws it


class Drawn(NamedTuple):
    """What the function of a kind returns."""

    facts: Any
    image: Image.Image | list  # a list: several pictures, or one list of the frames of a clip
    turns: list[QA]
    topics: tuple[str, ...] = ()


def sample_of(drawn: Drawn, kind: str, wanted: Wanted, language: str) -> Sample:
    """Put together what the function of a kind has drawn."""
    parts = drawn.image if isinstance(drawn.image, list) else [drawn.image]
    first = parts[0][0] if isinstance(parts[0], list) else parts[0]
    messages = conversation(parts, drawn.turns)
    facts = drawn.facts
    return Sample(first, messages, kind, language, facts.content, wanted.held_out, facts, drawn.topics)


def conversation(parts: list, turns: list[QA]) -> list[dict]:
    """Questions and answers as messages; the pictures stand in the first one."""
    messages = []
    for number, (question, reply) in enumerate(turns):
        messages.append({"role": "user", "content": question if number else [*parts, question]})
        messages.append({"role": "assistant", "content": reply})
    return messages


def is_held_out(content: str) -> bool:
    """Decide by a hash whether a content belongs to the test split. Python's own `hash` differs between processes."""
    content = check_type("content", content, str).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "big") % HELD_OUT == 0


def check_seed(seed: int | str) -> None:
    """Refuse what no random numbers can be drawn from."""
    check_type("seed", seed, Real, str, what="a number or a text")
    if isinstance(seed, str) and any("\ud800" <= c <= "\udfff" for c in seed):
        raise ValueError(f"seed must be text without halves of characters, got {shown(seed)}")
