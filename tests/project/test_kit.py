"""The workshop kit: the check of a machine, and the bundle for a room without internet (of three tiny wheels)."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from places import ROOT

from minicpmv_ref.__main__ import main
from minicpmv_ref.commands import bundle, check, common

# ---- check


def test_this_machine_is_ready(capsys):
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    parts = dict(line.split(maxsplit=2)[1:] for line in lines if line.startswith(("ok ", "note ")))
    assert list(parts) == "python cores memory disk files packages browser port llama.cpp nano lesson".split()
    assert "'green'" in parts["nano"] and parts["lesson"].startswith("2 cells of 00_one_picture.ipynb ran")
    assert lines[-1] == "Ready. `python3 lab.py` opens the course; in Chinese: `python3 lab.py --language zh`."


def memory_of(monkeypatch, total, available):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=total, available=available))
    monkeypatch.setattr("minicpmv_ref.inputs.memory.SYSTEM", Path("/nowhere"))  # these tests may run in a container


def small_memory(monkeypatch):
    memory_of(monkeypatch, 2e9, 1e9)


def full_memory(monkeypatch):
    memory_of(monkeypatch, 8e9, 1e9)


def full_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2e8))


def no_browser(monkeypatch):
    monkeypatch.setattr("webbrowser.get", lambda: (_ for _ in ()).throw(check.webbrowser.Error("none")))


def wrong_answer(monkeypatch):
    monkeypatch.setattr("minicpmv_ref.model.MiniCPMV.chat", lambda *args: "blue")


def intel_mac(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.parametrize(
    ("part", "broken", "said"),
    [
        ("memory", small_memory, "PROBLEM  memory     2.0 GB, and the course needs 4 GB."),
        ("memory", full_memory, "note     memory     8.0 GB, 1.0 GB of them free: close other programs"),
        ("disk", full_disk, "PROBLEM  disk       0.2 GB free where the course is."),
        ("browser", no_browser, "note     browser    none was found. Copy the address"),
        ("nano", wrong_answer, "was answered with 'blue' instead of 'green'"),
        ("python", intel_mac, "PROBLEM  python     PyTorch has no version for Macs with an Intel processor."),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(part, broken, said, monkeypatch, capsys):
    for name in "python cores memory disk files packages browser port llama_cpp nano lesson".split():
        if name != part:
            stand_in = lambda: "fine"  # noqa: E731
            stand_in.__name__ = name
            monkeypatch.setattr(check, name, stand_in)
    broken(monkeypatch)
    code = main(["check"])
    out = capsys.readouterr().out
    assert said in out
    assert code == ("note " not in out), "a note is no problem"
    assert (f"Not ready yet: {part}" in out) == bool(code)


def test_other_versions_are_named(tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("# pins\neinops==0.0.1\nnosuchthing==2.0\n")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    with pytest.raises(common.CommandError, match=r"einops \S+ instead of 0.0.1, nosuchthing missing instead of 2.0"):
        check.packages()


# ---- bundle


def wheel(folder: Path, name: str, needs: str = "") -> Path:
    """A wheel of one empty module."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + (f"Requires-Dist: {needs}\n" if needs else "")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(scope="module")
def stick(tmp_path_factory):
    """A bundle of a small repository, for two systems, written with no index within reach."""
    root, wheelhouse = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("wheelhouse")
    wheel(wheelhouse, "mcv_one", needs="mcv_two")
    for name in ("mcv_two", "mcv_win"):
        wheel(wheelhouse, name)
    (root / "minicpmv_ref").mkdir()
    (root / "minicpmv_ref" / "__main__.py").write_text("import sys, mcv_one, mcv_two\nprint('runs', sys.argv[1:])\n")
    shutil.copy(ROOT / "lab.py", root)
    (root / ".venv").mkdir()
    (root / ".venv" / "large").touch()
    (root / "requirements.txt").write_text("mcv_one==1.0\n")
    marked = 'mcv_two==1.0\nmcv_win==1.0; sys_platform == "win32"\nllama_cpp_python==9.9\n'
    (root / "constraints.txt").write_text("# pins\nmcv_one==1.0\n" + marked)
    target = tmp_path_factory.mktemp("stick") / "my course"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "ROOT", root)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(wheelhouse))
        patch.setattr(bundle, "this_system", lambda: "linux")
        assert main(["bundle", str(target), "--platform", "linux", "windows"]) == 0
    return target


HERE = "{}.{}".format(*sys.version_info[:2])


