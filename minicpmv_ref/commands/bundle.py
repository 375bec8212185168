"""`bundle`: one folder with the repository and all packages, for a room without internet. lab.py installs from it."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from ..inputs.checks import printable
from .common import ROOT, CommandError, digest, need

ASK_ABOVE = 10**9  # bytes
NO_COPY = {".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints", "runs"}
NO_COPY |= {"my_notebooks", "student_notebooks", "instructor_notebooks", "build", "wheels"}
SYSTEMS = {  # name -> (what the markers of packages ask for, tags of the wheels that it can run)
    "linux": (
        {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
        [f"manylinux_2_{minor}_x86_64" for minor in range(28, 16, -1)] + ["manylinux2014_x86_64", "linux_x86_64"],
    ),
    "windows": (
        {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
        ["win_amd64"],
    ),
    "macos": (
        {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
        ["macosx_14_0_arm64"],
    ),
}
START = """minicpmv-ref, with everything it needs. No internet is needed.

1. Copy this whole folder from the stick to your disk (about {gigabytes:.1f} GB; the installation takes 2 GB more).
2. You need Python, in one of these versions for your system: {systems}.
   (macos means 14 or newer on an Apple processor; linux and windows mean 64 bits of Intel or AMD.)
3. In this folder, type in a terminal:  python3 lab.py check      (on Windows:  py lab.py check)
   It installs from the folder `wheels`, in a minute or two, checks this machine and says what to do.
4. Then:  python3 lab.py              It opens the course.

