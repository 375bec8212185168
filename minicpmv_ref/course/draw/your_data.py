"""Lesson 07b: one record as the training loop sees it, and what a model says to it before and after."""

from ...toy.words import COMMAS, split_words
from .canvas import Canvas, preview, text_width
from .colors import GRAY, GREEN, INK, PALE, RED, YELLOW


def record_tokens(record, processor) -> list[tuple[str, bool, int]]:
    """The tokens of a record: [(text, supervised?, position), ...]; the slots of a view are one entry."""
    batch, found = processor(record.messages), []
    for position, (token, label) in enumerate(zip(batch.input_ids[0].tolist(), batch.labels[0].tolist())):
        text = processor.tokenizer.decode([token])
        if text == "<unk>" and found and found[-1][0].endswith(" slots"):
            text, _, first = found.pop()
            found.append((f"{position - first + 1} slots", False, first))
        else:
            found.append(("1 slots" if text == "<unk>" else text, label != -100, position))
    return found


def words_in_place(said: str, wanted: str) -> list[tuple[str, bool]]:
    """The words of an answer, and whether each is the wanted one at its place, as `share_of_words` counts them."""
    words, found, place = split_words(wanted.translate(COMMAS)), [], 0
    for word in split_words(said):
        plain = word.translate(COMMAS).strip()  # nothing is left of a comma that stands alone
        found.append((word, words[place : place + 1] == [plain]))
        place += bool(plain)
    return found


def record_card(image, tokens: list, wanted: str, answers: dict, chosen: int | None = None) -> Canvas:
    """A record's picture and `record_tokens`, and `answers` {name: what a model says} against the wanted one.

    `chosen` is the number of a token, from 0. Its facts: "supervised", how many tokens, and "right" {name: words in
    place}. Its spots: "token".
    """
    canvas = Canvas()
    canvas.text(8, 20, "picture", bold=True)
    canvas.picture(preview(image, 400), (8, 30, 172, 172), smooth=False)
    canvas.text(196, 20, "tokens; the loss counts", bold=True)
    canvas.rect(416, 6, 92, 20, GREEN)
    canvas.text(462, 21, "these", 14, "white", "middle")
    x, y = 196, 32
    for number, (text, supervised, position) in enumerate(tokens):
        label = {"\n": "↵", "\n\n": "↵↵"}.get(text, text.strip() or "·")
        wide = text_width(label, 14) + 6
        if x + wide > 632:
            x, y = 196, y + 25
        fill = YELLOW if number == chosen else GREEN if supervised else PALE
        canvas.rect(x, y, wide, 21, fill)
        canvas.text(x + wide / 2, y + 16, label, 14, "white" if fill == GREEN else INK, "middle")
        canvas.spot("token", number, (x, y, wide, 21), f"position {position}: {label}", chosen=number == chosen)
        x += wide + 2
    y = max(y + 50, 236)
    canvas.facts = {"supervised": sum(supervised for _, supervised, _ in tokens), "right": {}}
    for name, text in {"wanted": wanted, **answers}.items():
        canvas.text(8, y, name, bold=True)
        words = words_in_place(text, wanted)
        canvas.facts["right"][name] = sum(right for _, right in words)
        x = 84
        for word, right in words:
            if x + text_width(word) > 634:
                x, y = 84, y + 22
            canvas.text(x, y, word, color=INK if right else RED)
            x += text_width(f"{word} ")
        y += 30
    if answers:
        canvas.text(84, min(y, 374), "red: not the wanted word at this place", 14, GRAY)
    return canvas