def test_a_bundle_is_complete(stick):
    files = {path.relative_to(stick).as_posix() for path in stick.rglob("*") if path.is_file()}
    wheels = {f"wheels/{name}-1.0-py3-none-any.whl" for name in ("mcv_one", "mcv_two", "mcv_win")}
    own = {"lab.py", "requirements.txt", "constraints.txt", "minicpmv_ref/__main__.py"}
    assert files == own | wheels | {"wheels/systems.txt", "START.txt", "SHA256SUMS"}
    assert (stick / "wheels" / "systems.txt").read_text().splitlines() == [f"linux {HERE}", f"windows {HERE}"]
    lines = dict(line.split("  ")[::-1] for line in (stick / "SHA256SUMS").read_text().splitlines())
    assert lines.keys() == files - {"SHA256SUMS"}
    assert all(hashlib.sha256((stick / name).read_bytes()).hexdigest() == checksum for name, checksum in lines.items())


def lab_of(folder: Path):
    spec = importlib.util.spec_from_file_location("lab_of_a_bundle", folder / "lab.py")
    lab = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lab)
    lab.platform = SimpleNamespace(system=lambda: "Linux", machine=lambda: "x86_64", python_version=lambda: "3")
    return lab


def test_lab_installs_from_the_bundle_that_it_lies_in(stick, tmp_path, capfd, monkeypatch):
    """With no index: what is missing in the bundle could come from nowhere."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name in ("PIP_FIND_LINKS", "PYTHONPATH", "MINICPMV_REF_LAB"):  # the tests themselves may run under lab.py
        monkeypatch.delenv(name, raising=False)
    copied = shutil.copytree(stick, tmp_path / "copied")
    lab = lab_of(copied)

    def quick_venv():  # with the pip that runs here; test_lab.py makes a whole one
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(lab.VENV)], check=True)
        site = next(lab.VENV.glob("**/site-packages"))
        (site / "pip.pth").write_text(str(Path(importlib.util.find_spec("pip").origin).parents[1]))

    monkeypatch.setattr(lab, "make_venv", quick_venv)
    assert lab.main(["hello"]) == 0
    assert "runs ['hello']" in capfd.readouterr().out
    broken = copied / "wheels" / "mcv_two-1.0-py3-none-any.whl"
    broken.write_bytes(broken.read_bytes()[:-1])
    lab.STAMP.unlink()
    assert lab.main(["hello"]) == 1
    assert f"{broken} is missing or damaged. Copy the bundle again." in capfd.readouterr().err


def test_lab_takes_a_bundle_from_elsewhere(stick, capsys, monkeypatch):
    lab = lab_of(ROOT)
    assert lab.find_bundle(["--bundle", str(stick), "ask", "x"]) == (stick, ["ask", "x"])
    assert lab.find_bundle([f"--bundle={stick}"]) == (stick, [])
    assert lab.find_bundle(["test", "--", "--bundle"]) == (None, ["test", "--", "--bundle"])
    lab.check_bundle(stick)
    lab.python_version = lambda: "3.99"
    with pytest.raises(lab.SetupError, match=f"for linux {HERE}, windows {HERE}, and this is linux 3.99"):
        lab.check_bundle(stick)
    for words, said in ((["--bundle"], "needs the folder"), (["--bundle", str(stick / "wheels")], "is no bundle")):
        assert lab.main(words) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([str(ROOT / "new")], "is inside the repository"),
        ([str(ROOT.parent)], "is not an empty folder"),
        (["OUT", "--python", "3.9"], "--python must be 3.11 or newer"),
        (["OUT", "--platform", "linux", "--python", "3.19"], "--torch-index is needed"),
    ],
)
def test_what_cannot_be_bundled(words, said, tmp_path, capsys):
    assert main(["bundle", *[str(tmp_path / "out") if word == "OUT" else word for word in words]]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_stick_itself_is_no_new_folder(tmp_path, monkeypatch, capsys):
    """It could not be renamed at the end, after everything was downloaded."""
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    assert main(["bundle", str(tmp_path)]) == 1
    assert f"choose a new folder on it, such as {tmp_path / 'course'}" in capsys.readouterr().err


def test_what_is_gone_or_changed_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("2")
    monkeypatch.setattr(common, "ROOT", tmp_path)
    with pytest.raises(check.Note, match="nothing is known"):
        check.files()
    (tmp_path / "SHA256SUMS").write_text(bundle.checksums(tmp_path))
    assert check.files() == "all are as they came"
    (tmp_path / "a.py").write_text("3")
    with pytest.raises(check.Note, match=r"not as they came: a\.py\. If that was not your wish"):
        check.files()
    (tmp_path / "b.py").unlink()
    with pytest.raises(common.CommandError, match=r"missing: b\.py\.\n`git checkout FILE` restores it"):
        check.files()


def test_much_is_asked_for_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bundle, "look_up", lambda *_: {"https://files.invalid/torch.whl#sha256=0": ("--x",)})
    monkeypatch.setattr(bundle, "size_of", lambda address: 3 * 10**9)
    monkeypatch.setattr(bundle, "pip", lambda *_: pytest.fail("it did not wait for the answer"))
    asked = []
    for answer in ("n", ""):
        monkeypatch.setattr("builtins.input", lambda text, answer=answer: asked.append(text) or answer)
        assert main(["bundle", str(tmp_path / "out")]) == 1
        out, err = capsys.readouterr()
        assert "1 packages: 3,0" in out and "nothing was written" in err
    assert all("Download it?" in text for text in asked) and len(asked) == 2
    monkeypatch.setattr(bundle, "pip", lambda *_: None)
    assert main(["bundle", str(tmp_path / "out"), "--yes"]) == 0


def test_pip_says_what_went_wrong(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(bundle, "ROOT", tmp_path)
    (tmp_path / "requirements.txt").write_text("nosuchthing==1.0\n")
    (tmp_path / "constraints.txt").write_text("nosuchthing==1.0\n")
    assert main(["bundle", str(tmp_path.parent / "out"), "--platform", "windows"]) == 1
    assert "No matching distribution found for nosuchthing==1.0" in capsys.readouterr().err
    assert not (tmp_path.parent / "out").exists() and not (tmp_path.parent / "out.part").exists()


def test_a_size_that_no_server_tells():
    assert bundle.size_of(Path(__file__).as_uri() + "#sha256=0") == os.stat(__file__).st_size
    assert bundle.size_of("http://127.0.0.1:9/x.whl") is None


def test_every_pin_counts_on_some_system():
    names = {
        system: {line.split("==")[0] for line in bundle.pinned_for(markers, "3.11")}
        for system, (markers, _) in bundle.SYSTEMS.items()
    }
    assert {"colorama", "pywinpty"} <= names["windows"] and "appnope" in names["macos"]
    assert not {"colorama", "appnope"} & names["linux"] and "torch" in names["linux"]
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert len(set().union(*names.values())) == sum(not line.startswith("#") for line in pinned) - 1  # llama.cpp


# ---- handouts


@pytest.mark.parametrize("language", ["en", "zh"])
def test_handouts_without_solutions_and_with_all_of_them_open(language, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("minicpmv_ref.commands.handout.ROOT", tmp_path)
    read = {}
    for name in ("student", "instructor"):
        assert main(["handout", name, "--language", language]) == 0
        files = sorted((tmp_path / f"{name}_notebooks").iterdir())
        read[name] = [json.loads(file.read_text(encoding="utf-8"))["cells"] for file in files]
        assert main(["handout", name]) == 1 and "exists: move it or remove it" in capsys.readouterr().err
    lessons = [json.loads(file.read_text(encoding="utf-8"))["cells"] for file in (ROOT / "notebooks").glob("*.ipynb")]
    exercises = sum(
        "check.learner" not in text and bool(re.search(r"^check\.\w+\(", text, re.M)) for text in code(lessons)
    )
    texts = {name: "\n".join(markdown(cells)) for name, cells in read.items()}
    solutions = [len(re.findall("<summary>(?:Solution|参考答案)</summary>", texts[name])) for name in read]
    assert len(read["student"]) == len(lessons) and exercises > 50
    assert solutions[0] == 0 and solutions[1] >= exercises  # some exercises of two steps have two
    assert texts["student"].count("<details>") == texts["student"].count("</details>") > 50  # hints and answers stay
    assert "<details>" not in texts["instructor"]
    assert not any(cell.get("outputs") for cells in read["student"] for cell in cells)
    assert sum(len(cell.get("outputs", [])) for cells in read["instructor"] for cell in cells) > 200
    assert code(read["student"]) == code(read["instructor"])


def code(lessons) -> list[str]:
    return ["".join(cell["source"]) for cells in lessons for cell in cells if cell["cell_type"] == "code"]


def markdown(lessons) -> list[str]:
    return ["".join(cell["source"]) for cells in lessons for cell in cells if cell["cell_type"] == "markdown"]
