"""`check`: is this machine ready for the course? Half a minute, one line for each part, and what to do."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import webbrowser
from importlib.metadata import PackageNotFoundError, version

from ..inputs.memory import system_memory
from .common import ROOT, CommandError, changed_files, notebooks_folder
from .course import RESTORE, free_port, must_be_yours

LEAST_DISK, LEAST_MEMORY = 1.0, 4.0  # GB: what training writes; JupyterLab, a browser and the largest lesson
ANSWER = ("data_samples/images/shapes.png", "What color is the triangle?", "green")
FAULTS = (ImportError, OSError, ValueError, RuntimeError)


class Note(Exception):
    """Something is missing that the course can do without."""


def options(parser):
    pass


def run(args):
    parts = [python, cores, memory, disk, files, packages, browser, port, llama_cpp, nano, lesson]
    problems = []
    for part in parts:
        name = part.__name__.replace("_", ".")
        try:
            sign, text = "ok", part()
        except Note as note:
            sign, text = "note", str(note)
        except (CommandError, *FAULTS) as error:
            sign, text = "PROBLEM", str(error) or type(error).__name__
            problems.append(name)
        print(f"{sign:<8} {name:<10} {text}".replace("\n", "\n" + " " * 20), flush=True)
    if problems:
        print(f"\nNot ready yet: {', '.join(problems)}. Send these lines to your teacher if the advice does not help.")
        return 1
    print("\nReady. `python3 lab.py` opens the course; in Chinese: `python3 lab.py --language zh`.")


def python():
    if sys.maxsize < 2**32:
        raise CommandError("this Python has 32 bits, and PyTorch needs 64. Install the 64-bit version of Python.")
    if (platform.system(), platform.machine()) == ("Darwin", "x86_64"):
        raise CommandError("PyTorch has no version for Macs with an Intel processor. Use another machine.")
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def cores():
    count = os.cpu_count() or 1
    if count < 2:
        raise Note("1: the lessons work, but their times are meant for two cores")
    return str(count)


def memory():
    free, total = (size / 1e9 for size in system_memory())
    if total < LEAST_MEMORY:
        raise CommandError(f"{total:.1f} GB, and the course needs {LEAST_MEMORY:.0f} GB. Use another machine.")
    if free < LEAST_MEMORY / 2:
        raise Note(f"{total:.1f} GB, {free:.1f} GB of them free: close other programs before the course")
    return f"{total:.1f} GB, {free:.1f} GB of them free"


def disk():
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < LEAST_DISK:
        raise CommandError(f"{free:.1f} GB free where the course is. Make {LEAST_DISK:.0f} GB of room.")
    must_be_yours()
    with tempfile.TemporaryFile(dir=ROOT):  # an OSError says what is wrong
        return f"{free:.0f} GB free, and the folder of the course can be written"


def files():
    changed = changed_files()
    if changed is None:
        raise Note("nothing is known about how they were: no git, and no list of a bundle")
    missing = [name for name, there in changed.items() if not there]
    if missing:
        raise CommandError(f"missing: {several(missing)}.\n{RESTORE.format('FILE')}")
    if changed:
        raise Note(f"not as they came: {several(list(changed))}. If that was not your wish:\n{RESTORE.format('FILE')}")
    return "all are as they came"


def several(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def packages():
    wanted = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M))
    wrong = []
    for name, pinned in wanted.items():
        try:
            found = version(name).split("+")[0]
        except PackageNotFoundError:
            found = "missing"
        if found != pinned:
            wrong.append(f"{name} {found} instead of {pinned}")
    if wrong:
        raise CommandError(f"{', '.join(wrong)}.\nDelete the folder .venv and run `python3 lab.py check`.")
    return f"all {len(wanted)} have the pinned versions"


def browser():
    try:
        return getattr(webbrowser.get(), "name", "found")
    except webbrowser.Error:
        raise Note("none was found. Copy the address that `python3 lab.py` prints into a browser.") from None


def port():
    return f"{free_port()} is free for JupyterLab"


def llama_cpp():
    if importlib.util.find_spec("llama_cpp") is None:
        raise Note("not installed: section 6 of lesson 10 says how to get it, and goes on without")
    return f"{version('llama-cpp-python')}, for lesson 10"


def nano():
    start = time.perf_counter()
    from ..inputs.pictures import load_image
    from ..model import MiniCPMV
    from ..processor import Processor

    picture, question, right = ANSWER
    model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
    messages = [{"role": "user", "content": [load_image(ROOT / picture), question]}]
    said = model.chat(messages, processor)
    if said != right:
        raise CommandError(f"{question!r} was answered with {said!r} instead of {right!r}. Please report this.")
    return f"{question!r} {said!r}, after {time.perf_counter() - start:.1f} s with loading everything"


def lesson():
    """The first cells of the first lesson, in a kernel of its own, as JupyterLab would run them."""
    import nbformat
    from jupyter_client.manager import start_new_kernel

    from .common import kernel_environment

    path = min(notebooks_folder().glob("00_*.ipynb"), default=None)
    if path is None:
        raise CommandError("there is no notebook whose name starts with 00_")
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"][:2]
    start, environment = time.perf_counter(), {**os.environ, **kernel_environment()}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    manager, client = start_new_kernel(cwd=str(path.parent), env=environment, **quiet)
    try:
        for source in cells:
            reply = client.execute_interactive(source, timeout=60, output_hook=lambda message: None)["content"]
            if reply["status"] != "ok":
                raise CommandError(f"{path.name}: {reply['ename']}: {reply['evalue']}")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return f"{len(cells)} cells of {path.name} ran in {time.perf_counter() - start:.1f} s"
