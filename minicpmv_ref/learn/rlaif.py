"""RLAIF-V: preferences without people. A model answers ten times, the answers are checked claim by claim, and pairs of
a better and a worse answer come out.

    sample    ten answers to one picture and one instruction
    divide    an answer into claims that can be checked one by one
    conquer   each claim becomes a question; a labeler says yes or no, more likely yes than no makes it valid
    score     minus the number of rejected claims
    pair      a higher with a lower score, two pairs for each picture at most, lengths balanced over all

What this world changes: rules split and ask, where the paper has two fine-tuned Llama-3-8B; the ground truth is known,
so the labeler itself can be graded. Left out: the four rounds of the public recipe (call it again with the new model).

Five parts: 1. divide   2. conquer   3. score and pair   4. sample, and keep what was sampled   5. figures
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..inputs.checks import LIMITS, WrongType, check_choice, check_int, check_list, check_number, check_type, shown
from ..inputs.files import parse_json, plain_file
from ..model import MiniCPMV, decode_answer
from ..processor import Batch, Processor
from ..prompt import reserved_in
from ..toy.data import PAINT, SHAPES, Sample, Scene, check_seed
from ..toy.words import LANGUAGES
from .dpo import Pair, check_model

# ---- 1. Divide: from an answer to claims

_BORDERS = re.compile(r"[,;:!?\n，。；：！？]|\.(?=\s|$)|\b(?:and|et)\b")


def split_claims(text: str) -> list[str]:
    """Divide an answer into claims, each of which can be true or false by itself.

    The paper lets a language model do this: "extract and rewrite the facts mentioned in the question-answer pair into
    self-contained sentences", leaving out opinions. In this world a claim ends at a comma, a colon, a period or an
    "and", in all three languages, so a rule does it. Another splitter only has to be a function from text to a list.

    Args:
        text: an answer.

    Returns:
        Its claims in order; a claim that comes twice is one claim.

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


class Claim(NamedTuple):
    """What a claim says: an object, with or without its place, or how many objects there are."""

    color: str | None
    shape: str | None
    place: int | None  # index into data.PLACES
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


def ask_claim(claim: str, language: str = "en") -> str | None:
    """Turn a claim into a question that is answered by yes or no.

    The paper's second model does this: "modify the given declarative sentence into a general question", adding
    nothing. A place that the claim names is asked for, too.

    Args:
        claim: from `split_claims`.
        language: of the question.

    Returns:
        The question; None if the claim names no object.

    Raises:
        TypeError: no text.
        ValueError: another language.

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


# ---- 2. Conquer: a labeler takes samples and, for each, a list of claims; it returns a verdict for each claim

Labeler = Callable[[Sequence[Sample], Sequence[Sequence[str]]], list[list[bool]]]


def is_true(claim: str, scene: Scene) -> bool:
    """Compare a claim with the scene: object, place and number must be right. What cannot be read is not true.

    Example:
        >>> from minicpmv_ref.toy.data import Thing
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


