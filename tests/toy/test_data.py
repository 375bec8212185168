"""The synthetic world: same seed, same sample; no content in both splits; true answers that cannot be guessed."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import islice, pairwise

import numpy as np
import pytest
from places import LIB, ROOT

from minicpmv_ref import Processor, SliceConfig, nano, plan_slices
from minicpmv_ref.toy import data, documents
from minicpmv_ref.toy.data import KINDS, PLACES, TOPICS, blind, draw, is_held_out, stream
from minicpmv_ref.toy.words import LANGUAGES, PAINT, SHAPES, WORDS

SCENE_KINDS = ("caption", "long", "noisy", "question", "claim")


def digest(samples):
    h = hashlib.sha256()
    for s in samples:
        h.update(s.image.tobytes() + json.dumps(blind(s.messages)).encode() + s.key.encode())
    return h.hexdigest()


def all_kinds():
    return [
        draw(i, kind, split, lang)
        for i in range(3)
        for kind in KINDS
        for split in ("train", "test")
        for lang in LANGUAGES
    ]


# ---- seeds and splits

# Of samples with every option. It changes only with the world itself: the shipped checkpoints learned from these.
FROZEN = {
    "words": "bf9feb8fd301c7ee346eb3827e5ef4d06ebe5d3fc76cce9937a8af0250e233eb",
    "pictures": "111bac8e069067a6b0f471d4f612ae6e78887241290041e8e5ba71020d0ea259",
}


def with_every_option():
    yield from all_kinds()
    for seed in range(6):
        for kind in KINDS:
            for topic in TOPICS:
                yield draw(seed, kind, topic=topic, turns=3)
            yield draw(seed, kind, "test", turns=2, aligned=False, view=84, scale=2.0)
    data_mix, languages = dict.fromkeys(KINDS, 1), dict.fromkeys(LANGUAGES, 1)
    yield from islice(stream("frozen", data_mix, "train", languages, {1.0: 1, 2.0: 1}), 100)


def test_the_samples_are_those_that_the_checkpoints_learned_from():
    words, pictures = hashlib.sha256(), hashlib.sha256()
    for sample in with_every_option():
        words.update(json.dumps([blind(sample.messages), sample.key, repr(sample.facts), sample.topics]).encode())
        pictures.update(sample.image.tobytes())
    assert {"words": words.hexdigest(), "pictures": pictures.hexdigest()} == FROZEN


def test_a_new_kind_is_one_function_and_one_line(monkeypatch):
    def darkness(rng, wanted):
        scene = data.Scene(())
        return data.Drawn(scene, data.draw_scene(scene, rng, wanted.view), [("What is here?", "Nothing.")])

    monkeypatch.setitem(KINDS, "darkness", darkness)
    sample = next(stream(0, {"darkness": 1}))
    assert (sample.kind, sample.answer, sample.image.size) == ("darkness", "Nothing.", (data.VIEW, data.VIEW))


def test_same_seed_same_sample_in_another_process():
    code = "import test_data as t; print(t.digest(t.all_kinds()))"
    search = os.pathsep.join([str(ROOT), str(LIB), str(ROOT / "tests/toy")])
    environment = {**os.environ, "PYTHONPATH": search, "PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == digest(all_kinds())


def test_another_seed_is_another_sample():
    for kind in KINDS:
        assert len({draw(i, kind).key for i in range(50)}) > 30, kind


def test_splits_share_no_content():
    for kind in KINDS:
        train, test = ({draw(i, kind, split).key for i in range(300)} for split in ("train", "test"))
        assert not train & test, kind
        assert all(is_held_out(key) for key in test) and not any(is_held_out(key) for key in train)


def test_all_kinds_of_scene_share_the_split():
    """A scene whose caption is held out is not met in a question either: the key does not know the kind."""
    seen = {draw(i, kind).key for kind in SCENE_KINDS for i in range(500)}
    assert not any(draw(i, kind, "test").key in seen for kind in SCENE_KINDS for i in range(200))


def test_key_of_a_document_ignores_where_its_lines_stand():
    pairs = [(draw(i, "read"), draw(i, "read", aligned=False)) for i in range(20)]
    assert all(a.key == b.key and a.image.tobytes() != b.image.tobytes() for a, b in pairs)


def test_one_content_in_ten_is_held_out():
    share = sum(is_held_out(f"scene {i}") for i in range(20000)) / 20000
    assert abs(share - 0.1) < 0.01


def test_stream_follows_its_mixture_and_seed():
    data_mix, languages = {"caption": 3, "crop": 1}, {"en": 1, "zh": 1, "fr": 2}
    samples = list(islice(stream(5, data_mix, "test", languages), 800))
    kinds, spoken = Counter(s.kind for s in samples), Counter(s.language for s in samples)
    assert 0.7 < kinds["caption"] / 800 < 0.8 and 0.44 < spoken["fr"] / 800 < 0.56
    assert digest(samples[:20]) == digest(islice(stream(5, data_mix, "test", languages), 20))
    assert digest(samples[:20]) != digest(islice(stream(6, data_mix, "test", languages), 20))
    assert all(s.held_out for s in samples)


# ---- answers are true


def names(text):
    """(color, shape) of every 'red circle' in a text."""
    return re.findall(rf"({'|'.join(PAINT)}) ({'|'.join(SHAPES)})", text)


def answer_by_looking(question, things):
    """Answer an English question from nothing but its words and the list of things."""
    pairs = [(t.color, t.shape) for t in things]
    if match := re.fullmatch(r"What color is the (\w+)\?", question):
        (color,) = [t.color for t in things if t.shape == match[1]]
        return color
    if match := re.fullmatch(r"What shape is at the (.+)\?", question):
        (shape,) = [t.shape for t in things if PLACES[t.place] == match[1]]
        return shape
    if question == "How many shapes are there?":
        return str(len(things))
    if match := re.fullmatch(r"How many (\w+)s are there\?", question):
        return str(sum(t.shape == match[1] for t in things))
    if match := re.fullmatch(r"Is there a (\w+) (\w+)\?", question):
        return "yes" if match.groups() in pairs else "no"
    if match := re.fullmatch(r"Where is the (\w+) (\w+)\?", question):
        (place,) = [t.place for t in things if (t.color, t.shape) == match.groups()]
        return PLACES[place]
    first, second = names(question)
    (a,), (b,) = ([t.place for t in things if (t.color, t.shape) == pair] for pair in (first, second))
    side = re.search(r"left of|right of|above|below", question)[0]
    true = {"left of": a % 2 < b % 2, "right of": a % 2 > b % 2, "above": a // 2 < b // 2, "below": a // 2 > b // 2}
    return "yes" if true[side] else "no"


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_agree_with_the_scene(topic, split):
    for i in range(150):
        sample = draw(i, "question", split, topic=topic)
        assert sample.topics == (topic,)
        assert sample.answer == answer_by_looking(sample.messages[0]["content"][1], sample.facts.things)


def test_later_turns_are_true_too():
    for i in range(100):
        sample = draw(i, "question", turns=5)
        questions = [m["content"] for m in blind(sample.messages[::2])]
        assert len(questions) == len(sample.topics) == 5
        assert [m["content"] for m in sample.messages[1::2]] == [
            answer_by_looking(q, sample.facts.things) for q in questions
        ]


def translate(text, say):
    """An English answer in another language, by its tables."""
    tables = {**dict(zip(PLACES, say.places)), **getattr(say, "nouns", {})}
    return tables.get(text, text)


@pytest.mark.parametrize("language", ["zh", "fr"])
@pytest.mark.parametrize("topic", TOPICS)
def test_other_languages_say_the_same(topic, language):
    say = LANGUAGES[language]
    for i in range(40):
        english, other = draw(i, "question", topic=topic), draw(i, "question", topic=topic, language=language)
        assert english.facts == other.facts and english.image.tobytes() == other.image.tobytes()
        if topic in ("exist", "side"):
            assert (english.answer == "yes") == (other.answer in ("oui", "是", "有"))
        elif topic == "color":
            forms = say.colors[english.answer]
            assert other.answer == forms if isinstance(forms, str) else other.answer in forms
        else:
            assert other.answer == translate(english.answer, say)


def test_captions_name_all_things_in_reading_order():
    for i in range(100):
        short, long = draw(i, "caption"), draw(i, "long")
        for sample in (short, long):
            assert names(sample.answer) == [(t.color, t.shape) for t in sample.facts.things]
            assert re.findall("|".join(PLACES), sample.answer) == [PLACES[t.place] for t in sample.facts.things]
        assert ["one", "two", "three", "four"][len(long.facts.things) - 1] in long.answer


def test_sentences_in_three_languages():
    scene = data.Scene((data.Thing("green", "star", 0), data.Thing("black", "square", 3)))
    texts = {name: (data.caption(scene, say), data.long_caption(scene, say)) for name, say in LANGUAGES.items()}
    assert texts["en"] == (
        "green star top left, black square bottom right.",
        "There are two shapes: a green star at the top left and a black square at the bottom right.",
    )
    assert texts["fr"] == (
        "étoile verte en haut à gauche, carré noir en bas à droite.",
        "Il y a deux formes : une étoile verte en haut à gauche et un carré noir en bas à droite.",
    )
    assert texts["zh"] == ("绿色星形左上，黑色方形右下。", "有两个形状：左上是绿色星形，右下是黑色方形。")
    assert LANGUAGES["fr"].ask_side(("green", "star"), "above", ("black", "square"), False) == (
        "Est-ce que l'étoile verte est au-dessus du carré noir ?",
        "non",
    )


def test_noisy_captions_are_true_but_worse():
    incomplete = 0
    for i in range(200):
        sample = draw(i, "noisy")
        told, there = names(sample.answer), [(t.color, t.shape) for t in sample.facts.things]
        assert told and not Counter(told) - Counter(there)
        incomplete += len(told) < len(there)
        clean = data.caption(sample.facts, LANGUAGES["en"])
        assert clean == draw(i, "caption").answer or sample.key != draw(i, "caption").key
    assert 20 < incomplete < 80


def test_careless_captions_have_mistakes_of_habit_and_of_chance():
    say = LANGUAGES["en"]
    things, right, tired, repeated = 0, 0, 0, 0
    for i in range(600):
        sample = draw(i, "careless")
        scene = sample.facts.things
        assert sample.messages[0]["content"][1] == say.describe
        told = sample.answer.removesuffix(".").split(", ")
        true = data.caption(sample.facts, say).removesuffix(".").split(", ")
        for number, (said, real) in enumerate(zip(told, true, strict=True)):
            if number == len(scene) - 1 > 1:
                if scene[-1].color != scene[-2].color:
                    tired += 1
                    repeated += said.split()[0] == scene[-2].color
            else:
                things += 1
                right += said == real
    assert 0.85 < right / things < 0.95  # one in eight is drawn anew, and some of these are right again
    assert 0.65 < repeated / tired < 0.87
    assert draw(3, "careless").answer == draw(3, "careless").answer


def claimed(question):
    """(color, shape, place or None) of an English question about a claim."""
    color, shape, place = re.fullmatch(r"Is there a (\w+) (\w+?)(?: at the (\w+ \w+))?\?", question).groups()
    return color, shape, None if place is None else PLACES.index(place)


def test_claims_are_answered_truly_and_false_ones_are_near_misses():
    answers, placed, wrong = Counter(), 0, Counter()
    for i in range(300):
        sample = draw(i, "claim", "test", turns=4)
        texts = [m["content"] for m in blind(sample.messages)]
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            claim = claimed(question)
            there = [(t.color, t.shape, t.place if claim[2] is not None else None) for t in sample.facts.things]
            assert (claim in there) == (answer == "yes")
            answers[answer] += 1
            placed += claim[2] is not None
            if answer == "no":
                differ = [tuple(a != b for a, b in zip(claim, thing)) for thing in there]
                wrong.update({min(differ, key=sum)})
    assert 0.45 < answers["yes"] / 1200 < 0.55 and 0.7 < placed / 1200 < 0.8
    one = [wrong[kind] for kind in ((True, False, False), (False, True, False), (False, False, True))]
    assert min(one) > 60 and sum(one) > 0.8 * answers["no"]


def test_a_blind_guesser_of_claims_scores_chance():
    seen = defaultdict(Counter)
    for i in range(4000):
        sample = draw(i, "claim")
        seen[sample.messages[0]["content"][1]][sample.answer] += 1
    tests = [draw(i, "claim", "test") for i in range(800)]
    right = 0
    for sample in tests:
        counts = seen[sample.messages[0]["content"][1]]
        right += bool(counts) and counts.most_common(1)[0][0] == sample.answer
    assert right / len(tests) < 0.6


@pytest.mark.parametrize("language", ["zh", "fr"])
def test_claims_in_other_languages_say_the_same(language):
    say = LANGUAGES[language]
    for i in range(40):
        english, other = draw(i, "claim"), draw(i, "claim", language=language)
        yes = english.answer == "yes"
        color, shape, place = claimed(english.messages[0]["content"][1])
        assert (other.messages[0]["content"][1], other.answer) == say.ask_exist(color, shape, yes, place)


# ---- answers cannot be guessed


@pytest.mark.parametrize("topic", TOPICS)
def test_a_text_only_guesser_scores_chance(topic):
    """The best it can do: learn the most frequent answer to each question. Ties and luck allow a little more."""
    seen = defaultdict(Counter)
    for i in range(3000):
        sample = draw(i, "question", topic=topic)
        seen[sample.messages[0]["content"][1]][sample.answer] += 1
    tests = [draw(i, "question", "test", topic=topic) for i in range(600)]
    right = 0
    for sample in tests:
        counts = seen[sample.messages[0]["content"][1]]
        right += bool(counts) and counts.most_common(1)[0][0] == sample.answer
    chance = 1 / len(TOPICS[topic])
    assert right / len(tests) < chance + 0.08
    total = Counter(sample.answer for sample in tests)
    assert max(total.values()) / len(tests) < chance + 0.06


def test_no_answer_is_in_the_picture_alone():
    """The same pictures serve all questions, so the kind of question does not show in the scene's size."""
    sizes = Counter(len(draw(i, "caption").facts.things) for i in range(1000))
    assert all(200 < sizes[n] < 300 for n in (1, 2, 3, 4))


