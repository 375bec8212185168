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
        self._records, self._answers, self._token = records, answers or {}, None
        self._tokens = [draw.record_tokens(each, processor) for each in records]
        super().__init__({"record": slider("record", record, 1, len(records))})

    def changed(self, name):
        self._token = None
        self.redraw()

    def touch(self, spot, at, start, before):
        self._token = None if spot.item == self._token else spot.item
        self.redraw()

    def draw(self, record):
        one = self._records[record - 1]
        image = load_image(next(iter(one.images.values())))
        return draw.record_card(image, self._tokens[record - 1], one.turns[1][1], self._said(record), self._token)

    def _said(self, record):
        return {name: texts[record - 1] for name, texts in self._answers.items()}

    def describe(self, record):
        tokens, wanted = self._tokens[record - 1], self._records[record - 1].turns[1][1]
        if self._token is not None:
            text, supervised, position = tokens[self._token]
            why = "the model learns to predict it from all before it" if supervised else "it is given, not learned"
            return f"“{text.strip() or 'newline'}” at position {position}: {why}."
        words = len(draw.words_in_place(wanted, wanted))
        said = (
            f"{name}, {sum(right for _, right in draw.words_in_place(text, wanted))} of {words} words are in place"
            for name, text in self._said(record).items()
        )
        counted = sum(supervised for _, supervised, _ in tokens)
        return (
            "; ".join(
                [f"Record {record} of {len(self._records)}: {tokens[-1][2] + 1} tokens, {counted} supervised", *said]
            )
            + "."
        )
