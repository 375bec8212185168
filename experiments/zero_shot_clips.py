"""Is a model that learned from single pictures able to answer about a clip? No training: only prompts with frames."""

from __future__ import annotations

import random
from statistics import fmean

from minicpmv_ref.learn.evaluate import answers
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.toy.data import PAINT, SHAPES, Scene, Thing, draw_scene
from minicpmv_ref.toy.words import LANGUAGES

from ._arms import checkpoint, figures, in_words, processor_of, verdict, weakest
from ._frame import Claim, Finding

CLAIM = Claim(
    title="A model that learned from pictures answers about clips",
    place="LLaVA-NeXT, a strong zero-shot video understanding model (blog, April 2024); LLaVA-NeXT-Interleave, arXiv "
    "2407.07895, table of video benchmarks.",
    says="Frames are several pictures in one prompt. Without one clip in its training, a model answers about them.",
    done="Nano, which saw one picture in each conversation, gets a list of frames as a video: no ids, 16 tokens a "
    "frame. Each frame shows one shape; one frame shows the shape that the question names. Asked is its color. "
    "Confirmed means: for each of 2, 4, 6 and 8 frames nano is right more often than somebody who answers with the "
    "color of a random frame. Expected, after a pilot of 40 items: confirmed, .9 at 4 frames and less than .8 at 8. "
    "The table has the same frames as pictures with <image_id>, and without ids but with all rotary positions divided "
    "by 2 and by 4; for these the pilot let us expect a loss everywhere.",
    limits="Nothing here needs the order of frames. The question names what to look for, so one frame is enough. "
    "Nano's answers are one word. Several frames in one prompt were never trained, but a sliced document has up to ten "
    "views. Single frames are not held out: a first version took the asked frame from contents that no training had "
    "shown, but with one shape there are only three, all blue or purple, and nano is weak there. It gave the same "
    "verdict with .57 at 4 frames, and there division by 2 helped from 7 frames on.",
)
SETTINGS = {
    "fast": {"begin": "random", "frames": [1, 2], "judged": [2], "n": 1, "seeds": 1},
    "cpu": {
        "begin": "nano",
        "frames": [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24],
        "judged": [2, 4, 6, 8],
        "n": 40,
        "seeds": 3,
    },
}
SETTINGS["gpu"] = SETTINGS["cpu"]  # it is quick on any machine
WAYS = {  # way to ask: (as a video, factor by which positions are divided)
    **{"video": (True, 1), "with ids": (False, 1), "video, factor 2": (True, 2), "video, factor 4": (True, 4)},
}


def clip(frames: int, seed: str) -> tuple[list, str, str, list[str]]:
    """One item.

    Returns:
        (pictures, the shape that only one of them shows, its color, the colors of all frames).
    """
    rng = random.Random(f"clip {frames} {seed}")
    alone = [Scene((Thing(c, s, place),)) for c in PAINT for s in SHAPES for place in range(4)]
    asked = rng.choice(alone)
    (thing,) = asked.things
    others = [scene for scene in alone if scene.things[0].shape != thing.shape]
    scenes = [rng.choice(others) for _ in range(frames)]
    scenes[rng.randrange(frames)] = asked
    return [draw_scene(s, rng) for s in scenes], thing.shape, thing.color, [s.things[0].color for s in scenes]


def divide_positions(model: MiniCPMV, factor: float) -> None:
    """Linear scaling: all rotary positions divided by a number."""
    rotary = model.llm.model.rotary_emb
    rotary.inv_freq = rotary.original_inv_freq / factor


def run(setting: dict, each) -> Finding:
    model = checkpoint(setting["begin"])
    processor, n = processor_of(model), setting["n"]

    def ask(item: list) -> dict:
        frames, way, seed = item
        as_video, factor = WAYS[way]
        items = [clip(frames, f"{seed}/{i}") for i in range(n)]
        prompts = [
            [{"role": "user", "content": [*([pictures] if as_video else pictures), _question(shape)]}]
            for pictures, shape, _, _ in items
        ]
        divide_positions(model, factor)
        said = answers(model, processor, prompts, max_new_tokens=8)
        return {
            "right": [float(text == color) for text, (_, _, color, _) in zip(said, items)],
            "random frame": [fmean(color == other for other in colors) for _, _, color, colors in items],
        }

    seeds = list(range(setting["seeds"]))
    found = {(k, w): each([[k, w, seed] for seed in seeds], ask) for w in WAYS for k in setting["frames"]}
    ahead = {
        f"right above a random frame, {k} frames": [
            [a - b for a, b in zip(one["right"], one["random frame"])] for one in found[k, "video"]
        ]
        for k in setting["judged"]
    }
    share = {
        (k, name): fmean(x for one in found[k, way] for x in one[grade])
        for k in setting["frames"]
        for name, way, grade in (("random frame", "video", "random frame"), *((way, way, "right") for way in WAYS))
    }
    names = ["random frame", *WAYS]
    return Finding(
        weakest(*map(verdict, ahead.values())),
        "Above a random frame: "
        + "; ".join(f"{in_words(gained)} with {k} frames" for k, gained in zip(setting["judged"], ahead.values()))
        + ". The table has the shares that are right.",
        *figures(ahead),
        [["frames", *names], *([str(k), *(f"{share[k, name]:.3f}" for name in names)] for k in setting["frames"])],
        seeds,
    )


def _question(shape: str) -> str:
    return LANGUAGES["en"].ask_color(shape, "")[0]
