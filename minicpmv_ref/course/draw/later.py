"""Lesson 13: what each version makes of a picture or a clip, where 4.7 puts tokens, and what was tried at toy scale."""

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from minicpmv_ref import SliceConfig, plan_slices
from minicpmv_ref.config import v2_0, v2_5, v2_6
from minicpmv_ref.counts import Workload, flops_by_part
from minicpmv_ref.inputs.files import read_json
from minicpmv_ref.peers.sizes import clip_frames, frame_groups

from .canvas import RESULTS, WIDTH, Canvas, load_preview, load_sample
from .colors import BLUE, GRAY, GREEN, INK, ORANGE, PURPLE, RED, SKY, YELLOW

VERSIONS = ("2.0", "2.5", "2.6", "4.5", "4.6", "4.6, 4x")
WITH_QUERIES = {  # 4.5: the vision side of 2.6 for an LLM as wide as that of 2.5
    **{"2.0": v2_0, "2.5": v2_5, "2.6": v2_6},
    "4.5": replace(v2_6, resampler=replace(v2_6.resampler, width=4096), llm=v2_5.llm),
}
MERGED = {"4.6": 4, "4.6, 4x": 2}  # patches along one side of a token
LLM_WIDTH = 1024  # of Qwen3.5-0.8B in 4.6
FRAME_SLICES = {"2.6": 2, "4.5": 1, "4.6": 1, "4.6, 4x": 1}  # of a frame of a clip at most
MARKS = {"<image>": 1, "</image>": 2, "<slice>": 3, "</slice>": 4, "\n": 5}  # made-up ids; a visual token is 0
WORD = 9  # and any word
PICTURES = ("document.png", "screenshot.png", "coffee.jpg", "banner.png", "retina.jpg", "cat.jpg")


# ---- versions


class Cost(NamedTuple):
    """What a version makes of one picture or of a clip.

    views: that the ViT looks at. tokens: that the LLM reads, without markers. flops: of the ViT and of what stands
    between it and the LLM, forward. Of a clip `frames` are sampled; they share their tokens in `groups`.
    """

    frames: int
    groups: int
    views: int
    tokens: int
    flops: int


@lru_cache(maxsize=4096)
def version_cost(version: str, size, seconds: int = 0) -> Cost | None:
    """The cost of a picture, or with `seconds` of a clip; None: the version was released without video."""
    if seconds and version not in FRAME_SLICES:
        return None
    most_slices = FRAME_SLICES[version] if seconds else 9
    frames = clip_frames(f"minicpm-v-{version.split(',')[0]}", seconds) if seconds else 1
    groups = frame_groups(frames)[1] if version == "4.5" else frames
    merge = MERGED.get(version, 1)
    grids = plan_slices(size, SliceConfig(patch_size=14 * merge, max_slice_nums=most_slices)).patch_grids
    lengths = [rows * cols * merge**2 for rows, cols in grids] * frames
    if version in MERGED:
        tokens = sum(lengths) // merge**2
        return Cost(frames, groups, len(lengths), tokens, _merged_flops(lengths, early=merge == 4))
    config, views = WITH_QUERIES[version], len(grids) * groups
    seen = [max(lengths)] * len(lengths) if version == "2.5" else lengths  # the released 2.5 pads a batch
    work = _work(seen)._replace(views=views, patches=sum(lengths), padding=sum(seen) - sum(lengths))
    parts = flops_by_part(config, work, ())
    return Cost(frames, groups, len(lengths), views * config.resampler.num_queries, parts["vpm"] + parts["resampler"])


def _work(lengths) -> Workload:
    return Workload(0, 0, 0, len(lengths), sum(lengths), sum(n * n for n in lengths))


def _vit_flops(lengths, layers: int) -> int:
    config = replace(v2_6, vision=replace(v2_6.vision, layers=layers))
    return flops_by_part(config, _work(lengths), ())["vpm"]


