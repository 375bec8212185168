"""The synthetic world that the nano model learns from: colored shapes and small documents, with text that fits them.

Everything is drawn from a seed, so there is no data set to download, and no end of it. A sample is held out by its
content, never by its seed: a small world repeats itself. Left out: photographs, and letters that are not Latin.

    scenes.py     up to four shapes on a 2 x 2 board; one view
    questions.py  questions about a scene
    documents.py  lines of text on a receipt (tall), a banner (wide) or a page, too small to read in the overview,
                  legible in the slices; and crops: a few such lines on one view, as a slice of a document looks
    words.py      the words of three languages
    many.py       up to eight scenes in one conversation
    clips.py      short clips: something moves, comes, changes, comes and goes
    boxes.py      shapes and words that stand anywhere, with their boxes
    depth.py      what is in front of what, and what is nearer to what
    samples.py    what a sample is, and which split it belongs to

This file puts samples together. A new kind of sample is one function (rng, wanted) -> Drawn and its line in KINDS.
"""

from __future__ import annotations

import random
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from itertools import count

from PIL import Image

from ..inputs.checks import LIMITS, check_choice, check_int, check_list, check_number, check_type, shown
from .boxes import draw_layout, draw_one, draw_word, spell_placed
from .clips import CLIP_TOPICS, LEAST_FRAMES, MOST_FRAMES, Clip, draw_clip, draw_coming, draw_motion
from .depth import draw_depth, draw_distance
from .documents import (  # noqa: F401  other files take them from here
    CAP_HEIGHT,
    MARGIN,
    RULE,
    Document,
    Line,
    draw_document,
    font,
    lookups,
    measure,
    reading,
    sample_crop,
    sample_document,
    spell_document,
)
from .many import ALBUM_TOPICS, MOST_PICTURES, Album, draw_album, draw_pair
from .questions import TOPICS, ask, ask_claim, more_questions
from .samples import HELD_OUT, Drawn, Sample, Wanted, check_seed, conversation, is_held_out, sample_of  # noqa: F401
from .scenes import (  # noqa: F401
    PLACES,
    VIEW,
    Scene,
    Thing,
    caption,
    careless_caption,
    draw_scene,
    long_caption,
    noisy_caption,
    sample_scene,
    spell_scene,
)
from .words import LANGUAGES, PAINT, SHAPES, WORDS, Language  # noqa: F401


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
            few lines on one view) and "find" (a lookup there); or one of `draw_more`.
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
    return _draw(seed, kind, language, Wanted(LANGUAGES[language], split == "test", topic, turns, aligned, view, scale))


def draw_more(
    seed: int | str,
    kind: str,
    split: str = "train",
    *,
    count: int | None = None,
    topic: str | None = None,
    turns: int = 1,
    view: int = VIEW,
) -> Sample:
    """Draw one sample with several pictures, with a clip, or with boxes; all of them speak English.

    Args:
        seed, split, view: as for `draw`.
        kind: "many" (pictures of one or two shapes), "pair" (two of them; each question names one), "clip" (frames;
            the content of the first message holds them as a list), "motion" (something moves: which way?), "coming"
            (shapes come one after another: in which order?), "box" (shapes anywhere: where is each, or what is in a
            box), "one box" (one shape), "word box" (where is a word of a crop), "read anywhere" or "lookup anywhere"
            (documents whose lines slice borders may cut), "depth" (which of two shapes is in front) or "distance"
            (which of two is closer to a third).
        count: of pictures, 1 to 8; of frames, 3 to 64; of shapes, 1 to 3. None draws it as in training.
        topic: of "many": "named" (a question about "picture 3"), "describe", "unnamed" (only one picture can answer),
            "which" (picture shows it?), "both", "all" (how many in all); of a "clip": "direction", "first", "last",
            "order", "often"; of a "box": "box" or "inside". None draws one for each turn.
        turns: questions in one conversation, at most. Of boxes and clips there are only a few.

    Returns:
        A Sample. `sample.images` are all its pictures or frames.

    Raises:
        TypeError: a seed that is neither a number nor a text, other than integers for count, turns and view.
        ValueError: an unknown kind or split, a topic or a count that the kind does not have.
        FileNotFoundError: matplotlib, whose font is used, is not installed.

    Example:
        >>> sample = draw_more(1, "many", count=3, topic="named")
        >>> len(sample.images), sample.messages[0]["content"][-1], sample.answer
        (3, 'What color is the circle in picture 3?', 'blue')
        >>> draw_more(0, "box", count=1).answer
        '<ref>green star</ref><box>700 360 960 600</box>'
    """
    check_seed(seed)
    check_choice("kind", kind, MORE_KINDS)
    _check_options(kind, split, "en", topic, turns, True, view, 1.0)
    least, most = COUNTS.get(kind, (None, None))
    if count is not None:
        if most is None:
            raise ValueError(f"count: a {shown(kind)} has none")
        count = check_int("count", count, least, most)
    wanted = Wanted(LANGUAGES["en"], split == "test", topic, turns, True, view, 1.0, count)
    return _draw(seed, kind, "en", wanted)


