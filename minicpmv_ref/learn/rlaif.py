"""RLAIF-V: preferences without people. A model answers ten times, the answers are checked claim by claim, and pairs of
a better and a worse answer result.

    sample    ten answers to one picture and one instruction
    divide    an answer into claims that can be checked one by one
    conquer   each claim becomes a question; a labeler says yes or no, more likely yes than no makes it valid
    score     minus the number of rejected claims
    pair      a higher with a lower score, two pairs for each picture at most, lengths balanced over all

What this world changes: rules split and ask, where the paper has two fine-tuned Llama-3-8B; the ground truth is known,
so the labeler itself can be graded. Left out: the four rounds of the public recipe (call it again with the new model).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch

from ..inputs.checks import LIMITS, WrongType, check_choice, check_int, check_list, check_number, check_type, shown
from ..model import MiniCPMV, decode_answer
from ..processor import Batch, Processor
from ..prompt import reserved_in
from ..toy.claims import is_true, read_claim
from ..toy.data import Sample, Scene, check_seed
from ..toy.words import LANGUAGES, split_words
from .dpo import Pair
from .evaluate import check_model
from .statistics import Interval, bootstrap_ratio, wilson

# ---- 1. Sample


@torch.no_grad()
def sample_answers(
    model: MiniCPMV, processor: Processor, prompts: Sequence[list[dict]], n: int = 10, *, seed: int = 0, **sampling
) -> list[list[str]]:
    """Answer each prompt n times, all in one batch; each picture is encoded once.

    Args:
        model, processor, prompts, n: who answers, which conversations that end with the user, and how often.
        seed, sampling: as for `MiniCPMV.stream`.

    Returns:
        n stripped texts for each prompt. One that holds a reserved token (see `reserved_tokens`) becomes "": no
        conversation may hold it, so it is no answer. Tags of boxes stay.

    Raises:
        TypeError, ValueError: as the Processor and `stream`; an n below 1; no prompts.

    Example:
        >>> model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
        >>> prompt = [{"role": "user", "content": "Hello"}]
        >>> [answers] = sample_answers(model, processor, [prompt], n=3, temperature=1.0, max_new_tokens=4)
        >>> len(answers)
        3

    Source: RLHF-V/RLAIF-V, minicpm-llama3-v-25/minicpmv_diverse_gen.py, --repeat 10, temperature 0.7.
    """
    check_model(model, processor)
    check_list("prompts", prompts, list, tuple, what="a conversation", empty=False)
    check_int("n", n, most=LIMITS["answers"])
    batch = processor(list(prompts)).to(model.llm.device)
    visual = [model.encode_images(*views) for views in zip(batch.images, batch.patch_grids)]
    visual = torch.cat([tokens for tokens in visual for _ in range(n)])
    rows = torch.stack(list(model.stream(_repeat(batch, n), seed=seed, visual=visual, **sampling)), dim=1).tolist()
    texts = []
    for row in rows:
        text = decode_answer(row, processor.tokenizer, batch.stop_ids).strip()
        texts.append("" if reserved_in(text, processor.reserved) else text)
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def _repeat(batch: Batch, n: int) -> Batch:
    """Every sample n times, one after the other."""
    tensors = ("input_ids", "attention_mask", "position_ids", "labels")
    lists = ("images", "patch_grids", "image_bounds", "plans")
    return replace(
        batch,
        **{name: getattr(batch, name).repeat_interleave(n, dim=0) for name in tensors},
        **{name: [entry for entry in getattr(batch, name) for _ in range(n)] for name in lists},
    )


# ---- 2. Divide an answer into claims, and conquer them one by one

_BORDERS = re.compile(r"[,;:!?\n，。；：！？]|\.(?=\s|$)|\b(?:and|et)\b")


def split_claims(text: str) -> list[str]:
    """Divide an answer into claims, each of which can be true or false by itself.

    In the paper a language model does this: "extract and rewrite the facts mentioned in the question-answer pair into
    self-contained sentences", leaving out opinions. In this world a claim ends at a comma, a colon, a period or an
    "and", in all three languages, so a rule does it.

    Returns:
        The claims in order, each once.

    Raises:
        TypeError: no text.

    Example:
        >>> split_claims("There are two shapes: a red circle at the top left and a blue star at the bottom left.")
        ['There are two shapes', 'a red circle at the top left', 'a blue star at the bottom left']
        >>> split_claims("红色圆形左上，蓝色星形左下。")
        ['红色圆形左上', '蓝色星形左下']

    Source: RLHF-V/RLAIF-V, utils/llama3_8b_inference.py, wrap_prompt_divide_to_list.
    """
    claims = (part.strip(" .\t") for part in _BORDERS.split(check_type("text", text, str)))
    return list(dict.fromkeys(claim for claim in claims if claim))


def ask_claim(claim: str, language: str = "en") -> str | None:
    """Turn a claim from `split_claims` into a question that is answered by yes or no.

    In the paper a second model does this: "modify the given declarative sentence into a general question".

    Returns:
        The question, about the place, too, if the claim names one; None if it names no object.

    Raises:
        TypeError, ValueError: no text; another language.

    Example:
        >>> ask_claim("a red circle at the top left"), ask_claim("hello")
        ('Is there a red circle at the top left?', None)

    Source: RLHF-V/RLAIF-V, utils/llama3_8b_inference.py, wrap_prompt_changeq_to_list.
    """
    check_choice("language", language, LANGUAGES)
    meaning = read_claim(claim)
    if meaning is None or meaning.shape is None:
        return None
    return LANGUAGES[language].ask_exist(meaning.color, meaning.shape, True, meaning.place)[0]


# A labeler takes samples and, for each, a list of claims; it returns a verdict for each claim.
Labeler = Callable[[Sequence[Sample], Sequence[Sequence[str]]], list[list[bool]]]


def label_by_truth(samples: Sequence[Sample], claims: Sequence[Sequence[str]]) -> list[list[bool]]:
    """The perfect labeler: the upper bound of what feedback can achieve."""
    _check_claims(samples, claims)
    return [[is_true(claim, sample.facts) for claim in own] for sample, own in zip(samples, claims, strict=True)]


def _check_claims(samples: Sequence[Sample], claims: Sequence[Sequence[str]]) -> None:
    check_list("samples", samples, Sample)
    if len(check_list("claims", claims, list, tuple, what="a list")) != len(samples):
        raise ValueError(f"claims must be a list for each sample, got {len(claims)} of them for {len(samples)} samples")
    for number, own in enumerate(claims):
        check_list(f"claims[{number}]", own, str)


def label_by_model(
    model: MiniCPMV, processor: Processor, samples: Sequence[Sample], claims: Sequence[Sequence[str]]
) -> list[list[bool]]:
    """Let a model check the claims: the one that answered, or a stronger one.

    `functools.partial(label_by_model, model, processor)` is a Labeler. A claim that makes no question is not valid.
    """
    _check_claims(samples, claims)
    verdicts = []
    for sample, own in zip(samples, claims):
        questions = {claim: ask_claim(claim, sample.language) for claim in own}
        asked = sorted(set(filter(None, questions.values())))
        valid = {None: False}
        if asked:
            p_yes, p_no = ask_yes_no(model, processor, sample.image, asked, sample.language)
            valid |= dict(zip(asked, is_valid(p_yes, p_no).tolist()))
        verdicts.append([valid[questions[claim]] for claim in own])
    return verdicts


def is_valid(p_yes: torch.Tensor, p_no: torch.Tensor) -> torch.Tensor:
    """Decide: a claim is valid if yes is more likely than no. A tie is not.

    Raises:
        TypeError, ValueError: no tensors of one shape, or a NaN.

    Example:
        >>> is_valid(torch.tensor([0.5, 0.2]), torch.tensor([0.4, 0.2])).tolist()
        [True, False]

    Source: RLHF-V/RLAIF-V, utils/pair_construction.py, pred_scores_to_class.
    """
    for name, values in (("p_yes", p_yes), ("p_no", p_no)):
        check_type(name, values, torch.Tensor)
        if values.is_complex() or values.isnan().any() or values.shape != p_yes.shape:
            raise ValueError(f"{name} must be probabilities, {tuple(p_yes.shape)} as p_yes, got {shown(values)}")
    return p_yes > p_no


@torch.no_grad()
def ask_yes_no(
    model: MiniCPMV, processor: Processor, image, questions: Sequence[str], language: str = "en"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ask questions about one picture, all in one batch, and read the probabilities of the first token of the answer.

    Args:
        model, processor, image, questions: who is asked, about which PIL image (encoded once), what.
        language: decides which words mean yes and no.

    Returns:
        (p_yes, p_no): Tensors (questions,), each the sum over the word and the word with a capital.

    Raises:
        TypeError, ValueError: no questions; an unknown language, or one whose yes and no begin alike; infinite logits.

    Source: RLHF-V/RLAIF-V, minicpm-llama3-v-25/minicpmv_autocheck.py, chat_with_scores; there "Please answer yes or
        no." follows the question, and a repetition penalty of 1.2 is on.
    """
    check_model(model, processor)
    check_list("questions", questions, str, empty=False)
    check_choice("language", language, LANGUAGES)
    batch = processor([[{"role": "user", "content": [image, question]}] for question in questions])
    batch = batch.to(model.llm.device)
    visual = model.encode_images(batch.images[0], batch.patch_grids[0])
    logits = model.llm(
        inputs_embeds=model.embed(batch, visual.repeat(len(questions), 1, 1)),
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=1,
    ).logits[:, -1]
    words = (LANGUAGES[language].ask_exist("red", "circle", answer)[1] for answer in (True, False))
    yes, no = (_first_tokens(processor, word) for word in words)
    if set(yes) & set(no):
        raise ValueError(f"yes and no begin with the same token in {language!r}, so their probabilities do not differ")
    probabilities = logits.float().softmax(dim=-1)
    if not probabilities.isfinite().all():
        raise ValueError("the logits of an answer are not finite: a weight of the model or the picture holds a NaN")
    return probabilities[:, yes].sum(dim=1), probabilities[:, no].sum(dim=1)


