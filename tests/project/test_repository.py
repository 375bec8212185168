"""The repository as a whole: sizes, paths, pins, and nothing in the package that runs code from a file."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from places import ROOT

MAX_FILE = 9_000_000  # bytes: nano in bfloat16 is the largest
MAX_TREE = 60_000_000
NOT_OURS = {".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"}
NOT_OURS |= {"my_notebooks", "runs", "build", "wheels"}

# Folders of somebody's machine. Written in pieces, or this file would report itself.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/-])/(?:(?:work|root)\b|(?:home|Users)/\w)" + "|file:" + "///|" + r"\b[A-Z]:\\Users\b"
)


def repository_files(root: Path) -> list[Path]:
    """The files that a commit would hold; without git, all that are not caches."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        run = subprocess.run(command, cwd=root, capture_output=True)
        names = run.stdout.decode().split("\0") if run.returncode == 0 else []
    except FileNotFoundError:
        names = []
    files = [root / name for name in names if name]
    if not files:  # no git, no repository, or a copy in a folder that another repository ignores
        files = [path for path in root.rglob("*") if not NOT_OURS & set(path.relative_to(root).parts)]
    return sorted(path for path in files if path.is_file())


def machine_paths(root: Path) -> list[str]:
    found = []
    for path in repository_files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and weights
        for number, line in enumerate(text.splitlines(), start=1):
            if match := MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(root).as_posix()}:{number}: {match.group()}")
    return found


def too_big(root: Path, max_file: int = MAX_FILE, max_tree: int = MAX_TREE) -> list[str]:
    sizes = {path: path.stat().st_size for path in repository_files(root)}
    found = [f"{path.relative_to(root).as_posix()}: {size:,} bytes" for path, size in sizes.items() if size > max_file]
    if sum(sizes.values()) > max_tree:
        found.append(f"all files: {sum(sizes.values()):,} bytes")
    return found


def unsafe_loading(source: str) -> list[str]:
    """Calls and imports that would run code found in a checkpoint."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            modules = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
            found += [f"imports {name}" for name in names if name.split(".")[0] in modules]
        if not isinstance(node, ast.Call):
            continue
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        for name in ("trust_remote_code", "allow_pickle"):
            if given.get(name, "False") != "False":
                found.append(f"{name}={given[name]}")
        if ast.unparse(node.func) == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if ast.unparse(node.func) in ("eval", "exec"):
            found.append(f"{ast.unparse(node.func)}()")
    return found


def test_no_machine_paths():
    assert machine_paths(ROOT) == []


def test_sizes():
    assert too_big(ROOT) == []


@pytest.mark.parametrize("path", sorted((ROOT / "minicpmv_ref").rglob("*.py")), ids=lambda path: path.stem)
def test_no_file_runs_code_from_a_checkpoint(path):
    assert unsafe_loading(path.read_text(encoding="utf-8")) == []


# ---- pins


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    pin = re.compile(r"([\w.-]+)==([\w.]+)(?:; sys_platform == \"\w+\")?")
    found = [pin.fullmatch(line) for line in lines]
    assert all(found), f"only exact pins in {name}, no addresses"
    return {re.sub(r"[-_.]+", "-", each[1]).lower(): each[2] for each in found}


def test_pins_agree():
    required, constraints = pins("requirements.txt"), pins("constraints.txt")
    assert required.items() <= constraints.items()
    assert not {"torchvision", "timm"} & constraints.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["course"], *extras["test"]]
    assert {re.match(r"[\w-]+", each).group() for each in wanted} == required.keys()


def test_pins_are_what_runs():
    from importlib.metadata import version

    running = {name: version(name).split("+")[0] for name in pins("requirements.txt")}
    assert running == pins("requirements.txt")


# ---- the rules can fail


@pytest.mark.parametrize(
    "text",
    [
        "/" + "work/main/x.py",
        "see '/" + "root/.cache'",
        "/" + "home/jo/notes",
        "(/" + "Users/jo)",
        "C:" + "\\Users\\jo",
        "file:" + "///x",
    ],
)
def test_a_machine_path_is_found(tmp_path, text):
    (tmp_path / "notes.md").write_text(f"first\n{text}\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff" + text.encode())
    assert [each.split(": ")[0] for each in machine_paths(tmp_path)] == ["notes.md:2"]


def test_an_address_is_not_a_machine_path(tmp_path):
    (tmp_path / "notes.md").write_text("https://example.org/home/page and ./work/x and a/root/b and square root / 2\n")
    assert machine_paths(tmp_path) == []


def test_a_big_file_is_found(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 60)
    (tmp_path / "b").write_bytes(b"x" * 50)
    assert too_big(tmp_path, max_file=50, max_tree=110) == ["a: 60 bytes"]
    assert too_big(tmp_path, max_file=60, max_tree=109) == ["all files: 110 bytes"]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "import torch\ntorch.load(p)",
        "torch.load(p, weights_only=False)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "np.load(p, allow_pickle=flag)",
        "eval(text)",
    ],
)
def test_unsafe_loading_is_found(source):
    assert len(unsafe_loading(source)) == 1


def test_safe_loading_is_not_reported():
    calls = ["model.eval()", "torch.load(p, weights_only=True)", "f(trust_remote_code=False, allow_pickle=False)"]
    assert unsafe_loading("\n".join(calls)) == []


def test_without_git_the_folder_is_walked(tmp_path, monkeypatch):
    for name in ("a.txt", "sub/b.txt", ".venv/c.txt", "sub/__pycache__/d.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("PATH", "")
    assert repository_files(tmp_path) == [tmp_path / "a.txt", tmp_path / "sub" / "b.txt"]
