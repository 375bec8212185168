"""Grades: what share of held-out items the model gets exactly right.

Every item is drawn anew from the test split of the world, whose contents no training sample shows. Beside the grades
with pictures stand those without: what can be guessed from the question alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..decoding import until_stop
from ..inputs.checks import check_choice, check_int, check_list, check_type
from ..model import MiniCPMV
from ..processor import Processor
from ..toy.data import TOPICS, Sample, blind, draw
from ..toy.words import COMMAS, LANGUAGES, split_words

BATCH = 50  # conversations answered side by side


def evaluate(model: MiniCPMV, processor: Processor, seed: int | str = 0, n: int = 100, language: str = "en") -> dict:
    """Grade a model on freshly drawn held-out items.

    Args:
        model, processor: they belong together.
        seed: of the items.
        n: items of each grade; questions have n for each of the seven topics.
        language: "en", "zh" or "fr".

    Returns:
        A dict of shares from 0 to 1:
        "caption", "long": the whole text is right.
        "question": mean over the topics, and one entry for each, as "question color".
        "crop", "read", "read anywhere": share of words in their right place; lines of one view, aligned documents in
            slices, documents whose lines slice borders may cut. "read one view": the documents of "read", not sliced.
        "lookup": the number beside a word.
        "question blind", "lookup blind": the same questions without the picture.

    Raises:
        TypeError, ValueError: an argument of another type; n below 1; an unknown language.

    Example:
        >>> model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
        >>> sorted(evaluate(model, processor, n=1))[:4]
        ['caption', 'crop', 'long', 'lookup']
    """
    check_int("n", n), check_type("seed", seed, int, str), check_choice("language", language, LANGUAGES)
    check_type("model", model, MiniCPMV)
    view = model.config.slicing.scale_resolution

    def items(kind: str, **options) -> list[Sample]:
        return [draw(f"{seed}/{i}", kind, "test", language, view=view, **options) for i in range(n)]

    def exact(samples: list[Sample], pictures: bool = True) -> float:
        prompts = [sample.prompt if pictures else blind(sample.prompt) for sample in samples]
        said = answers(model, processor, prompts)
        return sum(text == sample.answer for text, sample in zip(said, samples)) / len(samples)

    def words(samples: list[Sample], **options) -> float:
        said = answers(model, processor, [sample.prompt for sample in samples], **options)
        return share_of_words(said, [sample.answer for sample in samples])

    grades = {"caption": exact(items("caption")), "long": exact(items("long"))}
    asked = {topic: items("question", topic=topic) for topic in TOPICS}
    for topic, samples in asked.items():
        grades[f"question {topic}"] = exact(samples)
    grades["question"] = sum(grades[f"question {topic}"] for topic in TOPICS) / len(TOPICS)
    documents, lookups = items("read"), items("lookup")
    grades["crop"] = words(items("crop"))
    grades["read"] = words(documents)
    grades["read one view"] = words(documents, max_slice_nums=1)
    grades["read anywhere"] = words(items("read", aligned=False))
    grades["lookup"] = exact(lookups)
    grades["question blind"] = exact([sample for samples in asked.values() for sample in samples], pictures=False)
    grades["lookup blind"] = exact(lookups, pictures=False)
    return grades


def answers(
    model: MiniCPMV,
    processor: Processor,
    prompts: Sequence[list[dict]],
    *,
    max_slice_nums: int | None = None,
    max_new_tokens: int = 64,
    **sampling,
) -> list[str]:
    """Answer many conversations, a batch at a time.

    Args:
        model, processor, prompts: who answers, and which conversations that end with the user.
        max_slice_nums: as for the Processor.
        max_new_tokens, sampling: as for `generate`; the default is greedy.

    Returns:
        One answer each.

    Raises:
        TypeError, ValueError: as the Processor and `generate`.

    Example:
        >>> model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
        >>> len(answers(model, processor, [draw(0).prompt, draw(1).prompt], max_new_tokens=2))
        2
    """
    prompts = check_list("prompts", prompts, list, tuple, what="a conversation")
    check_model(model, processor)
    device = model.device
    said: list[str] = []
    was_training = model.training
    model.eval()
    try:
        for begin in range(0, len(prompts), BATCH):
            batch = processor(prompts[begin : begin + BATCH], max_slice_nums=max_slice_nums).to(device)
            for row in model.generate(batch, max_new_tokens, **sampling).tolist():
                said.append(processor.tokenizer.decode(list(until_stop(row, batch.stop_ids))).strip())
    finally:
        model.train(was_training)
    return said


def share_of_words(said: Sequence[str], wanted: Sequence[str]) -> float:
    """The share, 0 to 1, of all wanted words (`split_words`) that stand in their right place in what was said.

    Raises:
        TypeError, ValueError: no lists of text of equal length, or no word wanted.

    Example:
        >>> share_of_words(["north 24, star 31"], ["north 24, star 81"])
        0.75
    """
    said, wanted = check_list("said", said, str), check_list("wanted", wanted, str)
    if len(said) != len(wanted):
        raise ValueError(f"said must hold as many answers as wanted, {len(wanted)}, got {len(said)}")
    pairs = [[split_words(text.translate(COMMAS)) for text in pair] for pair in zip(said, wanted)]
    if not (total := sum(len(words) for _, words in pairs)):
        raise ValueError("wanted must hold at least one word")
    return sum(a == b for pair in pairs for a, b in zip(*pair)) / total


def check_model(model, processor) -> None:
    """Check the types of a model and its processor."""
    check_type("model", model, MiniCPMV)
    check_type("processor", processor, Processor)
