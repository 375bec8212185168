"""Lesson 05: memory."""

from minicpmv_ref.config import PRESETS
from minicpmv_ref.deploy.memory import DEVICES, fits

from .. import draw
from ..panel import Panel, choice, slider, toggle


class MemoryPanel(Panel):
    """Will it fit? What lives in memory at which moment, against the devices that you know.

    Args:
        preset: "v2_0", "v2_5", "v2_6" or "nano".
        weights: "float32", "bfloat16", "float16", or a mixture: "Q8_0", "Q4_K_M".
        training: a step of AdamW instead of an answer.
        recompute: activation checkpointing.
        batch: samples, each with one picture.
        slices: of a picture.
        text: tokens of text and answer.
        own: your GPU, in GB; its line can be dragged. A click on a bar shows its formula.
    """

    def __init__(
        self, preset="v2_6", weights="bfloat16", training=True, recompute=False, batch=1, slices=9, text=256, own=10
    ):
        super().__init__(
            preset=choice("model", draw.MODELS, preset),
            weights=choice("weights", ["float32", "bfloat16", "float16", "Q8_0", "Q4_K_M"], weights),
            training=toggle("training", training),
            recompute=toggle("checkpointing", recompute),
            batch=slider("batch", batch, 1, 16),
            slices=slider("slices", slices, 0, draw.MOST_SLICES),
            text=slider("text tokens", text, 64, 3072, 64),
            own=slider("own GPU, GB", own, 1, 320),
        )

    def changed(self, name):
        if name == "training":  # other moments
            self.picked = None
        self.redraw()

    def touch(self, spot, at, start, before):
        if spot.name == "own":
            self.controls["own"].value = round(self.facts["gigabytes"](at[0]))
        else:
            self.pick(None if spot.item == self.picked else spot.item)

    def draw(self, **controls):
        return draw.memory_bars(part=self.picked, **controls)

    def describe(self, own, **controls):
        need, given = draw.plan_memory(**controls)
        weights = given["mixture"] or given["dtype"]
        what = f"{'A training step' if given['training'] else 'An answer'} in {weights}"
        enough = {kind: [n for n in DEVICES if fits(need, n) and n.endswith(kind)] for kind in ("phone", "GPU")}
        places = [f"{kind}s from {names[0].removesuffix(f' {kind}')}" for kind, names in enough.items() if names]
        where = f"Of these devices it fits {' and '.join(places)}." if places else "It fits none of these devices."
        where += f" Your {own} GB: {'enough' if need.total <= draw.own_bytes(own) else 'too little'}."
        remark, queries = "", PRESETS[controls["preset"]].resampler.num_queries
        if self.picked:
            moment, part = self.picked
            share = need.moments[moment][part] / sum(need.moments[moment].values())
            remark = f" The chosen part is {share:.0%} of “{moment}”."
        if weights != controls["weights"]:
            remark += " Quantized weights cannot be trained, so 16 bits are shown."
        elif given["tokens"] < (1 + given["slices"]) * queries + controls["text"]:
            remark += " The model has no more positions, so the text is cut."
        return f"{what} takes {draw.in_bytes(need.total)}, most in “{need.fullest}”. {where}{remark}"