def _first_tokens(processor: Processor, word: str) -> list[int]:
    forms = {word, word.capitalize()}
    return sorted({processor.tokenizer(form, add_special_tokens=False).input_ids[0] for form in forms})


# ---- 3. Score and pair


def score_response(verdicts: Sequence[bool]) -> int:
    """Score an answer: minus its rejected claims. Not their share: so an extra claim can only lower the score.

    Raises:
        TypeError: no list of True and False, whether each claim is valid.

    Example:
        >>> score_response([True, False, True, False]), score_response([True])
        (-2, 0)

    Source: RLHF-V/RLAIF-V, utils/pair_construction.py: sum of the labels minus their number.
    """
    return sum(check_verdicts("verdicts", verdicts)) - len(verdicts)


def check_verdicts(name: str, values: Sequence[bool]) -> list[bool]:
    """Truth values as bools. Texts are refused: any but "" would be true."""
    values = values.tolist() if isinstance(values, torch.Tensor | np.ndarray) else values
    for number, value in enumerate(check_list(name, values)):
        if not isinstance(value, bool | np.bool_ | int | np.integer) or value not in (0, 1):
            raise WrongType(f"{name}[{number}] must be True or False, got {shown(value)}")
    return [bool(value) for value in values]


def build_pairs(
    scores: Sequence[float | None], min_difference: float = 1, max_pairs: int = 2, seed: int | str = 0
) -> list[tuple[int, int]]:
    """Pair the answers to one picture and one instruction.

    Args:
        scores: of each answer; None for an answer that makes no claim: it enters no pair, or saying nothing would win.
        min_difference: scores that differ by less do not make a pair.
        max_pairs: of more, so many are chosen at random; one picture must not outweigh the others.
        seed: of this choice.

    Returns:
        [(chosen index, rejected index), ...]

    Raises:
        TypeError, ValueError: scores that are not numbers or None, or over 1,000 of them; other arguments not above 0.

    Example:
        >>> build_pairs([-1, 0, -1, None])
        [(1, 0), (1, 2)]

    Source: RLHF-V/RLAIF-V, utils/pair_construction.py and get_preference_pairs.py, diff=1, sample_num=2.
    """
    check_number("min_difference", min_difference, above=0), check_int("max_pairs", max_pairs)
    check_seed(seed)
    if len(check_list("scores", scores)) > LIMITS["answers"]:
        raise ValueError(f"scores must be at most {LIMITS['answers']:,}: all pairs are compared, got {len(scores):,}")
    scored = [(i, check_number(f"scores[{i}]", score)) for i, score in enumerate(scores) if score is not None]
    pairs = [(i, j) if a > b else (j, i) for (i, a), (j, b) in combinations(scored, 2) if abs(a - b) >= min_difference]
    return random.Random(seed).sample(pairs, max_pairs) if len(pairs) > max_pairs else pairs


