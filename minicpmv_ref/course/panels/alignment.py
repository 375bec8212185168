"""Lesson 08: claims and pairs, the loss, and what it did."""

from .. import draw
from ..draw import counted
from ..panel import Panel, choice, slider


class ClaimsToPairs(Panel):
    """Ten answers to one picture: claims, verdicts, scores, and the pairs that come out.

    Args:
        answer: which of the answers is divided into claims, from 1.
        scene: which of the recorded pictures, from 1.
        checker: "labeler" or "truth": whose verdicts count.
    """

    def __init__(self, answer=1, scene=1, checker="labeler"):
        scenes = draw.recorded()["examples"]
        super().__init__(
            answer=slider("answer", answer, 1, len(scenes[0]["answers"])),
            scene=slider("picture", scene, 1, len(scenes)),
            checker=choice("who checks", draw.CHECKERS.items(), checker),
        )

    def draw(self, **state):
        return draw.claim_ladder(**state)

    def describe(self, answer, scene, checker):
        shown = draw.example(scene, checker)
        claims, score = shown["claims"][answer - 1], shown["scores"][answer - 1]
        if score is None:
            return f"Answer {answer} of 10 makes no claim, so it has no score and enters no pair."
        sides = [(shown[kind], side) for kind in ("pairs", "drawn") for side in (0, 1)]
        roles = [sum(pair[side] == answer - 1 for pair in pairs) for pairs, side in sides]
        return (
            f"Answer {answer} of 10 makes {counted(len(claims), 'claim')}, {-score} of them rejected: score {score}. "
            f"It could be chosen in {counted(roles[0], 'pair')} and rejected in {roles[1]}; of the "
            f"{counted(len(shown['drawn']), 'pair')} drawn, it is chosen in {roles[2]} and rejected in {roles[3]}."
        )


class PreferenceLoss(Panel):
    """The loss of one pair, from how far training has moved its two answers; and recorded pairs while they move.

    The pair can be dragged in both plots.

    Args:
        chosen, rejected: log-ratios in nats: log-probability under the policy minus that under the reference.
        beta: how much they count.
        moment: of the recorded main run, from 0, before the first step, to 8, after the last.
    """

    def __init__(self, chosen=-2, rejected=-7, beta=0.1, moment=8):
        super().__init__(
            chosen=slider("chosen log-ratio", chosen, -draw.RATIO, draw.RATIO),
            rejected=slider("rejected log-ratio", rejected, -draw.RATIO, draw.RATIO),
            beta=choice("beta", draw.BETAS, beta),
            moment=slider("recorded moment", moment, 0, draw.last_moment("main")),
        )

    def touch(self, spot, at, start, before):
        x, y = (round(value) for value in self.facts["axes"][spot.name].value(*at))
        if spot.name == "curve":  # rejected stays, if chosen can go that far
            y = min(max(before["rejected"] + x, -draw.RATIO), draw.RATIO)
            x = y - x
        with self.hold():
            self.controls["rejected"].value, self.controls["chosen"].value = x, y

    def draw(self, **state):
        return draw.dpo_landscape(**state)

    def describe(self, chosen, rejected, beta, moment):
        margin, loss, weight = draw.preference(chosen, rejected, beta)
        step, pairs = draw.pairs_at(moment)
        order = "right" if margin > 0 else "wrong" if margin < 0 else "no"
        return (
            f"Margin {margin:.3g}, loss {loss:.4g}: the pair is in {'the ' if margin else ''}{order} order. "
            f"One nat more of chosen minus rejected lowers the loss by about {weight:.3g}. Recorded, step {step}: "
            f"{sum(better > worse for better, worse in pairs)} of {len(pairs)} pairs are in the right order; "
            f"{sum(better < 0 for better, _ in pairs)} chosen answers have become less likely."
        )


class AlignmentRuns(Panel):
    """Recorded runs: margin and a trait against the steps, all runs in one plot, and what is said at one moment.

    A click on a dot shows its run; a click or drag in a curve chooses the moment.

    Args:
        point: which of the moments at which descriptions were graded, from 0; beyond the last it is the last.
        run: one of the recorded runs.
        trait: "mention", "response", "recall" or "words".
        page: which pictures, from 1.
    """

    def __init__(self, point=0, run="main", trait="mention", page=1):
        last, runs = draw.last_moment(run), draw.recorded()["runs"]
        pages = len(runs["main"]["watched"][0][0]["said"]) // draw.PER_PAGE
        super().__init__(
            point=slider("moment", min(point, last), 0, last),
            page=slider("pictures", page, 1, pages),
            run=choice("run", runs, run),
            trait=choice("what", draw.TRAITS.items(), trait),
        )

    def changed(self, name):
        with self.hold():
            self.controls["point"].max = draw.last_moment(self.controls["run"].value)

    def touch(self, spot, at, start, before):
        if spot.name == "run":
            return super().touch(spot, at, start, before)
        step = self.facts["axes"][spot.item].value(*at)[0]
        graded = draw.joined_rounds(draw.recorded()["runs"][before["run"]], "curve")
        self.controls["point"].value = min(range(len(graded)), key=lambda point: abs(graded[point]["step"] - step))

    def draw(self, **state):
        return draw.alignment_runs(**state)

    def describe(self, **state):
        return draw.run_words(**state)