# ---- pictures show what the facts say


def test_pixels_of_a_scene():
    for i in range(100):
        sample = draw(i, "caption")
        pixels = np.asarray(sample.image).astype(int)
        taken = {t.place: t for t in sample.facts.things}
        for place in range(4):
            x, y = 56 * (place % 2), 56 * (place // 2)
            cell = pixels[y : y + 56, x : x + 56].reshape(-1, 3)
            painted = cell[(cell != pixels[0, 0]).any(axis=1)]  # the corner is always background
            assert (len(painted) > 0) == (place in taken)
            if place in taken:
                paint = np.median(painted, axis=0)
                nearest = min(PAINT, key=lambda name: np.abs(np.array(PAINT[name]) - paint).sum())
                assert nearest == taken[place].color
    assert draw(1, "caption", scale=2).image.size == (224, 224)


def ink(sample):
    return np.asarray(sample.image.convert("L")) < 140


def test_aligned_lines_stay_in_their_cells():
    for i in range(60):
        sample = draw(i, "read")
        cols, rows = sample.facts.grid
        dark = ink(sample).reshape(rows, data.VIEW, cols, data.VIEW).transpose(0, 2, 1, 3)
        assert (dark.any(axis=(2, 3))).sum() == len(sample.facts.lines)
        # Nothing touches a border, so no border cuts a letter.
        assert not dark[:, :, [0, -1]].any() and not dark[:, :, :, [0, -1]].any()


def test_lines_at_any_place_are_cut_by_borders_but_stay_on_the_paper():
    cut = 0
    for i in range(60):
        sample = draw(i, "read", aligned=False)
        boxes = []
        for line in sample.facts.lines:
            w, h = documents.measure(line.text, sample.facts.font_size)
            assert line.x >= 0 and line.y >= 0
            assert line.x + w <= sample.image.width + 1 and line.y + h <= sample.image.height + 1
            boxes.append((line.x, line.y, line.x + w, line.y + h))
            cut += line.x // data.VIEW != (line.x + w) // data.VIEW or line.y // data.VIEW != (line.y + h) // data.VIEW
        for a, b in pairwise(boxes):  # reading order is plain, and lines do not overlap
            assert a[2] <= b[0] + 1 or a[3] <= b[1] + 1
    assert cut > 30


def test_reading_and_lookup():
    for i in range(60):
        sample = draw(i, "lookup")
        word = re.fullmatch(r"What number is right of (\w+)\?", sample.messages[0]["content"][1])[1]
        assert dict(re.findall(r"([a-z]+) (\d+)", data.reading(sample.facts)))[word] == sample.answer
        lines = draw(i, "read").answer.split(", ")
        assert 2 <= len(lines) <= 5
        assert all(re.fullmatch(r"[a-z]+|\d\d|[a-z]+ \d\d", line) for line in lines)
        assert set(re.findall("[a-z]+", " ".join(lines))) <= set(WORDS)


# ---- the scale of things


@pytest.mark.parametrize("view", [56, 84, 112])
@pytest.mark.parametrize("aligned", [True, False])
def test_text_is_legible_in_slices_only(view, aligned):
    """A digit is at least 10 pixels tall in a slice, and at most 5 in the overview; no model needed to say so."""
    cfg = SliceConfig(scale_resolution=view)
    for i in range(80):
        sample = draw(i, "read", aligned=aligned, view=view)
        plan = plan_slices(sample.image.size, cfg)
        assert plan.grid == sample.facts.grid and plan.slice_size == (view, view)
        tall = documents.CAP_HEIGHT * sample.facts.font_size
        assert tall >= 10
        assert tall * math.sqrt(1 / plan.num_slices) <= documents.MOST_IN_OVERVIEW


def test_scenes_and_crops_are_one_view():
    for kind in (*SCENE_KINDS, "crop"):
        assert plan_slices(draw(0, kind).image.size, nano.slicing).num_slices == 0
    assert plan_slices(draw(0, "caption", scale=2).image.size, nano.slicing).grid == (2, 2)


# ---- what the model is fed


@pytest.fixture(scope="module")
def processor():
    return Processor.from_pretrained("nano")


def test_words_cost_few_tokens(processor):
    def cost(text):
        return len(processor.tokenizer(text, add_special_tokens=False).input_ids)

    for name, say in LANGUAGES.items():
        before = "" if name == "zh" else " "  # inside a sentence
        assert {cost(before + say.thing(color, shape)) for color in PAINT for shape in SHAPES} == {2}
        assert {cost(before + place) for place in say.places} == {{"en": 2, "zh": 1, "fr": 4}[name]}
    assert all(cost(" " + word) == 1 for word in WORDS)
    for sample in all_kinds():  # nothing else is spelled letter by letter, advertising apart
        for message in blind(sample.messages):
            if sample.language == "en" and sample.kind != "noisy":
                assert all(cost(" " + word) <= 2 for word in re.findall(r"[a-z]+", message["content"]))
    assert max(cost(s.answer) for s in all_kinds() if s.kind != "noisy") < 64


def test_samples_become_batches(processor):
    samples = all_kinds()
    batch = processor([s.messages for s in samples])
    assert batch.input_ids.max() < 1024
    for row, sample in enumerate(samples):
        kept = batch.labels[row][batch.labels[row] != -100]
        replies = [m["content"] for m in sample.messages if m["role"] == "assistant"]
        assert processor.tokenizer.decode(kept) == "".join(reply + "<|im_end|>" for reply in replies)
    prompts = processor([s.prompt for s in samples if len(s.messages) == 2])
    assert (prompts.labels == -100).all()


def test_a_talk_is_a_caption_and_questions_about_the_same_scene():
    for seed in range(20):
        sample = draw(seed, "talk", turns=3)
        assert sample.messages[1]["content"] == data.caption(sample.facts, LANGUAGES["en"])
        assert len(sample.messages) == 8 and len(sample.topics) == 3
        pictures = [m for m in sample.messages if not isinstance(m["content"], str)]
        assert len(pictures) == 1 and pictures[0] is sample.messages[0]


def test_a_find_is_a_lookup_with_a_choice():
    for seed in range(20):
        sample = draw(seed, "find")
        lines = {line.word: line.number for line in sample.facts.lines if line.word and line.number is not None}
        assert len(lines) >= 2 and sample.facts.layout == "crop"
        asked = re.fullmatch(r"What number is right of (\w+)\?", sample.messages[0]["content"][1])[1]
        assert sample.answer == str(lines[asked])
    with pytest.raises(ValueError, match="84 pixels"):
        draw(0, "find", view=56)


def test_scales_make_some_scenes_large():
    sizes = [s.image.width for s in islice(stream(0, {"caption": 1, "question": 1}, scales={1.0: 3, 2.0: 1}), 400)]
    assert set(sizes) == {112, 224} and 60 < sizes.count(224) < 140


def test_blind_takes_the_picture_away():
    sample = draw(0, "question", turns=2)
    assert all(isinstance(m["content"], str) for m in blind(sample.messages))
    assert blind(sample.messages, "seen")[0]["content"] == "seen\n" + sample.messages[0]["content"][1]
    assert blind(sample.messages)[1:] == sample.messages[1:]


@pytest.mark.parametrize("wrong", [{"kind": "photo"}, {"split": "dev"}, {"language": "de"}, {"topic": "taste"}])
def test_wrong_names_are_refused(wrong):
    with pytest.raises(ValueError, match=re.escape(repr(next(iter(wrong.values()))))):
        draw(0, **wrong)


def test_a_missing_font_is_explained(monkeypatch):
    monkeypatch.setattr(documents.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install matplotlib"):
        data.font(99)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (dict(seed=None), TypeError),
        (dict(seed=[1]), TypeError),
        (dict(seed=b"1"), TypeError),
        (dict(seed="\ud800"), ValueError),
        (dict(kind=["caption"]), ValueError),
        (dict(turns=0), ValueError),
        (dict(turns=10**9), ValueError),
        (dict(turns=1.0), TypeError),
        (dict(aligned="no"), TypeError),
        (dict(view="112"), TypeError),
        (dict(view=0), ValueError),
        (dict(view=10**6), ValueError),
        (dict(scale=math.nan), ValueError),
        (dict(scale=0), ValueError),
        (dict(scale=10**6), ValueError),
    ],
)
def test_options_that_nothing_can_be_drawn_with(wrong, kind):
    with pytest.raises(kind, match=f"^{next(iter(wrong))} must be"):
        draw(**{"seed": 0, "kind": "caption", **wrong})


