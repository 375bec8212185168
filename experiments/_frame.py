"""The frame of the experiments: run the test of a claim, keep its figures as JSON, make docs/claims.md of all of them.

An experiment is a file beside this one, named in NAMES, with
    CLAIM               the words of its section of the page
    SETTINGS            what `run` is given, for each profile: fast (seconds, proves nothing), cpu, gpu
    run(setting, each)  returns a Finding
`each(items, measure)` is `[measure(item) for item in items]` with a progress bar. Every result is kept the moment it is
there, so a run that was stopped goes on where it stopped. Results are JSON: numbers, strings, lists, dicts.

cpu and gpu write experiments/results/NAME.json and the page; fast writes below runs/ only.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from tqdm.auto import tqdm

from minicpmv_ref.inputs.checks import WrongType, check_type
from minicpmv_ref.inputs.files import replacing

from ._others import HEADING, not_run

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, RUNS = ROOT / "experiments/results", ROOT / "docs/claims.md", ROOT / "runs/experiments"
NAMES = (
    "slice_guarantees token_density context_tokens any_aspect text_size slicing cost_curve position_schemes queries "
    "pooling stage_ladder stages frozen_llm rewriting packing padding sft_order multilingual prefill q4k_size loading "
    "connectors connector_steps visual_expert one_position vision_centric text_only "
    "vit_rate vit_frozen answer_machine few_tiles interleaved single_first connector_first "
    "resolution group_frames early_merge zero_shot_clips clip_mixing few_frames"
).split()
FIRST_OF_OTHERS = "connectors"  # from here on they are about the systems that MiniCPM-V is compared with
PROFILES = ("fast", "cpu", "gpu")
CONFIRMED, NOT_CONFIRMED, REFUTED = VERDICTS = ("confirmed here", "not confirmed here", "refuted here")


@dataclass(frozen=True)
class Claim:
    """What somebody says, and the words about how it is tested."""

    title: str
    place: str  # where it is said
    says: str
    done: str  # what the experiment does
    limits: str  # what it cannot say


@dataclass(frozen=True)
class Finding:
    """What came out. `found` is made of the measured numbers, never typed."""

    verdict: str
    found: str
    figures: dict[str, float | int | str]  # the first one stands in the overview
    intervals: dict[str, list[float]] = field(default_factory=dict)  # figure -> [low, high]
    table: list[list[str]] = field(default_factory=list)  # its head, then its rows
    seeds: list[int] = field(default_factory=list)

    def __post_init__(self):
        if self.verdict not in VERDICTS or not self.intervals.keys() <= self.figures.keys():
            raise ValueError(f"verdict must be one of {VERDICTS} and intervals belong to figures, got {self}")


class Each:
    """`[measure(item) for item in items]`, shown and kept in a file. Other settings or `again` start afresh."""

    def __init__(self, path: Path, setting: dict, again: bool = False):
        self.path = path
        self.kept = {"setting": as_json(setting), "results": {}}
        if path.exists() and not again:
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.kept = kept if kept["setting"] == self.kept["setting"] else self.kept

    def __call__(self, items: Iterable, measure: Callable) -> list:
        found, results = [], self.kept["results"]
        for item in tqdm(list(items), desc=measure.__name__, leave=False):
            key = f"{measure.__name__} {json.dumps(item)}"
            if key not in results:
                start = time.perf_counter()
                result = measure(item)
                results[key] = as_json({"result": result, "seconds": time.perf_counter() - start})
                write(self.path, json.dumps(self.kept))
            found.append(results[key]["result"])
        return found

    @property
    def seconds(self) -> float:
        """Time spent in all results, those of earlier runs included."""
        return sum(each["seconds"] for each in self.kept["results"].values())


def median_interval(values: Iterable[float]) -> list[float]:
    """An interval that holds the true median with a confidence of at least 95 %, whatever the distribution is.

    The k-th smallest and k-th largest of n values miss the median only if fewer than k of n fair coins fall on one
    side. Five values or fewer cannot reach 95 %: they give smallest and largest, with confidence 1 - 2^(1 - n).
    """
    values = sorted(values)
    n, k, missed = len(values), 1, 2.0 ** (1 - len(values))
    while missed + 2 * math.comb(n, k) / 2**n <= 0.05:
        missed += 2 * math.comb(n, k) / 2**n
        k += 1
    return [values[k - 1], values[n - k]]


def run(name: str, profile: str, again: bool = False, runs: Path = RUNS, results: Path = RESULTS) -> dict:
    """Run one experiment and write its JSON file.

    Args:
        name: one of NAMES.
        profile: "fast", "cpu" or "gpu".
        again: forget what a run that was stopped had found.
        runs, results: where unfinished (and fast) runs and where real results go.

    Returns:
        What the file holds.

    Raises:
        ValueError: an unknown name or profile.
    """
    if name not in NAMES or profile not in PROFILES:
        raise ValueError(
            f"an experiment is one of {', '.join(NAMES)}, a profile one of {PROFILES}: {name!r}, {profile!r}"
        )
    experiment = import_module(f"experiments.{name}")
    setting = experiment.SETTINGS[profile]
    each = Each(runs / profile / f"{name}.kept.json", setting, again)
    finding = experiment.run(setting, each)
    result = {"experiment": name, "profile": profile, "setting": setting, **asdict(finding)}
    result |= {"seconds": round(each.seconds, 3), "machine": machine(profile)}
    folder = runs / profile if profile == "fast" else results
    write_json(folder / f"{name}.json", result)
    return as_json(result)


# ---- the page


def page(results: Path = RESULTS) -> str:
    """docs/claims.md: the words of the scripts and the figures of the JSON files, nothing else."""
    lines = [HEAD, "| claim | verdict | figure |", "|---|---|---|"]
    sections = []
    for number, name in enumerate(NAMES, start=1):
        claim, path = import_module(f"experiments.{name}").CLAIM, results / f"{name}.json"
        title = f"{number}. {claim.title}"
        if not path.exists():
            lines.append(f"| {title} | not run yet | |")
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        if name == FIRST_OF_OTHERS:
            sections.append(HEADING)
        figure, value = next(iter(result["figures"].items()))
        lines.append(f"| {title} | {result['verdict']} | {figure}: {value} |")
        sections.append(section(title, claim, result))
    return "\n".join(lines) + "\n\n" + "\n".join([*sections, not_run()])


def section(title: str, claim: Claim, result: dict) -> str:
    name = result["experiment"]
    lines = [f"## {title}\n", f"**Where.** {claim.place}\n", f"**What it says.** {claim.says}\n"]
    lines += [f"**What was done.** {claim.done}\n", f"**Verdict: {result['verdict']}.** {result['found']}\n"]
    for figure, value in result["figures"].items():
        interval = result["intervals"].get(figure)
        lines.append(f"- {figure}: {value}" + (f", interval {interval[0]} to {interval[1]}" if interval else ""))
    if result["table"]:
        head, *rows = result["table"]
        lines += ["", *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))]
    lines.append(f"\n**What it cannot say.** {claim.limits}\n")
    seeds = result["seeds"]
    seeds = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}" if seeds else "no seeds"
    lines.append(
        f"[{name}.py](../experiments/{name}.py), [{name}.json](../experiments/results/{name}.json): "
        f"profile {result['profile']}, {seeds}, {result['seconds']} s; {result['machine']}.\n"
    )
    return "\n".join(lines)


HEAD = """# The paper's claims, tested

