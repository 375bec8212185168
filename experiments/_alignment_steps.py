"""The steps of an alignment: pictures, answers, claims and verdicts, pairs; and the two models that are trained for it.

Everything is drawn from one seed. Answers and verdicts go to a file while they are made, so a run that was stopped
goes on where it was.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch

from minicpmv_ref.inputs.checks import LIMITS, check_choice, check_int, check_list, check_number, check_type, shown
from minicpmv_ref.inputs.jsonl import append_jsonl, read_jsonl
from minicpmv_ref.learn.dpo import Pair
from minicpmv_ref.learn.evaluate import answers as answer_all
from minicpmv_ref.learn.rlaif import (
    Labeler,
    balance_lengths,
    build_pairs,
    hallucination,
    label_by_model,
    label_by_truth,
    sample_answers,
    score_response,
    split_claims,
)
from minicpmv_ref.learn.stages import Stage
from minicpmv_ref.learn.statistics import wilson
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Processor
from minicpmv_ref.scale.steps import train_steps
from minicpmv_ref.toy.data import TOPICS, Sample, draw
from minicpmv_ref.toy.words import LANGUAGES

from ._controls import score_share

CHUNK = 16  # pictures whose answers are sampled in one batch and written together
FIELDS = ("key", "answers", "claims", "verdicts", "truths")  # of a line of answers
LABELERS, SCORES = ("trained", "self", "truth"), ("count", "share", "random")

# Careless where it describes, careful where it answers: what the model sees is still known to it.
CARELESS = Stage("careless", "answer", {"llm": 3e-4}, {"careless": 1, "question": 1}, steps=150, batch=16, turns=4)

# Who checks claims must be better at it than who makes them.
NEAR_MISSES = Stage("labeler", "answer", {"llm": 3e-4}, {"claim": 1}, steps=240, batch=16, turns=8)


@dataclass(frozen=True)
class Alignment:
    """One run. The published script samples with temperature 0.7; the paper says "high temperatures"."""

    pictures: int = 320  # to learn from
    answers: int = 10  # to each
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 100
    max_new_tokens: int = 28
    language: str = "en"
    kind: str = "caption"  # or "long"
    steps: int = 80
    batch: int = 16  # pairs of one step
    lr: float = 5e-5  # 3e-5 repairs less; 5e-5 begins to shorten the answers
    beta: float = 0.1
    test_pictures: int = 200  # to measure on
    questions: int = 20  # of each topic: what must not suffer
    watched: int = 32  # pictures that are described again and again while it trains
    careless_steps: int = 150  # of training on careless captions; they make the model to align
    labeler_steps: int = 240  # of training on near misses
    seed: int = 0
    # What the controls change:
    labeler: str = "trained"  # on near misses; or "self" (the careless model) or "truth" (the upper bound)
    score: str = "count"  # of rejected claims; or their "share"; or "random", and any answer may be the better one
    balance: bool = True  # of lengths
    vision: bool = False  # the vision tower and the resampler learn, too
    sft: bool = False  # the chosen answers are imitated
    rounds: int = 1  # pictures and steps are divided among them; each asks the model as it is by then

    def __post_init__(self):
        check_type("labeler", self.labeler, str)
        check_type("score", self.score, str)
        if self.labeler not in LABELERS or self.score not in SCORES:
            raise ValueError(
                f"labeler must be one of {LABELERS} and score one of {SCORES}, got {shown(self.labeler)} and "
                f"{shown(self.score)}"
            )
        check_choice("kind", self.kind, ("caption", "long"))
        check_choice("language", self.language, LANGUAGES)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                check_type(field.name, value, bool, what="True or False")
            elif field.type == "int":
                check_int(field.name, value, least=int(field.name != "seed"), most=LIMITS["records"])
            elif field.type == "float":
                check_number(field.name, value, above=0, most=1 if field.name == "top_p" else math.inf)
        if self.rounds > min(self.pictures, self.steps):
            raise ValueError(
                f"rounds must be at most pictures and steps, which they share out, got {self.rounds} for "
                f"{self.pictures} pictures and {self.steps} steps"
            )


def fingerprint(model: MiniCPMV) -> str:
    """Name a model by its weights: 16 hexadecimal digits."""
    check_type("model", model, MiniCPMV)
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.own_tensors().items()):
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()


def pictures(config: Alignment, split: str, model: MiniCPMV, number: int = 0) -> list[Sample]:
    """Draw the pictures of a run; those to learn from are others in each round.

    Returns:
        Samples; the same for the same config, and none in both splits.
    """
    count = config.pictures if split == "train" else config.test_pictures
    view = model.config.slicing.scale_resolution
    return [
        draw(f"align-{config.seed}/{number * count + i}", config.kind, split, config.language, view=view)
        for i in range(count)
    ]


def describe(
    model: MiniCPMV, processor: Processor, samples: Sequence[Sample], config: Alignment, **sampling
) -> tuple[list[str], dict]:
    """Describe pictures, greedily if nothing else is said, and grade the descriptions.

    Returns:
        (answers, figures of `hallucination`).
    """
    sampling = {"temperature": 0.0, "max_new_tokens": config.max_new_tokens, **sampling}
    said = []
    for start, chunk in _chunks(samples, 2 * CHUNK):
        prompts = [sample.prompt for sample in chunk]
        drawn = sample_answers(model, processor, prompts, n=1, seed=config.seed + start, **sampling)
        said += [answer for (answer,) in drawn]
    return said, hallucination(said, [sample.facts for sample in samples], config.seed)


def measure_model(model: MiniCPMV, processor: Processor, samples: Sequence[Sample], config: Alignment) -> dict:
    """Measure a model: its descriptions, greedy and sampled as the config says, and its answers to questions.

    Returns:
        {"greedy": figures, "sampled": figures, "questions": Interval, "said": {"greedy": answers, "sampled": answers}};
        figures are those of `hallucination`, and questions are the share answered right, over all topics alike.
    """
    figures: dict = {"said": {}}
    for way, sampling in (("greedy", {}), ("sampled", _sampling(config))):
        figures["said"][way], figures[way] = describe(model, processor, samples, config, **sampling)
    view = model.config.slicing.scale_resolution
    asked = [
        draw(f"align-{config.seed}/{i}", "question", "test", config.language, topic=topic, view=view)
        for topic in TOPICS
        for i in range(config.questions)
    ]
    said = answer_all(model, processor, [sample.prompt for sample in asked], max_new_tokens=8)
    figures["questions"] = wilson(sum(text == sample.answer for text, sample in zip(said, asked)), len(asked))
    return figures


def make_careless(model: MiniCPMV, processor: Processor, config: Alignment) -> tuple[MiniCPMV, dict]:
    """Train a copy of a model on careless captions, so that there is something to align.

    Args:
        model, processor: what it starts from; not changed.
        config: how many steps, which seed, and what to measure.

    Returns:
        (the careless model, {"before": figures of `measure_model`}): what the model could do when it was still careful.
    """
    figures = measure_model(model, processor, pictures(config, "test", model), config)
    policy = copy.deepcopy(model)
    stage = replace(CARELESS, steps=config.careless_steps)
    for _ in train_steps(policy, processor, stage, config.seed):
        pass
    for own, other in zip(policy.parameters(), model.parameters()):
        own.requires_grad_(other.requires_grad)  # training froze the rest
    return policy, {"before": figures}


def train_labeler(model: MiniCPMV, processor: Processor, config: Alignment) -> tuple[MiniCPMV, dict]:
    """Train a copy of a model to check claims, on questions whose "no" is a near miss.

    Args:
        model, processor: what it starts from; not changed.
        config: how many steps, and which seed.

    Returns:
        (the labeler, {"before": Interval, "after": Interval}): the share of held-out questions answered right.
    """
    judge = copy.deepcopy(model)
    view = model.config.slicing.scale_resolution
    count = 2 * config.test_pictures
    asked = [draw(f"labeler-{config.seed}/{i}", "claim", "test", config.language, view=view) for i in range(count)]

    def grade() -> tuple:
        said = answer_all(judge, processor, [sample.prompt for sample in asked], max_new_tokens=4)
        return wilson(sum(text == sample.answer for text, sample in zip(said, asked)), len(asked))

    grades = {"before": grade()}
    for _ in train_steps(judge, processor, replace(NEAR_MISSES, steps=config.labeler_steps), config.seed):
        pass
    grades["after"] = grade()
    return judge, grades


def collect(
    model: MiniCPMV,
    processor: Processor,
    samples: Sequence[Sample],
    config: Alignment,
    judge: tuple[MiniCPMV, Processor] | None = None,
    path: str | os.PathLike | None = None,
) -> list[dict]:
    """Sample answers, divide them into claims, and check these.

    Args:
        model, processor: who answers.
        samples: from `pictures`.
        config: how to sample, and who checks.
        judge: as for `align`.
        path: a file of records, continued if it is there. Its first line says which run it belongs to.

    Returns:
        For each picture {"key", "answers", "claims", "verdicts", "truths"}: claims are those of all answers, each
        once, and verdicts and truths are about them.

    Raises:
        ValueError: a file of another run, or a damaged one.
    """
    name, label = _labeler(model, processor, config.labeler, judge)
    sampling = {**_sampling(config), "max_new_tokens": config.max_new_tokens}
    run = {"policy": fingerprint(model), "labeler": name, "answers": config.answers, "seed": config.seed, **sampling}
    run |= {"kind": config.kind, "language": config.language}
    done = read_jsonl(path) if path is not None else []
    if done and done[0] != {"run": run}:
        raise ValueError(f"{path} holds the answers of another run: {done[0]}, and this one is {run}")
    if path is not None and not done:
        append_jsonl(path, [{"run": run}])
    done = done[1:]
    for number, record in enumerate(done):
        whole = number < len(samples) and _is_whole(record, config.answers)
        if not whole or record["key"] != samples[number].key:
            raise ValueError(f"{path}, line {number + 2}: not the answers to picture {number} of this run")
    for start, chunk in _chunks(samples, CHUNK):
        if start + len(chunk) <= len(done):
            continue
        prompts = [sample.prompt for sample in chunk]
        answers = sample_answers(model, processor, prompts, config.answers, seed=config.seed + start, **sampling)
        claims = [list(dict.fromkeys(claim for text in own for claim in split_claims(text))) for own in answers]
        keys = [sample.key for sample in chunk]
        rows = zip(keys, answers, claims, label(chunk, claims), label_by_truth(chunk, claims), strict=True)
        fresh = [dict(zip(FIELDS, row)) for row in rows]
        fresh = fresh[max(0, len(done) - start) :]  # of a chunk that was cut, the same answers come again
        if path is not None:
            append_jsonl(path, fresh)
        done += fresh
    return done


def _is_whole(record: dict, answers: int) -> bool:
    """Whether a line of answers has all fields, each of its type and length."""
    if set(record) != set(FIELDS) or not all(isinstance(record[name], list) for name in FIELDS[1:]):
        return False
    kinds = dict(answers=str, claims=str, verdicts=bool, truths=bool)
    typed = all(type(item) is kind for name, kind in kinds.items() for item in record[name])
    claims = len(record["claims"])
    return typed and len(record["answers"]) == answers and len(record["verdicts"]) == len(record["truths"]) == claims


def choose_pairs(records: Sequence[dict], samples: Sequence[Sample], config: Alignment) -> tuple[list[Pair], dict]:
    """Score the answers of each picture, pair them, and balance the lengths.

    Args:
        records: from `collect`.
        samples: their pictures.
        config: its seed and language, and how to score.

    Returns:
        (pairs, counts): answers that make no claim and pictures whose answers all score the same are left out, and
        counted. "rho" is that of `balance_lengths`, None where nothing is balanced.

    Raises:
        TypeError: no lists of dicts and Samples.
        ValueError: not one record for each sample.
    """
    check_type("config", config, Alignment)
    check_list("records", records, dict)
    check_list("samples", samples, Sample)
    pairs, silent, without = [], 0, 0
    score = score_share if config.score == "share" else score_response
    for number, (record, sample) in enumerate(zip(records, samples, strict=True)):
        verdict = dict(zip(record["claims"], record["verdicts"], strict=True))
        divided = [split_claims(answer) for answer in record["answers"]]
        scores = [score([verdict[claim] for claim in claims]) if claims else None for claims in divided]
        if config.score == "random":
            ranks = random.Random(f"{config.seed}/{number}/ranks").sample(range(len(scores)), len(scores))
            scores = [None if own is None else rank for own, rank in zip(scores, ranks)]
        least = 0.01 if config.score == "share" else 1
        found = build_pairs(scores, least, seed=f"{config.seed}/{number}")
        silent += scores.count(None)
        without += not found
        prompt, answers = sample.prompt, record["answers"]
        pairs += [Pair(prompt, answers[chosen], answers[rejected]) for chosen, rejected in found]
    rho = None
    if config.balance:
        kept, rho = balance_lengths(pairs)
    else:
        kept = [pair for pair in pairs if pair.chosen != pair.rejected]
    counts = {"built": len(pairs), "kept": len(kept), "rho": rho, "no_claims": silent, "pictures_without": without}
    return kept, counts


def _labeler(model, processor, labeler: str, judge) -> tuple[str, Labeler]:
    if labeler == "truth":
        return "truth", label_by_truth
    judge = (model, processor) if labeler == "self" else judge
    return fingerprint(judge[0]), partial(label_by_model, *judge)


def _sampling(config: Alignment) -> dict:
    return dict(temperature=config.temperature, top_p=config.top_p, top_k=config.top_k)


def _chunks(samples: Sequence[Sample], size: int) -> Iterator[tuple[int, Sequence[Sample]]]:
    return ((start, samples[start : start + size]) for start in range(0, len(samples), size))
