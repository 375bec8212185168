"""Sets up minicpmv-ref and starts it: `python3 lab.py` opens the course, `python3 lab.py --help` lists the rest.

This file needs nothing but Python. It makes `.venv` beside itself, installs the pinned packages once, and
hands your words to `python -m minicpmv_ref`. To start from scratch, delete `.venv`. Without internet, it installs from
a folder that `python3 lab.py bundle FOLDER` wrote: from the one that it lies in, or `python3 lab.py --bundle FOLDER`.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (people do run this file with an older Python)
    sys.exit("minicpmv-ref needs Python 3.11 or newer, and this is {}.{}.".format(*sys.version_info[:2]))

import errno
import hashlib
import importlib.util
import os
import platform
import queue
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
REQUIREMENTS, CONSTRAINTS = ROOT / "requirements.txt", ROOT / "constraints.txt"

# The stamp says "unfinished" while an installation runs, and holds `stamp_key()` once it succeeded. What was
# interrupted is therefore noticed, and an environment that you made yourself (no stamp) is not thrown away.
STAMP = VENV / "minicpmv-ref.stamp"
UNFINISHED = "unfinished"

NETWORK = (
    "Check the network or set HTTPS_PROXY. Without internet: `python3 lab.py --bundle FOLDER`, from a teacher's stick."
)
ADVICE = [  # (what pip's output contains, what to do about it); the first match wins
    ("no space left", "The disk is full. The packages need about 2 GB (several GB with CUDA)."),
    ("winerror 206", "A file name got too long for Windows. Move this folder to a shorter path."),
    ("--no-index", "This bundle was made for another version of the course. Use the lab.py inside of it."),
    ("permission denied", "A file could not be written. Check who owns this folder."),
    ("requires-python", f"A package refuses this Python {platform.python_version()}. Try a newer one, up to 3.14."),
    ("connection", f"The package index could not be reached. {NETWORK}"),
    ("timed out", f"The package index did not answer. {NETWORK}"),
    ("proxy", "The proxy refused. Check HTTPS_PROXY."),
    ("certificate", "A certificate was refused. Behind a company proxy, set PIP_CERT to its certificate file."),
    ("no matching distribution", "A package has no version for this Python or system, or the network is down."),
]
GENERAL_ADVICE = "Check the network (HTTPS_PROXY behind a proxy), 2 GB of free disk space, and Python 3.11 to 3.14."


class SetupError(Exception):
    """The environment could not be made; the message says what to do."""


def main(argv):
    with suppress(AttributeError):  # not every terminal or file knows every character of a folder's name
        sys.stdout.reconfigure(errors="replace")
    try:
        # Help must not cost an installation. Whatever follows `--` belongs to another program.
        bundle, argv = find_bundle(argv)
        own_words = argv[: argv.index("--")] if "--" in argv else argv
        if "-h" in own_words or "--help" in own_words:
            return hand_over(sys.executable, argv)
        return hand_over(ready_python(bundle), argv)
    except SetupError as error:
        print(f"\nlab.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again: it continues safely.", file=sys.stderr)
        return 130


def hand_over(python, argv):
    """Run the package's command in the folder where you are, and return its exit code."""
    # -P keeps that folder out of the import path: a file there called `random.py` must not win.
    search = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search)), "MINICPMV_REF_LAB": "1"}
    # Ctrl-C reaches the command as well, and the command decides what it means: here it does nothing.
    handlers = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None)}
    try:
        process = subprocess.Popen([str(python), "-P", "-m", "minicpmv_ref", *argv], env=env)
        handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code  # killed by signal n: the shell's 128 + n


# ---- the environment


def ready_python(bundle=None):
    """Path of the environment's Python, after installing what is missing, from a bundle's folder if there is one."""
    python = venv_python()
    if read_stamp() == stamp_key() and python.exists():
        return python
    with only_one():
        stamp = read_stamp()  # again: somebody else may just have installed everything
        if stamp == stamp_key() and python.exists():
            return python
        owned = VENV if VENV.exists() else ROOT
        if not os.access(owned, os.W_OK):
            raise SetupError(
                f"you may not write in {owned}, and its packages are incomplete, old, or for another Python than "
                f"this {python_version()}.\nWho installed the course can run `python3 lab.py check` there; or copy "
                "its folder, without .venv, to a place of your own, and start it there."
            )
        if bundle:
            check_bundle(bundle)
        if stamp == UNFINISHED or not usable(python):
            make_venv()
        STAMP.write_text(UNFINISHED, encoding="utf-8")
        install(python, bundle)
        temporary = STAMP.with_suffix(".part")
        temporary.write_text(stamp_key(), encoding="utf-8")
        temporary.replace(STAMP)
    return python


def read_stamp():
    try:
        return STAMP.read_text(encoding="utf-8").strip()
    except OSError:  # there is none, or an environment is just being removed
        return None


@contextmanager
def only_one():
    """Let one lab.py install at a time. The lock is on a file that is always there, and ends with its process."""
    with open(REQUIREMENTS, "rb") as file:
        waiting = False
        while taken(file):
            if not waiting:
                print("Another lab.py is installing the packages here. Waiting for it ...", flush=True)
            waiting = True
            time.sleep(0.5)
        yield


