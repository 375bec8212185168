"""Your own change: two arms that differ in one thing, a number written before the run, one page after it. Lesson 14.

    mine = Proposal("Four queries", "...", old=Arm(...), new=Arm(...), at_least=-0.1)
    rehearse(mine)          # seconds: does it run, and how long will the real one take?
    run(mine, folder)       # minutes: result.json; a run that was stopped goes on where it stopped. profile="gpu": more
    report(folder)          # report.md and report.png

Both arms see the same samples and compute as much: the second takes more or fewer steps. Left out: packing and frames,
whose arms are more than a setting; copy packing.py or group_frames.py beside this file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure

from minicpmv_ref import Processor, best_grid, candidate_grids, paper_grid, partition_score, plan_slices
from minicpmv_ref.config import nano
from minicpmv_ref.deploy.gguf_plan import MIXTURES, llm_tensors, plan_mixture
from minicpmv_ref.deploy.kquant import FORMATS, dequantize, quantize
from minicpmv_ref.inputs.checks import check_choice, check_int, check_number
from minicpmv_ref.inputs.files import read_json, replacing
from minicpmv_ref.learn.objectives import draw_samples, objective_for
from minicpmv_ref.learn.stages import Stage
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.peers.connectors import CONNECTORS
from minicpmv_ref.peers.nano import CUTTINGS, PeerProcessor, swap
from minicpmv_ref.scale.steps import flops_of, train_steps
from minicpmv_ref.slicing import SlicePlan
from minicpmv_ref.toy.data import KINDS
from minicpmv_ref.vision import VisionTransformer

from ._arms import checkpoint, decided, gains, grades, in_words, mean_over_items, table, with_new_resampler
from ._frame import RESULTS, RUNS, Each, as_json, machine, write, write_json

SHIPPED = RESULTS / "capstone"  # one folder for each proposal that was run: result.json, report.md, report.png
MINE = RUNS.parent / "capstone"  # where yours may stand; git does not look there
PROFILES = {"cpu": (1, 1, "cpu"), "gpu": (25, 10, "cuda")}  # times the steps, times the graded samples, and where


def one_column(size, cfg):
    """Slices as wide as the picture, so that no line of text is cut in two; very wide pictures as before."""
    strips = [grid for grid in candidate_grids(size, cfg) if grid[0] == 1]
    if not strips or size[0] > 2 * size[1]:
        return best_grid(size, cfg)
    return max(strips, key=lambda grid: partition_score(size, grid))


def last_of_equals(size, cfg):
    """The released rule with the other tie-break."""
    return max(reversed(candidate_grids(size, cfg)), key=lambda grid: partition_score(size, grid), default=None)


# From (width, height) and a SliceConfig to (cols, rows), or None for no slices. Add your own function here.
GRIDS: dict[str, Callable] = {
    "released": best_grid,
    "paper": lambda size, cfg: None if paper_grid(size, cfg) == (1, 1) else paper_grid(size, cfg),
    "last of equals": last_of_equals,
    "one column": one_column,
}


@dataclass(frozen=True)
class Arm:
    """One way to build the model. Each default changes nothing."""

    name: str
    connector: str = "own"  # "own": the checkpoint's; "resampler": a new one; or a new one of peers' CONNECTORS
    queries: int = 16  # of a new resampler: a square number, since each starts at its own part of the view
    cutting: str = "minicpm-v"  # how pictures are cut: one of peers' CUTTINGS
    grid: str = "released"  # which grid of slices: a name in GRIDS
    slices: int = 9  # at most
    position: str = "bucket"  # of the ViT's patches: "bucket" or "interpolate"
    mixture: str = "F32"  # what the LLM's weights are rounded to after training: a mixture, or one format for all

    def __post_init__(self):
        check_choice("connector", self.connector, ["own", "resampler", *CONNECTORS])
        check_choice("cutting", self.cutting, CUTTINGS)
        check_choice("grid", self.grid, GRIDS)
        check_choice("position", self.position, ["bucket", "interpolate"])
        check_choice("mixture", self.mixture, [*MIXTURES, *FORMATS])
        check_int("queries", self.queries), check_int("slices", self.slices)
        if self.connector in CONNECTORS and self.cutting == "minicpm-v":
            raise ValueError(f'connector {self.connector!r} takes square views: cutting must be "square" or another')
        if self.queries != 16 and self.connector != "resampler":
            raise ValueError('only a new resampler can have another number of queries: connector="resampler"')


@dataclass(frozen=True)
class Proposal:
    """What you change, what you predict, and how it is tested."""

    title: str
    hypothesis: str  # one sentence, and why
    old: Arm
    new: Arm
    at_least: float  # the prediction: nats a token that `new` saves; below 0, what it may lose at most
    limits: str  # what the test cannot say
    kinds: tuple[str, ...] = ("caption", "crop")  # of samples to learn from and to be graded on: KINDS of toy.data
    learns: dict[str, float] = field(default_factory=lambda: {"resampler": 3e-3})  # parts and their learning rates
    begin: str = "nano-stage-2"  # the checkpoint
    aligned: bool = True  # False: lines of documents stand anywhere, and slices may cut them
    steps: int = 120  # of the old arm; 0: nothing learns
    batch: int = 16  # samples of a step
    n: int = 40  # held-out samples of each kind
    seeds: int = 3

    def __post_init__(self):
        check_number("at_least", self.at_least, least=-100, most=100)
        check_int("steps", self.steps, least=0)
        for name in ("batch", "n", "seeds"):
            check_int(name, getattr(self, name))
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {self.kinds}")
        changed = differences(self.old, self.new)
        if len(changed) != 1:
            what = f"these differ in {', '.join(changed)}" if changed else "these are equal"
            raise ValueError(f"two arms must differ in one thing, or nobody knows what helped; {what}")


def differences(old: Arm, new: Arm) -> list[str]:
    """The fields in which two arms differ; their names do not count."""
    names = [each.name for each in fields(Arm) if each.name != "name"]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


# ---- building an arm


class ArmProcessor(PeerProcessor):
    """A processor with another rule for the grid of slices."""

    rule: Callable = staticmethod(best_grid)

    def plan(self, size, cfg) -> SlicePlan:
        if self.cutting != "minicpm-v" or self.rule is best_grid:
            return super().plan(size, cfg)
        plan = plan_slices(size, replace(cfg, max_slice_nums=1))  # the overview
        grid = self.rule(size, cfg)
        if grid is None:
            return plan
        # A slice is as large as a picture of its shape that is not cut.
        cut = plan_slices((round(size[0] / grid[0]), round(size[1] / grid[1])), replace(cfg, max_slice_nums=1))
        return SlicePlan(size, cfg.patch_size, plan.overview_size, grid, cut.overview_size)


def build(arm: Arm, begin: str, seed: int) -> tuple[MiniCPMV, Processor]:
    """The model and the processor of an arm, before it learns."""
    tokenizer = Processor.from_pretrained("nano").tokenizer
    if arm.connector == "resampler":
        model = with_new_resampler(begin, seed, num_queries=arm.queries)
    else:
        model = checkpoint(begin)
    if arm.connector in CONNECTORS:
        model, _ = swap(model, Processor(tokenizer, model.config), arm.connector, arm.cutting, seed)
    config = replace(
        model.config,
        vision=replace(model.config.vision, position=arm.position),
        slicing=replace(model.config.slicing, max_slice_nums=arm.slices),
    )
    vit = VisionTransformer(config.vision)
    vit.load_state_dict(model.vpm.state_dict())
    model.vpm, model.config = vit, config
    processor = ArmProcessor(tokenizer, config, arm.cutting)
    processor.rule = GRIDS[arm.grid]
    return model, processor


def kinds_of(mixture: str) -> dict[str, str]:
    """What each tensor of nano's LLM is stored as."""
    plan = plan_mixture(nano, mixture if mixture in MIXTURES else "F32")
    if mixture in MIXTURES:
        return plan.kinds
    return {name: mixture if len(shape) > 1 else "F32" for name, shape in plan.shapes.items()}


