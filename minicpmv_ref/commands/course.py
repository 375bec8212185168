"""`course`: opens your copy of the notebooks in JupyterLab.

You work in copies, so that git finds its own files as they were. A copy is made once and kept, and has no outputs: you
run the cells yourself. Where you changed nothing, a newer lesson replaces the copy. With --language, the lessons that
are translated have a second copy beside the English one: 01_slicing.zh.ipynb.
"""

import hashlib
import json
import os
import secrets
import socket
import tempfile
from pathlib import Path

from ..inputs.files import replacing
from ..inputs.translated import LANGUAGES, texts, translate
from .common import (
    ROOT,
    CommandError,
    add_language,
    add_number,
    changed_files,
    kernel_environment,
    need,
    notebooks_folder,
    say,
)

COPIES = ROOT / "my_notebooks"  # beside notebooks/, so that every link and path in them stays true; git ignores it
RESTORE = "`git checkout {}` restores it; without git, copy it from where the course came from"
SERVER = {  # how kernels and browsers talk, here and under JupyterHub (docs/server/start.py)
    # Bytes of a picture that you show to a panel; tornado's own limit of 10 MB closes the connection.
    "ServerApp.tornado_settings": {"websocket_max_message_size": 2**28},
    "ServerApp.kernel_websocket_connection_class": "minicpmv_ref.commands.websocket.SendsAtOnce",
    "KernelManager.transport_encryption": "auto",  # else each kernel warns that it is not encrypted
}


def options(parser):
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    add_number(
        parser, "--port", within=(1, 65535), type=int, help="use this port (default: the first free one from 8888 on)"
    )
    add_language(parser)


def run(args):
    folder = notebooks_folder()
    first = min(folder.glob("00_*.ipynb"), default=None)
    if first is None:
        raise CommandError(f"{folder} holds no notebook whose name starts with 00_")
    need("jupyterlab", "the course")
    must_be_yours()
    port = free_port(args.port)
    for language in dict.fromkeys([LANGUAGES[0], args.language]):
        changed, damaged = renew_copies(folder, language)
        for what, names in (("Newer than your copy", changed), ("Your copy is damaged", damaged)):
            if names:
                words = f"{names[0]} --language {language}" if language != LANGUAGES[0] else names[0]
                print(
                    f"{what}: {', '.join(names)}. "
                    f"`python3 lab.py reset {words}` takes the new lesson and keeps your file beside it."
                )
    say_if_changed(lessons(folder).values())
    token = secrets.token_hex(24)
    page = f"/lab/tree/{COPIES.name}/{copy_of(first, args.language).name}"
    os.environ.update(kernel_environment())
    with tempfile.TemporaryDirectory(prefix="minicpmv-ref-") as settings:
        ask_nothing(settings)
        config = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": port,
            "ServerApp.port_retries": 0 if args.port else 50,  # others may start at the same moment
            "ServerApp.root_dir": ROOT,
            "ServerApp.open_browser": not args.no_browser,
            "ServerApp.allow_root": True,  # containers run as root; the address is this machine only
            "IdentityProvider.token": token,
            **SERVER,
            "LabApp.default_url": page,
            "LabApp.app_settings_dir": settings,
            "LabApp.extension_manager": "readonly",  # the other manager asks the package index at start
            "Application.log_level": "ERROR",
        }
        # In this process rather than a new one: the token must not appear in the list of processes.
        from jupyterlab.labapp import LabApp

        server = LabApp.initialize_server(argv=[f"--{name}={value}" for name, value in config.items()])
        url = f"http://127.0.0.1:{server.port}{page}?token={token}"
        print(f"The course is at\n    {url}\nStop it with Ctrl-C.", flush=True)
        server.start()


def ask_nothing(settings):
    """Answer, in a folder of settings, JupyterLab's question about news, which covers a corner of every notebook."""
    quiet = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
    Path(settings, "overrides.json").write_text(json.dumps(quiet), encoding="utf-8")


# ---- the copies