def label_by_truth(samples: Sequence[Sample], claims: Sequence[Sequence[str]]) -> list[list[bool]]:
    """The perfect labeler: the upper bound of what feedback can bring.

    Args:
        samples: with Scene facts.
        claims: a list of claims for each.

    Returns:
        For each sample a list of verdicts.

    Raises:
        TypeError: no Samples, or claims that are no texts.
        ValueError: not one list of claims for each sample.
    """
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

    `functools.partial(label_by_model, model, processor)` is a Labeler.

    Args:
        model, processor: who is asked.
        samples: pictures, and the language to ask in.
        claims: a list of claims for each.

    Returns:
        For each sample a list of verdicts. A claim that makes no question is not valid, just as a tie is not.

    Raises:
        TypeError, ValueError: as `label_by_truth`; probabilities that are not numbers.

    Example:
        >>> from minicpmv_ref.toy.data import draw
        >>> model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
        >>> [[verdict]] = label_by_model(model, processor, [draw(0)], [["hello"]])
        >>> verdict
        False
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
    """Decide: a claim is valid if yes is likelier than no. A tie is not.

    Raises:
        TypeError: no tensors.
        ValueError: tensors of different shapes, or a NaN.

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
        model, processor: who is asked.
        image: a PIL image; encoded once.
        questions: at least one.
        language: decides which words mean yes and no.

    Returns:
        (p_yes, p_no): Tensors (questions,), each the sum over the word and the word with a capital.

    Raises:
        TypeError: no MiniCPMV, no Processor, questions that are no list of texts.
        ValueError: no questions; an unknown language; yes and no begin with the same token; logits that are not finite.

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
    yes, no = (
        _first_tokens(processor, LANGUAGES[language].ask_exist("red", "circle", yes)[1]) for yes in (True, False)
    )
    if set(yes) & set(no):
        raise ValueError(f"yes and no begin with the same token in {language!r}, so their probabilities do not differ")
    probabilities = logits.float().softmax(dim=-1)
    if not probabilities.isfinite().all():
        raise ValueError("the logits of an answer are not finite: a weight of the model or the picture holds a NaN")
    return probabilities[:, yes].sum(dim=1), probabilities[:, no].sum(dim=1)


def _first_tokens(processor: Processor, word: str) -> list[int]:
    ids = {processor.tokenizer(form, add_special_tokens=False).input_ids[0] for form in (word, word.capitalize())}
    return sorted(ids)


# ---- 3. Score and pair


def score_response(verdicts: Sequence[bool]) -> int:
    """Score an answer: minus its rejected claims. The number counts, not the share, so more is riskier to say.

    Args:
        verdicts: for each claim whether it is valid.

    Raises:
        TypeError: no list of True and False.

    Example:
        >>> score_response([True, False, True, False]), score_response([True])
        (-2, 0)

    Source: RLHF-V/RLAIF-V, utils/pair_construction.py: sum of the labels minus their number.
    """
    return sum(_verdicts("verdicts", verdicts)) - len(verdicts)


def _verdicts(name: str, values: Sequence[bool]) -> list[bool]:
    """Truth values as bools. Words and scores are not: any text but "" would be true."""
    values = values.tolist() if isinstance(values, torch.Tensor | np.ndarray) else values
    for number, value in enumerate(check_list(name, values)):
        if not isinstance(value, bool | np.bool_ | int | np.integer) or value not in (0, 1):
            raise WrongType(f"{name}[{number}] must be True or False, got {shown(value)}")
    return [bool(value) for value in values]


def score_share(verdicts: Sequence[bool]) -> float:
    """Score an answer by the share of its rejected claims instead: a long answer may then be wrong more often.

    Raises:
        TypeError, ValueError: as `score_response`; no verdicts.

    Example:
        >>> score_share([True, False, True, False]), score_share([True])
        (-0.5, 0.0)
    """
    score = score_response(verdicts)
    if not len(verdicts):
        raise ValueError("verdicts must hold at least one: an answer without claims has no share of them")
    return score / len(verdicts)


def build_pairs(
    scores: Sequence[float | None], min_difference: float = 1, max_pairs: int = 2, seed: int | str = 0
) -> list[tuple[int, int]]:
    """Pair the answers to one picture and one instruction.

    Args:
        scores: of each answer; None for an answer that makes no claim: it enters no pair, or saying nothing would win.
        min_difference: scores that differ by less do not make a pair.
        max_pairs: more are drawn from at random; one rich picture must not outweigh the others.
        seed: of the drawing.

    Returns:
        [(chosen index, rejected index), ...]

    Raises:
        TypeError: no list of numbers and None.
        ValueError: a score that is not a number, more than 1,000 of them, a min_difference that is not above 0, or
            max_pairs below 1.

    Example:
        >>> build_pairs([-1, 0, -1, None])
        [(1, 0), (1, 2)]

    Source: RLHF-V/RLAIF-V, utils/pair_construction.py and get_preference_pairs.py, diff=1, sample_num=2.
    """
    check_type("min_difference", min_difference, int, float, np.number, what="a number")
    check_seed(seed)
    if not min_difference > 0 or check_int("max_pairs", max_pairs, least=-(2**63)) < 1:
        raise ValueError(
            f"min_difference must be above 0 and max_pairs at least 1, got {shown(min_difference)}, {max_pairs}"
        )
    if len(check_list("scores", scores)) > LIMITS["answers"]:
        raise ValueError(f"scores must be at most {LIMITS['answers']:,}: all pairs are compared, got {len(scores):,}")
    scored = [(i, check_number(f"scores[{i}]", score)) for i, score in enumerate(scores) if score is not None]
    pairs = []
    for (i, a), (j, b) in combinations(scored, 2):
        if abs(a - b) >= min_difference:
            pairs.append((i, j) if a > b else (j, i))
    return random.Random(seed).sample(pairs, max_pairs) if len(pairs) > max_pairs else pairs


def count_words(text: str) -> int:
    """Count words as the published filter does, by white space. Chinese has none: take `len` there.

    Raises:
        TypeError: no text.

    Example:
        >>> count_words("red circle top left.")
        4
    """
    return len(check_type("text", text, str).split())


def balance_lengths(
    pairs: Sequence[Pair], length: Callable[[str], int] = count_words
) -> tuple[list[Pair], float | None]:
    """Drop pairs whose chosen answer is much shorter, so that the model does not just learn to say less.

    A pair stays if (rejected - chosen) / rejected <= rho, in lengths. Of the fifty rho from 0 to 0.98 the one is taken
    whose remaining pairs differ least in mean length, |chosen - rejected| / rejected. Identical answers are dropped.

    Args:
        pairs: of all pictures.
        length: what counts.

    Returns:
        (the pairs that stay, rho); ([], None) if no rho leaves any.

    Raises:
        TypeError: no list of Pairs with texts; a length that is no function, or gives no number.
        ValueError: a rejected answer of length 0.

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
    for own in lengths:
        for value in own:
            check_number("length of an answer", value, least=0)
    empty = [number for number, (_, rejected) in enumerate(lengths) if rejected == 0]
    if empty:
        raise ValueError(f"pairs {empty[:5]} have an empty rejected answer")
    best, kept, rho = None, [], None
    for ratio in (0.02 * i for i in range(50)):
        stay = [
            i
            for i, (chosen, rejected) in enumerate(lengths)
            if (rejected - chosen) / rejected <= ratio and pairs[i].chosen.strip() != pairs[i].rejected.strip()
        ]
        if not stay:
            continue
        mean_chosen, mean_rejected = (sum(lengths[i][side] for i in stay) / len(stay) for side in (0, 1))
        difference = abs(mean_chosen - mean_rejected) / mean_rejected
        if best is None or difference < best:
            best, kept, rho = difference, [pairs[i] for i in stay], ratio
    return kept, rho


