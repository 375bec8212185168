"""Keep the translated lessons beside the English ones.

    python tools/translations.py check        name every cell that is missing, stale or says something else
    python tools/translations.py renew        bring the files of texts up to date with the English lessons
    python tools/translations.py renew zh 04  begin a lesson that is not translated yet

`renew` writes the texts in the order of the English cells and keeps those whose cell is unchanged. A cell that is new
or has changed gets the English text, to be translated in place; the old text follows it, under its old fingerprint:
move over what is still right, then delete it. If you do not write the language, delete the old text and leave the
English one: a few cells of a lesson may wait.

A translation must have the numbers, links, formulas and code words of its English cell (words inside of \\text{} may
differ), and the same headings, folds, list items and table rows. Large numbers may be written in the way of the
language: 8 billion is 80 亿.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minicpmv_ref.inputs.translated import LANGUAGES, fingerprint, read_texts, texts  # noqa: E402

LESSONS = {path.name.partition("_")[0]: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
HEAD = "文字译自 [{0}](../{0})。代码、输出和数字来自英文版；链接从 notebooks/ 算起。\n"
WAITS = "waits: its text is still English"
LARGE = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "万": 1e4, "亿": 1e8, "万亿": 1e12}
NUMBER = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?)(?:\s*(thousand|million|billion|trillion|万亿|万|亿))?")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
LAYOUT = re.compile(r"^#+ |^\|(?=.)|^\d{1,2}\. |^- |</?\w+>", re.MULTILINE)
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def contents(text: str) -> dict[str, Counter]:
    """What a translation must keep, each kind counted."""
    found = {"code": Counter(CODE.findall(text))}
    text = CODE.sub(" ", text)
    found["formula"] = Counter(re.sub(r"\\text\{[^}]*\}|\s", "", each) for each in FORMULA.findall(text))
    text = FORMULA.sub(" ", text)
    found["link"] = Counter(LINK.findall(text))
    text = LINK.sub("] ", text)
    found["layout"] = Counter(each.strip() for each in LAYOUT.findall(text))
    text = re.sub(r"^\d{1,2}\. ", "", text, flags=re.MULTILINE)
    found["number"] = Counter(
        f"{float(number.replace(',', '')) * LARGE.get(unit, 1):.6g}" for number, unit in NUMBER.findall(text)
    )
    return found


def differences(english: str, text: str) -> list[str]:
    """What a translation says that its English cell does not, or the other way round."""
    if not CHINESE.search(text) and re.search(r"[a-z]{3}", CODE.sub("", text)):
        return [WAITS]
    theirs, ours, found = contents(english), contents(text), []
    for kind in theirs:
        for word, rest in (("lacks", theirs[kind] - ours[kind]), ("adds", ours[kind] - theirs[kind])):
            found += [f"{word} the {kind} {each!r:.80}" for each in rest.elements()]
    return found + [f"shows stars, for a space is missing beside them: {each!r}" for each in stars(text)]


def stars(text: str) -> list[str]:
    """Pieces in which ** does not become bold, as after Chinese punctuation without a space."""
    from markdown_it import MarkdownIt

    blocks = MarkdownIt().enable("table").parse(FORMULA.sub("x", CODE.sub("x", text)))
    pieces = [piece for block in blocks for piece in block.children or [] if piece.type == "text"]
    return [piece.content[:40] for piece in pieces if "*" in piece.content]


def english_cells(lesson: Path) -> list[str]:
    import nbformat

    return [cell.source for cell in nbformat.read(lesson, 4).cells if cell.cell_type == "markdown"]


def problems(lesson: Path, path: Path) -> list[str]:
    """One sentence for each cell of a lesson that is missing, stale or different in the file of its texts."""
    left, found = read_texts(path), []
    for source in english_cells(lesson):
        key = fingerprint(source)
        cell = f"cell {key} ({source.partition(chr(10))[0]:.40})"
        if key in left:
            found += [f"{cell} {each}" for each in differences(source, left.pop(key))]
        else:
            found.append(f"{cell} has no text: it is new or has changed")
    return found + [f"text {key} ({text:.20}) belongs to no cell of today" for key, text in left.items()]


def renew(lesson: Path, path: Path) -> None:
    old, cells = read_texts(path) if path.exists() else {}, english_cells(lesson)
    new = {fingerprint(source): source for source in cells}
    parts, waiting = [HEAD.format(lesson.name)], list(old.items())
    for key, source in new.items():
        parts.append(f"<!-- cell {key} -->\n{old.get(key, source)}\n")
        while waiting and (waiting[0][0] not in new or waiting[0][0] == key):
            gone, text = waiting.pop(0)  # what stood here before
            if gone != key:
                parts.append(f"<!-- cell {gone} -->\n{text}\n")
    parts += [f"<!-- cell {gone} -->\n{text}\n" for gone, text in waiting if gone not in new]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8", newline="\n")


def translated() -> list[tuple[Path, Path]]:
    """(lesson, file of its texts) for every lesson in every language."""
    pairs = [(lesson, texts(lesson, each)) for each in LANGUAGES for lesson in LESSONS.values()]
    return [(lesson, path) for lesson, path in pairs if path.exists()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Keep the translated lessons beside the English ones.")
    parser.add_argument("action", choices=["check", "renew"])
    parser.add_argument("language", nargs="?", choices=LANGUAGES[1:])
    parser.add_argument("lesson", nargs="?", choices=LESSONS)
    args = parser.parse_args(argv)
    if args.action == "check":
        found = [
            f"{path.relative_to(ROOT)}: {each}"
            for pair in translated()
            for path in pair[1:]
            for each in problems(*pair)
        ]
        print("\n".join(found) or "all translations fit")
        return int(bool(found))
    if args.lesson:
        lesson = LESSONS[args.lesson]
        renew(lesson, texts(lesson, args.language))
    else:
        for pair in translated():
            renew(*pair)
    return 0


if __name__ == "__main__":
    sys.exit(main())
