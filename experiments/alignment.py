"""The alignment of the nano model and its controls: many runs with one thing changed each; `lab.py dpo` starts it.

The trained nano model makes next to no mistakes in its small world, so there is nothing to align. The experiment makes
them first: it trains nano on captions that a careless writer wrote (`careless_caption`), while questions about the same
scenes keep their true answers. What comes out sees well and describes badly, and that is the model to align. It is not
shipped: the experiment makes it again within minutes.

Pictures to learn from come from the train split, pictures to measure on from the test split. What it leaves is small:
figures, and the tensors that changed. One run is in _alignment_run.py, its steps are in _alignment_steps.py. It is
beside the claims of NAMES: its results stand in data_samples/alignment.json and in lesson 08, not on docs/claims.md.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from minicpmv_ref.inputs.checks import check_int, check_list, check_type, printable, shown
from minicpmv_ref.inputs.files import read_json
from minicpmv_ref.learn.dpo import check_model
from minicpmv_ref.learn.rlaif import ask_claim, ask_yes_no, hallucination
from minicpmv_ref.learn.statistics import wilson
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Processor
from minicpmv_ref.toy.data import TOPICS

from ._alignment_run import REPORT, align, answers_path, listed, on, short
from ._alignment_steps import Alignment, choose_pairs, collect, fingerprint, make_careless, pictures, train_labeler
from ._frame import write_json

SUMMARY = "summary.json"

# `fast` proves that every step runs, `cpu` is the experiment of the course, `gpu` goes further.
_FEW = dict(batch=8, test_pictures=8, questions=1, watched=4, careless_steps=24, labeler_steps=2)
SETTINGS = {
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
        base: name of the folder that holds the careful model and will lie beside "nano-dpo".
        report: takes one line of text at a time.

    Returns:
        What SUMMARY holds, see `summarize`; of all runs in the folder.

    Raises:
        TypeError: an argument of another type.
        ValueError: an unknown run; no seeds; a folder that holds the results of another model, config or labeler.
        OSError: the folder cannot be written.
    """
    check_model(model, processor)
    check_type("config", config, Alignment)
    check_type("folder", folder, str, os.PathLike)
    if only is not None and check_type("only", only, str) not in RUNS:
        raise ValueError(f"no run {shown(only)}; there are {', '.join(RUNS)}")
    for number, seed in enumerate(check_list("seeds", seeds, int, empty=False)):
        check_int(f"seeds[{number}]", seed, 0)
    folder, start = Path(folder), fingerprint(model)
    policy = _kept(make_careless, model, processor, config, folder / "careless", report)
    judge = judge or (_kept(train_labeler, model, processor, config, folder / "labeler", report), processor)
    for name in RUNS if only is None else [only]:
        for seed in seeds:
            changed = replace(config, **RUNS[name], seed=seed)
            path = folder / f"{_file(name)}-{seed}.json"
            labeler = fingerprint(judge[0]) if changed.labeler == "trained" else None
            if path.exists():
                if _check(path, changed, start).get("labeled_by", labeler) != labeler:
                    raise ValueError(f"{path} holds the result of another labeler: take another folder, or delete it")
                continue
            report(f"\n{name}, seed {seed}")
            shared = folder / f"before-{seed}.json"  # the same for all runs of a seed
            before = None
            if shared.exists():
                before = _check(shared, replace(config, seed=seed), start)["before"]
            first = name == "main" and seed == seeds[0]
            target = folder / "nano-dpo" if first else None
            student = copy.deepcopy(policy)
            options = dict(before=before, answers=folder / "answers", root=(model, base))
            found = align(student, processor, changed, judge, target, report, **options)
            if first:
                processor.save_pretrained(target)
            if before is None:
                kept = {"config": asdict(replace(config, seed=seed)), "base": start, "before": found["before"]}
                write_json(shared, kept)
            write_json(path, found | {"labeled_by": labeler})
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
    base, path = fingerprint(model), folder / REPORT
    if path.exists():
        _check(path, config, base)
        return MiniCPMV.from_pretrained(folder).float().to(model.llm.device)
    made, figures = make(model, processor, config)
    if make is train_labeler:
        report(f"labeler: near misses judged right {listed(figures)} (of {2 * config.test_pictures} held-out ones)")
    else:
        report(f"careful: {short(figures['before'])} ({on(config)})")
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
        "pairs" that were kept, "curve", "training" and "watched" of the first seed; "not_run", the names of the others;
        "nano-dpo", what that checkpoint is; "labeler", how near misses were judged before and after training;
        "examples", pictures with their answers, and what the judge says to each claim: (claim, p_yes, p_no, true?),
        None where no question can be asked.
    """
    folder = Path(folder)
    summary: dict = {"base": fingerprint(model), "policy": fingerprint(policy), "config": asdict(config), "runs": {}}
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
    if all("watched" in figures for figures in first):
        run["watched"] = [figures["watched"] for figures in first]
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
    path, found = answers_path(folder, model, config, judge), []
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