# ---- 4. Sample, and keep what was sampled


@torch.no_grad()
def sample_answers(
    model: MiniCPMV, processor: Processor, prompts: Sequence[list[dict]], n: int = 10, *, seed: int = 0, **sampling
) -> list[list[str]]:
    """Answer each prompt n times, all in one batch; each picture is encoded once.

    Args:
        model, processor: who answers.
        prompts: conversations that end with the user.
        n: answers to each.
        seed: of the sampling.
        sampling: `max_new_tokens`, `temperature`, `top_p`, `top_k` as for `MiniCPMV.stream`.

    Returns:
        n stripped texts for each prompt. One that holds a reserved token (see `prompt.reserved_tokens`) becomes "": no
        conversation may hold it, so it is no answer. Marks of places stay.

    Raises:
        TypeError: no MiniCPMV, no Processor, prompts that are no list of conversations.
        ValueError: as the Processor and `stream`; an n below 1; no prompts.

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
    if check_int("n", n, least=-(2**63), most=LIMITS["answers"]) < 1:
        raise ValueError(f"n must be at least 1, got {n}")
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


def read_records(path: str | os.PathLike) -> list[dict]:
    """Read a file of one JSON object a line.

    A program that was stopped while it wrote leaves a last line without its end. Such a line is not read;
    `append_records` removes it, so that work goes on behind the last whole line.

    Args:
        path: the file; it may be missing.

    Returns:
        The records, [] if there is no file.

    Raises:
        TypeError: not a path.
        OSError: no plain file, or it cannot be read.
        ValueError: a whole line that is not a JSON object (names the line); a file of more than 2 GB.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answers.jsonl"
        >>> append_records(path, [{"key": "a"}, {"key": "b"}])
        >>> _ = path.write_bytes(path.read_bytes()[:-4])  # cut in the middle of a line
        >>> read_records(path)
        [{'key': 'a'}]
        >>> append_records(path, [{"key": "c"}])
        >>> [record["key"] for record in read_records(path)]
        ['a', 'c']
    """
    path = Path(check_type("path", path, str, os.PathLike))
    records = []
    try:
        plain_file(path, LIMITS["records_bytes"])
    except FileNotFoundError:
        return []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: a JSON object is expected, got {shown(record, 60)}")
        records.append(record)
    return records


def append_records(path: str | os.PathLike, records: Sequence[dict]) -> None:
    """Add records to a file, behind its last whole line. On return they are on the disk.

    Args:
        path: the file; it and its folder are made if missing.
        records: JSON objects.

    Raises:
        TypeError: not a path, no list of dicts.
        OSError: the file cannot be written, or is no plain file.
        ValueError: a record that is not JSON, NaN included; nothing is written then.
    """
    path = Path(check_type("path", path, str, os.PathLike))
    text = b"".join(_line(number, record) for number, record in enumerate(check_list("records", records, dict)))
    if path.exists():
        plain_file(path, LIMITS["records_bytes"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)  # a line without its end
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _line(number: int, record: dict) -> bytes:
    """A record as a line of the file; what would come back as something else is refused."""
    try:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        parse_json(line)  # 1 and "1" are two keys here and one there
        return line + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"records[{number}] is not JSON: {error}") from None


# ---- 5. Figures


class Estimate(NamedTuple):
    """A figure and its 95 % interval; all None where there was nothing to count."""

    value: float | None
    low: float | None
    high: float | None


def wilson(hits: int, n: int) -> Estimate:
    """Estimate a share from n independent trials. Honest where few or none hit, unlike the usual plus-minus.

    Args:
        hits: of n.
        n: trials.

    Returns:
        An Estimate.

    Raises:
        TypeError: counts that are no integers.
        ValueError: hits that are not between 0 and n.

    Example:
        >>> [round(x, 3) for x in wilson(0, 10)]
        [0.0, 0.0, 0.278]

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    n = check_int("n", n, least=0)
    hits = check_int("hits (of n)", hits, 0, n)
    if n == 0:
        return Estimate(None, None, None)
    z, share = 1.959964, hits / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return Estimate(share, 0.0 if hits == 0 else center - half, 1.0 if hits == n else center + half)