def count_words(text: str) -> int:
    """Count words as the published filter does, by white space; of Chinese and Japanese, which has none, characters."""
    return len(split_words(check_type("text", text, str)))


def balance_lengths(
    pairs: Sequence[Pair], length: Callable[[str], int] = count_words
) -> tuple[list[Pair], float | None]:
    """Drop pairs whose chosen answer is much shorter, so that the model does not just learn to say less.

    A pair stays if (rejected - chosen) / rejected <= rho, in lengths. Of the fifty rho from 0 to 0.98 the one is taken
    whose remaining pairs differ least in mean length, |chosen - rejected| / rejected. Identical answers are dropped.

    Returns:
        (the pairs that stay, rho); ([], None) if no rho leaves any.

    Raises:
        TypeError, ValueError: no list of Pairs; no function to a number; a rejected answer of length 0.

    Example:
        >>> pairs = [Pair([], "a b", "a c"), Pair([], "a", "b c d e"), Pair([], "a b c", "b c d")]
        >>> kept, rho = balance_lengths(pairs)
        >>> len(kept), rho
        (2, 0.0)

    Source: RLHF-V/RLAIF-V, utils/get_pairs_filter_shorten.py.
    """
    if not callable(length):
        raise WrongType(f"length must be a function of a text, got {type(length).__name__}: {shown(length)}")
    for number, pair in enumerate(check_list("pairs", pairs, Pair)):
        for name in ("chosen", "rejected"):
            check_type(f"pairs[{number}].{name}", getattr(pair, name), str)
    lengths = [(length(pair.chosen), length(pair.rejected)) for pair in pairs]
    for value in (value for own in lengths for value in own):
        check_number("length of an answer", value, least=0)
    empty = [number for number, (_, rejected) in enumerate(lengths) if rejected == 0]
    if empty:
        raise ValueError(f"pairs {empty[:5]} have an empty rejected answer")
    different = [pair.chosen.strip() != pair.rejected.strip() for pair in pairs]
    best, kept, rho = None, [], None
    for ratio in (0.02 * i for i in range(50)):
        stay = [i for i, (c, r) in enumerate(lengths) if different[i] and (r - c) / r <= ratio]
        if not stay:
            continue
        mean_chosen, mean_rejected = (sum(lengths[i][side] for i in stay) / len(stay) for side in (0, 1))
        difference = abs(mean_chosen - mean_rejected) / mean_rejected
        if best is None or difference < best:
            best, kept, rho = difference, [pairs[i] for i in stay], ratio
    return kept, rho