def llm_bytes(mixture: str) -> int:
    plan = plan_mixture(nano, "F32")
    return replace(plan, kinds=kinds_of(mixture)).total_bytes


@torch.no_grad()
def round_weights(model: MiniCPMV, mixture: str) -> None:
    """Round the LLM's weights to what a GGUF file of this mixture holds, in place."""
    tensors = model.state_dict()
    for name, kind in kinds_of(mixture).items():
        weight = tensors[llm_tensors(model.config.llm)[name].key]
        if kind in FORMATS:
            blocks = quantize(weight.cpu().numpy(), kind)
            weight.copy_(torch.from_numpy(dequantize(blocks, kind, weight.shape[1])))
        elif kind == "F16":
            weight.copy_(weight.half())


# ---- the run


def stage_of(proposal: Proposal, steps: int) -> Stage:
    mix = dict.fromkeys(proposal.kinds, 1.0)
    more = {"steps": max(1, steps), "batch": proposal.batch, "aligned": proposal.aligned}
    return Stage("capstone", "answer", dict(proposal.learns), mix, **more)


def step_operations(proposal: Proposal, arm: Arm, batches: int = 4) -> float:
    """Operations of a training step of an arm, forward and backward: the mean of some batches. Nothing is trained."""
    model, processor = build(arm, proposal.begin, seed=0)
    stage = stage_of(proposal, steps=1)
    objective = objective_for(model, processor, stage)
    sample = draw_samples(stage, 0, "train", objective.view)
    work = 0
    for step in range(batches):
        numbers = range(step * stage.batch, (step + 1) * stage.batch)
        work += flops_of(model, stage, objective.prepare([sample(number) for number in numbers], step))
    return work / batches


