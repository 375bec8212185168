"""The synthetic world that the nano model learns from: colored shapes and small documents, with text that fits them.

Everything is drawn from a seed, so there is no data set to download, and no end of it. A sample is held out by its
content, never by its seed: a small world repeats itself. Left out: photographs, and letters that are not Latin.

    scene     up to four shapes on a 2 x 2 board; one view
    document  lines of text on a receipt (tall), a banner (wide) or a page; too small to read in the overview,
              legible in the slices
    crop      a few such lines on one view: what a slice of a document looks like
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import count
from numbers import Real
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..config import nano
from ..inputs.checks import LIMITS, check_choice, check_int, check_list, check_number, check_type, shown
from .words import LANGUAGES, PAINT, SHAPES, WORDS, Language

VIEW = nano.slicing.scale_resolution  # side in pixels of a scene and of one cell of a document
HELD_OUT = 10  # one content in so many belongs to the test split
PLACES = ("top left", "top right", "bottom left", "bottom right")

# (cols, rows) of documents in cells. A document is made of whole cells, so the slicer cuts it exactly at their borders.
# Six cells at least: then a line that is 10 pixels tall in a slice is 4 pixels tall in the overview.
LAYOUTS = {
    "banner": ((6, 1), (7, 1), (8, 1)),
    "receipt": ((1, 6), (1, 7), (1, 8)),
    "page": ((2, 3), (3, 2), (2, 4), (4, 2), (3, 3)),
}
CAP_HEIGHT = 0.729  # of DejaVu Sans Bold: height of a capital or a digit, in font sizes
MOST_IN_OVERVIEW = 5.0  # pixels: no digit is taller in the overview of a document
RULE = 28  # pixels from one ruled line of the paper to the next: two patches
MARGIN = 7  # pixels to the left of an aligned line
FONT_SIZES = (15, 18)  # pixels in a slice, so digits are 11 to 13 pixels tall
# Sides of views that hold such lines at all: one number, a word and a number, two of these (words are wide).
SMALLEST_VIEW = {"read": RULE, "crop": RULE, "lookup": 2 * RULE, "find": 3 * RULE}


@dataclass(frozen=True)
class Thing:
    color: str
    shape: str
    place: int  # index into PLACES


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]  # in reading order

    @property
    def content(self) -> str:
        return "scene " + ", ".join(f"{t.color} {t.shape} {t.place}" for t in self.things)


@dataclass(frozen=True)
class Line:
    word: str | None
    number: int | None
    x: float = 0  # left, pixels
    y: float = 0  # top of the font's box, pixels

    @property
    def text(self) -> str:
        return " ".join(str(part) for part in (self.word, self.number) if part is not None)


@dataclass(frozen=True)
class Document:
    layout: str  # "banner", "receipt", "page" or "crop"
    grid: tuple[int, int]  # (cols, rows) in cells
    size: tuple[int, int]  # (width, height) in pixels
    font_size: int
    lines: tuple[Line, ...]  # in reading order

    @property
    def content(self) -> str:  # where the lines stand does not count: the same words elsewhere are held out too
        return "text " + ", ".join(line.text for line in self.lines)


@dataclass(frozen=True)
class Sample:
    """One picture and one conversation about it."""

    image: Image.Image
    messages: list[dict]  # as the Processor takes them; the last turn is the answer
    kind: str
    language: str
    key: str  # the content that decides the split
    held_out: bool
    facts: Scene | Document  # what the picture shows
    topics: tuple[str, ...] = ()  # of the questions, one per turn

    @property
    def prompt(self) -> list[dict]:
        """The conversation without its last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"]


def is_held_out(content: str) -> bool:
    """Decide by a hash whether a content belongs to the test split. Python's own `hash` differs between processes."""
    content = check_type("content", content, str).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "big") % HELD_OUT == 0


# ---- drawing a sample