def taken(file):
    """Try to lock a file that is open; True if somebody else has locked it."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(2**30)  # far behind its end: Windows lets nobody read what is locked
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # others: a file system without locks
        return error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return False


def stamp_key():
    """Changes when the pinned packages or the Python version change."""
    digest = hashlib.sha256()
    for part in (REQUIREMENTS.read_bytes(), CONSTRAINTS.read_bytes(), python_version().encode()):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def python_version():
    return "{}.{}".format(*sys.version_info[:2])


def venv_python():
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def usable(python):
    """Does this environment run, with pip, on the Python version that runs lab.py?"""
    if not python.exists():
        return False
    code = "import sys, pip; print('{}.{}'.format(*sys.version_info[:2]))"
    result = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True)
    return result.returncode == 0 and result.stdout.strip() == python_version()


def make_venv():
    if Path(sys.prefix).resolve() == VENV.resolve():
        raise SetupError("the environment needs repair, and you run it. Type `deactivate`, then try again.")
    if importlib.util.find_spec("ensurepip") is None:
        package = f"python{python_version()}-venv"
        raise SetupError(
            f"this Python cannot make environments: it has no `ensurepip`.\n"
            f"On Debian and Ubuntu: sudo apt install {package} (or python3-venv). Then try again."
        )
    print(f"Making {VENV} ...", flush=True)
    try:
        if VENV.exists():
            shutil.rmtree(VENV)
        VENV.mkdir()
        STAMP.write_text(UNFINISHED, encoding="utf-8")
    except OSError as error:
        raise SetupError(f"cannot replace {VENV}: {error}\nClose what uses it, or delete it by hand.") from error
    result = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if result.returncode:
        raise SetupError(f"`python -m venv` failed:\n{(result.stdout + result.stderr).strip()}\n{GENERAL_ADVICE}")


def install(python, bundle=None):
    print("Installing the packages. This happens once and takes a few minutes.", flush=True)
    # -I: pip must not see packages of the surrounding shell through PYTHONPATH.
    command = [str(python), "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += ["--requirement", str(REQUIREMENTS), "--constraint", str(CONSTRAINTS)]
    if bundle:
        command += ["--no-index", "--find-links", str(bundle / "wheels")]
    code, lines = run_calmly(command)
    if code:
        text = "\n".join(lines).lower()
        advice = next((advice for sign, advice in ADVICE if sign in text), GENERAL_ADVICE)
        raise SetupError(
            "the installation failed. pip said:\n\n"
            + "\n".join(f"    {line}" for line in lines[-12:])
            + f"\n\n{advice}\nThen run the same command again."
        )


# ---- without internet


def find_bundle(argv):
    """(the folder to install from or None, the other words). `--bundle FOLDER` comes before all other words."""
    first = argv[0] if argv else ""
    if first == "--bundle" and len(argv) == 1:
        raise SetupError("--bundle needs the folder that `python3 lab.py bundle FOLDER` wrote.")
    if first == "--bundle" or first.startswith("--bundle="):
        folder = Path(first[9:] if "=" in first else argv[1]).resolve()
        if not (folder / "wheels" / "systems.txt").is_file():
            raise SetupError(f"{folder} is no bundle: it has no file wheels/systems.txt.")
        return folder, argv[1 if "=" in first else 2 :]
    return (ROOT if (ROOT / "wheels" / "systems.txt").is_file() else None), argv


def check_bundle(bundle):
    """Refuse a bundle for other systems, and one that was damaged on its way."""
    names = {("Linux", "x86_64"): "linux", ("Windows", "AMD64"): "windows", ("Darwin", "arm64"): "macos"}
    here = platform.system(), platform.machine()
    here = f"{names.get(here, ' '.join(here))} {python_version()}"
    fits = (bundle / "wheels" / "systems.txt").read_text(encoding="utf-8").splitlines()
    if here not in fits:
        raise SetupError(
            f"this bundle is for {', '.join(fits)}, and this is {here}.\nAsk for one, or install from the net."
        )
    print("Checking the packages of the bundle ...", flush=True)
    for line in (bundle / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        checksum, name = line.split("  ", 1)
        if name.startswith("wheels/"):
            try:
                found = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
            except OSError:
                found = None
            if found != checksum:
                raise SetupError(f"{bundle / name} is missing or damaged. Copy the bundle again.")


def run_calmly(command):
    """Run pip and show one short, moving line. Returns (exit code, all output lines)."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "PIP_PROGRESS_BAR": "off"}
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )
    arrived = queue.Queue()

    def read():  # a thread, because Windows cannot wait for a pipe with a time limit
        with process.stdout:
            for line in process.stdout:
                arrived.put(line.rstrip())
        arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    lines, state, start, shown = [], "starting pip", time.monotonic(), -99.0
    moving = sys.stdout.isatty()
    try:
        while True:
            try:
                line = arrived.get(timeout=1)
                if line is None:
                    break
                lines.append(line)
                state = short(line, lines) or state
            except queue.Empty:
                pass  # nothing new for a second: show that time passes
            seconds = time.monotonic() - start
            if seconds - shown >= (0.2 if moving else 10):
                text = f"  {seconds:4.0f} s  {state}"
                print(f"\r{text[:78]:<78}" if moving else text, end="" if moving else "\n", flush=True)
                shown = seconds
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        if moving:
            print()
    if code == 0:
        print(f"  {time.monotonic() - start:4.0f} s  installed", flush=True)
    return code, lines


def short(line, lines):
    """A few words for one line of pip's output, or None if it says nothing new."""
    words = line.split()
    if words[:1] == ["Collecting"]:
        return f"looking up package {sum(each.startswith('Collecting ') for each in lines)}: {words[1]}"
    if words[:1] == ["Downloading"]:
        return f"downloading {words[1].rsplit('/', 1)[-1]} {' '.join(words[2:])}"
    if line.startswith("Installing collected packages"):
        return f"unpacking {line.count(',') + 1} packages (about a minute)"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