def equal_steps(steps: int, cost: float, other: float) -> int:
    """So many steps of the other cost compute what `steps` of this cost do; at least one."""
    return max(1, round(steps * cost / other)) if steps else 0


def run(proposal: Proposal, folder: str | Path, profile: str = "cpu") -> dict:
    """Train and grade both arms with every seed, and write `folder`/result.json.

    Args:
        proposal: yours.
        folder: of this proposal alone. A run that was stopped goes on; one that is done is read.
        profile: "cpu", or "gpu" for 25 times the steps and 10 times the graded samples on a CUDA GPU.

    Returns:
        What the file holds.

    Raises:
        ValueError: the folder has the result of another proposal: a prediction is not changed after the run. An
            unknown profile, or no GPU.
    """
    longer, more, device = PROFILES[check_choice("profile", profile, PROFILES)]
    proposal = replace(proposal, steps=longer * proposal.steps, n=more * proposal.n)
    folder = Path(folder)
    written = as_json(asdict(proposal))
    if (folder / "result.json").exists():
        result = read_json(folder / "result.json")
        if result["proposal"] != written:
            raise ValueError(f"{folder} has the result of another proposal: take a new folder for this one")
        return result
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError('profile "gpu" needs a CUDA GPU, and PyTorch finds none; "cpu" needs none')
    plan = arms_and_steps(proposal)

    def measure(item: list) -> dict:
        name, seed = item
        return train_and_grade(proposal, *plan[name], seed, device)

    each = Each(folder / "kept.json", written)
    arms = {name: each([[name, seed] for seed in range(proposal.seeds)], measure) for name in plan}
    result = {"proposal": written, **conclude(proposal, arms)}
    result |= {"seconds": round(each.seconds, 1), "machine": machine(profile)}
    write_json(folder / "result.json", result)
    (folder / "kept.json").unlink()
    return as_json(result)


def arms_and_steps(proposal: Proposal) -> dict[str, tuple[Arm, int]]:
    """Both arms by name, each with so many steps that they compute as much."""
    old, new = proposal.old, proposal.new
    longer = equal_steps(proposal.steps, step_operations(proposal, old), step_operations(proposal, new))
    return {old.name: (old, proposal.steps), new.name: (new, longer)}


