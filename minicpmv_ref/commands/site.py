"""`site`: the whole course as web pages that need no network. It needs the extra `site` once.

The pages are those of the repository, in the same folders, so every link means what it means there. What they link to
comes along: a page as a page, a folder as a list, a file of code as a page of its own, any other file as it is.
Sphinx does the work; docs/site/conf.py is its configuration.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .common import ROOT, CommandError, notebooks_folder, say
from .course import lessons
from .slides import copy, libraries, missing

OWN = ROOT / "docs" / "site"  # what only the site has
FIRST = ["notebooks/*.ipynb", "notebooks/*.md", "docs/*.md", "docs/site/*.md", "README*.md"]  # and what they link to
ALONE = ["docs/site/slicing.html", "docs/cheatsheet.html"]  # pages that also work outside of the site
CODE = {".py": "python", ".js": "javascript", ".yml": "yaml", ".cff": "yaml", ".toml": "toml", "": "text"}
LIVE = "panels.AttentionByHover()"  # no Python answers in it: all its maps are in the page, and style rules choose
MARK = ".nojekyll"  # GitHub Pages needs this file, and we know an earlier site by it
# Code, in which nothing is a link; or the target of a link, and the place in it.
LINK = re.compile(r"```.*?```|`[^`\n]*`|\]\(([^)#\s]+)(#[^)\s]*)?\)", re.DOTALL)


def options(parser):
    parser.add_argument("folder", metavar="FOLDER", help="a new folder, or one with an earlier site")


def run(args):
    notebooks_folder()
    folder = checked(args.folder)
    needed()
    with tempfile.TemporaryDirectory(prefix="minicpmv-ref-") as work:
        source, html = Path(work, "source"), Path(work, "html")
        try:
            pages = collect(source)
            say(f"{len(pages)} pages and files; building, which takes a minute ...")
            build(source, html)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(html, folder)
        except (OSError, ValueError) as error:
            raise CommandError(f"the site could not be written: {error}") from error
    say(folder / "index.html")


def needed():
    for package in ("myst_nb", "furo"):
        if importlib.util.find_spec(package) is None:
            raise CommandError(missing(package))


def checked(name):
    """The folder to write, which must hold nothing that would be lost."""
    try:
        folder = Path(name).resolve()
        if folder.exists() and not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise CommandError(f"{folder} is neither empty nor a site: choose a new folder")
    except (OSError, ValueError) as error:
        raise CommandError(f"{name!r:.200} is no folder that can be written: {error}") from error
    return folder


def build(source, html):
    """Pages from what `collect` wrote; a mistake in them, such as a link that leads nowhere, is an error."""
    copy(OWN / "conf.py", source / "conf.py")
    copy(OWN / "site.css", source / "_static" / "site.css")
    copy(libraries()[1], source / "_static" / "tex-svg.js")
    for page in ALONE:
        copy(ROOT / page, source / "_extra" / Path(page).name)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "auto", "-d", str(source / "_cache")]
    if subprocess.run([*command, str(source), str(html)], cwd=ROOT).returncode:
        raise CommandError("Sphinx found the mistakes above")
    (html / MARK).touch()


# ---- what Sphinx reads


def collect(source):
    """Write it; returns all paths of the repository that are in it."""
    todo, done = [path for pattern in FIRST for path in sorted(ROOT.glob(pattern))], set()
    while todo:
        path = todo.pop()
        if path not in done:
            done.add(path)
            target = source / page_of(path).relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            todo += write(path, target)
    return done


def page_of(path):
    """Where a path of the repository stands in the site."""
    if path.parent == OWN and path.suffix == ".md":
        return ROOT / path.name
    if path.is_dir():
        return path / ("README.md" if (path / "README.md").is_file() else "files.md")
    return path.with_name(path.name + ".md") if path.suffix in CODE else path


def write(path, target):
    """Write one page or file; returns what it links to."""
    linked = []
    if path.is_dir():
        if target.name == "README.md":
            return [path / "README.md"]
        names = sorted(entry.name for entry in path.iterdir() if entry.name[0] not in "._" or entry.suffix == ".py")
        rows = "\n".join(f"- [`{name}`]({name})" for name in names)
        text = f"# {path.relative_to(ROOT).as_posix()}\n\n{rows}\n"
        text = links_in(text, path / "here", linked)
    elif path.suffix == ".ipynb":
        text = lesson(path, linked)
    elif path.suffix == ".md":
        text = links_in(path.read_text(encoding="utf-8"), path, linked)
        text = text.replace("<!-- map -->", the_map() if "<!-- map -->" in text else "")
    elif path.suffix in CODE:
        title = path.relative_to(ROOT).as_posix()
        text = f"# {title}\n\n~~~~~~{CODE[path.suffix]}\n{path.read_text(encoding='utf-8')}\n~~~~~~\n"
    else:
        shutil.copyfile(path, target)
        return []
    target.write_text(text, encoding="utf-8")
    return linked


def links_in(text, path, linked):
    """The text with each link to where its target stands in the site; the targets are added to `linked`."""

    def moved(match):
        name, place = match[1], match[2] or ""
        if not name or re.match(r"[a-z]+:", name):
            return match[0]
        target = Path(os.path.normpath(path.parent / name))
        if not target.exists():
            raise CommandError(f"{path.relative_to(ROOT)} links to {name}, which does not exist")
        linked.append(target)
        name = os.path.relpath(page_of(target), page_of(path).parent).replace(os.sep, "/")
        return f"]({name}{place})"

    return LINK.sub(moved, text)


def lesson(path, linked):
    """A notebook's JSON, with the panel that is alive in a page in place of its picture."""
    import nbformat
    from nbformat.v4 import new_output

    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = links_in(cell.source, path, linked)
        elif cell.source == LIVE:
            from ..course import panels

            panel = panels.AttentionByHover()
            html = f"{panel.picture_box.value}<p>{panel.status}</p>"
            cell.outputs = [new_output("display_data", {"text/html": html, "text/plain": LIVE})]
    return nbformat.writes(notebook)


def the_map():
    """The drawing of the whole model; each part leads to its lesson."""
    from ..course import draw

    canvas, files = draw.whole_model(), lessons(ROOT / "notebooks")
    parts = [
        f'<a href="notebooks/{files[canvas.facts["lessons"][part]].stem}.html">'
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="transparent"/></a>'
        for part, (x, y, w, h) in canvas.facts["boxes"].items()
    ]
    return f'<div class="map">{canvas.svg().replace("</svg>", "".join(parts) + "</svg>")}</div>'
