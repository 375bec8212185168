"""Pages of text: an English document, a receipt, a page in Chinese. Each returns (picture, palette size)."""

import re
from pathlib import Path

import numpy as np

from .sheet import GRAY, INK, ORANGE, RED, Sheet, text_width

TEXTS = Path(__file__).parent


def wrap(text, font, size, width):
    """Split a paragraph into lines, each a list of words."""
    lines, line = [], []
    for word in text.split():
        if line and text_width(" ".join([*line, word]), font, size) > width:
            lines.append(line)
            line = []
        line.append(word)
    return [*lines, line]


def justified(sheet, x, y, words, width, size):
    gap = (width - sum(text_width(word, "serif", size) for word in words)) / max(len(words) - 1, 1)
    for word in words:
        sheet.text(x, y, word, "serif", size)
        x += text_width(word, "serif", size) + gap


def figure_grid(sheet, x, y, width):
    """A 1280x720 picture, its overview and its 3x2 grid."""
    small_w, small_h, big_w, big_h = 150, 84, 300, 168
    left, right, middle = x + 10, x + width - big_w - 10, y + 100
    for x0, y0, w, h in (left, middle - 42, small_w, small_h), (right, middle - 84, big_w, big_h):
        sheet.box(x0, y0, x0 + w, y0 + h, "#cfe6f5")
        sheet.disc(x0 + 0.82 * w, y0 + 0.24 * h, 0.09 * h, ORANGE)
        sheet.polygon([(x0, y0 + h), (x0 + 0.32 * w, y0 + 0.3 * h), (x0 + 0.64 * w, y0 + h)], "#7a8f9e")
        sheet.polygon([(x0 + 0.4 * w, y0 + h), (x0 + 0.7 * w, y0 + 0.5 * h), (x0 + w, y0 + h)], "#4f6675")
        sheet.box(x0, y0, x0 + w, y0 + h, outline=INK, width=1.5)
    for column in (1, 2):
        sheet.line([(right + column * 100, middle - 84), (right + column * 100, middle + 84)], RED, 3)
    sheet.line([(right, middle), (right + big_w, middle)], RED, 3)
    sheet.text(left + small_w / 2, middle + 66, "overview", "serif-italic", 19, anchor="ms")
    sheet.text(x, y + 216, "Figure 1.", "serif-bold", 19)
    caption = "A picture of 1280 by 720 pixels, cut into 3 by 2 slices."
    sheet.text(x + 78, y + 216, caption, "serif-italic", 19)
    return y + 240


def table_sizes(sheet, x, y, width):
    rows = [
        ("Picture", "Columns × rows", "Views", "Tokens"),
        ("448 × 448", "not cut", "1", "64"),
        ("449 × 448", "2 × 1", "3", "192"),
        ("800 × 600", "2 × 2", "5", "320"),
        ("1280 × 720", "3 × 2", "7", "448"),
        ("1920 × 1080", "4 × 2", "9", "576"),
        ("1240 × 1754", "2 × 4", "9", "576"),
        ("1344 × 1344", "3 × 3", "10", "640"),
    ]
    sheet.text(x, y + 22, "Table 1.", "serif-bold", 19)
    sheet.text(x + 70, y + 22, "Sizes, grids and visual tokens. The overview is a view.", "serif-italic", 19)
    y += 34
    sheet.line([(x, y), (x + width, y)], INK, 2)
    for i, row in enumerate(rows):
        font = "serif" if i else "serif-bold"
        sheet.text(x + 8, y + 24, row[0], font, 20)
        for cell, right in zip(row[1:], (0.58 * width, 0.77 * width, width - 8)):
            sheet.text(x + right, y + 24, cell, font, 20, anchor="rs")
        y += 32
        if i == 0:
            sheet.line([(x, y), (x + width, y)], INK, 1)
    sheet.line([(x, y + 2), (x + width, y + 2)], INK, 2)
    return y + 10


def document():
    """An A4 page at 150 dots per inch: heading, two columns, one figure, one table."""
    sheet = Sheet(1240, 1754)
    size, step, width, top, bottom = 24, 30, 510, 262, 1676
    sheet.text(620, 130, "How MiniCPM-V cuts a picture", "serif-bold", 50, anchor="ms")
    subtitle = "Adaptive slicing, from pixels to tokens, on one page"
    sheet.text(620, 176, subtitle, "serif-italic", 26, GRAY, "ms")
    sheet.line([(90, 206), (1150, 206)], INK, 1.5)
    x, y = 90, top
    for block in filter(None, (TEXTS / "document.txt").read_text("utf-8").splitlines()):
        if block in ("[figure]", "[table]"):
            height, paint = (240, figure_grid) if block == "[figure]" else (300, table_sizes)
            if y + height > bottom:
                x, y = 640, top
            y = paint(sheet, x, y - 14, width) + 34
            continue
        if block.startswith("# "):
            if y + 4 * step > bottom:
                x, y = 640, top
            y += 10 if y > top else 0
            sheet.text(x, y, block[2:], "serif-bold", 27)
            y += 36
            continue
        lines = wrap(block, "serif", size, width)
        for i, words in enumerate(lines):
            if y > bottom:
                x, y = 640, top
            if i < len(lines) - 1:
                justified(sheet, x, y, words, width, size)
            else:
                sheet.text(x, y, " ".join(words), "serif", size)
            y += step
        y += 9
    sheet.text(620, 1716, "1", "serif", 20, GRAY, "ms")
    return sheet.finish(), 64