def _draw(seed: int | str, kind: str, language: str, wanted: Wanted) -> Sample:
    return sample_of(EVERY_KIND[kind](random.Random(f"{kind} {seed}"), wanted), kind, wanted, language)


def _check_options(kind, split, language, topic, turns, aligned, view, scale) -> None:
    check_choice("kind", kind, EVERY_KIND)
    check_choice("split", split, ("train", "test"))
    check_choice("language", language, LANGUAGES if kind in KINDS else ("en",))
    check_choice("topic", topic, (None, *MORE_TOPICS.get(kind, () if kind in MORE_KINDS else TOPICS)))
    check_int("turns", turns, most=LIMITS["turns"])
    check_type("aligned", aligned, bool)
    check_int("view", view, most=LIMITS["drawn_side"] // 4)  # a document is up to 8 views long
    check_number("scale", scale, least=1 / view, most=LIMITS["drawn_side"] / view)
    if view < SMALLEST_VIEW.get(kind, 1):
        raise ValueError(f"to hold the lines of a {kind}, a view needs {SMALLEST_VIEW[kind]} pixels, got {view}")


# ---- the kinds of samples, one function each


def _caption(rng: random.Random, wanted: Wanted) -> Drawn:
    scene, image = _scene(rng, wanted)
    return Drawn(scene, image, [(wanted.say.describe, caption(scene, wanted.say))])


def _long(rng: random.Random, wanted: Wanted) -> Drawn:
    scene, image = _scene(rng, wanted)
    return Drawn(scene, image, [(wanted.say.describe_long, long_caption(scene, wanted.say))])


def _noisy(rng: random.Random, wanted: Wanted) -> Drawn:
    scene, image = _scene(rng, wanted)
    return Drawn(scene, image, [(wanted.say.describe, noisy_caption(scene, wanted.say, rng))])


def _careless(rng: random.Random, wanted: Wanted) -> Drawn:
    scene, image = _scene(rng, wanted)
    return Drawn(scene, image, [(wanted.say.describe, careless_caption(scene, wanted.say, rng))])


def _question(rng: random.Random, wanted: Wanted) -> Drawn:
    topic, answer = _topic_and_answer(rng, wanted)
    while True:
        scene = sample_scene(rng)
        asked = ask(topic, answer, scene, rng, wanted.say)
        if asked and is_held_out(scene.content) == wanted.held_out:
            break
    image = draw_scene(scene, rng, round(wanted.view * wanted.scale))
    return _with_questions(Drawn(scene, image, [asked], (topic,)), rng, wanted, wanted.turns - 1)


def _talk(rng: random.Random, wanted: Wanted) -> Drawn:
    return _with_questions(_caption(rng, wanted), rng, wanted, wanted.turns)


def _claim(rng: random.Random, wanted: Wanted) -> Drawn:
    """For a model that checks what others say; the stages of training do without."""
    scene, image = _scene(rng, wanted, topic_first=False)
    asked = [ask_claim(rng.random() < 0.5, scene, rng, wanted.say) for _ in range(wanted.turns)]
    return Drawn(scene, image, asked)


def _read(rng: random.Random, wanted: Wanted) -> Drawn:
    return _reading_of(_in_split(wanted, lambda: sample_document(rng, wanted.view, wanted.aligned)), wanted)


def _crop(rng: random.Random, wanted: Wanted) -> Drawn:
    return _reading_of(_in_split(wanted, lambda: sample_crop(rng, wanted.view)), wanted)


def _lookup(rng: random.Random, wanted: Wanted) -> Drawn:
    document = _in_split(wanted, lambda: sample_document(rng, wanted.view, wanted.aligned), least=1)
    return _lookup_in(document, rng, wanted)


def _read_anywhere(rng: random.Random, wanted: Wanted) -> Drawn:
    return _read(rng, wanted._replace(aligned=False))


def _lookup_anywhere(rng: random.Random, wanted: Wanted) -> Drawn:
    return _lookup(rng, wanted._replace(aligned=False))


def _find(rng: random.Random, wanted: Wanted) -> Drawn:
    return _lookup_in(_in_split(wanted, lambda: sample_crop(rng, wanted.view), least=2), rng, wanted)


KINDS: dict[str, Callable[[random.Random, Wanted], Drawn]] = {
    "caption": _caption,
    "long": _long,
    "noisy": _noisy,
    "careless": _careless,
    "question": _question,
    "talk": _talk,
    "claim": _claim,
    "read": _read,
    "lookup": _lookup,
    "crop": _crop,
    "find": _find,
}
MORE_KINDS: dict[str, Callable[[random.Random, Wanted], Drawn]] = {  # these came later, and are English only
    "many": draw_album,
    "pair": draw_pair,
    "clip": draw_clip,
    "motion": draw_motion,
    "coming": draw_coming,
    "box": draw_layout,
    "one box": draw_one,
    "word box": draw_word,
    "read anywhere": _read_anywhere,
    "lookup anywhere": _lookup_anywhere,
    "depth": draw_depth,
    "distance": draw_distance,
}
EVERY_KIND = ChainMap(KINDS, MORE_KINDS)
MORE_TOPICS = {
    "many": ALBUM_TOPICS,
    "pair": ALBUM_TOPICS,
    "clip": tuple(CLIP_TOPICS),
    "motion": ("direction",),
    "coming": ("first", "last", "order"),
    "box": ("box", "inside"),
}
COUNTS = {"many": (1, MOST_PICTURES), "clip": (LEAST_FRAMES, MOST_FRAMES), "box": (1, 3)}  # least and most
# Sides of views that hold the lines of a kind at all: one number, a word and a number, two of these (words are wide).
SMALLEST_VIEW = {"read": RULE, "crop": RULE, "lookup": 2 * RULE, "find": 3 * RULE}
SMALLEST_VIEW |= {"read anywhere": RULE, "lookup anywhere": 2 * RULE, "word box": RULE}


# ---- what several kinds need


def _topic_and_answer(rng: random.Random, wanted: Wanted) -> tuple:
    """The answer is chosen before the scene. Choosing it after would make "no" and "1" the best guesses."""
    topic = wanted.topic or rng.choice(list(TOPICS))
    return topic, rng.choice(TOPICS[topic])


def _scene(rng: random.Random, wanted: Wanted, topic_first: bool = True) -> tuple[Scene, Image.Image]:
    """A scene of the wanted split, and its picture."""
    if topic_first:  # not used: it keeps the order of the random numbers, and with it every sample of a caption
        _topic_and_answer(rng, wanted)
    scene = _in_split(wanted, lambda: sample_scene(rng))
    return scene, draw_scene(scene, rng, round(wanted.view * wanted.scale))


def _in_split(wanted: Wanted, make: Callable, least: int = 0):
    """Make facts until they belong to the wanted split; a document needs `least` lines that can be looked up."""
    while True:
        facts = make()
        if is_held_out(facts.content) == wanted.held_out and (not least or len(lookups(facts)) >= least):
            return facts


def _with_questions(drawn: Drawn, rng: random.Random, wanted: Wanted, number: int) -> Drawn:
    """Go on with so many questions about the same scene."""
    more = more_questions(drawn.facts, rng, wanted.say, number)
    turns = drawn.turns + [asked for _, asked in more]
    return drawn._replace(turns=turns, topics=(*drawn.topics, *(topic for topic, _ in more)))


def _reading_of(document: Document, wanted: Wanted) -> Drawn:
    return Drawn(document, draw_document(document), [(wanted.say.read, reading(document))])


def _lookup_in(document: Document, rng: random.Random, wanted: Wanted) -> Drawn:
    line = rng.choice(lookups(document))
    asked = wanted.say.lookup.format(word=line.word), str(line.number)
    return Drawn(document, draw_document(document), [asked])


# ---- many samples


def stream(
    seed: int | str,
    data_mix: Mapping[str, float],
    split: str = "train",
    languages: Mapping[str, float] | None = None,
    scales: Mapping[float, float] | None = None,
    **options,
) -> Iterator[Sample]:
    """Draw samples without end.

    Args:
        seed: of the whole stream.
        data_mix: the data mixture: weight of each kind, for example {"caption": 1, "question": 2}.
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
    return map(numbered(seed, data_mix, split, languages, scales, **options), count())


def numbered(
    seed: int | str,
    data_mix: Mapping[str, float],
    split: str = "train",
    languages: Mapping[str, float] | None = None,
    scales: Mapping[float, float] | None = None,
    **options,
) -> Callable[[int], Sample]:
    """Number the samples of a stream: each can be had without those before it.

    Args:
        seed, data_mix, split, languages, scales, options: as for `stream`.

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
    weights = data_mix, {"en": 1.0} if languages is None else languages, {1.0: 1.0} if scales is None else scales
    for name, each, allowed in zip(("data_mix", "languages", "scales"), weights, (EVERY_KIND, LANGUAGES, None)):
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


# ---- pictures as words

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
        ValueError: a document whose lines are not aligned (a slice border may cut them), another `view` or scale.

    Example:
        >>> draw(1, "caption").answer
        'green square top right, yellow square bottom left.'
        >>> board = spell(draw(1, "caption"))[0]
        >>> board[0], board[3]  # the corners of the first row
        (('.',), (' green', ' square', ' top', ' right'))
    """
    check_type("sample", sample, Sample)
    check_int("view", view)
    if isinstance(sample.facts, Album):
        return [board for scene in sample.facts.scenes for board in spell_scene(scene, view, view)]
    if isinstance(sample.facts, Clip):
        return [spell_placed(things) for things in sample.facts.frames]
    if isinstance(sample.facts, Scene):
        return spell_scene(sample.facts, sample.image.width, view)
    return spell_document(sample.facts, view)