# ---- 4. Figures


def hallucination(answers: Sequence[str], scenes: Sequence[Scene], seed: int = 0) -> dict[str, Interval]:
    """Grade descriptions: how much of what they say is not there, and how much of what is there they say.

    Read the figures together: a model that says less hallucinates less, but its recall falls.

    Returns:
        response     answers that mention an object that is not there, of those that mention any (Wilson)
        mention      mentioned objects that are not there, of all mentioned (the others: bootstrap)
        misplaced    mentioned objects that are there, but not at that place, of those that are there
        recall       different objects of the scene that are mentioned, of all
        unreadable   claims that this world cannot read, of all claims
        mentions     mentioned objects of an answer
        words        words of an answer

    Raises:
        TypeError, ValueError: no list of texts, no list of Scenes; no answers, or not one for each scene.

    Example:
        >>> from minicpmv_ref.toy.data import Thing
        >>> scene = Scene((Thing("red", "circle", 0), Thing("blue", "star", 3)))
        >>> figures = hallucination(["red circle top right, red star bottom left."], [scene])
        >>> {name: figures[name].value for name in ("response", "mention", "misplaced", "recall", "words")}
        {'response': 1.0, 'mention': 0.5, 'misplaced': 1.0, 'recall': 0.5, 'words': 8.0}

    Source: Rohrbach et al., Object hallucination in image captioning (2018), CHAIRs and CHAIRi; RLHF-V/RLAIF-V,
        eval/eval_gpt_obj_halbench.py, CHAIRs_refine (answers without an object are not counted), CHAIRi and obj_rec.
    """
    check_list("answers", answers, str)
    check_list("scenes", scenes, Scene)
    if not answers or len(answers) != len(scenes):
        raise ValueError(f"one answer is needed for each scene, got {len(answers)} answers and {len(scenes)} scenes")
    counts = [_counts(answer, scene) for answer, scene in zip(answers, scenes)]

    def ratio(top: str, bottom: str) -> Interval:
        return bootstrap_ratio([c[top] for c in counts], [c[bottom] for c in counts], seed)

    ratios = dict(mention=("false", "mentioned"), misplaced=("misplaced", "there"), recall=("found", "objects"))
    ratios |= dict(unreadable=("unreadable", "claims"), mentions=("mentioned", "one"), words=("words", "one"))
    response = wilson(sum(c["false"] > 0 for c in counts), sum(c["mentioned"] > 0 for c in counts))
    return {"response": response} | {name: ratio(*two) for name, two in ratios.items()}


def _counts(answer: str, scene: Scene) -> dict[str, int]:
    """What the figures of one answer are made of."""
    claims = split_claims(answer)
    meanings = [read_claim(claim) for claim in claims]
    mentioned = [meaning for meaning in meanings if meaning and meaning.shape]
    objects = {(thing.color, thing.shape) for thing in scene.things}
    there = [m for m in mentioned if (m.color, m.shape) in objects]
    placed = {(thing.color, thing.shape, thing.place) for thing in scene.things}
    misplaced = [m for m in there if m.place is not None and (m.color, m.shape, m.place) not in placed]
    counts = dict(mentioned=len(mentioned), there=len(there), misplaced=len(misplaced), claims=len(claims))
    counts |= dict(objects=len(objects), found=len({(m.color, m.shape) for m in there}))
    counts |= dict(false=len(mentioned) - len(there), unreadable=meanings.count(None))
    return counts | dict(words=count_words(answer), one=1)
