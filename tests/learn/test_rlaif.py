"""RLAIF-V: claims against the world that wrote them, pairs against published code, figures against counting by hand."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from places import ROOT
from tiny import ask, picture

from minicpmv_ref.learn import rlaif
from minicpmv_ref.learn.dpo import Pair
from minicpmv_ref.learn.rlaif import (
    ask_claim,
    ask_yes_no,
    balance_lengths,
    build_pairs,
    hallucination,
    is_true,
    is_valid,
    label_by_model,
    label_by_truth,
    read_claim,
    sample_answers,
    score_response,
    split_claims,
)
from minicpmv_ref.toy.claims import Claim
from minicpmv_ref.toy.data import PAINT, SHAPES, Scene, Thing, caption, draw, long_caption
from minicpmv_ref.toy.words import LANGUAGES

GOLDEN = json.loads((ROOT / "tests/golden/rlaif.json").read_text())
pytestmark = pytest.mark.usefixtures("one_thread")
everywhere = pytest.mark.parametrize("language", LANGUAGES)


def scene(*things: tuple[str, str, int]) -> Scene:
    return Scene(tuple(Thing(*thing) for thing in things))


# --- Divide --------------------------------------------------------------------------------------------------------


@everywhere
def test_true_descriptions_are_divided_into_their_true_things(language):
    say = LANGUAGES[language]
    for seed in range(60):
        facts = draw(seed).facts
        things = [Claim(t.color, t.shape, t.place) for t in facts.things]
        assert [read_claim(claim) for claim in split_claims(caption(facts, say))] == things
        claims = split_claims(long_caption(facts, say))
        assert [read_claim(claim) for claim in claims] == [Claim(None, None, None, len(things)), *things]
        assert all(is_true(claim, facts) for claim in claims)
        other = draw(f"other {seed}").facts
        wrong = [thing not in other.things for thing in facts.things]
        assert [not is_true(claim, other) for claim in split_claims(caption(facts, say))] == wrong


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("", []),
        (" . , ", []),
        ("red circle", ["red circle"]),
        ("red circle, red circle.", ["red circle"]),
        ("a red circle and a blue star", ["a red circle", "a blue star"]),
        ("un cercle rouge et une étoile", ["un cercle rouge", "une étoile"]),
        ("sandy etage", ["sandy etage"]),  # "and" and "et" only as words
        ("it costs 3.50 here.", ["it costs 3.50 here"]),
        ("one\ntwo; three! four?", ["one", "two", "three", "four"]),
    ],
)
def test_where_claims_end(text, claims):
    assert split_claims(text) == claims


@pytest.mark.parametrize(
    "claim",
    [
        "",
        "red",
        "circle",
        "red red circle",
        "red circle star",
        "red circle top left top right",
        "starry redness",
        "三角",
    ],
)
def test_what_cannot_be_read_is_neither_true_nor_asked(claim):
    assert read_claim(claim) is None
    assert ask_claim(claim) is None
    assert not is_true(claim, scene(("red", "circle", 0), ("red", "star", 1)))


def test_truth_knows_objects_places_and_numbers():
    facts = scene(("red", "circle", 0), ("red", "circle", 3), ("blue", "star", 1))
    true = ["red circle", "red circle top left", "red circle bottom right", "blue star", "There are three shapes"]
    false = ["red star", "blue circle", "red circle top right", "blue star top left", "There are two shapes"]
    assert all(is_true(claim, facts) for claim in true)
    assert not any(is_true(claim, facts) for claim in false)
    sample = draw(0)
    assert label_by_truth([sample, sample], [["hello"], []]) == [[False], []]


@everywhere
def test_claims_become_the_questions_of_the_world(language):
    say = LANGUAGES[language]
    for placed in (None, 0, 1, 2, 3):
        for c in PAINT:
            for s in SHAPES:
                claim = say.thing(c, s) if placed is None else say.a_thing_at(c, s, placed)
                assert ask_claim(claim, language) == say.ask_exist(c, s, True, placed)[0]
                assert read_claim(ask_claim(claim, language)) == Claim(c, s, placed)  # the question asks the same
    assert ask_claim(split_claims(say.there_are[1])[0], language) is None  # nobody asks for a number by yes or no


# --- Conquer -------------------------------------------------------------------------------------------------------


def test_yes_must_be_likelier_than_no():
    for case in GOLDEN["pairs"]:
        for probabilities, labels in zip(case["probabilities"], case["labels"]):
            if probabilities:
                yes, yes_too, no, no_too = torch.tensor(probabilities).T
                assert is_valid(yes + yes_too, no + no_too).tolist() == [bool(label) for label in labels]
    ties = [p for case in GOLDEN["pairs"] for own in case["probabilities"] for p in own if p[0] + p[1] == p[2] + p[3]]
    assert len(ties) > 3


@everywhere
def test_a_batch_of_questions_is_answered_as_each_alone(models, processors, language, monkeypatch):
    model, processor = models["2.6"], processors["2.6"]
    calls = []
    encode = type(model).encode_images
    monkeypatch.setattr(type(model), "encode_images", lambda *args: calls.append(1) or encode(*args))
    say = LANGUAGES[language]
    image, questions = picture(130, 60), [say.ask_exist("red", "star", True)[0], say.ask_total(2)[0], "?"]
    p_yes, p_no = ask_yes_no(model, processor, image, questions, language)
    assert len(calls) == 1  # one picture
    for i, question in enumerate(questions):
        probabilities = model(processor(ask(image, question))).logits[0, -1].softmax(dim=-1)
        for found, yes in ((p_yes[i], True), (p_no[i], False)):
            word = say.ask_exist("red", "star", yes)[1]
            forms = {processor.tokenizer(w, add_special_tokens=False).input_ids[0] for w in (word, word.capitalize())}
            assert len(forms) == (1 if language == "zh" else 2)
            assert found.item() == pytest.approx(sum(probabilities[i].item() for i in forms), rel=1e-3)


def test_a_model_is_asked_each_question_once_and_nothing_asked_is_not_valid(monkeypatch):
    asked = []

    def answer(model, processor, image, questions, language):
        asked.append((questions, language))
        yes = torch.tensor([0.9 if "red" in question else 0.1 for question in questions])
        return yes, torch.full_like(yes, 0.1)  # what is not red is a tie

    monkeypatch.setattr(rlaif, "ask_yes_no", answer)
    label = partial(label_by_model, None, None)
    samples = [draw(0), draw(1), draw(2), draw(3, language="fr")]
    claims = [["red star", "hello", "a red star", "blue star"], [], ["hello"], ["étoile bleue"]]
    assert label(samples, claims) == [[True, False, True, False], [], [False], [False]]
    french = LANGUAGES["fr"].ask_exist("blue", "star", True)[0]
    assert asked == [(["Is there a blue star?", "Is there a red star?"], "en"), ([french], "fr")]


def test_words_that_begin_alike_are_refused(models, processors, monkeypatch):
    monkeypatch.setattr(rlaif, "_first_tokens", lambda processor, word: [3])
    with pytest.raises(ValueError, match="same token"):
        ask_yes_no(models["2.6"], processors["2.6"], picture(50, 50), ["?"])


# --- Score and pair ------------------------------------------------------------------------------------------------


def test_scores_and_pairs_are_those_of_the_published_code():
    for case in GOLDEN["pairs"]:
        scores = [score_response([bool(label) for label in own]) if own else None for own in case["labels"]]
        assert scores == case["scores"]
        for difference, expected in case["pairs"].items():
            found = build_pairs(scores, min_difference=int(difference), max_pairs=100)
            assert sorted(map(list, found)) == expected


def test_the_number_of_rejected_claims_counts_not_their_share():
    assert score_response([]) == 0
    assert score_response([True] * 9 + [False]) == score_response([False]) == -1
    assert score_response((1, 0, 0)) == -2


def test_two_pairs_at_most_drawn_from_all():
    scores = [-3, 0, -1, -2]
    everything = set(build_pairs(scores, max_pairs=6))
    assert len(everything) == 6 and all(scores[a] > scores[b] for a, b in everything)
    drawn = [build_pairs(scores, seed=seed) for seed in range(60)]
    assert all(len(set(pairs)) == 2 for pairs in drawn)
    assert {pair for pairs in drawn for pair in pairs} == everything
    assert build_pairs(scores, seed=5) == build_pairs(scores, seed=5)
    assert build_pairs([-1, -1, None]) == [] == build_pairs([])
    for bad in (dict(min_difference=0), dict(min_difference=math.nan), dict(max_pairs=0)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            build_pairs(scores, **bad)


def test_lengths_of_chinese_answers_are_characters():
    assert [rlaif.count_words(text) for text in ("红色星形左上，蓝色", "a red star", "")] == [8, 3, 0]
    short, equal = Pair([], "有星形", "有一个红色的星形，左上"), Pair([], "有红色星形", "有一个星形")
    assert balance_lengths([short, equal]) == ([equal], 0.0)  # in words by white space, all four would be as long


@pytest.mark.parametrize("case", GOLDEN["balance"], ids=lambda case: f"rho {case['rho']:.2f}")
def test_lengths_are_balanced_as_published(case):
    pairs = []
    for i, (chosen, rejected) in enumerate(case["words"]):
        other = f"c{i}" if i in case["identical"] else f"r{i}"
        pairs.append(Pair([], " ".join([f"c{i}"] * chosen), " ".join([other] * rejected)))
    kept, rho = balance_lengths(pairs)
    assert [pairs.index(pair) for pair in kept] == case["kept"]
    assert rho == case["rho"]
    in_characters = [Pair([], "字" * chosen, "符" * rejected) for chosen, rejected in case["words"]]
    assert balance_lengths(in_characters, len)[1] is not None


def test_no_balance_is_no_crash():
    assert balance_lengths([]) == ([], None)
    assert balance_lengths([Pair([], "a", "a ")]) == ([], None)  # identical but for the space
    with pytest.raises(ValueError, match=r"pairs \[1\] have an empty rejected answer"):
        balance_lengths([Pair([], "a", "b"), Pair([], "a", " ")])


# --- Sample --------------------------------------------------------------------------------------------------------


def test_ten_answers_are_those_of_ten_prompts(models, processors, monkeypatch):
    model, processor = models["2.6"], processors["2.6"]
    prompts = [ask(picture(130, 60, 1), "What is this?"), ask("Hello"), ask(picture(50, 50, 2), "And this?")]
    sampling = dict(temperature=1.0, top_k=50, max_new_tokens=6)
    rows = model.generate(processor([prompt for prompt in prompts for _ in range(4)]), seed=3, **sampling)
    calls = []
    encode = type(model).encode_images
    monkeypatch.setattr(type(model), "encode_images", lambda *args: calls.append(len(args[1])) or encode(*args))
    answers = sample_answers(model, processor, prompts, n=4, seed=3, **sampling)
    assert calls == [3, 0, 1]  # views of each prompt, once
    assert [len(own) for own in answers] == [4, 4, 4]
    texts = processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
    assert [text for own in answers for text in own] == [text.strip() for text in texts]
    assert len({text for own in answers for text in own}) > 8
    assert answers == sample_answers(model, processor, prompts, n=4, seed=3, **sampling)
    assert answers != sample_answers(model, processor, prompts, n=4, seed=4, **sampling)
    with pytest.raises(ValueError, match="n must be an integer of at least 1"):
        sample_answers(model, processor, prompts, n=0)


def test_an_answer_ends_at_its_end_token_and_markers_are_no_answer(models, processors, monkeypatch):
    model, processor = models["2.6"], processors["2.6"]

    def tokens(text):
        return processor.tokenizer(text, add_special_tokens=False).input_ids

    rows = [tokens(" yes") + tokens("<|im_end|>") + tokens("no"), [t for c in "<slice>" for t in tokens(c)]]
    width = max(map(len, rows))
    rows = torch.tensor([row + tokens("no")[:1] * (width - len(row)) for row in rows])
    monkeypatch.setattr(type(model), "stream", lambda *args, **options: iter(rows.T))
    assert sample_answers(model, processor, [ask("Hi")], n=2) == [["yes", ""]]


# --- Figures -------------------------------------------------------------------------------------------------------


def values(figures):
    return {name: estimate.value for name, estimate in figures.items()}


def test_figures_counted_by_hand():
    answers = [
        "red circle top left, blue star top right.",  # one is not there
        "red circle bottom left.",  # there, but elsewhere
        "hello world, blah.",  # nothing that can be read
        "",
        "blue square, blue square top left, a black star and a green circle",  # twice the same, two false
    ]
    scenes = [
        scene(("red", "circle", 0), ("green", "circle", 1)),
        scene(("red", "circle", 1), ("red", "circle", 3)),
        scene(("red", "circle", 0)),
        scene(("red", "circle", 0), ("red", "star", 1)),
        scene(("blue", "square", 0), ("blue", "star", 1), ("green", "star", 2)),
    ]
    assert values(hallucination(answers, scenes)) == {
        "response": 2 / 3,  # of three answers that mention anything
        "mention": 3 / 7,
        "misplaced": 1 / 4,
        "recall": 3 / 9,
        "unreadable": 2 / 9,
        "mentions": 7 / 5,
        "words": (8 + 4 + 3 + 0 + 13) / 5,
    }
    assert len({hallucination(answers, scenes, seed)["words"] for seed in range(4)}) > 1  # what the bootstrap draws


def test_true_captions_have_perfect_figures_in_every_language():
    for language, say in LANGUAGES.items():
        scenes = [draw(seed).facts for seed in range(20)]
        figures = hallucination([caption(facts, say) for facts in scenes], scenes)
        perfect = dict(response=0, mention=0, misplaced=0, recall=1, unreadable=0)
        assert {name: figures[name].value for name in perfect} == perfect, language
        assert figures["response"].high > 0.1  # twenty answers do not prove much


def test_nothing_said_gives_no_figure_and_never_nan():
    figures = hallucination(["", ""], [scene(("red", "circle", 0))] * 2)
    assert values(figures) == dict(
        response=None, mention=None, misplaced=None, recall=0, unreadable=None, mentions=0, words=0
    )
    for answers, scenes in (([], []), (["a"], [])):
        with pytest.raises(ValueError, match="one answer is needed"):
            hallucination(answers, scenes)


# --- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: split_claims(None), "text"),
        (lambda: split_claims(["a, b"]), "text"),
        (lambda: read_claim(3), "claim"),
        (lambda: ask_claim(None), "claim"),
        (lambda: is_true("red circle", None), "scene"),
        (lambda: label_by_truth([None], [["a"]]), r"samples\[0\]"),
        (lambda: label_by_truth([draw(0)], [[3]]), r"claims\[0\]\[0\]"),
        (lambda: label_by_truth([draw(0)], ["red circle"]), r"claims\[0\]"),
        (lambda: is_valid(0.5, 0.4), "p_yes"),
        (lambda: score_response(None), "verdicts"),
        (lambda: score_response(["no", "yes"]), r"verdicts\[0\]"),
        (lambda: score_response([True, 0.5]), r"verdicts\[1\]"),
        (lambda: build_pairs(None), "scores"),
        (lambda: build_pairs(["1", 2]), r"scores\[0\]"),
        (lambda: build_pairs([1, 2], min_difference="1"), "min_difference"),
        (lambda: build_pairs([1, 2], max_pairs=1.5), "max_pairs"),
        (lambda: build_pairs([1, 2], seed=[]), "seed"),
        (lambda: rlaif.count_words(None), "text"),
        (lambda: balance_lengths(None), "pairs"),
        (lambda: balance_lengths([("a", "b")]), r"pairs\[0\]"),
        (lambda: balance_lengths([Pair([], None, "b")]), r"pairs\[0\].chosen"),
        (lambda: balance_lengths([], 3), "length"),
        (lambda: balance_lengths([Pair([], "a", "b")], str), "length of an answer"),
        (lambda: hallucination([None], [scene(("red", "circle", 0))]), r"answers\[0\]"),
        (lambda: hallucination(["a"], [None]), r"scenes\[0\]"),
        (lambda: sample_answers(None, None, []), "model"),
    ],
)
def test_a_wrong_type_is_named(call, name):
    with pytest.raises(TypeError, match=f"^{name} must be"):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ask_claim("red circle", "de"), "language must be one of"),
        (lambda: ask_claim("hello", ["en"]), "language must be one of"),
        (lambda: label_by_truth([draw(0)], []), "claims must be a list for each sample"),
        (lambda: is_valid(torch.ones(2), torch.ones(3)), "p_no must be probabilities"),
        (lambda: is_valid(torch.tensor([math.nan]), torch.ones(1)), "p_yes must be probabilities"),
        (lambda: build_pairs([math.nan, 1]), r"scores\[0\] must be a finite number"),
        (lambda: build_pairs([math.inf, 1]), r"scores\[0\] must be a finite number"),
        (lambda: build_pairs([10**400, 1]), r"scores\[0\] must be a finite number"),
        (lambda: build_pairs(list(range(1001))), "scores must be at most 1,000"),
        (lambda: balance_lengths([Pair([], "a", "b")], lambda text: -1), "length of an answer"),
        (lambda: balance_lengths([Pair([], "a", "b")], lambda text: math.nan), "length of an answer"),
    ],
)
def test_a_wrong_value_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}") as refusal:
        call()
    assert not isinstance(refusal.value, TypeError)


def test_verdicts_may_be_numpy_s_and_torch_s():
    assert score_response(torch.tensor([True, False])) == -1 == score_response([1, 0])
    assert score_response(np.array([True, False, False])) == -2 == score_response([np.True_, np.False_, np.False_])


def test_an_answer_with_a_reserved_token_is_no_answer_but_marks_of_places_are(models, processors, monkeypatch):
    """What no conversation may hold cannot enter a pair: `prepare` and `records` would refuse it later."""
    model, processor = models["2.6"], processors["2.6"]
    said = ["a <box>1 2 3 4</box>.", "<image>", "x </slice> y", "a<unk>b", " plain\n"]
    ids = [processor.tokenizer(text).input_ids for text in said]
    width = max(map(len, ids))
    rows = torch.tensor([own + [processor.stop_ids[0]] * (width + 1 - len(own)) for own in ids])
    monkeypatch.setattr(type(model), "stream", lambda *args, **how: iter(rows.T))
    [texts] = sample_answers(model, processor, [ask("Hi")], n=len(said))
    assert texts[0] == said[0] and texts[-1] == "plain"
    for text in filter(None, texts):
        processor([*ask("Hi"), {"role": "assistant", "content": text}])
    assert "" in texts and not any("<image>" in text or "</slice>" in text for text in texts)


def test_probabilities_that_are_no_numbers_are_an_error(processors):
    from tiny import tiny_model

    model = tiny_model("2.6")
    with torch.no_grad():
        model.llm.lm_head.weight[5, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        ask_yes_no(model, processors["2.6"], picture(56, 42, 0), ["Is there a star?"])
