"""Lesson 04: into the language model."""

from minicpmv_ref.slicing import plan_slices

from .cases import Case, exercise


@exercise
def image_tokens():
    """pictures that are not cut, cut in one row, in one column and in several rows, in all three versions; an int."""
    from minicpmv_ref.prompt import image_layout  # imports torch, which lesson 01 does without

    for version, queries in (("2.6", 64), ("2.5", 96), ("2.0", 64)):
        for size in [(448, 448), (900, 448), (448, 900), (1344, 1344), (2400, 300)]:
            plan = plan_slices(size)
            text = image_layout(plan, queries, version)  # a token each: markers and slots, newlines, the digit
            yield Case((plan.grid, queries, version), text.count("<") + text.count("\n") + text.count(">0<"))


@exercise
def fixed_layout():
    """five grids, one of a single row and one of a single column; the string must be equal."""
    from minicpmv_ref.prompt import image_layout

    for size in [(900, 448), (448, 900), (1000, 1000), (1344, 1344), (2400, 300)]:
        plan = plan_slices(size)
        yield Case((*plan.grid, 2), image_layout(plan, 2, "2.6", image_id=None))


@exercise
def safe_length():
    """three views and eleven lengths: between views, inside them and on every marker; an int."""
    bounds = [[18, 20], [22, 24], [26, 28]]  # as in the conversation of lesson 04
    for most in (40, 23, 24, 25, 26, 28, 29, 21, 17, 18, 5):
        split = next((start - 1 for start, end in bounds if start - 1 < most <= end), most)
        yield Case((bounds, most), split)


@exercise
def pieces():
    """five texts whose ids are the bytes of UTF-8, one of them cut inside a character; a list of strings."""
    for text in (b"a cat", "a 猫".encode(), "né 🐈 ok".encode(), "猫".encode() * 2, "ab猫".encode()[:-1]):
        ids, shown, waiting = list(text), [], b""
        for number, byte in enumerate(text, 1):
            waiting += bytes([byte])
            if number == len(ids) or not as_text(waiting).endswith("\ufffd"):
                shown.append(as_text(waiting))
                waiting = b""
        yield Case((ids, as_text), shown)


def as_text(ids):
    return bytes(ids).decode(errors="replace")