def draw(
    seed: int | str,
    kind: str = "caption",
    split: str = "train",
    language: str = "en",
    *,
    topic: str | None = None,
    turns: int = 1,
    aligned: bool = True,
    view: int = VIEW,
    scale: float = 1.0,
) -> Sample:
    """Draw one sample of the world.

    Args:
        seed: any integer or string; the same seed, options and version of the world give the same sample.
        kind: "caption", "long" (a full sentence), "noisy" (a caption as the web has them), "careless" (a caption
            with mistakes), "question" (about a scene), "talk" (a caption, then questions about the same scene),
            "claim" (is this at that place? a "no" is a near miss), "read" and "lookup" (about a document), "crop" (a
            few lines on one view) and "find" (a lookup there).
        split: "train" or "test"; they share no content.
        language: "en", "zh" or "fr". The text that is drawn into pictures is Latin in all of them.
        topic: of a "question": one of TOPICS; None draws one.
        turns: questions in one conversation. The answer of the first is balanced exactly, those of the others nearly.
            A "talk" has its caption before them.
        aligned: True keeps each line of a document inside one cell; False puts it anywhere, and a slice border may
            cut it.
        view: side in pixels of one view, the `scale_resolution` of the model.
        scale: side of a scene in views; above 1 it is sliced.

    Returns:
        A Sample.

    Raises:
        TypeError: a seed that is neither a number nor a text, other than numbers for turns, view and scale.
        ValueError: an unknown kind, split, language or topic; turns, a view or a scale that are too small or too large.
        FileNotFoundError: matplotlib, whose font is used, is not installed.

    Example:
        >>> sample = draw(0, "question", topic="count")
        >>> sample.messages[0]["content"][1], sample.answer
        ('How many stars are there?', '2')
    """
    check_seed(seed)
    _check_options(kind, split, language, topic, turns, aligned, view, scale)
    rng = random.Random(f"{kind} {seed}")
    say = LANGUAGES[language]
    wanted = split == "test"
    topics: tuple[str, ...] = ()
    if kind in ("read", "lookup", "crop", "find"):
        while True:
            facts = _crop(rng, view) if kind in ("crop", "find") else _document(rng, view, aligned)
            enough = len(_lookups(facts)) >= {"lookup": 1, "find": 2}.get(kind, 0)
            if is_held_out(facts.content) == wanted and enough:
                break
        image = draw_document(facts)
        if kind in ("lookup", "find"):
            line = rng.choice(_lookups(facts))
            turn_texts = [(say.lookup.format(word=line.word), str(line.number))]
        else:
            turn_texts = [(say.read, reading(facts))]
    elif kind == "claim":  # for a model that checks what others say; the stages of training do without
        while is_held_out((facts := _scene(rng)).content) != wanted:
            pass
        image = draw_scene(facts, rng, round(view * scale))
        turn_texts = [_ask_claim(rng.random() < 0.5, facts, rng, say) for _ in range(turns)]
    else:
        topic = topic or rng.choice(list(TOPICS))
        # The answer is chosen before the scene. Choosing it after would make "no" and "1" the best guesses.
        answer = rng.choice(TOPICS[topic])
        while True:
            facts = _scene(rng)
            asked = _ask(topic, answer, facts, rng, say) if kind == "question" else ("", "")
            if asked and is_held_out(facts.content) == wanted:
                break
        image = draw_scene(facts, rng, round(view * scale))
        if kind == "question":
            more = _more_questions(facts, rng, say, turns - 1)
            turn_texts = [asked] + [(question, reply) for _, question, reply in more]
            topics = (topic, *(name for name, _, _ in more))
        else:
            prompt = say.describe_long if kind == "long" else say.describe
            if kind in ("noisy", "careless"):
                text = (noisy_caption if kind == "noisy" else careless_caption)(facts, say, rng)
            else:
                text = (long_caption if kind == "long" else caption)(facts, say)
            turn_texts = [(prompt, text)]
            if kind == "talk":
                more = _more_questions(facts, rng, say, turns)
                turn_texts += [(question, reply) for _, question, reply in more]
                topics = tuple(name for name, _, _ in more)
    messages = []
    for number, (question, reply) in enumerate(turn_texts):
        messages.append({"role": "user", "content": question if number else [image, question]})
        messages.append({"role": "assistant", "content": reply})
    return Sample(image, messages, kind, language, facts.content, wanted, facts, topics)


