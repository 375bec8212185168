"""Lessons in other languages: notebooks/zh/01.md has the text of lesson 01 in Chinese, cell by cell.

Above each text stands the fingerprint of the English cell that it translates. Code, outputs and numbers come from the
English lesson, and so does the text of a cell that is new or has changed since: English, but never wrong.
"""

import hashlib
import re

LANGUAGES = ("en", "zh")
MARK = re.compile(r"^<!-- cell (\w+) -->$", re.MULTILINE)
LESSON_LINK = re.compile(r"(?<=\]\()(\d\w*_\w+)\.ipynb")


def fingerprint(source):
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def texts(original, language):
    """The file with a lesson's text in this language; it need not exist."""
    return original.parent / language / f"{original.name.partition('_')[0]}.md"


def read_texts(path):
    """{fingerprint of the English cell: its translation} in the order of the file."""
    parts = MARK.split(path.read_text(encoding="utf-8"))
    return dict(zip(parts[1::2], (text.strip("\n") for text in parts[2::2])))


def translate(cells, original, language):
    """Replace the text of a lesson's cells where there is a translation; links then lead to translated lessons."""
    path = texts(original, language)
    if not path.exists():
        return
    found = read_texts(path)

    def follow(link):
        there = texts(original.with_name(link[0]), language).exists()
        return f"{link[1]}.{language}.ipynb" if there else link[0]

    for cell in cells:
        if cell["cell_type"] == "markdown":
            source = "".join(cell["source"])
            cell["source"] = LESSON_LINK.sub(follow, found.get(fingerprint(source), source)).splitlines(keepends=True)
