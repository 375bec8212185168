"""The alignment of the nano model from end to end: sample, check, pair, train, and measure before and after.

Pictures to learn from come from the train split, pictures to measure on from the test split. Everything is drawn from
one seed. Answers and verdicts go to a file while they are made, so a run that was cut off goes on where it was.
What it leaves is small: only the tensors that changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..checkpoint import WEIGHTS, write_checkpoint
from ..model import MiniCPMV
from ..processor import Processor
from .data import Sample, draw
from .dpo import Pair, prepare, train_dpo
from .rlaif import (
    Labeler,
    agreement,
    append_records,
    balance_lengths,
    build_pairs,
    count_words,
    hallucination,
    label_by_model,
    label_by_truth,
    read_records,
    sample_answers,
    score_response,
    split_claims,
)

CHUNK = 16  # pictures whose answers are sampled in one batch and written together
ANSWERS, REPORT = "answers.jsonl", "report.json"
FIELDS = ("key", "answers", "claims", "verdicts", "truths")  # of a line of answers


@dataclass(frozen=True)
class Alignment:
    """One run. The published script samples with temperature 0.7; the paper says "high temperatures"."""

    pictures: int = 300  # to learn from
    answers: int = 10  # to each
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 100
    max_new_tokens: int = 64
    language: str = "en"
    kind: str = "caption"  # or "long"
    steps: int = 80
    batch: int = 16  # pairs of one step
    lr: float = 3e-5
    beta: float = 0.1
    test_pictures: int = 200  # to measure on
    seed: int = 0


# `fast` proves that every step runs, `cpu` is the experiment of the course, `gpu` goes further.
PROFILES = {
    "fast": Alignment(pictures=16, max_new_tokens=24, steps=6, batch=8, test_pictures=16),
    "cpu": Alignment(),
    "gpu": Alignment(pictures=2000, steps=400, batch=32, test_pictures=1000),
}


def align(
    model: MiniCPMV,
    processor: Processor,
    config: Alignment,
    labeler: str | tuple[MiniCPMV, Processor] = "truth",
    folder: str | os.PathLike | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> dict:
    """Align a model with feedback, in place.

    Args:
        model, processor: they belong together.
        config: how much of everything.
        labeler: who checks the claims: "truth" (the upper bound), "self" (the model as it comes), or a stronger
            (model, processor).
        folder: where answers, report and changed tensors go; None writes nothing. A folder that holds answers of the
            same run already is continued.
        report: takes one line of text at a time.

    Returns:
        A dict: "before" and "after" with "greedy" and "sampled" figures on held-out pictures, see `hallucination`;
        "labeler" with its agreement with the truth; "pairs" with counts; "training" with the figures of each step.

    Raises:
        ValueError: an unknown labeler; answers of another run in the folder; no pairs, because all answers to each
            picture score the same.
        OSError: the folder cannot be written.

    Example:
        >>> from minicpmv_ref import nano
        >>> model, processor = MiniCPMV.seeded(nano), Processor.from_pretrained("nano")
        >>> config = Alignment(pictures=4, answers=4, max_new_tokens=12, steps=2, batch=2, test_pictures=2)
        >>> figures = align(model, processor, config)
        >>> len(figures["training"]), sorted(figures["after"])
        (2, ['greedy', 'sampled'])

    Source: paper section 4.3; RLHF-V/RLAIF-V.
    """
    if labeler not in ("truth", "self") and not isinstance(labeler, tuple):
        raise ValueError(f'labeler must be "truth", "self" or a (model, processor), got {labeler!r}')
    base = digest(model)
    held_out = pictures(config, "test", model)
    figures: dict = {"config": asdict(config), "base": base}
    figures["before"] = measure(model, processor, held_out, config)
    report("before: " + _short(figures["before"]))

    samples = pictures(config, "train", model)
    path = None if folder is None else Path(folder) / ANSWERS
    records = collect(model, processor, samples, config, labeler, path)
    figures["labeler"] = agreement([r["verdicts"] for r in records], [r["truths"] for r in records])
    report("labeler: " + _listed(figures["labeler"]))
    pairs, figures["pairs"] = choose_pairs(records, samples, config)
    report("pairs: " + ", ".join(f"{name} {number}" for name, number in figures["pairs"].items()))
    if not pairs:
        raise ValueError(f"no pairs: {figures['pairs']}; more pictures or a higher temperature may give some")

    before = {name: tensor.clone() for name, tensor in model._own_tensors().items()}
    settings = dict(steps=config.steps, batch_size=config.batch, lr=config.lr, beta=config.beta, seed=config.seed)
    figures["training"] = train_dpo(model, prepare(model, processor, pairs), **settings)
    first, last = figures["training"][0], figures["training"][-1]
    report(f"training: loss {first['loss']:.3f} -> {last['loss']:.3f}, margin {last['margin']:.3f}")
    figures["after"] = measure(model, processor, held_out, config)
    report("after: " + _short(figures["after"]))
    if folder is not None:
        changed = {name: t for name, t in model._own_tensors().items() if not torch.equal(t, before[name])}
        write_checkpoint(folder, model.config, changed)
        draft = Path(folder) / f".{REPORT}.{os.getpid()}.part"
        draft.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(draft, Path(folder) / REPORT)
    return figures


def pictures(config: Alignment, split: str, model: MiniCPMV) -> list[Sample]:
    """Draw the pictures of a run.

    Returns:
        Samples; the same for the same config, and none in both splits.
    """
    count = config.pictures if split == "train" else config.test_pictures
    view = model.config.slicing.scale_resolution
    return [draw(f"align-{config.seed}/{i}", config.kind, split, config.language, view=view) for i in range(count)]


def measure(model: MiniCPMV, processor: Processor, samples: Sequence[Sample], config: Alignment) -> dict:
    """Describe pictures, greedily and by sampling as the config says, and grade the descriptions.

    Returns:
        {"greedy": figures, "sampled": figures}, see `hallucination`.
    """
    scenes = [sample.facts for sample in samples]
    found = {}
    for name, sampling in (("greedy", dict(temperature=0.0)), ("sampled", _sampling(config))):
        sampling["max_new_tokens"] = config.max_new_tokens
        answers = []
        for start, chunk in _chunks(samples, 2 * CHUNK):
            prompts = [sample.prompt for sample in chunk]
            drawn = sample_answers(model, processor, prompts, n=1, seed=config.seed + start, **sampling)
            answers += [answer for (answer,) in drawn]
        found[name] = hallucination(answers, scenes, config.seed)
    return found


def collect(
    model: MiniCPMV,
    processor: Processor,
    samples: Sequence[Sample],
    config: Alignment,
    labeler: str | tuple[MiniCPMV, Processor] = "truth",
    path: str | os.PathLike | None = None,
) -> list[dict]:
    """Sample answers, divide them into claims, and check these.

    Args:
        model, processor: who answers.
        samples: from `pictures`.
        config: how to sample.
        labeler: as for `align`.
        path: a file of records, continued if it is there. Its first line says which run it belongs to.

    Returns:
        For each picture {"key", "answers", "claims", "verdicts", "truths"}: claims are those of all answers, each
        once, and verdicts and truths are about them.

    Raises:
        ValueError: a file of another run, or a damaged one.
    """
    name, label = _labeler(model, processor, labeler)
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
        if number >= len(samples) or set(record) != set(FIELDS) or record["key"] != samples[number].key:
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


def choose_pairs(records: Sequence[dict], samples: Sequence[Sample], config: Alignment) -> tuple[list[Pair], dict]:
    """Score the answers of each picture, pair them, and balance the lengths.

    Args:
        records: from `collect`.
        samples: their pictures.
        config: its seed and language.

    Returns:
        (pairs, counts): answers that make no claim and pictures whose answers all score the same are left out, and
        counted. "rho" is that of `balance_lengths`. Chinese is counted in characters there, for it has no spaces.
    """
    pairs, silent, without = [], 0, 0
    for number, (record, sample) in enumerate(zip(records, samples, strict=True)):
        verdict = dict(zip(record["claims"], record["verdicts"], strict=True))
        divided = [split_claims(answer) for answer in record["answers"]]
        scores = [score_response([verdict[claim] for claim in claims]) if claims else None for claims in divided]
        found = build_pairs(scores, seed=f"{config.seed}/{number}")
        silent += scores.count(None)
        without += not found
        prompt, answers = sample.prompt, record["answers"]
        pairs += [Pair(prompt, answers[chosen], answers[rejected]) for chosen, rejected in found]
    kept, rho = balance_lengths(pairs, len if config.language == "zh" else count_words)
    counts = {"built": len(pairs), "kept": len(kept), "rho": rho, "no_claims": silent, "pictures_without": without}
    return kept, counts


def apply_changes(model: MiniCPMV, folder: str | os.PathLike) -> None:
    """Load what `align` left, into the model that it started from.

    Args:
        model: the base model; changed in place.
        folder: of `align`.

    Raises:
        OSError: no such files.
        ValueError: another base model; a tensor that the model does not have, or of another shape; a damaged file.
    """
    folder = Path(folder)
    base = json.loads((folder / REPORT).read_text(encoding="utf-8")).get("base")
    if base != digest(model):
        raise ValueError(f"{folder} changes the model {base}, and this one is {digest(model)}")
    own = model._own_tensors()
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            changed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: {error}") from error
    for name, tensor in changed.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ValueError(f"{folder / WEIGHTS}: {name} {tuple(tensor.shape)} is no tensor of this model")
    for name, tensor in changed.items():
        own[name].copy_(tensor)


def digest(model: MiniCPMV) -> str:
    """Name a model by its weights: 16 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model._own_tensors().items()):
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()


def _labeler(model, processor, labeler) -> tuple[str, Labeler]:
    if labeler == "truth":
        return "truth", label_by_truth
    judge = (model, processor) if labeler == "self" else labeler
    return digest(judge[0]), partial(label_by_model, *judge)


def _sampling(config: Alignment) -> dict:
    return dict(temperature=config.temperature, top_p=config.top_p, top_k=config.top_k)


def _chunks(samples: Sequence[Sample], size: int) -> Iterator[tuple[int, Sequence[Sample]]]:
    return ((start, samples[start : start + size]) for start in range(0, len(samples), size))


def _listed(figures: dict) -> str:
    return ", ".join(f"{name} {'-' if e.value is None else format(e.value, '.3f')}" for name, e in figures.items())


def _short(measured: dict) -> str:
    wanted = ("response", "mention", "misplaced", "recall", "mentions")
    parts = (f"{way}: {_listed({name: figures[name] for name in wanted})}" for way, figures in measured.items())
    return "; ".join(parts)
