"""CV-Bench in small: where things are and how many, what is in front, what is nearer; each with its blind score.

Cambrian-1 (arXiv 2406.16860) made the benchmark of four tasks: spatial relation and counting in 2-D, depth order and
relative distance in 3-D. Here the pictures are those of the toy world, and whoever answers is given as a function.
"""

from __future__ import annotations

from collections.abc import Callable

from ..inputs.checks import LIMITS, WrongType, check_choice, check_int, check_list, shown
from .data import Sample, blind, check_seed, draw, draw_more

TASKS = {  # task -> (kind of sample, topic)
    "relation": ("question", "side"),
    "counting": ("question", "count"),
    "depth": ("depth", None),
    "distance": ("distance", None),
}


def cv_samples(task: str, n: int = 50, seed: int | str = 0) -> list[Sample]:
    """Draw held-out questions of one of the four tasks.

    Args:
        task: "relation" (is it left of, right of, above, below?), "counting" (0 to 3 of a shape), "depth" (which of
            two shapes that overlap is in front?) or "distance" (which of two is closer to a third?).
        n: how many, up to 1,000.
        seed: of the questions.

    Returns:
        n Samples. Their answers are equally likely: 2 of a relation, 4 of a count, 2 of depth and of distance.

    Raises:
        TypeError, ValueError: an unknown task, an n or a seed that cannot be.

    Example:
        >>> cv_samples("depth", 1)[0].messages[0]["content"][1:]
        ['Which is in front, the red triangle or the purple circle?']
    """
    kind, topic = TASKS[check_choice("task", task, TASKS)]
    check_int("n", n, most=LIMITS["turns"]), check_seed(seed)
    if topic:
        return [draw(f"{seed}/{i}", kind, "test", topic=topic) for i in range(n)]
    return [draw_more(f"{seed}/{i}", kind, "test") for i in range(n)]


def cv_bench(ask: Callable[[list[list[dict]]], list[str]], n: int = 50, seed: int | str = 0) -> dict[str, float]:
    """Grade anything that answers questions about pictures on all four tasks.

    Args:
        ask: from a list of conversations that end with the user to their answers, say
            `lambda prompts: answers(model, processor, prompts)` with `learn.evaluate.answers`.
        n: questions of each task, up to 1,000.
        seed: of the questions.

    Returns:
        A dict of shares from 0 to 1: one for each task, and for each "TASK blind", the same questions without their
        pictures; "mean" and "mean blind" over the tasks.

    Raises:
        TypeError, ValueError: no function, an n or a seed that cannot be; answers that are no list of n texts.

    Example:
        >>> grades = cv_bench(lambda prompts: ["yes"] * len(prompts), n=20)
        >>> grades["relation"], grades["depth"], grades["mean"] == grades["mean blind"]
        (0.4, 0.0, True)

    Source: arXiv 2406.16860, section 3.2, the tasks; pictures and questions are this project's.
    """
    if not callable(ask):
        raise WrongType(f"ask must be a function from conversations to answers, got {shown(ask)}")
    found = {}
    for task in TASKS:
        samples = cv_samples(task, n, seed)
        prompts = [sample.prompt for sample in samples]
        for name, shown_to in ((task, prompts), (f"{task} blind", [blind(prompt) for prompt in prompts])):
            said = check_list("answers of ask", ask(shown_to), str)
            if len(said) != n:
                raise ValueError(f"ask must return one answer for each of {n} conversations, got {len(said)}")
            found[name] = sum(text.strip() == sample.answer for text, sample in zip(said, samples)) / n
    for name in ("", " blind"):
        found[f"mean{name}"] = sum(found[task + name] for task in TASKS) / len(TASKS)
    return found