def train_and_grade(proposal: Proposal, arm: Arm, steps: int, seed: int, device: str = "cpu") -> dict:
    """One arm with one seed: its cost, its grades, and how many seconds a step and a graded sample took."""
    model, processor = build(arm, proposal.begin, seed)
    model.to(device)
    done = list(train_steps(model, processor, stage_of(proposal, steps), seed)) if steps else []
    round_weights(model, arm.mixture)
    began = time.perf_counter()
    found = grades(model.eval(), processor, list(proposal.kinds), proposal.n, aligned=proposal.aligned)
    sample = (time.perf_counter() - began) / proposal.n / len(proposal.kinds)
    step = done[-1].seconds - done[-2].seconds if len(done) > 1 else 0.0
    cost = {name: sum(getattr(each, name) for each in done) for name in ("views", "tokens", "flops")}
    return {"steps": len(done), **cost, "clock": [step, sample], **found}


def conclude(proposal: Proposal, arms: dict) -> dict:
    """Verdict and figures from the grades of both arms, {name: [grades of each seed]}."""
    old, new = proposal.old.name, proposal.new.name
    gained = gains(arms, new, old, *(f"{kind}, nats" for kind in proposal.kinds))
    mean, ends = mean_over_items(gained)
    each = {kind: in_words(gains(arms, new, old, f"{kind}, nats")) for kind in proposal.kinds}
    names = [f"{kind}, {grade}" for kind in proposal.kinds for grade in ("nats", "right")]
    rows = table(arms, names)
    costs = [fmean(seed["flops"] for seed in seeds) for seeds in arms.values()]
    sizes = [llm_bytes(arm.mixture) for arm in (proposal.old, proposal.new)]
    more = [["operations", "LLM"], *([f"{cost:.3g}", f"{size / 1e6:.2f} MB"] for cost, size in zip(costs, sizes))]
    return {
        "verdict": decided(ends, [fmean(seed) for seed in gained], proposal.at_least),
        "gain": round(mean, 4),
        "interval": [round(end, 4) for end in ends],
        "seeds": [round(fmean(seed), 4) for seed in gained],
        "by kind": each,
        "table": [[*row[:4], *extra, *row[4:]] for row, extra in zip(rows, more)],
    }


def rehearse(proposal: Proposal) -> dict:
    """Both arms with two steps and two samples of each kind, in seconds. What comes out proves nothing.

    Returns:
        As `run`; "minutes" says about how long the real run will take here.
    """
    tiny, arms, seconds = replace(proposal, n=2, seeds=1), {}, 0.0
    for name, (arm, steps) in arms_and_steps(proposal).items():
        arms[name] = [train_and_grade(tiny, arm, min(steps, 2), seed=0)]
        step, sample = arms[name][0]["clock"]
        seconds += steps * step + proposal.n * len(proposal.kinds) * sample
    return conclude(tiny, arms) | {"minutes": round(proposal.seeds * seconds / 60, 1)}


# ---- the page


def report(folder: str | Path, to: str | Path | None = None) -> str:
    """Write report.md and report.png from result.json, whole or not at all.

    Args:
        folder: where `run` wrote.
        to: where the page goes; None is the same folder.

    Returns:
        The page, in Markdown.
    """
    folder = Path(folder)
    result, to = read_json(folder / "result.json"), Path(to or folder)
    text, drawing = page(result), figure(result)
    to.mkdir(parents=True, exist_ok=True)
    with replacing(to / "report.png") as (draft,):
        drawing.savefig(draft, format="png", dpi=100)
    write(to / "report.md", text)
    return text


def figure(result: dict) -> Figure:
    """The gain with its interval, the seeds, and the prediction."""
    proposal, (low, high) = result["proposal"], result["interval"]
    drawing = Figure(figsize=(6.4, 2.0), layout="constrained")
    axes = drawing.add_subplot()
    axes.set_title(
        f"{proposal['new']['name']} against {proposal['old']['name']}: {result['verdict']}", loc="left", fontsize=11
    )
    axes.axvline(0, color="#767676", linewidth=1)
    axes.axvline(proposal["at_least"], color="#D55E00", linewidth=2, label=f"predicted {proposal['at_least']:g}")
    axes.plot([low, high], [1, 1], color="#0072B2", linewidth=6, solid_capstyle="butt", label="95 % interval")
    axes.plot([result["gain"]], [1], "o", color="#0072B2", markersize=10, label=f"gain {result['gain']:+.4f}")
    axes.plot(result["seeds"], [0.4] * len(result["seeds"]), "o", color="#E69F00", label="each seed")
    axes.set(ylim=(0, 1.5), yticks=[], xlabel="nats a token saved")
    axes.margins(x=0.15)
    drawing.legend(loc="outside right upper", fontsize=8, frameon=False)
    return drawing


