"""Is this loss normal? The first steps of a toy stage beside three runs of it, measured by tools/expected_loss.py.

The band of ten steps reaches from the lowest of the three means to the highest, and a MARGIN of each beyond. A watch
says one sentence when a run leaves it, and stops nothing. No band: start-chat and sft-2, whose predecessor is not
shipped; any stage that differs from the schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from statistics import fmean

from ..config import nano
from ..inputs.files import read_json
from ..inputs.published import BUNDLED
from ..learn.stages import Stage, stage_named
from ..learn.train import Step
from ..model import MiniCPMV

MEASURED = BUNDLED / "expected.json"
WINDOW = 10  # steps of one mean
MARGIN = 0.15


@cache
def expected_losses() -> dict[str, list[list[float]]]:
    """{stage: for each seed the mean loss of steps 1 to 10, 11 to 20, ...}; empty where no checkpoints are."""
    return {name: each["losses"] for name, each in read_json(MEASURED)["stages"].items()} if MEASURED.is_file() else {}


def bands(stage: str) -> list[tuple[float, float]]:
    """The lowest and the highest normal mean loss of steps 1 to 10, 11 to 20, ...; [] for a stage without a band."""
    windows = zip(*expected_losses().get(stage, ()))
    return [(min(means) * (1 - MARGIN), max(means) * (1 + MARGIN)) for means in windows]


def first_outside(losses: list[float], limits: list[tuple[float, float]]) -> int | None:
    """The step, from 1, at which a run is seen to leave its bands: the last of the ten whose mean is outside.

    None if it stays inside. A mean that is no number is outside.

    Example:
        >>> first_outside([2.0] * 10 + [1.9] * 10, [(1.5, 2.5), (0.5, 1.5)])
        20
    """
    for number, (low, high) in enumerate(limits, start=1):
        window = losses[WINDOW * (number - 1) : WINDOW * number]
        if len(window) == WINDOW and not low <= fmean(window) <= high:
            return WINDOW * number
    return None


def watch(stage: Stage, model: MiniCPMV, report: Callable[[str], object]) -> Callable[[Step], None]:
    """What a run calls after each of its steps; it reports the first time that the loss is not normal."""
    as_measured = stage == stage_named(stage.name) and model.config == nano
    limits, seen = bands(stage.name) if as_measured else [], {}

    def look(step: Step) -> None:
        seen[step.step] = step.loss
        # A run that goes on after a stop begins in the middle of a window, which then does not count.
        losses = [seen.get(number) for number in range(step.step - WINDOW + 1, step.step + 1)]
        place = step.step // WINDOW - 1
        if step.step % WINDOW or place >= len(limits) or None in losses:
            return
        mean, (low, high) = fmean(losses), limits[place]
        if not low <= mean <= high:
            report(_sentence(stage.name, step.step, mean, high))
            limits.clear()

    return look


def _sentence(name: str, step: int, mean: float, high: float) -> str:
    measured = [means[step // WINDOW - 1] for means in expected_losses()[name]]
    look = (
        "too low: is anything of the answer in the question, and is all of it supervised?"
        if mean < high
        else "too high: look at the checkpoint it starts from, at the learning rate, at what learns and at the labels"
    )
    return (
        f"{name}: is this loss normal? Its mean over steps {step - WINDOW + 1} to {step} is {mean:.2f}, and "
        f"{min(measured):.2f} to {max(measured):.2f} in three runs that began like this one; {look}"
    )
