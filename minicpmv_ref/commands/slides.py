"""`slides`: a lesson as a deck for the projector. It needs the extra `site` once, and no network afterwards."""

import re
import shutil
import sys
import webbrowser
from hashlib import sha256
from pathlib import Path

from ..inputs.checks import quoted
from .common import ROOT, CommandError, need, notebooks_folder, say
from .course import lessons

OUT = ROOT / "build" / "slides"
SOURCE = ROOT / "docs" / "site" / "slides"
# The two libraries come in Python packages, so nobody needs Node; the checksums are those of their own releases.
REVEAL_SHA256 = "46538b52db48724192f59bf46f5e851a18e302777c46f4a34c32709d010d6a29"  # reveal.js 5.2.1
MATHJAX_SHA256 = "d4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882"  # MathJax 3.2.2, tex-svg.js
ONLY_IN_THE_NOTEBOOK = re.compile(r"raise NotImplementedError|^sys\.path\.insert", re.MULTILINE)
GUESS = re.compile(r"^my_\w+ = (?:None|{.*None.*}).*\n*", re.MULTILINE)
SOLUTION = re.compile(r"<details>\s*<summary>(?:Hint|Solution)\b.*?</details>", re.DOTALL)
FOLD = re.compile(r"<details>.*?</details>", re.DOTALL)


def options(parser):
    parser.add_argument("lesson", metavar="LESSON", help="its number, such as 01 or 07b")
    parser.add_argument("--out", metavar="FOLDER", help="where the deck goes (default: build/slides)")
    parser.add_argument("--no-browser", action="store_true", help="only print the file's name")


def run(args):
    need("nbconvert", "a deck")
    found = lessons(notebooks_folder()).get(args.lesson)
    if found is None:
        raise CommandError(f"there is no lesson {args.lesson!r:.40} in {notebooks_folder()}")
    out = Path(args.out) if args.out else OUT
    try:
        page = build(found, out)
    except (OSError, ValueError) as error:
        raise CommandError(f"the deck could not be written: {error}") from error
    say(f"{page}\nArrow keys move, Esc shows all pages, S opens the notes, F fills the screen.")
    if not args.no_browser:
        webbrowser.open(page.resolve().as_uri())


def build(notebook, out):
    """Write the deck of a notebook; returns its page."""
    import nbformat
    from nbconvert.exporters import SlidesExporter

    copy_libraries(out / "deck")
    lesson = nbformat.read(notebook, 4)
    lesson.cells = for_slides(lesson.cells)
    exporter = SlidesExporter(
        template_name="slides",
        extra_template_basedirs=[str(SOURCE.parent)],
        reveal_url_prefix="../deck/reveal",
        reveal_theme="white",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    html, _ = exporter.from_notebook_node(lesson, {"metadata": {"name": notebook.stem}})
    page = out / notebook.stem / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html, encoding="utf-8")
    return page


def for_slides(cells):
    """What the audience sees: no stubs and guesses, which belong to the notebook; answers after what they are about."""
    from nbformat.v4 import new_markdown_cell

    shown, answers = [], []
    for cell in cells:
        if cell.cell_type == "code":
            rest = GUESS.sub("", cell.source)
            if not rest or ONLY_IN_THE_NOTEBOOK.search(rest):
                continue
            cell.source = rest
            if cell.source.startswith(("panels.", "draw.whole_model")):
                cell.source = ""  # the picture says it all
            shown += [cell, *answers]
            answers = []
            continue
        cell.source = SOLUTION.sub("", cell.source)
        folds = FOLD.findall(cell.source)
        cell.source = FOLD.sub("", cell.source)
        shown += [*answers, cell]
        answers = [new_markdown_cell("\n\n".join(folds))] if folds else []
    return shown + answers


def copy_libraries(folder):
    reveal, mathjax = libraries()
    for name in ("dist/reveal.js", "dist/reveal.css", "dist/theme/white.css", "plugin/notes/notes.js"):
        copy(reveal / name, folder / "reveal" / name)
    for font in (reveal / "dist/theme/fonts/source-sans-pro").iterdir():
        copy(font, folder / "reveal/dist/theme/fonts/source-sans-pro" / font.name)
    copy(mathjax, folder / "tex-svg.js")
    for name in ("deck.css", "deck.js"):
        copy(SOURCE / name, folder / name)


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def libraries():
    """(folder of reveal.js, the file tex-svg.js of MathJax), as their projects released them."""
    from importlib.metadata import PackageNotFoundError, files

    found = {}
    for package, end in (("sphinx-revealjs", "revealjs/dist/reveal.js"), ("sphinx-mathjax-offline", "tex-svg.js")):
        try:
            listed = files(package) or []
        except PackageNotFoundError:
            raise CommandError(missing(package)) from None
        found[package] = next((Path(file.locate()) for file in listed if file.as_posix().endswith(end)), None)
        if found[package] is None:
            raise CommandError(missing(package))
    reveal, mathjax = found.values()
    for path, wanted in ((reveal, REVEAL_SHA256), (mathjax, MATHJAX_SHA256)):
        if sha256(path.read_bytes()).hexdigest() != wanted:
            raise CommandError(f"{path} is another version than the one that was tested. {missing('the extra')}")
    return reveal.parents[1], mathjax


def missing(package):
    command = f"{quoted(sys.executable)} -m pip install {quoted(f'{ROOT}[site]')}"
    return f"this needs {package}. Install the extra `site` once:\n    {command}"