def receipt():
    """A till receipt whose sums are right."""
    items = [
        ("Sourdough loaf", 1, 480), ("Goat cheese 150 g", 1, 525), ("Tomatoes 1.2 kg", 1, 396),
        ("Olive oil 0.5 l", 1, 890), ("Lemons", 4, 55), ("Ground coffee 250 g", 2, 645),
        ("Oat milk 1 l", 3, 189), ("Dark chocolate", 2, 275), ("Eggs, free range", 1, 410),
        ("Basil in a pot", 1, 295), ("Pasta 500 g", 3, 149), ("Paper bag", 1, 20),
    ]  # fmt: skip
    total = sum(count * cents for _, count, cents in items)
    tax = round(total * 7 / 107)
    sheet = Sheet(420, 1500, "#fbfaf6")

    def money(cents):
        return f"{cents // 100}.{cents % 100:02d}"

    def rule(y):
        for x in range(30, 390, 10):
            sheet.line([(x, y), (x + 5, y)], GRAY, 1.5)

    def pair(y, left, right, font="mono", size=17, fill=INK):
        sheet.text(30, y, left, font, size, fill)
        sheet.text(390, y, right, font, size, fill, "rs")

    sheet.text(210, 82, "MARKET HALL", "sans-bold", 36, anchor="ms")
    for i, line in enumerate(("Stand 14, Old Harbor Street 8", "Open Tuesday to Saturday", "Tel. 555 0148")):
        sheet.text(210, 120 + 26 * i, line, "sans", 16, GRAY, "ms")
    rule(200)
    pair(232, "2025-03-15", "11:42")
    pair(260, "Receipt 004871", "Till 2")
    rule(282)
    y = 322
    for name, count, cents in items:
        pair(y, name, money(count * cents))
        y += 25
        if count > 1:
            sheet.text(50, y, f"{count} x {money(cents)}", "mono", 15, GRAY)
            y += 25
        y += 22
    rule(y)
    pair(y + 46, "TOTAL", f"EUR {money(total)}", "mono-bold", 24)
    pair(y + 84, "Tax 7 % included", money(tax), size=15, fill=GRAY)
    rule(y + 108)
    pair(y + 144, "Cash", money(7000))
    pair(y + 172, "Change", money(7000 - total))
    rule(y + 196)
    sheet.text(210, y + 242, "Thank you, see you soon!", "sans-bold", 20, anchor="ms")
    bars = np.random.default_rng(4871).integers(1, 4, size=76)
    x, unit = 50, 320 / bars.sum()
    for i, bar in enumerate(bars * unit):
        if i % 2 == 0:
            sheet.box(x, y + 272, x + bar, y + 352, INK)
        x += bar
    sheet.text(210, y + 378, "0 004871 150325", "mono", 16, anchor="ms")
    return sheet.finish(), 16


def wrap_chinese(text, font, size, width):
    """Break anywhere but inside a Latin word and before closing punctuation, which hangs instead."""
    lines, line = [], ""
    for piece in re.findall(r"[A-Za-z0-9×-]+|.", text):
        if text_width(line + piece, font, size) > width and piece not in "，。：；、":
            lines.append(line.rstrip())
            line = "" if piece == " " else piece
        else:
            line += piece
    return [*lines, line]


def chinese_page():
    """A page in Simplified Chinese about slicing: a title, three paragraphs, four short rules."""
    sheet = Sheet(900, 1200, "#fffdf7")
    size, step, left, width = 30, 56, 90, 720
    sheet.box(36, 36, 864, 1164, outline="#b03a2e", width=2)
    y, rule = 236, 0
    for block in (TEXTS / "chinese.txt").read_text("utf-8").splitlines():
        if block.startswith("# "):
            sheet.text(450, 132, block[2:], "song-bold", 46, anchor="ms")
            sheet.line([(left, 164), (900 - left, 164)], "#b03a2e", 1.5)
        elif block.startswith("- "):
            y += 16 if rule == 0 else 0
            sheet.disc(left + 17, y - 9, 17, "#b03a2e")
            sheet.text(left + 17, y - 10, "一二三四"[rule], "cjk-bold", 20, "white", "mm")
            sheet.text(left + 52, y, block[2:], "cjk", size)
            y, rule = y + step + 4, rule + 1
        else:
            # subtle: a Chinese paragraph starts two full widths in
            for line in wrap_chinese("\u3000\u3000" + block, "song", size, width):
                sheet.text(left, y, line, "song", size)
                y += step
            y += 10
    return sheet.finish(), 32
