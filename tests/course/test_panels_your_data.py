"""The panel of lesson 07b: tokens, what the loss counts, and answers are those of the package."""

import io

import pytest
from svg import canvas_shapes as shapes
from svg import inside_the_canvas, touch

from minicpmv_ref import Processor
from minicpmv_ref.course import draw, panels
from minicpmv_ref.learn.evaluate import share_of_words
from minicpmv_ref.scale.entries import Record
from minicpmv_ref.toy import data

pytestmark = pytest.mark.usefixtures("strict_panels")


@pytest.fixture(scope="module")
def processor():
    return Processor.from_pretrained("nano")


def records(count):
    found = []
    for number in range(count):
        sample = data.draw(f"card/{number}", "caption", "test")
        file = io.BytesIO()
        sample.image.save(file, format="PNG")
        turns = ("user", "<image>\nDescribe the picture."), ("assistant", sample.answer)
        found.append(Record(str(number), {"<image>": file}, turns))
    return found


def test_tokens_are_those_of_the_batch(processor):
    for record in records(3):
        batch, tokens = processor(record.messages), draw.record_tokens(record, processor)
        ids, labels = batch.input_ids[0].tolist(), batch.labels[0].tolist()
        assert tokens[-1][2] == len(ids) - 1 and sum(s for _, s, _ in tokens) == sum(label != -100 for label in labels)
        assert "".join(text for text, supervised, _ in tokens if supervised) == record.turns[1][1] + "<|im_end|>"
        for text, supervised, position in tokens:
            if text.endswith(" slots"):
                count = int(text.split()[0])
                decoded = processor.tokenizer.decode(ids[position : position + count])
                assert decoded == "<unk>" * count and not supervised
            else:
                assert text == processor.tokenizer.decode([ids[position]])


def test_the_card(processor):
    mine = records(12)
    wanted = [record.turns[1][1] for record in mine]
    said = {"before": ["red star " * 12] * 12, "after": wanted[:11] + ["blue"]}
    panel = panels.YourRecords(mine, processor, said)
    for number in range(12):
        panel.controls["record"].value = number + 1
        canvas = panel.draw(number + 1)
        inside_the_canvas(canvas)
        tokens = draw.record_tokens(mine[number], processor)
        green = [shape for shape in shapes(canvas, "rect") if shape[4] == draw.GREEN]
        assert len(green) == 1 + canvas.facts["supervised"] == 1 + sum(supervised for _, supervised, _ in tokens)
        words = len(wanted[number].replace(",", "").split())
        for name, texts in {"wanted": wanted, **said}.items():
            assert canvas.facts["right"][name] / words == share_of_words([texts[number]], [wanted[number]])
        assert f"after, {canvas.facts['right']['after']} of {words} words are in place." in panel.status
    assert panel.status.startswith(f"Record 12 of 12: {tokens[-1][2] + 1} tokens, {canvas.facts['supervised']} superv")


def test_a_click_on_a_token(processor):
    panel = panels.YourRecords(records(2), processor)
    words, tokens = panel.status, draw.record_tokens(records(1)[0], processor)
    assert "before" not in words and repr(panel) == "YourRecords(record=1)"
    for number, (_, supervised, position) in enumerate(tokens):
        touch(panel, f"token {number}")
        why = "the model learns to predict it from all before it" if supervised else "it is given, not learned"
        assert panel.status.endswith(f"at position {position}: {why}.")
    touch(panel, f"token {number}")
    assert panel.status == words
    touch(panel, "token 3")
    panel.controls["record"].value = 2
    assert panel.status.startswith("Record 2 of 2")
