"""Lesson 07b: your records."""

from minicpmv_ref.inputs.pictures import load_image

from .. import draw
from ..panel import Panel, slider


class YourRecords(Panel):
    """Your records as the training loop sees them: picture, tokens, which of them the loss counts; and answers to them.

    Args:
        records: from `read_records`, of one question and one answer.
        processor: of the model that trains.
        answers: {name: answers to all records}, for example before and after training.
        record: which one, from 1.
    """

    def __init__(self, records, processor, answers=None, record=1):
        self._records, self._answers = records, answers or {}
        self._tokens = [draw.record_tokens(each, processor) for each in records]
        super().__init__(record=slider("record", record, 1, len(records)))

    def touch(self, spot, at, start, before):
        self.pick(None if spot.item == self.picked else spot.item)

    def draw(self, record):
        one = self._records[record - 1]
        image = load_image(next(iter(one.images.values())))
        said = {name: texts[record - 1] for name, texts in self._answers.items()}
        return draw.record_card(image, self._tokens[record - 1], one.turns[1][1], said, self.picked)

    def describe(self, record):
        tokens = self._tokens[record - 1]
        if self.picked is not None:
            text, supervised, position = tokens[self.picked]
            why = "the model learns to predict it from all before it" if supervised else "it is given, not learned"
            return f"“{text.strip() or 'newline'}” at position {position}: {why}."
        right, counted = self.facts["right"], self.facts["supervised"]
        said = [f"Record {record} of {len(self._records)}: {tokens[-1][2] + 1} tokens, {counted} supervised"]
        said += [f"{name}, {right[name]} of {right['wanted']} words are in place" for name in self._answers]
        return f"{'; '.join(said)}."