SHA256SUMS has the checksums of all files: `sha256sum -c SHA256SUMS`. lab.py checks those of the packages by itself.
llama.cpp, which one section of lesson 10 can use, is not in here.
Installation was tested on Linux. The packages for Windows and macOS are complete, but nobody has installed them yet.
"""


def options(parser):
    parser.add_argument("folder", metavar="FOLDER", help="a new folder, for example on a USB stick")
    parser.add_argument("--platform", nargs="+", choices=SYSTEMS, help="for these systems (default: this one)")
    parser.add_argument("--python", nargs="+", metavar="3.X", help="for these Python versions (default: this one)")
    parser.add_argument(
        "--torch-index", metavar="URL", help="look for PyTorch there, too: its CPU wheels for Linux are much smaller"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask, however large it gets")


def run(args):
    need("pip", "a bundle")
    folder = new_folder(args.folder)
    targets = [(system, version) for system in args.platform or [this_system()] for version in pythons(args.python)]
    wheels = {}  # address with its checksum -> the pip options that allow this wheel here
    for system, version in targets:
        print(f"looking up the packages for {system}, Python {version} ...", flush=True)
        wheels = {**look_up(system, version, args.torch_index), **wheels}
    files = repository_files(ROOT)
    total = sum(file.stat().st_size for file in files)
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(size_of, wheels))
    total += sum(size or 0 for size in sizes)
    unknown = f", and {sizes.count(None)} packages of unknown size" if None in sizes else ""
    print(f"{len(files)} files of the course and {len(wheels)} packages: {total / 1e6:,.0f} MB{unknown}", flush=True)
    ask(total, args)

    part = folder.with_name(folder.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        (part / "wheels").mkdir(parents=True)
        for file in files:
            target = part / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        for allowed in set(wheels.values()):
            addresses = [address for address, words in wheels.items() if words == allowed]
            pip("download", "--no-deps", *allowed, "--dest", str(part / "wheels"), *addresses)
        names = [f"{system} {version}" for system, version in targets]
        (part / "wheels" / "systems.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        text = START.format(gigabytes=total / 1e9, systems=", ".join(names))
        (part / "START.txt").write_text(text, encoding="utf-8")
        (part / "SHA256SUMS").write_text(checksums(part), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except OSError as error:
        raise CommandError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{printable(str(folder))} is complete. Its START.txt says how to begin.")


# ---- what is asked for


def new_folder(name):
    try:
        folder = Path(name).resolve()
        if folder.is_relative_to(ROOT):
            raise CommandError(f"{folder} is inside the repository: choose a folder outside")
        if os.path.ismount(folder):
            raise CommandError(
                f"{folder} is a whole disk or stick: choose a new folder on it, such as {folder / 'course'}"
            )
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CommandError(f"{folder} is not an empty folder: choose a new one")
    except (OSError, ValueError) as error:
        raise CommandError(f"{name!r:.200} is no folder that can be written: {error}") from error
    return folder


def this_system():
    here = platform.system(), platform.machine()
    for name, (markers, _) in SYSTEMS.items():
        if (markers["platform_system"], markers["platform_machine"]) == here:
            return name
    raise CommandError(f"there are no wheels for {' '.join(here)}: name a system with --platform")


def pythons(versions):
    for version in versions or [this_python()]:
        if not re.fullmatch(r"3\.1[1-9]", version):
            raise CommandError(f"--python must be 3.11 or newer, as in 3.12, got {version!r:.40}")
    return versions or [this_python()]


def this_python():
    return "{}.{}".format(*sys.version_info[:2])


def ask(total, args):
    if total <= ASK_ABOVE or args.yes:
        return
    if args.torch_index is None:
        print("PyTorch for Linux with CUDA is large. --torch-index with the address of its CPU wheels makes it small.")
    try:
        answer = input(f"This is {total / 1e9:.1f} GB. Download it? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was written. With --yes you are not asked.")


# ---- pip


def look_up(system, version, torch_index):
    """{address with checksum: pip options} of the wheels for a system. pip chooses them and downloads nothing yet."""
    index = ["--extra-index-url", torch_index] if torch_index else []
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        dry = ["install", "--dry-run", "--ignore-installed", "--only-binary=:all:", "--report", str(report), *index]
        if (system, version) == (this_system(), this_python()):  # pip itself finds out what belongs to it
            allowed = ["--only-binary=:all:"]
            pip(*dry, "-r", str(ROOT / "requirements.txt"), "-c", str(ROOT / "constraints.txt"))
        else:
            markers, tags = SYSTEMS[system]
            if system == "linux" and not torch_index:
                raise CommandError("for Linux, from another system or Python, --torch-index is needed")
            allowed = ["--only-binary=:all:", "--python-version", version]
            allowed += [word for tag in tags for word in ("--platform", tag)]
            pins = Path(scratch, "pins.txt")
            pins.write_text("\n".join(pinned_for(markers, version)), encoding="utf-8")
            pip(*dry, "--no-deps", *allowed, "--target", str(Path(scratch, "nowhere")), "-r", str(pins))
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    wheels = {}
    for each in found:
        info = each["download_info"]
        checksum = info.get("archive_info", {}).get("hashes", {}).get("sha256")
        wheels[info["url"] + (f"#sha256={checksum}" if checksum else "")] = tuple(allowed)
    return wheels


def pinned_for(markers, version):
    """The lines of constraints.txt that count on another system, without their markers."""
    from packaging.requirements import Requirement

    there = {**markers, "python_version": version, "python_full_version": f"{version}.0"}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith(("#", "llama_cpp_python")):  # llama.cpp has no wheels
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(there):
            yield f"{pin.name}{pin.specifier}"


def pip(*words):
    command = [sys.executable, "-I", "-m", "pip", *words, "--quiet", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise CommandError("pip failed:\n" + "\n".join(f"    {line}" for line in lines[-8:]))


def size_of(address):
    """Bytes of a wheel that was not downloaded yet; None if the server does not say."""
    try:
        if urlsplit(address).scheme == "file":
            return os.stat(urllib.request.url2pathname(urlsplit(address).path)).st_size
        request = urllib.request.Request(address.split("#")[0], method="HEAD")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


# ---- files


def repository_files(root):
    """What git would commit; without git, all files but caches."""
    try:
        command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True)
        names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    except FileNotFoundError:
        names = []
    files = [root / name for name in names if name]
    if not files:
        folders = (path for path in root.rglob("*") if not NO_COPY & set(path.relative_to(root).parts))
        files = [path for path in folders if path.relative_to(root).as_posix() not in ("START.txt", "SHA256SUMS")]
    return sorted(path for path in files if path.is_file())


def checksums(folder):
    """One line for each file, as `sha256sum -c` reads them."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        lines.append(f"{digest(path)}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines)