def _merged_flops(lengths, early: bool) -> int:
    """4.6: with `early`, four patches become one after the seventh of 27 layers. The last merger is always there."""
    d, mlp = v2_6.vision.width, v2_6.vision.mlp_width
    if not early:
        return _vit_flops(lengths, 27) + _merger_flops(lengths, d)
    quarter, patches = [n // 4 for n in lengths], sum(lengths)
    layer = _vit_flops(quarter, 2) - _vit_flops(quarter, 1)
    attention = patches * 4 * d * d + 4 * patches * 2 * d  # projections; each patch looks at the four of its window
    expand = patches // 4 * (4 * d * 4 * mlp + 4 * mlp * d)
    return _vit_flops(lengths, 7) + 2 * (attention + expand) + 20 * layer + _merger_flops(quarter, d)


def _merger_flops(lengths, d: int) -> int:
    return 2 * (sum(lengths) // 4) * (4 * d * 4 * d + 4 * d * LLM_WIDTH)


def in_flops(flops: float) -> str:
    """A number of operations for readers: "1.95 T"."""
    unit, name = next((pair for pair in ((1e15, "P"), (1e12, "T")) if flops >= pair[0]), (1e9, "G"))
    return f"{flops / unit:.3g} {name}"


def versions(width: int, height: int, seconds: int) -> Canvas:
    """Tokens and operations of one picture, or of a clip of some seconds, in all versions. Facts: "costs"."""
    canvas, costs = Canvas(), {name: version_cost(name, (width, height), seconds) for name in VERSIONS}
    canvas.facts["costs"] = costs
    canvas.text(8, 20, "tokens that the LLM reads", bold=True)
    canvas.text(376, 20, "operations, ViT to LLM", bold=True)
    there = [cost for cost in costs.values() if cost]
    most_tokens, most_flops = max(cost.tokens for cost in there), max(cost.flops for cost in there)
    for row, (name, cost) in enumerate(costs.items()):
        y = 34 + 40 * row
        canvas.text(8, y + 20, name)
        if cost is None:
            canvas.text(84, y + 20, "released without video", 14, GRAY)
            continue
        long = 200 * cost.tokens / most_tokens
        canvas.rect(84, y, max(long, 1), 28, BLUE, title=f"{name}: {cost.views} views")
        canvas.text(90 + long, y + 20, f"{cost.tokens:,}", 14)
        long = 170 * cost.flops / most_flops
        canvas.rect(376, y, max(long, 1), 28, ORANGE, title=f"{name}: {cost.flops:,}")
        canvas.text(382 + long, y + 20, in_flops(cost.flops), 14)
    canvas.lines(8, 296, _cost_lines((width, height), seconds, costs), 24, 14)
    return canvas


def _cost_lines(size, seconds, costs):
    old, packed, new = costs["2.6"], costs["4.5"], costs["4.6"]
    if seconds:
        each_frame = [f"{in_flops(cost.flops / cost.frames)} in {name}" for name, cost in costs.items() if cost]
        each = packed.frames // packed.groups + (packed.frames % packed.groups > 0)
        return (
            f"2.6: {old.frames} frames · {old.tokens // old.frames} tokens = {old.tokens:,}",
            f"4.5: {packed.frames} frames, {each} in a group: {packed.groups} groups · 64 tokens = {packed.tokens:,}",
            f"4.6: {new.frames} frames · {new.tokens // new.frames} tokens = {new.tokens:,}",
            f"operations of a frame: {', '.join(each_frame)}",
        )
    (rows, cols), *slices = plan_slices(size, SliceConfig(patch_size=56)).patch_grids
    parts = f"{rows} · {cols}" + (f" + {len(slices)} · ({slices[0][0]} · {slices[0][1]})" if slices else "")
    shares = [f"{100 * costs[name].flops / old.flops:.0f} % in {name}" for name in MERGED]
    return (
        f"2.6: {old.views} views · 64 queries = {old.tokens:,} tokens",
        f"4.6: patches / 16, that is {parts} = {new.tokens:,} tokens",
        f"operations, of 2.6's: {' and '.join(shares)}",
        "(4.7 costs what 4.6 costs; 4.0 is treated as 2.6)",
    )


# ---- canvas positions


class Prompt(NamedTuple):
    """A picture between two pieces of text, with made-up ids: what `canvas_position_ids` takes.

    views: (start, end) of each view in `ids`, the overview first. grids: (rows, cols) in patches.
    slices: (cols, rows), or None if the picture is not cut.
    """

    ids: list
    visual: list
    grids: list
    views: list
    slices: tuple | None


@lru_cache(maxsize=256)
def canvas_places(size, most: int = 9):
    """The prompt of a picture between three words and two, LongTensor (3, T) of positions, and (rows, cols) of the
    canvas in tokens.
    """
    from minicpmv_ref.peers.canvas import Markers, canvas_position_ids

    plan = plan_slices(size, SliceConfig(patch_size=56, max_slice_nums=most))
    ids, views = [WORD] * 3, []
    for k, (rows, cols) in enumerate(plan.patch_grids):
        start, end = ("<slice>", "</slice>") if k else ("<image>", "</image>")
        if k > 1 and (k - 1) % plan.grid[0] == 0:
            ids.append(MARKS["\n"])
        views.append((len(ids) + 1, len(ids) + 1 + rows * cols))
        ids += [MARKS[start], *[0] * (rows * cols), MARKS[end]]
    ids += [WORD] * 2
    visual, grids = [token == 0 for token in ids], [(4 * rows, 4 * cols) for rows, cols in plan.patch_grids]
    positions, _ = canvas_position_ids(ids, visual, grids, Markers(*MARKS.values()))
    (tall, wide), (cols, rows) = plan.patch_grids[-1], plan.grid or (1, 1)
    return Prompt(ids, visual, grids, views, plan.grid), positions, (rows * tall, cols * wide)


def canvas_positions(picture: str, most: int, view: int, overview: bool = True) -> Canvas:
    """A picture on its canvas: the tokens of `view` (0: the overview), those of the overview, and all markers.

    Facts: "places" {"view" or "overview" or a marker: [(h, w), ...]} counted from the canvas's corner, "next", the
    step to the text after the picture, and "tokens", the steps of 4.6.
    """
    canvas, image = Canvas(), load_sample(picture)
    prompt, positions, (rows, cols) = canvas_places(image.size, most)
    view = min(view, len(prompt.views) - 1)
    origin = int(positions[0, prompt.views[0][0]])
    at = (positions[1:] - origin).T.tolist()  # (h, w) of every token
    marks = {mark: [tuple(at[i]) for i, token in enumerate(prompt.ids) if token == n] for mark, n in MARKS.items()}
    shown = {name: list(map(tuple, at[slice(*prompt.views[n])])) for name, n in (("view", view), ("overview", 0))}
    canvas.facts |= {"places": shown | marks, "next": int(positions[0, -2]) - origin, "grid": prompt.slices}
    canvas.facts["tokens"] = len(prompt.ids) - 5  # between three words and two

    step = min(400 / (cols + 2), 372 / (rows + 2))
    left, top = 8 + step, 4 + step
    canvas.image(left, top, cols * step, rows * step, load_preview(picture, 500))
    canvas.mesh((left, top, cols * step, rows * step), *(prompt.slices or (1, 1)), YELLOW, 3, border=True)
    center = lambda place: (left + (place[1] + 0.5) * step, top + (place[0] + 0.5) * step)  # noqa: E731
    for place in shown["overview"] if overview or not view else ():
        canvas.dot(*center(place), max(0.3 * step, 2.5), SKY)
    for place in shown["view"] if view else ():
        canvas.dot(*center(place), max(0.22 * step, 2), GREEN)
    for mark, color in (("<slice>", ORANGE), ("</slice>", PURPLE), ("<image>", RED), ("</image>", RED), ("\n", INK)):
        for place in marks[mark]:
            x, y = center(place)
            half = max(0.34 * step, 4)
            canvas.rect(x - half, y - half, 2 * half, 2 * half, stroke="white", line=5)
            canvas.rect(x - half, y - half, 2 * half, 2 * half, stroke=color, line=3, title=f"{mark!r}: h, w = {place}")
    _canvas_words(canvas, prompt, (rows, cols), view, most)
    return canvas


def _canvas_words(canvas, prompt, size, view, most):
    (rows, cols), facts = size, canvas.facts
    canvas.legend(432, 8, [(SKY, "overview's tokens"), (GREEN, "tokens of the slice")], step=22)
    marks = [(RED, "<image>, </image>"), (ORANGE, "<slice>"), (PURPLE, "</slice>"), (INK, "newline")]
    canvas.legend(432, 58, marks, step=22)
    places, name = facts["places"]["view"], f"slice {view}" if view else "overview"
    spans = [f"{axis} from {min(of)} to {max(of)}" for axis, of in zip("hw", zip(*places))]
    canvas.text(432, 164, "canvas", bold=True)
    cut = "{} x {} slices".format(*prompt.slices) if prompt.slices else "not cut"
    canvas.lines(432, 184, [f"{rows} · {cols} tokens", f"{cut} (at most {most})"], 19, 14)
    canvas.text(432, 232, name, bold=True)
    canvas.lines(432, 252, [f"{prompt.grids[view][0] // 4} · {prompt.grids[view][1] // 4} tokens", *spans], 19, 14)
    canvas.text(432, 322, "steps to the text", bold=True)
    canvas.lines(432, 342, [f"4.7: max({rows}, {cols}) + 1 = {facts['next']}", f"4.6: {facts['tokens']}"], 19, 14)


# ---- both ideas at toy scale


def arm_means(result: dict, *grades: str) -> dict[str, tuple[float, tuple]]:
    """For each arm of an experiment's result file the mean of these grades, and the mean of each seed."""
    head, *rows = result["table"]
    found = {}
    for row in rows:
        cells = dict(zip(head, row))
        parts = [cells[grade].rstrip(")").partition(" (") for grade in grades]
        seeds = tuple(sum(each) / len(parts) for each in zip(*(map(float, p[2].split(", ")) for p in parts)))
        found[cells["arm"]] = (sum(float(p[0]) for p in parts) / len(parts), seeds)
    return found


def tried_here() -> Canvas:
    """Six frames in one group, and the merger early or late: losses after a short training, less is better."""
    group, merge = (read_json(RESULTS / f"{name}.json") for name in ("group_frames", "early_merge"))
    canvas = Canvas(WIDTH, 332)
    canvas.facts["time"] = arm_means(group, "time, nats")
    canvas.facts["merger"] = arm_means(merge, "caption, nats", "crop, nats")
    canvas.text(8, 20, "4.5: which color came first? nats a token, 16 tokens a clip", bold=True)
    _loss_bars(canvas, 34, canvas.facts["time"], BLUE)
    # An answer is two tokens, the color and the end; whoever guesses one of the two colors knows the end.
    guess = math.log(2) / 2
    across = 250 + 330 * guess / max(max(seeds) for _, seeds in canvas.facts["time"].values())
    canvas.path([(across, 30), (across, 158)], RED, 2)
    canvas.text(across, 171, f"guessing one of the two named: {guess:.2f}", 13, RED, "middle")
    canvas.text(8, 198, "4.6: where the merger stands; captions and text, nats a token", bold=True)
    _loss_bars(canvas, 212, canvas.facts["merger"], GREEN)
    share = merge["figures"]["operations in the ViT, early against late"]
    canvas.text(8, 324, f"the ViT with the early merger computes {share:.0%} of the late one's; dots: seeds", 14, GRAY)
    canvas.words = "; ".join(f"{arm}: {mean:.2f}" for part in canvas.facts.values() for arm, (mean, _) in part.items())
    return canvas


def _loss_bars(canvas, top, losses, color):
    scale = 330 / max(max(seeds) for _, seeds in losses.values())
    for number, (arm, (mean, seeds)) in enumerate(losses.items()):
        y = top + 31 * number
        canvas.text(242, y + 18, arm, 14, align="right")
        canvas.rect(250, y + 4, max(scale * mean, 1), 20, color)
        for seed in seeds:
            canvas.dot(250 + scale * seed, y + 14, 4, ORANGE)
        canvas.text(600, y + 19, f"{mean:.2f}", 14)
