"""Lesson 10: on the phone."""

from .. import draw
from ..panel import Panel, choice, slider


class Deployment(Panel):
    """A model goes to a phone: its files, its memory from moment to moment, and how fast chips could be at most.

    Args:
        slices: of the one picture.
        text: tokens of the prompt besides the visual ones.
        preset: "v2_0", "v2_5", "v2_6" or "nano".
        mixture: "F16", "Q8_0" or "Q4_K_M", of the language model.
        in_turns: load the vision part, free it, and only then load the language model.
        own: the bandwidth of your chip, GB a second; its bar can be dragged.
    """

    def __init__(self, slices=9, text=256, preset="v2_5", mixture="Q4_K_M", in_turns=False, own=100):
        super().__init__(
            slices=slider("slices", slices, 0, draw.MOST_SLICES),
            text=slider("text tokens", text, 64, 1024, 64),
            preset=choice("model", draw.MODELS, preset),
            mixture=choice("LLM in", draw.SHIPPED, mixture),
            in_turns=choice("loading", draw.WAYS.items(), in_turns),
            own=slider("own bandwidth, GB/s", own, 5, 2000),
        )

    def touch(self, spot, at, start, before):
        if spot.name == "file":
            self.controls["mixture"].value = spot.item
        else:
            self.controls["own"].value = round(min(self.facts["bandwidth"](at[0]), 2000))

    def draw(self, **state):
        return draw.deployment(**state)

    def describe(self, slices, text, preset, mixture, in_turns, own):
        plan = draw.deploy(preset, mixture, slices, text)
        way = "in turns" if in_turns else "together"
        there = self.facts["measured"]
        measured = " (the paper measured {}, then {}, and tuned {})".format(*there) if there else ""
        first, speed = draw.in_seconds(plan.first_token("phone")), draw.at_most(plan.speed("phone"))
        return (
            f"Files of {draw.in_bytes(sum(plan.files[mixture]))}; loaded {way}, they take at most "
            f"{draw.in_bytes(plan.fullest(mixture, in_turns))} of memory. {plan.tokens:,} tokens to read: on a phone "
            f"the first answer token takes at least {first}, then there are at most {speed} a second{measured}. With "
            f"{own} GB/s there are at most {draw.at_most(plan.own_speed(own))}."
        )
