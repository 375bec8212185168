"""Lesson 12: what a clip costs, which frame an answer looks at, and boxes."""

from .. import draw
from ..panel import Panel, choice, player, slider, toggle


class ClipCosts(Panel):
    """Tokens and KV cache of one clip in four systems.

    Args:
        seconds: of the clip.
        size: of a frame: "720p", or another of draw.FRAME_SIZES.
        slices: of a frame at most, in 2.6: 1 or 2.
        rate: frames a second, in 4.5.
    """

    def __init__(self, seconds=61, size="720p", slices=2, rate=3):
        super().__init__(
            seconds=slider("seconds", seconds, 1, draw.SECONDS),
            size=choice("frame", draw.FRAME_SIZES, size),
            slices=choice("max_slice_nums of 2.6", [1, 2], slices),
            rate=slider("4.5: frames a second", rate, 1, 10),
        )

    def draw(self, seconds, size, slices, rate):
        return draw.clip_costs(*draw.FRAME_SIZES[size], seconds, slices, rate)

    def describe(self, seconds, size, slices, rate):
        said = (
            f"{cost.frames} frames, {cost.tokens:,} tokens and {draw.in_bytes(cost.cache)} in "
            f"{draw.CLIP_SYSTEMS[system][0]}"
            for system, cost in self.facts["costs"].items()
        )
        return f"A clip of {seconds} s, {{}} x {{}}: {'; '.join(said)}.".format(*draw.FRAME_SIZES[size])


class ClipLook(Panel):
    """A clip with a star in one frame, and which frames a model looks at with each word.

    Args:
        frames: of the clip.
        star: number of the frame with the star, from 1.
        shown: number of the frame that is drawn large.
        token: number of a token of the question or of the answer after it, from 1.
        layer: of the LLM; 0 is the mean over all.
        ids: frames as pictures with `<image_id>` in place of a video.
        model: "nano" or another checkpoint.
    """

    slow = True

    def __init__(self, frames=6, star=4, shown=4, token=6, layer=2, ids=False, model="nano"):
        self._model = model
        layers = len(draw.watch_clip(frames, star, ids, model)["slots"])
        step = slider("frame shown", shown, 1, frames)
        super().__init__(
            star=slider("star in frame", star, 1, frames),
            frames=slider("frames", frames, 1, 8),
            shown=step,
            token=slider("token", token, 1, self._words(frames, star, ids)),
            layer=choice("layer", [("mean", 0), *((f"{n}", n) for n in range(1, 1 + layers))], layer),
            ids=toggle("with <image_id>", ids),
            extras=[player(step, interval=600)],
        )

    def _words(self, frames, star, ids):
        return len(draw.watch_clip(frames, star, ids, self._model)["words"])

    def changed(self, name):
        with self.hold():
            frames = self.controls["frames"].value
            self.controls["star"].max = self.controls["shown"].max = frames
            star, ids = (self.controls[name].value for name in ("star", "ids"))
            self.controls["token"].max = self._words(frames, star, ids)

    def draw(self, star, frames, shown, token, layer, ids):
        return draw.clip_look(frames, star, shown, token, layer, ids, self._model)

    def describe(self, star, frames, shown, token, layer, ids):
        facts = self.facts
        best = int(facts["frames"].argmax()) + 1
        right = "right" if facts["right"] else "wrong"
        return (
            f"{draw.counted(frames, 'frame')}, the star in frame {star}: “{facts['said']}”, {right}. Of what "
            f"“{facts['word']}” gives to frames, frame {star} gets {facts['frames'][star - 1]:.0%}, and frame {best} "
            f"most, {facts['frames'][best - 1]:.0%}."
        )


class Boxes(Panel):
    """A green triangle, its box, and the box of an answer.

    Args:
        x, y: the middle of the triangle, in thousandths of the side.
        size: "small", "middle" or "large".
        model: "nano" shows an example of an answer; another checkpoint is asked, once for each place of the triangle.
    """

    slow = True

    def __init__(self, x=480, y=500, size="large", model="nano"):
        self._model = model
        super().__init__(
            x=slider("x", x, 200, 800, 20),
            y=slider("y", y, 200, 800, 20),
            size=choice("size", ["small", "middle", "large"], size),
        )

    def draw(self, x, y, size):
        return draw.box_look(x, y, size, self._model)

    def describe(self, x, y, size):
        facts = self.facts
        if facts["said"] is None:
            return f"The answer “{facts['answer']}” holds no box that can be read."
        said, true = (", ".join(f"{side:.0f}" for side in facts[name]) for name in ("said", "true"))
        return f"The box of the answer is ({said}), the true one ({true}): their IoU is {facts['iou']:.2f}."
