"""One alignment from end to end: measure, ask, pair, train, measure again, and write what changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from minicpmv_ref.inputs.checkpoint import WEIGHTS, write_checkpoint
from minicpmv_ref.inputs.checks import check_list, check_type, shown
from minicpmv_ref.inputs.files import plain_file, read_json
from minicpmv_ref.learn.dpo import prepare, reference_logps
from minicpmv_ref.learn.evaluate import check_model
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Processor
from minicpmv_ref.toy.data import TOPICS

from ._alignment_steps import Alignment, choose_pairs, collect, describe, fingerprint, measure_model, pictures
from ._controls import agreement, train_on_pairs
from ._frame import write_json

REPORT = "report.json"
CURVE = ("response", "mention", "recall", "words")
SAID = 12  # watched pictures whose descriptions are kept


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
    root: tuple[MiniCPMV, str | None] | None = None,
) -> dict:
    """Align a model with feedback, in place.

    Args:
        model, processor: they belong together.
        config: how much of everything, and by which rules.
        judge: the (model, processor) that checks claims where `config.labeler` is "trained", see `train_labeler`.
        folder: where report and changed tensors go; None writes nothing. What changed is rounded to bfloat16 there,
            and measured like that.
        report: takes one line of text at a time.
        before: figures of `measure_model` for this model and config, if you have them; None measures.
        answers: a folder for the sampled answers. A run that finds answers of the same model there goes on with them.
        root: (the model whose changes are written, the name of the folder beside `folder` that will hold it or None,
            see `write_checkpoint`); None is the model as it comes.

    Returns:
        A dict: "base" and "policy" name `root` and the model as it came by their weights; "before" and "after", see
        `measure_model`, on held-out pictures; "rounds", and for each of them "labeler" with its agreement with the
        truth, "pairs" with counts, "training" with the figures of each step, "curve" with greedy figures while it
        trained, and "watched": what was "said" then, and the log-ratios (chosen, rejected) of the first pairs, for
        which the pictures are as the model saw them at first.

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
    root, base = root or (model, None)
    held_out = pictures(config, "test", model)
    figures: dict = {"config": asdict(config), "base": fingerprint(root), "policy": fingerprint(model), "rounds": []}
    figures["before"] = before or measure_model(model, processor, held_out, config)
    report(f"before: {short(figures['before'])} ({on(config)})")
    tensors = model.own_tensors()
    original = {name: tensor.clone() for name, tensor in root.own_tensors().items()}
    share = replace(config, pictures=config.pictures // config.rounds, steps=config.steps // config.rounds)
    for number in range(config.rounds):
        figures["rounds"].append(_round(model, processor, share, judge, report, answers, held_out, number))
    changed = {name: tensor for name, tensor in tensors.items() if not torch.equal(tensor, original[name])}
    if folder is not None:
        for tensor in changed.values():
            tensor.copy_(tensor.bfloat16())
    figures["after"] = measure_model(model, processor, held_out, config)
    report(f"after: {short(figures['after'])} ({on(config)})")
    if folder is not None:
        write_checkpoint(folder, model.config, {name: t.bfloat16() for name, t in changed.items()}, base)
        write_json(Path(folder) / REPORT, figures)
    return figures


def _round(model, processor, config, judge, report, folder, held_out, number) -> dict:
    samples = pictures(config, "train", model, number)
    records = collect(model, processor, samples, config, judge, answers_path(folder, model, config, judge))
    found: dict = {"labeler": agreement([r["verdicts"] for r in records], [r["truths"] for r in records])}
    claims = sum(len(record["truths"]) for record in records)
    report(f"labeler: {listed(found['labeler'])} ({claims} claims of the answers to {len(records)} pictures)")
    pairs, found["pairs"] = choose_pairs(records, samples, config)
    report("pairs: " + ", ".join(f"{name} {count}" for name, count in found["pairs"].items()))
    if not pairs:
        raise ValueError(f"no pairs: {found['pairs']}; more pictures or a higher temperature may give some")
    found["curve"], found["watched"] = [], []
    every, prepared = max(1, config.steps // 8), prepare(model, processor, pairs)
    watched = prepared[: config.watched]
    start = reference_logps(model, watched)

    def watch(step: int) -> None:
        if step % every == 0:
            said, graded = describe(model, processor, held_out[: config.watched], config)
            found["curve"].append({"step": step, **{name: graded[name].value for name in CURVE}})
            ratios = (reference_logps(model, watched) - start).T.tolist()
            ratios = [[round(ratio, 2) for ratio in pair] for pair in ratios]
            found["watched"].append({"step": step, "said": said[:SAID], "ratios": ratios})

    found["training"] = train_on_pairs(model, prepared, config, watch)
    first, last = found["training"][0], found["training"][-1]
    batch = min(config.batch, len(pairs))
    figures = f"loss {first['loss']:.3f} -> {last['loss']:.3f}, margin {last['margin']:.3f}"
    report(f"training: {figures} (the {batch} pairs of the first and of the last step)")
    return found


def answers_path(folder, model, config, judge) -> Path | None:
    """Named by who answers, who checks, the seed, and how many pictures: runs that share all four share the file."""
    if folder is None:
        return None
    checker = fingerprint(judge[0]) if config.labeler == "trained" else config.labeler
    return Path(folder) / f"{fingerprint(model)}-{checker}-{config.seed}-{config.pictures}.jsonl"


def listed(figures: dict) -> str:
    return ", ".join(f"{name} {'-' if e[0] is None else format(e[0], '.3f')}" for name, e in figures.items())


def on(config: Alignment) -> str:
    """What `measure_model` asks."""
    questions = len(TOPICS) * config.questions
    return f"{config.test_pictures} held-out pictures and {questions} questions about others"


def short(measured: dict) -> str:
    wanted = ("response", "mention", "misplaced", "recall", "mentions")
    parts = [f"{way}: {listed({name: measured[way][name] for name in wanted})}" for way in ("greedy", "sampled")]
    return "; ".join([*parts, listed({"questions": measured["questions"]})])


def apply_changes(model: MiniCPMV, folder: str | os.PathLike) -> None:
    """Load what `align` left, into the model it started from.

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
    if base != fingerprint(model):
        raise ValueError(f"{folder} changes the model {shown(base)}, and this one is {fingerprint(model)}")
    own = model.own_tensors()
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