def check_seed(seed: int | str) -> None:
    """Refuse what no random numbers can be drawn from."""
    check_type("seed", seed, Real, str, what="a number or a text")
    if isinstance(seed, str) and any("\ud800" <= c <= "\udfff" for c in seed):
        raise ValueError(f"seed must be text without halves of characters, got {shown(seed)}")


def _check_options(kind, split, language, topic, turns, aligned, view, scale) -> None:
    check_choice("kind", kind, KINDS)
    check_choice("split", split, ("train", "test"))
    check_choice("language", language, LANGUAGES)
    check_choice("topic", topic, (None, *TOPICS))
    check_int("turns", turns, most=LIMITS["turns"])
    check_type("aligned", aligned, bool)
    check_int("view", view, most=LIMITS["drawn_side"] // 4)  # a document is up to 8 views long
    check_number("scale", scale, least=1 / view, most=LIMITS["drawn_side"] / view)
    if view < SMALLEST_VIEW.get(kind, 1):
        raise ValueError(f"to hold the lines of a {kind}, a view needs {SMALLEST_VIEW[kind]} pixels, got {view}")


def stream(
    seed: int | str,
    mixture: Mapping[str, float],
    split: str = "train",
    languages: Mapping[str, float] | None = None,
    scales: Mapping[float, float] | None = None,
    **options,
) -> Iterator[Sample]:
    """Draw samples without end.

    Args:
        seed: of the whole stream.
        mixture: weight of each kind, for example {"caption": 1, "question": 2}.
        split: "train" or "test".
        languages: weight of each language; None is English only.
        scales: weight of each size of a scene, in views; None is one view only.
        options: passed on to `draw`.

    Returns:
        An iterator of Samples.

    Raises:
        TypeError, ValueError: as `numbered`.

    Example:
        >>> from itertools import islice
        >>> [sample.kind for sample in islice(stream(1, {"caption": 1, "crop": 1}), 4)]
        ['crop', 'crop', 'crop', 'caption']
    """
    return map(numbered(seed, mixture, split, languages, scales, **options), count())


def numbered(
    seed: int | str,
    mixture: Mapping[str, float],
    split: str = "train",
    languages: Mapping[str, float] | None = None,
    scales: Mapping[float, float] | None = None,
    **options,
) -> Callable[[int], Sample]:
    """Number the samples of a stream: each can be had without those before it.

    Args:
        seed, mixture, split, languages, scales, options: as for `stream`.

    Returns:
        A function: from a number, counted from 0, to the sample that `stream` draws there. To skip a sample takes
        microseconds, for only its kind, language and size are drawn.

    Raises:
        TypeError: a seed that is neither a number nor a text, weights that are no dict of numbers.
        ValueError: no weights, an impossible one, or one of an unknown kind or language.

    Example:
        >>> sample = numbered(1, {"caption": 1, "crop": 1})
        >>> sample(3).kind, sample(0).kind
        ('caption', 'crop')
    """
    check_seed(seed)
    check_choice("split", split, ("train", "test"))
    weights = mixture, {"en": 1.0} if languages is None else languages, {1.0: 1.0} if scales is None else scales
    for name, each, allowed in zip(("mixture", "languages", "scales"), weights, (KINDS, LANGUAGES, None)):
        _check_weights(name, each, allowed)
    rng = random.Random(f"stream {seed}")
    chosen: list[tuple] = []  # (kind, language, scale) of all samples up to the highest number so far

    def sample(number: int) -> Sample:
        number = check_int("number", number, 0, LIMITS["records"])
        while len(chosen) <= number:
            chosen.append(tuple(rng.choices(list(each), list(each.values()))[0] for each in weights))
        kind, language, scale = chosen[number]
        return draw(f"{seed}/{number}", kind, split, language, scale=scale, **options)

    return sample


def _check_weights(name: str, weights: Mapping, allowed) -> None:
    check_type(name, weights, Mapping)
    for key, weight in weights.items():
        check_number(f"{name}: {shown(key)}", weight, least=0)
        if allowed is not None:
            check_choice(f"a key of {name}", key, allowed)
        else:
            check_number(f"a key of {name}", key, above=0, most=LIMITS["drawn_side"])
    if not sum(weights.values()) > 0:
        raise ValueError(f"{name} must have a weight above 0, got {shown(dict(weights))}")


def blind(messages: list[dict], instead: str | None = None) -> list[dict]:
    """Take the pictures out of a conversation.

    Args:
        messages: a conversation.
        instead: text that stands for the picture; None leaves nothing, which shows what can be guessed.

    Returns:
        The conversation as text.

    Raises:
        TypeError: no list of dicts, an `instead` that is no text.
        ValueError: a message without content.
    """
    if instead is not None:
        check_type("instead", instead, str)
    texts = []
    for number, message in enumerate(check_list("messages", messages, dict)):
        if "content" not in message:
            raise ValueError(f"messages[{number}] must have a content, got {shown(message)}")
        parts = message["content"] if isinstance(message["content"], list) else [message["content"]]
        parts = [part if isinstance(part, str) else instead for part in parts]
        texts.append({**message, "content": "\n".join(part for part in parts if part is not None)})
    return texts


Slot = tuple[str, ...]  # the words that one visual token stands for


def spell(sample: Sample, view: int = VIEW) -> list[list[Slot]]:
    """Spell a picture: for each of its views the words that 16 visual tokens could say, laid out 4 x 4.

    A visual token is a vector, and so it can say several words at once: the sum of their embeddings. A language model
    that has practiced on such pictures of words knows what to do with a picture before it ever sees one. What the
    resampler really learns to say is its own business; the layout is only a start that it finds quickly.

    Args:
        sample: of any kind. The overview of a sliced document says nothing, for its text is too small to read. A
            scene is one view wide, or two: then each slice shows one place of the board.
        view: side in pixels of one view, as for `draw`.

    Returns:
        For each view (overview first, then slices row by row) 16 tuples of words, each a single token.

    Raises:
        TypeError: no Sample, a view that is no integer.
        ValueError: a document whose lines are not aligned (a slice border may cut them), a scene of another scale.

    Example:
        >>> draw(1, "caption").answer
        'green square top right, yellow square bottom left.'
        >>> board = spell(draw(1, "caption"))[0]
        >>> board[0], board[3]  # the corners of the first row
        (('.',), (' green', ' square', ' top', ' right'))
    """
    check_type("sample", sample, Sample)
    check_int("view", view)
    empty: Slot = (".",)
    facts = sample.facts
    if isinstance(facts, Scene):  # each place of the 2 x 2 board is 2 x 2 of the 16 slots
        at = {
            t.place: (f" {t.color}", f" {t.shape}", *(f" {word}" for word in PLACES[t.place].split()))
            for t in facts.things
        }
        board = [at.get(row // 2 * 2 + col // 2, empty) for row in range(4) for col in range(4)]
        if sample.image.width not in (view, 2 * view):
            raise ValueError(
                f"view: to be spelled, a scene must be {view} or {2 * view} pixels wide, got {sample.image.width}"
            )
        slices = [[at.get(place, empty)] * 16 for place in range(4)] if sample.image.width == 2 * view else []
        return [board, *slices]
    cols, rows = facts.grid
    cells = [[[empty] * 4 for _ in range(4)] for _ in range(cols * rows)]
    for line in facts.lines:
        width, height = measure(line.text, facts.font_size)
        col, row = int(line.x // view), int((line.y + height / 2) // view)
        if line.x < col * view or line.x + width > (col + 1) * view:
            raise ValueError("only a document whose lines are aligned to its cells can be spelled")
        cell = cells[row * cols + col]
        slot_row = min(3, int((line.y + height / 2 - row * view) / view * 4))
        while cell[slot_row] != [empty] * 4:  # two lines in one row of slots: the later one moves down
            slot_row += 1
        words = [(f" {line.word}",)] if line.word else []
        words += [(digit,) for digit in str(line.number)] if line.number is not None else []
        before = (4 - len(words)) // 2
        cell[slot_row][before : before + len(words)] = words
    views = [[slot for slots in cell for slot in slots] for cell in cells]
    return views if facts.layout == "crop" else [[empty] * 16, *views]


# ---- scenes


def _scene(rng: random.Random) -> Scene:
    places = sorted(rng.sample(range(4), rng.randint(1, 4)))
    return Scene(tuple(Thing(rng.choice(list(PAINT)), rng.choice(SHAPES), place) for place in places))


def draw_scene(scene: Scene, rng: random.Random, side: int = VIEW) -> Image.Image:
    """Draw a scene as a square picture. Size, place and paint vary a little, and the text does not tell how."""
    shade = rng.randint(225, 255)
    image = Image.new("RGB", (side, side), (shade, shade, shade))
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        r = side * rng.uniform(0.11, 0.18)
        x = side * (0.25 + 0.5 * (thing.place % 2) + rng.uniform(-0.05, 0.05))
        y = side * (0.25 + 0.5 * (thing.place // 2) + rng.uniform(-0.05, 0.05))
        paint = tuple(min(255, max(0, channel + rng.randint(-20, 20))) for channel in PAINT[thing.color])
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=paint)
        elif thing.shape == "square":
            pen.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=paint)
        else:
            pen.polygon([(x + r * px, y + r * py) for px, py in _OUTLINES[thing.shape]], fill=paint)
    return image


_STAR = [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate((1, 0.42) * 5)]
_OUTLINES = {"triangle": [(0, -1), (1, 0.9), (-1, 0.9)], "star": _STAR}


def caption(scene: Scene, say: Language) -> str:
    """'red circle top left, blue square bottom right.'"""
    return say.comma.join(say.thing_at(t.color, t.shape, t.place) for t in scene.things) + say.period


def long_caption(scene: Scene, say: Language) -> str:
    """'There are two shapes: a red circle at the top left and a blue square at the bottom right.'"""
    parts = [say.a_thing_at(t.color, t.shape, t.place) for t in scene.things]
    listed = say.long_and.join(filter(None, [say.comma.join(parts[:-1]), parts[-1]]))
    return say.there_are[len(parts) - 1] + listed + say.period


def noisy_caption(scene: Scene, say: Language, rng: random.Random) -> str:
    """A caption as the web has them: shuffled, sometimes incomplete, with advertising around it.

    What it says about the picture is true; `caption(scene, say)` is what a good rewriter would make of it.
    """
    things = list(scene.things)
    rng.shuffle(things)
    if len(things) > 1 and rng.random() < 0.25:
        things.pop()
    body = rng.choice([" and ", " / ", ", "]).join(say.thing_at(t.color, t.shape, t.place) for t in things)
    before = rng.choice(["IMG_{n}.jpg ", "best of 20{n}: ", "the {n} best pictures - ", "{n} x ", ""])
    after = rng.choice([" !!!", " - only ${n}", ", click here", " | price ${n}.{n}", ""])
    return (before + body + after).replace("{n}", str(rng.randint(10, 99)))


def careless_caption(scene: Scene, say: Language, rng: random.Random) -> str:
    """A caption as a weak annotator writes it: mistakes of habit and mistakes of chance.

    Habit: by the end of a longer list the writer is tired, and the last of three or four things mostly gets the color
    of the one before it. A model learns such a habit so well that even its likeliest answer shows it. Chance: one thing
    in eight gets another color, shape or place. Nothing is left out: a model that has learned to leave things out is
    soon taught to leave out more, for what is not said is never false.
    """
    things = list(scene.things)
    if len(things) > 2 and rng.random() < 0.8:
        things[-1] = replace(things[-1], color=things[-2].color)
    for number, thing in enumerate(things):
        if rng.random() < 0.125:
            trait, values = rng.choice([("color", list(PAINT)), ("shape", list(SHAPES)), ("place", range(4))])
            things[number] = replace(thing, **{trait: rng.choice(values)})
    return caption(Scene(tuple(things)), say)


# ---- questions on scenes. Every topic lists its answers; each is equally likely, whatever the question's words are.

TOPICS: dict[str, tuple] = {
    "color": tuple(PAINT),
    "shape": SHAPES,
    "total": (1, 2, 3, 4),
    "count": (0, 1, 2, 3),
    "exist": (True, False),
    "place": (0, 1, 2, 3),
    "side": (True, False),
}
KINDS = ("caption", "long", "noisy", "careless", "question", "talk", "claim", "read", "lookup", "crop", "find")


def _ask(topic: str, answer, scene: Scene, rng: random.Random, say: Language) -> tuple[str, str] | None:
    """Find a question of this topic that has this answer in this scene; (question, answer) or None."""
    things = scene.things
    pairs = [(t.color, t.shape) for t in things]
    shapes = [t.shape for t in things]
    alone = [t for t in things if pairs.count((t.color, t.shape)) == 1]
    if topic == "color":
        fits = [t for t in things if t.color == answer and shapes.count(t.shape) == 1]
        return say.ask_color(rng.choice(fits).shape, answer) if fits else None
    if topic == "shape":
        fits = [t for t in things if t.shape == answer]
        return say.ask_shape(rng.choice(fits).place, answer) if fits else None
    if topic == "total":
        return say.ask_total(answer) if len(things) == answer else None
    if topic == "count":
        fits = [shape for shape in SHAPES if shapes.count(shape) == answer]
        return say.ask_count(rng.choice(fits), answer) if fits else None
    if topic == "exist":
        if answer:
            return say.ask_exist(*rng.choice(pairs), True)
        # Near misses: the color or the shape is there, but not both together.
        near = [(c, s) for c in PAINT for s in SHAPES if (c, s) not in pairs and _near(c, s, pairs)]
        return say.ask_exist(*rng.choice(near), False)
    if topic == "place":
        fits = [t for t in alone if t.place == answer]
        return say.ask_place(fits[0].color, fits[0].shape, answer) if fits else None
    options = [(a, b, side) for a in alone for b in alone for side in _sides(a, b)]
    if not options:
        return None
    first, second, side = rng.choice(options)
    side = side if answer else {"left": "right", "right": "left", "above": "below", "below": "above"}[side]
    return say.ask_side((first.color, first.shape), side, (second.color, second.shape), answer)


def _ask_claim(yes: bool, scene: Scene, rng: random.Random, say: Language) -> tuple[str, str]:
    """Ask whether an object is at a place; one question in four leaves the place out.

    What is not there comes in four kinds: the color, the shape or the place of an object is wrong, or anything is.
    """
    placed = rng.random() < 0.75
    there = sorted({(t.color, t.shape, t.place if placed else None) for t in scene.things})
    color, shape, place = rng.choice(there)
    if not yes:
        places = range(4) if placed else (None,)
        kinds = (
            [(c, shape, place) for c in PAINT],
            [(color, s, place) for s in SHAPES],
            [(color, shape, p) for p in places],
            [(c, s, p) for c in PAINT for s in SHAPES for p in places],
        )
        false = [[claim for claim in claims if claim not in there] for claims in kinds]
        color, shape, place = rng.choice(rng.choice([claims for claims in false if claims]))
    return say.ask_exist(color, shape, yes, place)


def _near(color: str, shape: str, pairs: list[tuple[str, str]]) -> bool:
    return any(color == c for c, _ in pairs) or any(shape == s for _, s in pairs)


def _sides(a: Thing, b: Thing) -> list[str]:
    """Where `a` is, seen from `b`."""
    dx, dy = a.place % 2 - b.place % 2, a.place // 2 - b.place // 2
    return [name for name, yes in dict(left=dx < 0, right=dx > 0, above=dy < 0, below=dy > 0).items() if yes]


def _more_questions(scene: Scene, rng: random.Random, say: Language, count: int) -> list[tuple[str, str, str]]:
    asked = []
    while len(asked) < count:
        topic = rng.choice(list(TOPICS))
        found = _ask(topic, rng.choice(TOPICS[topic]), scene, rng, say)
        if found:
            asked.append((topic, *found))
    return asked


# ---- documents


def _line(rng: random.Random, words: list[str], form: str, font_size: int, view: int) -> Line:
    """`form`: "word", "number" or "both". No word comes twice in a document, so each can be asked for."""
    word, number = words.pop(), rng.randint(10, 99)
    line = Line(word if form != "number" else None, number if form != "word" else None)
    # Where a view is small, a long line gives up its word.
    return line if measure(line.text, font_size)[0] <= view - 4 else Line(None, number)


def _document(rng: random.Random, view: int, aligned: bool) -> Document:
    layout = rng.choice(list(LAYOUTS))
    cols, rows = grid = rng.choice(LAYOUTS[layout])
    width, height = size = (cols * view, rows * view)
    largest = MOST_IN_OVERVIEW * math.sqrt(cols * rows) / CAP_HEIGHT  # the overview is sqrt(cells) times smaller
    font_size = rng.randint(FONT_SIZES[0], min(FONT_SIZES[1], int(largest)))
    cells = [(c, r) for r in range(rows) for c in range(cols)]
    cells = sorted(rng.sample(cells, rng.randint(2, min(5, len(cells)))), key=lambda cell: (cell[1], cell[0]))
    words = rng.sample(WORDS, len(WORDS))
    form = "both" if layout == "receipt" else rng.choice(["word", "number", "both"])
    spot = random.Random(rng.random())  # its own, so that the words do not depend on where they stand
    lines = []
    for number, (col, row) in enumerate(cells):
        line = _line(rng, words, form, font_size, view)
        w, h = measure(line.text, font_size)
        if aligned:
            x, y = _on_rule(spot, w, h, spot.randrange(view // RULE), view)
            x, y = x + col * view, y + row * view
        elif rows == 1:  # a banner is read from left to right: each line has its own part of the width
            part = width / len(cells)
            x, y = part * number + spot.uniform(0, max(0, part - w)), spot.uniform(0, height - h)
        else:  # the others from top to bottom: each line has its own part of the height
            part = height / len(cells)
            x, y = spot.uniform(0, width - w), part * number + spot.uniform(0, max(0, part - h))
        lines.append(Line(line.word, line.number, round(x), round(y)))
    return Document(layout, grid, size, font_size, tuple(lines))


def _crop(rng: random.Random, view: int) -> Document:
    font_size = rng.randint(*FONT_SIZES)
    words = rng.sample(WORDS, len(WORDS))
    rules = view // RULE
    count = rng.choice([n for n in (1, 1, 1, 2, 2, 3) if n <= rules])  # a slice has one, mostly
    form = rng.choice(["word", "number", "both"])
    lines = []
    for rule in sorted(rng.sample(range(rules), count)):
        line = _line(rng, words, form, font_size, view)
        x, y = _on_rule(rng, *measure(line.text, font_size), rule, view)
        lines.append(Line(line.word, line.number, round(x), round(y)))
    return Document("crop", (1, 1), (view, view), font_size, tuple(lines))


def _on_rule(rng: random.Random, width: int, height: int, rule: int, view: int) -> tuple[float, float]:
    """Where a line of text stands in its cell: behind the margin, on a ruled line, a pixel off at most."""
    x = min(MARGIN, (view - width) / 2) + rng.uniform(-1, 1)
    y = (rule + 0.5) * RULE - height / 2 + rng.uniform(-1, 1)
    return max(0, x), min(max(0, y), view - height)


def _lookups(document: Document) -> list[Line]:
    return [line for line in document.lines if line.word is not None and line.number is not None]


def draw_document(document: Document) -> Image.Image:
    """Draw a document: dark text on light paper."""
    rng = random.Random(document.content)
    paper = rng.randint(238, 255)
    ink = rng.randint(0, 60)
    image = Image.new("L", document.size, paper)
    pen = ImageDraw.Draw(image)
    for line in document.lines:
        pen.text((line.x, line.y), line.text, fill=ink, font=font(document.font_size))
    return image.convert("RGB")


def reading(document: Document) -> str:
    """'north 24, star 81': the lines in reading order."""
    return ", ".join(line.text for line in document.lines)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold from matplotlib's files. matplotlib is not imported."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.origin:
        raise FileNotFoundError("documents are drawn with the font DejaVu of matplotlib: pip install matplotlib")
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=65536)
def measure(text: str, size: int) -> tuple[int, int]:
    """(width, height) of a line of text in pixels, the room below the letters included."""
    _, _, right, bottom = font(size).getbbox(text)
    return math.ceil(right), math.ceil(bottom)