The second part, "The others", is about the systems that MiniCPM-V is compared with and about its later versions; what
was not run stands at its end. Each claim has a short script in [experiments](../experiments). `python3 lab.py
experiment all --profile cpu` runs them and writes this page from their JSON files; do not edit it by hand. "Confirmed
here" means: with this code, on this machine, in the range named. Intervals are 95 % or a little more: of the median
over runs or seeds where times and lengths are measured, of the mean over held-out items where models are.
"""


# ---- what several experiments need


def machine(profile: str) -> str:
    """The machine in words: enough to judge a time, nothing that names it."""
    words = [processor(), f"{os.cpu_count()} cores"]
    if hasattr(os, "getloadavg"):
        words.append(f"load {os.getloadavg()[0]:.0f} at the end")
    if profile == "gpu":
        import torch

        words.append(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
    return ", ".join([*words, f"Python {platform.python_version()}", f"torch {version('torch')}"])


def processor() -> str:
    """Its name, and whether it multiplies bfloat16 in tiles, which the name does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        words = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
        return words["model name"] + (" with AMX" if "amx_bf16" in words.get("flags", "").split() else "")
    except (OSError, KeyError):  # not Linux, or not a PC
        return platform.processor() or platform.machine()


def as_json(value):
    return json.loads(json.dumps(value))


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
    write(path, text)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as (draft,):
        draft.write_text(text, encoding="utf-8")
