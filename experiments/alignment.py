"""The alignment of the nano model from end to end: sample, check, pair, train, and measure before and after.

The trained nano model makes next to no mistakes in its small world, so there is nothing to align. The experiment makes
them first: it trains nano on captions that a careless writer wrote (`careless_caption`), while questions about the same
scenes keep their true answers. What comes out sees well and describes badly, and that is the model to align. It is not
shipped: the experiment makes it again within minutes.

Pictures to learn from come from the train split, pictures to measure on from the test split. Everything is drawn from
one seed. Answers and verdicts go to a file while they are made, so a run that was cut off goes on where it was.
What it leaves is small: figures, and the tensors that changed.

Three parts: 1. one run   2. its steps   3. the experiment: many runs, each with one thing changed
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from minicpmv_ref.inputs.checkpoint import WEIGHTS, write_checkpoint
from minicpmv_ref.inputs.checks import (
    LIMITS,
    WrongType,
    check_choice,
    check_int,
    check_list,
    check_number,
    check_type,
    printable,
    shown,
)
from minicpmv_ref.inputs.files import plain_file, read_json, replacing
from minicpmv_ref.learn.dpo import Pair, check_model, prepare, train_dpo
from minicpmv_ref.learn.evaluate import answers as answer_all
from minicpmv_ref.learn.rlaif import (
    Labeler,
    agreement,
    append_records,
    ask_claim,
    ask_yes_no,
    balance_lengths,
    build_pairs,
    count_words,
    hallucination,
    label_by_model,
    label_by_truth,
    read_records,
    sample_answers,
    score_response,
    score_share,
    split_claims,
    wilson,
)
from minicpmv_ref.learn.stages import Stage
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Processor
from minicpmv_ref.scale.run import train_steps
from minicpmv_ref.toy.data import TOPICS, Sample, draw
from minicpmv_ref.toy.words import LANGUAGES

CHUNK = 16  # pictures whose answers are sampled in one batch and written together
REPORT, SUMMARY = "report.json", "summary.json"
FIELDS = ("key", "answers", "claims", "verdicts", "truths")  # of a line of answers
LABELERS, SCORES = ("trained", "self", "truth"), ("count", "share", "random")


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


# `fast` proves that every step runs, `cpu` is the experiment of the course, `gpu` goes further.
_FEW = dict(batch=8, test_pictures=8, questions=1, watched=4, careless_steps=24, labeler_steps=2)
PROFILES = {
    "fast": Alignment(pictures=16, steps=4, **_FEW),
    "cpu": Alignment(),
    "gpu": Alignment(pictures=2000, steps=400, batch=32, test_pictures=1000, questions=100, labeler_steps=1200),
}

# Each run changes one thing of a profile.
RUNS: dict[str, dict] = {
    "main": {},
    "truth": {"labeler": "truth"},
    "self": {"labeler": "self"},
    "unbalanced": {"balance": False},
    "share": {"score": "share"},
    "random": {"score": "random"},
    "sft": {"sft": True},
    "vision": {"vision": True},
    "beta 0.01": {"beta": 0.01},
    "beta 0.3": {"beta": 0.3},
    "beta 1": {"beta": 1.0},
    "rounds": {"rounds": 3},
}
SEEDS = (0, 1, 2)
ABOUT = (
    "nano-dpo is nano, made careless by training on careless captions and then aligned by the main run with the first "
    "seed. It holds the language model only, counted from nano, and shows what DPO repairs; nano itself is better."
)
EXAMPLES = 12  # pictures whose answers the summary shows

# Careless where it describes, careful where it answers: what the model sees is still known to it.
CARELESS = Stage("careless", "answer", {"llm": 3e-4}, {"careless": 1, "question": 1}, steps=150, batch=16, turns=4)

# Who checks claims must be better at it than who makes them.
NEAR_MISSES = Stage("labeler", "answer", {"llm": 3e-4}, {"claim": 1}, steps=240, batch=16, turns=8)


# ---- 1. One run


def align(
    model: MiniCPMV,
    processor: Processor,
    config: Alignment,
    judge: tuple[MiniCPMV, Processor] | None = None,
    folder: str | os.PathLike | None = None,
    report: Callable[[str], object] = lambda line: None,
    *,
    before: dict | None = None,
    answers: str | os.PathLike | None = None,
    base: str | None = None,
    root: MiniCPMV | None = None,
) -> dict:
    """Align a model with feedback, in place.

    Args:
        model, processor: they belong together.
        config: how much of everything, and by which rules.
        judge: the (model, processor) that checks claims where `config.labeler` is "trained", see `train_labeler`.
        folder: where report and changed tensors go; None writes nothing. What changed is rounded to bfloat16 there,
            and measured like that.
        report: takes one line of text at a time.
        before: figures of `measure` for this model and config, if you have them; None measures.
        answers: a folder for the sampled answers. A run that finds answers of the same model there goes on with them.
        base: name of the folder that will lie beside `folder` and holds `root`, see `write_checkpoint`.
        root: the model whose changes are written; None is the model as it comes.

    Returns:
        A dict: "base" and "policy" name `root` and the model as it came by their weights; "before" and "after", see
        `measure`, on held-out pictures; "rounds", and for each of them "labeler" with its agreement with the truth,
        "pairs" with counts, "training" with the figures of each step, and "curve" with greedy figures while it trained.

    Raises:
        TypeError: no MiniCPMV, no Processor, no Alignment.
        ValueError: a missing judge; damaged answers in the folder; no pairs, because all answers to each picture score
            the same.
        OSError: the folder cannot be written.

    Example:
        >>> from minicpmv_ref import nano
        >>> model, processor = MiniCPMV.seeded(nano), Processor.from_pretrained("nano")
        >>> small = dict(pictures=4, answers=4, max_new_tokens=12, steps=2, batch=2, test_pictures=2, questions=1)
        >>> figures = align(model, processor, Alignment(**small, watched=1, labeler="truth"))
        >>> len(figures["rounds"][0]["training"]), sorted(figures["after"])
        (2, ['greedy', 'questions', 'said', 'sampled'])

    Source: paper section 4.3; RLHF-V/RLAIF-V.
    """
    check_model(model, processor)
    check_type("config", config, Alignment)
    if judge is not None:
        check_model(*check_list("judge", judge)[:2])
    if config.labeler == "trained" and judge is None:
        raise ValueError('labeler "trained" needs a judge: train_labeler makes one')
    held_out = pictures(config, "test", model)
    figures: dict = {"config": asdict(config), "base": digest(root or model), "policy": digest(model), "rounds": []}
    figures["before"] = before or measure(model, processor, held_out, config)
    report(f"before: {_short(figures['before'])} ({_on(config)})")
    tensors = model._own_tensors()
    original = {name: tensor.clone() for name, tensor in (root or model)._own_tensors().items()}
    share = replace(config, pictures=config.pictures // config.rounds, steps=config.steps // config.rounds)
    for number in range(config.rounds):
        figures["rounds"].append(_round(model, processor, share, judge, report, answers, held_out, number))
    changed = {name: tensor for name, tensor in tensors.items() if not torch.equal(tensor, original[name])}
    if folder is not None:
        for tensor in changed.values():
            tensor.copy_(tensor.bfloat16())
    figures["after"] = measure(model, processor, held_out, config)
    report(f"after: {_short(figures['after'])} ({_on(config)})")
    if folder is not None:
        write_checkpoint(folder, model.config, {name: t.bfloat16() for name, t in changed.items()}, base)
        write_json(Path(folder) / REPORT, figures)
    return figures


def _round(model, processor, config, judge, report, folder, held_out, number) -> dict:
    samples = pictures(config, "train", model, number)
    records = collect(model, processor, samples, config, judge, _answers_path(folder, model, config, judge))
    found: dict = {"labeler": agreement([r["verdicts"] for r in records], [r["truths"] for r in records])}
    claims = sum(len(record["truths"]) for record in records)
    report(f"labeler: {_listed(found['labeler'])} ({claims} claims of the answers to {len(records)} pictures)")
    pairs, found["pairs"] = choose_pairs(records, samples, config)
    report("pairs: " + ", ".join(f"{name} {count}" for name, count in found["pairs"].items()))
    if not pairs:
        raise ValueError(f"no pairs: {found['pairs']}; more pictures or a higher temperature may give some")
    found["curve"] = []
    every = max(1, config.steps // 8)

    def watch(step: int) -> None:
        if step % every == 0:
            graded = describe(model, processor, held_out[: config.watched], config)[1]
            found["curve"].append({"step": step, **{name: graded[name].value for name in CURVE}})

    settings = dict(steps=config.steps, batch_size=config.batch, lr=config.lr, beta=config.beta, seed=config.seed)
    settings |= dict(vision=config.vision, sft=config.sft, watch=watch)
    found["training"] = train_dpo(model, prepare(model, processor, pairs), **settings)
    first, last = found["training"][0], found["training"][-1]
    batch = min(config.batch, len(pairs))
    figures = f"loss {first['loss']:.3f} -> {last['loss']:.3f}, margin {last['margin']:.3f}"
    report(f"training: {figures} (the {batch} pairs of the first and of the last step)")
    return found


CURVE = ("response", "mention", "recall", "words")


def _answers_path(folder, model, config, judge) -> Path | None:
    """Named by who answers, who checks, the seed, and how many pictures: runs that share all four share the file."""
    if folder is None:
        return None
    checker = digest(judge[0]) if config.labeler == "trained" else config.labeler
    return Path(folder) / f"{digest(model)}-{checker}-{config.seed}-{config.pictures}.jsonl"


def apply_changes(model: MiniCPMV, folder: str | os.PathLike) -> None:
    """Load what `align` left, into the model that it started from.

    Args:
        model: the model that it counts from, `root` there; changed in place.
        folder: of `align`.

    Raises:
        TypeError: no MiniCPMV, no path.
        OSError: no such files.
        ValueError: another base model; a tensor that the model does not have, or of another shape or not finite; a
            damaged file.
    """
    check_type("model", model, MiniCPMV)
    folder = Path(check_type("folder", folder, str, os.PathLike))
    base = read_json(folder / REPORT).get("base")
    if base != digest(model):
        raise ValueError(f"{folder} changes the model {shown(base)}, and this one is {digest(model)}")
    own = model._own_tensors()
    plain_file(folder / WEIGHTS)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            changed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: {error}") from error
    for name, tensor in changed.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ValueError(f"{folder / WEIGHTS}: {shown(name)} {tuple(tensor.shape)} is no tensor of this model")
        if not tensor.isfinite().all():
            raise ValueError(f"{folder / WEIGHTS}: {name} has a weight that is not a finite number")
    for name, tensor in changed.items():
        own[name].copy_(tensor)


def digest(model: MiniCPMV) -> str:
    """Name a model by its weights: 16 hexadecimal digits."""
    check_type("model", model, MiniCPMV)
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model._own_tensors().items()):
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()


# ---- 2. Its steps


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


def measure(model: MiniCPMV, processor: Processor, samples: Sequence[Sample], config: Alignment) -> dict:
    """Measure a model: its descriptions, greedy and sampled as the config says, and its answers to questions.

    Returns:
        {"greedy": figures, "sampled": figures, "questions": Estimate, "said": {"greedy": answers, "sampled": answers}};
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
        (the careless model, {"before": figures of `measure`}): what the model could do when it was still careful.
    """
    figures = measure(model, processor, pictures(config, "test", model), config)
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
        (the labeler, {"before": Estimate, "after": Estimate}): the share of held-out questions answered right.
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
    run = {"policy": digest(model), "labeler": name, "answers": config.answers, "seed": config.seed, **sampling}
    run |= {"kind": config.kind, "language": config.language}
    done = read_records(path) if path is not None else []
    if done and done[0] != {"run": run}:
        raise ValueError(f"{path} holds the answers of another run: {done[0]}, and this one is {run}")
    if path is not None and not done:
        append_records(path, [{"run": run}])
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
            append_records(path, fresh)
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
        counted. "rho" is that of `balance_lengths`, None where nothing is balanced. Chinese is counted in characters
        there, for it has no spaces.

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
        kept, rho = balance_lengths(pairs, len if config.language == "zh" else count_words)
    else:
        kept = [pair for pair in pairs if pair.chosen != pair.rejected]
    counts = {"built": len(pairs), "kept": len(kept), "rho": rho, "no_claims": silent, "pictures_without": without}
    return kept, counts


def _labeler(model, processor, labeler: str, judge) -> tuple[str, Labeler]:
    if labeler == "truth":
        return "truth", label_by_truth
    judge = (model, processor) if labeler == "self" else judge
    return digest(judge[0]), partial(label_by_model, *judge)


def _sampling(config: Alignment) -> dict:
    return dict(temperature=config.temperature, top_p=config.top_p, top_k=config.top_k)


def _chunks(samples: Sequence[Sample], size: int) -> Iterator[tuple[int, Sequence[Sample]]]:
    return ((start, samples[start : start + size]) for start in range(0, len(samples), size))


def _listed(figures: dict) -> str:
    return ", ".join(f"{name} {'-' if e[0] is None else format(e[0], '.3f')}" for name, e in figures.items())


def _on(config: Alignment) -> str:
    """What `measure` asks."""
    questions = len(TOPICS) * config.questions
    return f"{config.test_pictures} held-out pictures and {questions} questions about others"


def _short(measured: dict) -> str:
    wanted = ("response", "mention", "misplaced", "recall", "mentions")
    parts = [f"{way}: {_listed({name: measured[way][name] for name in wanted})}" for way in ("greedy", "sampled")]
    return "; ".join([*parts, _listed({"questions": measured["questions"]})])


def write_json(path: str | os.PathLike, data: dict) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        TypeError: not a path, no dict, or one that holds what JSON does not know.
        OSError: it cannot be written.
        ValueError: a number that is not finite.
    """
    path = Path(check_type("path", path, str, os.PathLike))
    check_type("data", data, dict)
    try:
        text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongType(f"data must be JSON: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as (draft,):
        draft.write_text(text, encoding="utf-8")


# ---- 3. The experiment


def experiment(
    model: MiniCPMV,
    processor: Processor,
    config: Alignment,
    folder: str | os.PathLike,
    *,
    only: str | None = None,
    seeds: Sequence[int] = SEEDS,
    judge: tuple[MiniCPMV, Processor] | None = None,
    base: str | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> dict:
    """Run the alignment and its controls, each with several seeds; what is finished is not run again.

    All runs start from one careless model, see `make_careless`.

    Args:
        model, processor: a careful model, that becomes careless; not changed.
        config: of the main run.
        folder: where to write. A run's figures are NAME-SEED.json there; "nano-dpo" holds the tensors that the main run
            with the first seed changed, counted from the careful model; "careless" holds the model before, "labeler"
            the labeler, "answers" the answers; SUMMARY is what the course shows.
        only: one of RUNS; None runs all.
        seeds: of each run.
        judge: who checks claims; None trains a labeler first, from the careful model.
        base: as for `align`, of "nano-dpo": the folder of the careful model.
        report: takes one line of text at a time.

    Returns:
        What SUMMARY holds, see `summarize`; of all runs in the folder.

    Raises:
        TypeError: an argument of another type.
        ValueError: an unknown run; no seeds; a folder that holds the results of another model or config.
        OSError: the folder cannot be written.
    """
    check_model(model, processor)
    check_type("config", config, Alignment)
    check_type("folder", folder, str, os.PathLike)
    if only is not None and check_type("only", only, str) not in RUNS:
        raise ValueError(f"no run {shown(only)}; there are {', '.join(RUNS)}")
    for number, seed in enumerate(check_list("seeds", seeds, int, empty=False)):
        check_int(f"seeds[{number}]", seed, 0)
    folder, start = Path(folder), digest(model)
    policy = _kept(make_careless, model, processor, config, folder / "careless", report)
    judge = judge or (_kept(train_labeler, model, processor, config, folder / "labeler", report), processor)
    for name in RUNS if only is None else [only]:
        for seed in seeds:
            changed = replace(config, **RUNS[name], seed=seed)
            path = folder / f"{_file(name)}-{seed}.json"
            if path.exists():
                _check(path, changed, start)
                continue
            report(f"\n{name}, seed {seed}")
            shared = folder / f"before-{seed}.json"  # the same for all runs of a seed
            before = None
            if shared.exists():
                before = _check(shared, replace(config, seed=seed), start)["before"]
            first = name == "main" and seed == seeds[0]
            target = folder / "nano-dpo" if first else None
            student = copy.deepcopy(policy)
            options = dict(before=before, answers=folder / "answers", base=base, root=model)
            found = align(student, processor, changed, judge, target, report, **options)
            if first:
                processor.save_pretrained(target)
            if before is None:
                kept = {"config": asdict(replace(config, seed=seed)), "base": start, "before": found["before"]}
                write_json(shared, kept)
            write_json(path, found)
    summary = summarize(folder, model, policy, processor, config, judge)
    write_json(folder / SUMMARY, summary)
    return summary


def _file(name: str) -> str:
    return name.replace(" ", "-")


def _check(path: Path, config: Alignment, base: str) -> dict:
    kept = read_json(path)
    if kept.get("config") != asdict(config) or kept.get("base") != base:
        raise ValueError(f"{path} holds the result of another model or config: take another folder, or delete it")
    return kept


def _kept(make, model, processor, config, folder: Path, report) -> MiniCPMV:
    """Train the careless model or the labeler, or load the one that an earlier run has trained."""
    base, path = digest(model), folder / REPORT
    if path.exists():
        _check(path, config, base)
        return MiniCPMV.from_pretrained(folder).float().to(model.llm.device)
    made, figures = make(model, processor, config)
    if make is train_labeler:
        report(f"labeler: near misses judged right {_listed(figures)} (of {2 * config.test_pictures} held-out ones)")
    else:
        report(f"careful: {_short(figures['before'])} ({_on(config)})")
    processor.save_pretrained(folder)
    made.save_pretrained(folder)
    write_json(path, {"config": asdict(config), "base": base, **figures})  # last: with it the model counts as done
    return made


def summarize(
    folder: str | os.PathLike,
    model: MiniCPMV,
    policy: MiniCPMV,
    processor: Processor,
    config: Alignment,
    judge: tuple,
) -> dict:
    """Put the results of all runs together.

    Args:
        folder: of `experiment`.
        model, processor, config, judge: as there.
        policy: the careless model.

    Returns:
        A dict: "careful", what the model could do before it became careless; "runs", for each run "seeds", "before" and
        "after" (all seeds as one, and "each" with the values of the seeds), "labeler" (its agreement with the truth),
        "pairs" that were kept, "curve" and "training" of the first seed; "not_run", the names of the others;
        "nano-dpo", what that checkpoint is; "labeler", how near misses were judged before and after training;
        "examples", pictures with their answers, and what the judge says to each claim: (claim, p_yes, p_no, true?),
        None where no question can be asked.
    """
    folder = Path(folder)
    summary: dict = {"base": digest(model), "policy": digest(policy), "config": asdict(config), "runs": {}}
    summary["nano-dpo"] = ABOUT
    summary["not_run"] = [name for name in RUNS if not any(folder.glob(f"{_file(name)}-[0-9]*.json"))]
    with _whole(folder / "careless" / REPORT) as [kept]:
        summary["careful"] = _careful(kept["before"])
    if (folder / "labeler" / REPORT).exists():
        with _whole(folder / "labeler" / REPORT) as [kept]:
            summary["labeler"] = {when: kept[when] for when in ("before", "after")}
    for name in RUNS:
        paths = [path for path in folder.glob(f"{_file(name)}-[0-9]*.json") if _seed(path).isdecimal()]
        paths.sort(key=lambda path: int(_seed(path)))
        if paths:
            with _whole(*paths) as found:
                summary["runs"][name] = _pooled(found, config, model)
    summary["examples"] = examples(policy, processor, config, judge, folder / "answers")
    return summary


def _seed(path: Path) -> str:
    return path.stem.rpartition("-")[2]


@contextmanager
def _whole(*paths: Path) -> Iterator[list[dict]]:
    """Results that an earlier run wrote; a field that is missing or of another type is an error with their names."""
    found = [read_json(path) for path in paths]
    try:
        yield found
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        reason, names = printable(f"{type(error).__name__}: {error}"), ", ".join(map(str, paths))
        raise ValueError(f"damaged: {names} ({reason}); delete it, and it is made again") from None


def _careful(figures: dict) -> dict:
    """The figures of one seed, in the form of many."""
    alone = lambda estimate: {"all": estimate, "each": [estimate[0]]}  # noqa: E731
    ways = {way: {name: alone(e) for name, e in figures[way].items()} for way in ("greedy", "sampled")}
    return {**ways, "questions": alone(figures["questions"])}


def _pooled(found: list[dict], config: Alignment, model: MiniCPMV) -> dict:
    """The results of all seeds of a run as one."""
    scenes = [sample.facts for each in found for sample in pictures(Alignment(**each["config"]), "test", model)]
    run: dict = {"seeds": [each["config"]["seed"] for each in found]}
    for when in ("before", "after"):
        run[when] = {}
        for way in ("greedy", "sampled"):
            said = [text for each in found for text in each[when]["said"][way]]
            run[when][way] = {
                figure: {"all": estimate, "each": [each[when][way][figure][0] for each in found]}
                for figure, estimate in hallucination(said, scenes).items()
            }
        shares, count = [each[when]["questions"][0] for each in found], len(TOPICS) * config.questions
        pooled = wilson(round(sum(share * count for share in shares)), count * len(found))
        run[when]["questions"] = {"all": pooled, "each": shares}
    first = found[0]["rounds"]
    run["labeler"] = first[0]["labeler"]
    run["pairs"] = [each["rounds"][0]["pairs"]["kept"] for each in found]
    run["curve"] = [figures["curve"] for figures in first]
    run["training"] = [_thinned(figures["training"]) for figures in first]
    return run


def _thinned(history: list[dict], most: int = 40) -> list[dict]:
    """Means over neighboring steps, `most` of them at the end; "step" counts the steps taken."""
    width = -(-len(history) // most)
    parts = [history[start : start + width] for start in range(0, len(history), width)]
    return [
        {"step": min(len(history), (number + 1) * width)}
        | {name: round(sum(step[name] for step in part) / len(part), 4) for name in part[0]}
        for number, part in enumerate(parts)
    ]


def examples(model: MiniCPMV, processor: Processor, config: Alignment, judge: tuple, folder: Path | None) -> list[dict]:
    """Answers to the first pictures whose answers differ in score, and what the judge says to each claim.

    Returns:
        For each picture {"seed", "answers", "claims"}: the seed draws the picture again.
    """
    samples = pictures(config, "train", model)
    path, found = _answers_path(folder, model, config, judge), []
    for number, record in enumerate(collect(model, processor, samples, config, judge, path)):
        sample = samples[number]
        asked = [(claim, ask_claim(claim, config.language)) for claim in record["claims"]]
        questions = sorted({question for _, question in asked if question})
        if not questions or not choose_pairs([record], [sample], replace(config, balance=False))[0]:
            continue
        p_yes, p_no = (p.tolist() for p in ask_yes_no(*judge, sample.image, questions, config.language))
        said = dict(zip(questions, zip(p_yes, p_no)))
        claims = [
            [claim, *(said[question] if question else (None, None)), truth]
            for (claim, question), truth in zip(asked, record["truths"])
        ]
        found.append({"seed": f"align-{config.seed}/{number}", "answers": record["answers"], "claims": claims})
        if len(found) == EXAMPLES:
            break
    return found


def measured_on(summary: dict) -> str:
    """What the figures of `outcome` were measured on, in one sentence.

    Args:
        summary: of `experiment`.

    Returns:
        The text.
    """
    config, seeds = summary["config"], sorted({seed for run in summary["runs"].values() for seed in run["seeds"]})
    questions = len(TOPICS) * config["questions"]
    return (
        f"Percent, with 95 % intervals, of the seeds {', '.join(map(str, seeds))} together; each was measured on "
        f"{config['test_pictures']} held-out pictures and {questions} questions about others. careful: one seed. "
        "labeler: all claims that it judged in the first seed."
    )


def outcome(summary: dict) -> str:
    """The figures of all runs as a table: percent, all seeds as one, with 95 % intervals; see `measured_on`.

    Args:
        summary: of `experiment`.

    Returns:
        Lines of text.
    """
    columns = [(way, name) for way in ("greedy", "sampled") for name in ("response", "mention", "recall")]
    heads = "".join(f"{f'{way} {name}':>20}" for way, name in columns)
    lines = [f"{'':12}{heads}{'words':>7}{'questions':>11}{'labeler':>9}"]
    rows = [("careful", summary["careful"], "")]
    for name, run in summary["runs"].items():
        rows += [] if len(rows) > 1 else [("before", run["before"], "")]
        rows.append((name, run["after"], f"{100 * run['labeler']['accuracy'][0]:9.1f}"))
    for name, figures, labeler in rows:
        row = "".join(f"{_percent(figures[way][figure]['all']):>20}" for way, figure in columns)
        words, right = figures["greedy"]["words"]["all"][0], figures["questions"]["all"][0]
        lines.append(f"{name:12}{row}{words:7.1f}{100 * right:11.1f}{labeler}")
    if summary["not_run"]:
        lines.append("not run: " + ", ".join(summary["not_run"]))
    return "\n".join(lines)


def _percent(estimate: Sequence) -> str:
    if estimate[0] is None:
        return "-"
    value, low, high = (100 * x for x in estimate)
    return f"{value:.1f} ({low:.1f}-{high:.1f})"