def page(result: dict) -> str:
    """One page: what was predicted, what came out, all settings, and what it cannot say."""
    proposal = result["proposal"]
    old, new, predicted = proposal["old"], proposal["new"], proposal["at_least"]
    changed = [name for name in old if name != "name" and old[name] != new[name]]
    promise = f"save at least {predicted:g}" if predicted >= 0 else f"lose at most {-predicted:g}"
    low, high = result["interval"]
    rows = [result["table"][0], ["---"] * len(result["table"][0]), *result["table"][1:]]
    lines = [
        f"# {proposal['title']}\n",
        f"**Hypothesis.** {proposal['hypothesis']}\n",
        f"**Predicted before the run.** *{new['name']}* will {promise} nats a token against *{old['name']}*.\n",
        f"**Verdict: {result['verdict']}.** It saves {result['gain']:+.4f} nats a token, interval {low:+.4f} to "
        f"{high:+.4f}; seeds {', '.join(f'{seed:+.4f}' for seed in result['seeds'])}.\n",
        "![the gain with its interval, beside what was predicted](report.png)\n",
        *(f"- {kind}: {words}" for kind, words in result["by kind"].items()),
        "\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n",
        "**The one change.** " + "; ".join(f"{name}: {old[name]!r} becomes {new[name]!r}" for name in changed) + ".\n",
        "**Settings.** " + "; ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in proposal.items()
            if name not in ("title", "hypothesis", "old", "new", "at_least", "limits")
        ) + ".\n",
        f"**What it cannot say.** {proposal['limits']}\n",
        f"Confirmed: the whole interval and every seed lie above {predicted:g}; refuted: all below. The interval is "
        "the 95 % bootstrap over held-out samples. Operations are those of training, forward and backward; both arms "
        f"get as many. {result['seconds']} s; {result['machine']}.\n",
    ]  # fmt: skip
    return "\n".join(lines)


# ---- three proposals that were run; yours may be the next

WORKED = {
    "four_queries": Proposal(
        "Four queries for sixteen",
        "Four tokens a view make the language model cheaper, so the resampler can learn for more steps; most of what a "
        "toy view says is a few words, which four tokens hold.",
        old=Arm("16 queries", connector="resampler", queries=16),
        new=Arm("4 queries", connector="resampler", queries=4),
        at_least=-0.1,
        limits="A short training of a new resampler alone. Operations of training are equal; in use four queries are "
        "cheaper. Toy views hold at most four things or three lines.",
        steps=100,
    ),
    "one_column": Proposal(
        "Slices as wide as the page",
        "A border between two columns of slices cuts lines of text in two; slices as wide as the page cut none, so "
        "pages whose lines stand anywhere are read better.",
        old=Arm("released grid"),
        new=Arm("one column", grid="one column"),
        at_least=0.05,
        limits="Only pages change; receipts and banners are cut as before, and dilute the effect. Wide and flat slices "
        "are new to this ViT, which has seen square ones. More borders between rows can cut a line's height.",
        kinds=("read",),
        learns={"vpm": 3e-4, "resampler": 6e-4, "llm": 4e-4},
        begin="nano",
        aligned=False,
        steps=30,
        batch=8,
        n=40,
    ),
    "all_q4_k": Proposal(
        "Q4_K for every matrix",
        "Q4_K_M spends more bits on some matrices; a model this small is so sure of its answers that 4.5 bits "
        "everywhere cost next to nothing.",
        old=Arm("Q4_K_M", mixture="Q4_K_M"),
        new=Arm("all Q4_K", mixture="Q4_K"),
        at_least=-0.02,
        limits="Rounded weights, multiplied in float32: not the speed of any machine. Nothing is trained, so there is "
        "one seed. A model of 2.6 million weights in the LLM says nothing about one of 7 billion.",
        kinds=("caption", "question", "crop"),
        begin="nano",
        steps=0,
        n=100,
        seeds=1,
    ),
}