@pytest.mark.parametrize(("kind", "least"), data.SMALLEST_VIEW.items())
def test_a_view_too_small_for_its_lines_is_no_endless_search(kind, least):
    with pytest.raises(ValueError, match=f"a view needs {least} pixels, got {least - 1}"):
        draw(0, kind, view=least - 1)
    for seed in range(10):
        assert draw(seed, kind, view=least).answer


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (dict(data_mix=None), TypeError),
        (dict(data_mix=["caption"]), TypeError),
        (dict(data_mix={}), ValueError),
        (dict(data_mix={"caption": 0}), ValueError),
        (dict(data_mix={"caption": -1, "long": 2}), ValueError),
        (dict(data_mix={"caption": math.nan}), ValueError),
        (dict(data_mix={"caption": "1"}), TypeError),
        (dict(data_mix={"photo": 1}), ValueError),
        (dict(languages={"de": 1}), ValueError),
        (dict(languages={}), ValueError),
        (dict(scales={"1": 1}), TypeError),
        (dict(scales={0: 1}), ValueError),
        (dict(split="dev"), ValueError),
        (dict(seed=None), TypeError),
    ],
)
def test_streams_refuse_before_the_first_sample(wrong, kind):
    with pytest.raises(kind, match=next(iter(wrong))):
        stream(**{"seed": 0, "data_mix": {"caption": 1}, **wrong})


def test_numbers_of_samples():
    sample = data.numbered(0, {"caption": 1})
    for number in (-1, 1.0, "1", None, 10**30):
        with pytest.raises(ValueError, match="number must be an integer"):
            sample(number)


def test_what_is_no_conversation_and_no_sample():
    for messages in (None, "Hi", [None], [{"role": "user"}]):
        with pytest.raises(ValueError, match="messages"):
            blind(messages)
    with pytest.raises(TypeError, match="instead must be str"):
        blind([], instead=3)
    with pytest.raises(TypeError, match="sample must be Sample"):
        data.spell(None)
    for kind in ("read", "crop", "caption"):
        with pytest.raises(ValueError, match=r"view: to be spelled, a (document|scene) must be"):
            data.spell(draw(0, kind, view=84))
    with pytest.raises(TypeError, match="content must be str"):
        is_held_out(None)