def must_be_yours():
    """Where the copies are, you can write: a course that somebody else installed may be read only."""
    place = COPIES if COPIES.exists() else ROOT
    if not os.access(place, os.W_OK):
        raise CommandError(
            f"you may not write in {place}, where your lessons are kept. "
            f"Copy the whole folder {ROOT} to a place of your own, and start it there."
        )


def lessons(folder):
    """{"03": path of that lesson} of a folder of notebooks."""
    found = {}
    for path in sorted(folder.glob("*_*.ipynb")):
        other = found.setdefault(path.name.partition("_")[0], path)
        if other is not path:
            raise CommandError(
                f"{other.name} and {path.name} in {folder} begin with the same number: rename one of them"
            )
    return found


def say_if_changed(originals=()):
    """Warn of lessons that are gone, and of these in which somebody worked, instead of in a copy."""
    wanted = {path.relative_to(ROOT).as_posix() for path in originals}
    for name, there in (changed_files() or {}).items():
        if name in wanted or (not there and name.startswith("notebooks/") and name.endswith(".ipynb")):
            what = "somebody saved in the lesson itself, and copies are made of it" if there else "it is missing"
            say(f"{name} is not as it came: {what}; {RESTORE.format(name)}.")


def copy_of(original, language):
    """Where you work on a lesson: beside the English copy, if it is translated."""
    translated = texts(original, language).exists()
    return COPIES / (f"{original.stem}.{language}.ipynb" if translated else original.name)


def renew_copies(folder, language):
    """Make the copies that are missing.

    Returns the lessons that have changed since you changed your copy, and those whose copy is no notebook any more.
    """
    changed, damaged = [], []
    for name, original in lessons(folder).items():
        copy = copy_of(original, language)
        if language != LANGUAGES[0] and copy.name == original.name:
            continue  # not translated yet
        fresh = without_outputs(original, language)
        if copy.exists():
            mine = read_notebook(copy)
            if mine is None:
                damaged.append(name)
                continue
            made_from = mine["metadata"].get("minicpmv_ref")
            if made_from in (None, fresh["metadata"]["minicpmv_ref"]):
                continue
            if made_from != checksum(mine):
                changed.append(name)
                continue
        write_copy(copy, fresh)
    return changed, damaged


def without_outputs(original, language):
    """The notebook as a learner first sees it, with the checksum of what it was made from."""
    notebook = translated(original, language)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    notebook["metadata"]["minicpmv_ref"] = checksum(notebook)
    return notebook


def translated(original, language):
    """The notebook with its texts in a language, where they are translated."""
    notebook = read_notebook(original)
    if notebook is None:
        name = original.relative_to(ROOT).as_posix()
        raise CommandError(f"{original} is not a notebook that can be read; {RESTORE.format(name)}")
    try:
        translate(notebook["cells"], original, language)
    except (OSError, ValueError) as error:
        raise CommandError(f"{texts(original, language)} cannot be read: {error}") from error
    return notebook


def checksum(notebook):
    """Of all sources: running a cell does not change it."""
    sources = [[cell["cell_type"], "".join(cell["source"])] for cell in notebook["cells"]]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def read_notebook(path):
    """The notebook as a dict, or None if the file holds none."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        checksum(notebook), notebook["metadata"].get("")
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return notebook


def write_copy(copy, notebook):
    """Write all or nothing: Ctrl-C leaves the old file."""
    try:
        copy.parent.mkdir(exist_ok=True)
        with replacing(copy) as (draft,):
            draft.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise CommandError(f"{copy} cannot be written: {error.strerror}") from error


# ---- the port


def free_port(wanted=None):
    """`wanted` or an error; without a wish, the first free port from 8888 on."""
    for port in [wanted] if wanted is not None else range(8888, 8988):
        try:
            with socket.socket() as probe:
                if os.name == "posix":  # a port that was just closed counts as free; on Windows it means more
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            return port
        except (OSError, OverflowError) as error:
            reason = error
    what = "no port from 8888 to 8987 is free" if wanted is None else f"port {wanted} cannot be used"
    raise CommandError(f"{what} ({reason})")
