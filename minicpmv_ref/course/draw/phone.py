"""Lesson 10: what a deployed model weighs, when its memory is full, and how fast a chip could run it at most."""

import math
from functools import cache
from typing import NamedTuple

from minicpmv_ref.config import PRESETS
from minicpmv_ref.deploy.memory import Estimate, estimate
from minicpmv_ref.deploy.tune import CHIPS, answer_work, roofline

from .canvas import WIDTH, Canvas, text_width
from .colors import BLUE, GRAY, GREEN, INK, ORANGE, PALE, PURPLE, SKY, YELLOW
from .memory import in_bytes

SHIPPED = ("F16", "Q8_0", "Q4_K_M")  # mixtures of the language model; vision is in 16 bits
WAYS = {"together": False, "in turns": True}  # (words in a menu, key)
PART_COLORS = {"LLM": BLUE, "vision part": GREEN, "working memory": YELLOW, "KV cache": PURPLE}
MEASURED = (1.3, 3.2, 8.2)  # tokens/s of 2.5 in Q4_K_M on a Xiaomi 14 Pro: llama.cpp, compiled, tuned (section 5)
SERIES_COLORS = (ORANGE, BLUE, GREEN, SKY)


class Deployed(NamedTuple):
    """A model on its way to a device."""

    files: dict[str, tuple[int, int]]  # mixture -> bytes of (LLM, vision part)
    need: Estimate
    tokens: int  # of the prompt
    work: dict  # stage -> Work
    bounds: dict[str, dict]  # chip -> stage -> Bound

    def first_token(self, chip: str) -> float:
        """Seconds at least until the first token is there."""
        return self.bounds[chip]["see"].seconds + self.bounds[chip]["read"].seconds

    def speed(self, chip: str) -> float:
        """Tokens a second at most."""
        return 1 / self.bounds[chip]["write"].seconds

    def own_speed(self, bandwidth: int) -> float:
        """Tokens a second at most on a chip that reads so many GB a second and computes in no time."""
        return bandwidth * 1e9 / self.work["write"].bytes

    def moments(self, mixture: str, in_turns: bool) -> dict[str, dict[str, int]]:
        """{moment: {part: bytes}}: who is in memory when both parts are loaded at once, or one after the other."""
        llm, eyes = self.files[mixture]
        seeing = {"LLM": 0 if in_turns else llm, "vision part": eyes}
        talking = {"LLM": llm, "vision part": 0 if in_turns else eyes}
        need = self.need
        return {
            "load": seeing,
            "see": {**seeing, "working memory": need.vision},
            "swap": talking,  # in turns, the vision part goes and the LLM comes
            "read": {**talking, "working memory": need.activations, "KV cache": need.kv_cache},
            "write": {**talking, "KV cache": need.kv_cache},
        }

    def fullest(self, mixture: str, in_turns: bool) -> int:
        """Bytes in the fullest moment."""
        return max(sum(parts.values()) for parts in self.moments(mixture, in_turns).values())


@cache
def deploy(preset: str, mixture: str, slices: int, text: int) -> Deployed:
    """Plan an answer about one picture. What the arguments mean: `Deployment`."""
    from minicpmv_ref.deploy.gguf import plan_mixture, plan_vision

    config = PRESETS[preset]
    eyes = plan_vision(config).total_bytes
    files = {name: (plan_mixture(config, name).total_bytes, eyes) for name in SHIPPED}
    tokens = (1 + slices) * config.resampler.num_queries + text
    work = answer_work(config, slices, text, mixture)
    bounds = {name: {stage: roofline(one, chip) for stage, one in work.items()} for name, chip in CHIPS.items()}
    return Deployed(files, estimate(config, slices=slices, tokens=tokens, mixture=mixture), tokens, work, bounds)


