"""`parse_boxes`: places as the released models write them, in pixels; anything else is one clear error."""

import pytest

from minicpmv_ref import parse_boxes

WIDE = (2000, 500)  # (width, height): a thousandth is 2 pixels across and half a pixel down


@pytest.mark.parametrize(
    ("answer", "places"),
    [
        ("There is no cup.", []),
        ("<ref>cup</ref><box>10 20 30 40</box>", [("cup", (20, 10, 60, 20))]),
        ("Here: <ref> 杯子 </ref> is at <box>\n0, 0,1000 1000 </box>.", [("杯子", (0, 0, 2000, 500))]),
        ("<box>1 2 3 4</box>", [("", (2, 1, 6, 2))]),
        ("<ref>a</ref><box>0 0 1 2</box><box>3 4 5 6</box>", [("a", (0, 0, 2, 1)), ("a", (6, 2, 10, 3))]),
        (
            "<ref>a</ref><box>0 0 1 2</box> and <ref>b</ref><box>3 4 5 6</box>",
            [("a", (0, 0, 2, 1)), ("b", (6, 2, 10, 3))],
        ),
        ("<ref>a</ref> is named, no more", []),
        ("<box>7 8 7 8</box>", [("", (14, 4, 14, 4))]),  # no area, but a place
        ("<quad>10 4 30 2 40 12 20 14</quad>", [("", (20, 1, 80, 7))]),
        ("<ref>x</ref><point>500 250</point>", [("x", (1000, 125, 1000, 125))]),
        ("if a < b: <b>bold</b> <BOX>1 2 3 4</BOX>", []),  # other marks are text
    ],
)
def test_places(answer, places):
    assert parse_boxes(answer, WIDE) == places


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("<box>1 2 3</box>", "<box>1 2 3</box> must hold 4 whole numbers from 0 to 1000"),
        ("<box>1 2 3 4 5</box>", "must hold 4"),
        ("<box></box>", "must hold 4"),
        ("<point>1 2 3</point>", "must hold 2"),
        ("<quad>1 2 3 4</quad>", "must hold 8"),
        ("<box>1 2 3 1001</box>", "from 0 to 1000"),
        ("<box>-1 2 3 4</box>", "from 0 to 1000"),
        ("<box>0.1 0.2 0.3 0.4</box>", "whole numbers"),  # parts of one, as other models count
        ("<box>(1,2),(3,4)</box>", "whole numbers"),  # Qwen's way
        ("<box>٣ 2 3 4</box>", "whole numbers"),
        ("<box>500 500 100 600</box>", "its right or lower side comes before its left or upper one"),
        ("<box>500 500 600 100</box>", "<box>500 500 600 100</box> must be left, top, right, bottom"),
        ("The cup <box>1 2 3", r"<box> at character 8 is not followed by </box>; .* a larger max_new_tokens"),
        ("<ref>cup", "<ref> at character 0 is not followed by </ref>"),
        ("<ref>cup<box>1 2 3 4</box>", "<ref> at character 0 is not followed by </ref>"),
        ("<box>1 2 3 4</quad>", "<box> at character 0 is not followed by </box>"),
        ("1 2 3 4</box>", "</box> at character 7 has no <box> before it"),
        ("<box>\x1b[2J" + "1" * 5000 + "</box>", r"\\x1b"),
    ],
)
def test_one_clear_error(answer, words):
    with pytest.raises(ValueError, match=words) as error:
        parse_boxes(answer, WIDE)
    assert str(error.value).startswith("answer: ") and len(str(error.value)) < 300
    assert "\x1b" not in str(error.value)


def test_the_longest_answer_takes_no_time():
    assert len(parse_boxes("<ref>a</ref><box>1 2 3 4</box>" * 20_000, WIDE)) == 20_000
    with pytest.raises(ValueError, match="not followed"):
        parse_boxes("<box>" * 20_000, WIDE)