def bootstrap(tops: Sequence[float], bottoms: Sequence[float], seed: int = 0, rounds: int = 1000) -> Estimate:
    """Estimate sum(tops) / sum(bottoms) by drawing answers again and again: claims of one answer are not independent.

    Args:
        tops, bottoms: one number for each answer, for example false and all mentions.
        seed: of the drawing.
        rounds: how often.

    Returns:
        An Estimate.

    Raises:
        TypeError: no lists of numbers.
        ValueError: lists of different lengths, a number that is negative or not finite, rounds below 1, or more numbers
            to draw than memory should hold.

    Example:
        >>> estimate = bootstrap([1, 0, 0, 1], [2, 2, 2, 2])
        >>> estimate.value, estimate.low < 0.25 < estimate.high
        (0.25, True)

    Source: Efron, Bootstrap methods (1979), percentile interval.
    """
    for name, values in (("tops", tops), ("bottoms", bottoms)):
        for number, value in enumerate(check_list(name, values)):
            check_number(f"{name}[{number}]", value, least=0)
    if len(tops) != len(bottoms):
        raise ValueError(f"tops and bottoms must be equally long, got {len(tops)} and {len(bottoms)}")
    check_int("seed", seed, -(2**63), 2**64 - 1)
    check_int("rounds", rounds, most=max(1, LIMITS["bootstrap_numbers"] // max(1, len(tops))))
    tops, bottoms = (torch.tensor(x, dtype=torch.float64) for x in (tops, bottoms))
    if not bottoms.sum():
        return Estimate(None, None, None)
    drawn = torch.randint(len(tops), (rounds, len(tops)), generator=torch.Generator().manual_seed(seed))
    tops_drawn, bottoms_drawn = tops[drawn].sum(dim=1), bottoms[drawn].sum(dim=1)
    ratios = (tops_drawn / bottoms_drawn)[bottoms_drawn > 0]
    if not len(ratios):
        raise ValueError(f"rounds must be more than {rounds}: none of them has drawn an answer that counts")
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate((tops.sum() / bottoms.sum()).item(), low, high)


def hallucination(answers: Sequence[str], scenes: Sequence[Scene], seed: int = 0) -> dict[str, Estimate]:
    """Grade descriptions: how much of what they say is not there, and how much of what is there they say.

    Read them together: whoever says less hallucinates less, and recall and length show it.

    Args:
        answers: one for each scene.
        scenes: what the pictures show.
        seed: of the bootstrap.

    Returns:
        response     answers that mention an object that is not there, of those that mention any (Wilson)
        mention      mentioned objects that are not there, of all mentioned (the others: bootstrap)
        misplaced    mentioned objects that are there, but not at that place, of those that are there
        recall       different objects of the scene that are mentioned, of all
        unreadable   claims that this world cannot read, of all claims
        mentions     mentioned objects of an answer
        words        words of an answer

    Raises:
        TypeError: no list of texts, no list of Scenes.
        ValueError: no answers, or not one for each scene.

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
    counts = []
    for answer, scene in zip(answers, scenes):
        claims = split_claims(answer)
        meanings = [read_claim(claim) for claim in claims]
        mentioned = [meaning for meaning in meanings if meaning and meaning.shape]
        objects = {(thing.color, thing.shape) for thing in scene.things}
        there = [m for m in mentioned if (m.color, m.shape) in objects]
        placed = {(thing.color, thing.shape, thing.place) for thing in scene.things}
        misplaced = [m for m in there if m.place is not None and (m.color, m.shape, m.place) not in placed]
        counts.append(
            dict(
                mentioned=len(mentioned),
                false=len(mentioned) - len(there),
                there=len(there),
                misplaced=len(misplaced),
                objects=len(objects),
                found=len({(m.color, m.shape) for m in there}),
                claims=len(claims),
                unreadable=meanings.count(None),
                words=count_words(answer),
                one=1,
            )
        )

    def ratio(top: str, bottom: str) -> Estimate:
        return bootstrap([c[top] for c in counts], [c[bottom] for c in counts], seed)

    return {
        "response": wilson(sum(c["false"] > 0 for c in counts), sum(c["mentioned"] > 0 for c in counts)),
        "mention": ratio("false", "mentioned"),
        "misplaced": ratio("misplaced", "there"),
        "recall": ratio("found", "objects"),
        "unreadable": ratio("unreadable", "claims"),
        "mentions": ratio("mentioned", "one"),
        "words": ratio("words", "one"),
    }


def agreement(verdicts: Sequence[Sequence[bool]], truths: Sequence[Sequence[bool]]) -> dict[str, Estimate]:
    """Grade a labeler against the truth. Most claims of a good model are true, so look at both kinds apart.

    Args:
        verdicts: of the labeler, a list for each answer or picture.
        truths: of `label_by_truth`, for the same claims.

    Returns:
        accuracy     claims judged right, of all
        on_true      true claims accepted
        on_false     false claims rejected: what feedback lives on

    Raises:
        TypeError: no lists of True and False.
        ValueError: lists that do not match.

    Example:
        >>> figures = agreement([[True, True, False]], [[True, False, False]])
        >>> [round(figures[name].value, 2) for name in ("accuracy", "on_true", "on_false")]
        [0.67, 1.0, 0.5]
    """
    verdicts, truths = (
        [_verdicts(f"{name}[{number}]", own) for number, own in enumerate(check_list(name, values))]
        for name, values in (("verdicts", verdicts), ("truths", truths))
    )
    if [len(own) for own in verdicts] != [len(own) for own in truths]:
        raise ValueError("verdicts and truths must be about the same claims")
    both = [pair for own, true in zip(verdicts, truths) for pair in zip(own, true)]
    on_true, on_false = ([verdict for verdict, truth in both if truth == wanted] for wanted in (True, False))
    return {
        "accuracy": wilson(sum(verdict == truth for verdict, truth in both), len(both)),
        "on_true": wilson(sum(on_true), len(on_true)),
        "on_false": wilson(len(on_false) - sum(on_false), len(on_false)),
    }