def in_seconds(seconds: float) -> str:
    """74 s, 3.1 s, 340 ms, 0.121 ms."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1000 * seconds:.3g} ms"


def at_most(speed: float) -> str:
    """16.1, 211, 14,175."""
    return f"{speed:.3g}" if speed < 999.5 else f"{speed:,.0f}"


def deployment(preset: str, mixture: str, slices: int, text: int, in_turns: bool, own: int) -> Canvas:
    """Sizes of the files; memory from moment to moment, in both ways of loading; bounds of four chips and your own.

    `own` is the bandwidth of yours, in GB a second. Its facts: "measured" in the paper, and "bandwidth", a function
    from x to that of your chip. Its spots: "file" of each mixture, and "own".
    """
    plan, canvas = deploy(preset, mixture, slices, text), Canvas()
    canvas.facts["measured"] = MEASURED if (preset, mixture) == ("v2_5", "Q4_K_M") else ()
    _draw_files(canvas, plan, mixture)
    _draw_moments(canvas, plan, mixture, in_turns)
    _draw_chips(canvas, plan, own)
    return canvas


def _draw_files(canvas, plan, chosen):
    left, right = 96, WIDTH - 84
    scale = (right - left) / max(map(sum, plan.files.values()))
    canvas.text(8, 18, "Files", bold=True)
    canvas.legend(left, 5, [(color, part) for part, color in PART_COLORS.items()])
    for row, (mixture, parts) in enumerate(plan.files.items()):
        y, here = 27 + 23 * row, mixture == chosen
        canvas.text(left - 8, y + 15, mixture, align="right", bold=here)
        named = zip(PART_COLORS.items(), parts)
        bars = [(size * scale, color, f"{name}: {in_bytes(size)}") for (name, color), size in named]
        x = canvas.stack(left, y, 18, bars)
        if here:
            canvas.rect(left, y, x - left, 18, stroke=INK, line=2)
        canvas.text(x + 8, y + 15, in_bytes(sum(parts)), 14, bold=here)
        canvas.spot("file", mixture, (left, y, x - left, 18), f"the LLM in {mixture}", chosen=here)


def _draw_moments(canvas, plan, mixture, in_turns):
    """Stacked columns of the chosen way, and the height of the other way as a line."""
    top, bottom, left, wide, gap = 136, 232, 96, 84, 6
    ways = {way: plan.moments(mixture, way) for way in (False, True)}
    scale = (bottom - top) / max(plan.fullest(mixture, way) for way in ways)
    canvas.text(8, 118, "Memory", bold=True)
    other = "together" if in_turns else "in turns"
    canvas.text(left, 118, f"loaded {'in turns' if in_turns else 'together'}; the line: {other}")
    line, fullest = [], plan.fullest(mixture, in_turns)
    for place, (moment, parts) in enumerate(ways[in_turns].items()):
        x, y = left + place * (wide + gap), bottom
        for part, color in PART_COLORS.items():
            size = parts.get(part, 0)
            y -= size * scale
            canvas.rect(x, y, wide, size * scale, color, title=f"{moment}, {part}: {in_bytes(size)}")
        full = sum(parts.values()) == fullest
        canvas.rect(x, y, wide, bottom - y, stroke=INK if full else GRAY, line=2 if full else 1)
        canvas.text(x + wide / 2, bottom + 16, moment, 14, align="middle", bold=full)
        height = bottom - sum(ways[not in_turns][moment].values()) * scale
        line += [(x, height), (x + wide + gap, height)]
    canvas.path(line, "white", 5)
    canvas.path(line, ORANGE, 3)
    x = line[-1][0] + 4
    canvas.text(x, 152, "at most", 14)
    canvas.text(x, 172, in_bytes(fullest), 14, bold=True)
    canvas.lines(x, 200, [other, in_bytes(plan.fullest(mixture, not in_turns))], 20, 14)


def _draw_chips(canvas, plan, own):
    """Bars on a logarithmic scale that begins at 1; orange dots are what the paper measured."""
    left, room = 222, 320
    speeds = {chip: plan.speed(chip) for chip in plan.bounds} | {f"own, {own} GB/s": plan.own_speed(own)}
    most = math.log10(max(2, *speeds.values()))
    at = lambda speed: left + room * math.log10(max(1, speed)) / most  # noqa: E731
    canvas.facts["bandwidth"] = lambda x: 10 ** ((x - left) / room * most) / plan.own_speed(1)
    canvas.text(8, 270, "Speed", bold=True)
    canvas.text(96, 270, "first token after", 14)
    canvas.text(left, 270, "then tokens a second (a model, log scale)", 14)
    if canvas.facts["measured"]:
        canvas.dot(546, 265, 5, ORANGE)
        canvas.text(556, 270, "measured", 14)
    for power in range(int(most) + 1):
        canvas.path([(at(10**power), 276), (at(10**power), 378)], PALE, 1)
    for row, (chip, speed) in enumerate(speeds.items()):
        y, end = 277 + 20.5 * row, max(at(speed), left + 2)
        canvas.text(8, y + 14, chip, 14)
        canvas.rect(left, y, end - left, 16, SKY if chip in plan.bounds else PURPLE)
        canvas.text(end + 8, y + 14, f"≤ {at_most(speed)}", 14)
        if chip in plan.bounds:
            canvas.text(left - 14, y + 14, f"≥ {in_seconds(plan.first_token(chip))}", 14, align="right")
        for measured in canvas.facts["measured"] if chip == "phone" else ():
            canvas.dot(at(measured), y + 8, 5, ORANGE)
    box, step = (left, y, end - left + 8, 16), (room / most * math.log10((own + 1) / own), 0)
    canvas.spot("own", None, box, "drag: another bandwidth", "drag", (end, y + 8), step)


def error_bars(rows: dict, title: str) -> Canvas:
    """Bars of rows {label: {series: share}} in percent; every label has the same series, at most four."""
    names = list(next(iter(rows.values())))
    left = 24 + max(text_width(label) for label in rows)
    high = 11 * len(names) + 10
    canvas = Canvas(WIDTH, 60 + high * len(rows), f"{title}: {', '.join(names)}, for {', '.join(rows)}")
    canvas.text(8, 20, title, bold=True)
    canvas.legend(left, 32, zip(SERIES_COLORS, names), border="none")
    most = max(share for shares in rows.values() for share in shares.values()) or 1
    room = WIDTH - left - 24 - text_width(" / ".join(["00.0"] * len(names)) + " %", 14)
    for place, (label, shares) in enumerate(rows.items()):
        y = 56 + high * place
        middle = y + 11 * len(names) / 2 + 5
        canvas.text(left - 10, middle, label, align="right")
        for row, (share, color) in enumerate(zip(shares.values(), SERIES_COLORS)):
            canvas.rect(left, y + 11 * row, max(room * share / most, 1), 10, color)
        words = " / ".join(f"{100 * share:.3g}" if share < 1 else f"{100 * share:.0f}" for share in shares.values())
        canvas.text(WIDTH - 8, middle, f"{words} %", 14, align="right")
        canvas.alt += f"; {label}: {words} %"
    canvas.alt = f"Bars: {title} ({' / '.join(names)}){canvas.alt}."
    return canvas
