"""The kit for ports: right answers pass, planted mistakes are recognized by name, and two foreign programs go through.

Mistakes are planted here with arithmetic of its own, not with the functions that recognize them.
"""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from minicpmv_ref import MiniCPMV, Processor, plan_slices
from minicpmv_ref.__main__ import main
from minicpmv_ref.config import SliceConfig
from minicpmv_ref.ports.check import arrays, check, compare, read_kit
from minicpmv_ref.ports.kit import GRIDS, PER_VIEW, PICTURES, QUESTION, SIZES, STAGES, make
from minicpmv_ref.ports.mistakes import guesses, plan_mistakes, planned

VERSIONS = ("2.0", "2.5", "2.6")


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kits")
    for version in VERSIONS:
        make(folder / version, version)
    return folder


def dump(kit_folder, stage) -> dict[str, np.ndarray]:
    """The right answers of a stage, under the names that a port writes."""
    right = arrays(kit_folder / "right.safetensors")
    return {name: array for name, array in right.items() if name.startswith(stage + "/")}


def mistakes(kit_folder, theirs: dict, tmp_path) -> list[str]:
    np.savez(tmp_path / "theirs.npz", **theirs)
    (verdict,) = check(kit_folder, tmp_path / "theirs.npz")
    assert verdict.different
    return verdict.mistakes


# ---- the kit


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ending", ["npz", "safetensors", "json"])
def test_right_answers_are_equal(version, ending, kits, tmp_path, capsys):
    right, file = arrays(kits / version / "right.safetensors"), tmp_path / f"theirs.{ending}"
    right.pop("table", None)
    if ending == "npz":
        np.savez(file, **right)
    elif ending == "json":
        file.write_text(json.dumps({name: array.tolist() for name, array in right.items()}))
    else:
        save_file(right, file)
    assert main(["compare", "check", str(kits / version), str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(STAGES) + 1
    assert all(stage in line and "equal," in line for stage, line in zip(STAGES, lines))


def test_a_kit_is_small_and_quick(tmp_path):
    start = time.process_time()
    files = make(tmp_path / "kit")
    assert time.process_time() - start < 20
    assert sum(files.values()) < 5e6
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == sum(files.values())


@pytest.mark.filterwarnings("ignore:the picture is transparent:UserWarning")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_model_of_the_kit_gives_its_answers(version, kits):
    """Whoever runs the checkpoint and the pictures in the kit gets what the kit calls right."""
    folder = kits / version
    model, processor, right = (
        MiniCPMV.from_pretrained(folder),
        Processor.from_pretrained(folder),
        read_kit(folder).right,
    )
    about = json.loads((folder / "kit.json").read_text())
    for name, prompt in about["prompts"].items():
        pictures = [Image.open(folder / about["pictures"][picture]["file"]) for picture in prompt["pictures"]]
        batch = processor([{"role": "user", "content": [*pictures, prompt["question"]]}])
        assert processor.tokenizer(prompt["text"], add_special_tokens=False)["input_ids"] == batch.input_ids[0].tolist()
        assert batch.input_ids[0].tolist() == right["prompt"][name][0].tolist()
        with torch.no_grad():
            np.testing.assert_allclose(model(batch).logits[0, -1], right["logits"][name][0], atol=1e-4)
    rows = [right["prompt"][name][0].tolist() for name in about["batch"]]
    padded = processor.tokenizer.pad({"input_ids": rows}, padding_side="left")["input_ids"]
    assert padded == right["batch"]["all"][0].tolist()


def test_a_kit_of_another_model(tmp_path):
    files = make(tmp_path, model="nano")
    assert "model.safetensors" not in files
    np.savez(tmp_path / "a.npz", **dump(tmp_path, "prompt"))
    assert [verdict.different for verdict in check(tmp_path, tmp_path / "a.npz")] == [0]


# ---- mistakes


ALL = [("2.6", stage) for stage in STAGES] + [(v, s) for v in ("2.0", "2.5") for s in ("positions", "prompt")]


@pytest.mark.parametrize(("version", "stage"), ALL)
def test_every_mistake_is_told_from_every_other(version, stage, kits):
    """What each would lead to is recognized as it alone, unless it changes nothing in the kit."""
    kit, plants = read_kit(kits / version), {}
    for item, right in kit.right[stage].items():
        for name, guess in guesses(kit, stage, item, right, right):
            plants.setdefault(name, {})[item] = guess
    same = {  # what bounds cannot tell
        "the layout is that of 2.0, not of 2.6": "the layout is that of 2.5, not of 2.6",
        "the newline after the last row of slices is extra": "the layout is that of 2.0, not of 2.5",
    }
    never = []
    for name, theirs in plants.items():
        found = compare(kit, stage, kit.right[stage] | theirs)
        if stage == "bounds":
            found.mistakes = [
                each for each in found.mistakes if each == name or {(each, name), (name, each)}.isdisjoint(same.items())
            ]
        assert found.mistakes == [name] * (found.different > 0)
        never += [name] * (found.different == 0)
    assert stage in ("grid", "bounds") or len(never) <= 2, never


def test_the_rule_with_its_own_roundings_is_the_rule():
    rng = np.random.default_rng(0)
    for size in rng.integers(1, 3000, (2000, 2)).tolist():
        plan = plan_slices(tuple(size))
        assert planned(tuple(size), SliceConfig(), plan.grid) == plan
    changed = {name for size in SIZES for name, plan in plan_mistakes(size, SliceConfig()) if plan != plan_slices(size)}
    assert len(changed) == len(list(plan_mistakes((640, 480), SliceConfig())))  # each shows at one of the kit's sizes


def to_grid(score):
    """The grid of every size, cut by a score of (width, height, cols, rows)."""

    def best(width, height):
        count = min(math.ceil(width * height / 448**2), 9)
        tried = [
            (c, n // c) for n in (count - 1, count, count + 1) if 1 < n <= 9 for c in range(1, n + 1) if n % c == 0
        ]
        return min(tried, key=lambda g: abs(score(width, height, *g))) if count > 1 else (0, 0)

    return {f"grid/{w}x{h}": np.array(best(w, h)) for w, h in SIZES}


def sizes_with_c_round(folder):
    """The overview alone, of a picture whose slices are the same with both roundings."""
    made = dump(folder, "sizes")["sizes/450x465"].copy()
    tall = int(448 / math.sqrt(450 / 465))
    made[0] = [math.floor(side / 14 + 0.5) * 14 for side in (int(tall * (450 / 465)), tall)]
    return {"sizes/450x465": made}


def positions(way):
    def made(folder):
        rows = {f"positions/grid {r}x{c}/0": (r, c) for r, c in GRIDS}
        return {
            name: np.array([way(i, j, *grid) for i in range(grid[0]) for j in range(grid[1])])
            for name, grid in rows.items()
        }

    return made


def moved(stage, order):
    """The views in another order; `order` gets (cols, rows)."""

    def made(folder):
        theirs, grids = dump(folder, stage), dump(folder, "grid")
        for name in PICTURES:
            cols, rows = grids[f"grid/{name}"].tolist()
            views = [theirs[f"{stage}/{name}/{view}"] for view in range(1 + cols * rows)]
            theirs |= {f"{stage}/{name}/{n}": views[old] for n, old in enumerate(order(cols, rows))}
        return theirs

    return made


def pixels(change):
    return lambda folder: {name: change(array) for name, array in dump(folder, "pixels").items()}


def bilinear(folder):
    plan = plan_slices((31, 23), SliceConfig(56))
    image = Image.open(folder / "pictures/small.png").resize(plan.overview_size, Image.Resampling.BILINEAR)
    return {"pixels/small/0": np.asarray(image).transpose(2, 0, 1) / 127.5 - 1}


def prompts(change):
    """The prompts with their text changed, tokenized."""

    def made(folder):
        tokenizer, about = Processor.from_pretrained(folder).tokenizer, json.loads((folder / "kit.json").read_text())
        texts = {name: change(prompt["text"]) for name, prompt in about["prompts"].items()}
        return {f"prompt/{n}": np.array(tokenizer(t, add_special_tokens=False)["input_ids"]) for n, t in texts.items()}

    return made


def like_2_5(text):
    text = re.sub("<image_id>.</image_id>", "", text)
    rows = re.compile(r"(?:\n?<slice>(?:<unk>)+</slice>)+")
    inside = lambda found: found[0].replace("slice>", "image>")  # noqa: E731
    return rows.sub(lambda found: f"<slice>{inside(found)}</slice>", text)


def swapped_batch(folder):
    ids = json.loads((folder / "kit.json").read_text())["ids"]
    array = dump(folder, "batch")["batch/all"]
    rows = np.maximum.accumulate(array != ids["pad"], axis=1)
    return {"batch/all": np.where(rows, array, ids["slot"])}


def by_column(cols, rows):
    return [0, *(1 + row * cols + col for col in range(cols) for row in range(rows))]


mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
BUCKET = lambda i, n: 70 * i // n  # noqa: E731
UP = lambda x: math.floor(x + 0.5)  # noqa: E731
PLANTS = [  # (version, what a port dumps, what must be named)
    ("2.6", lambda f: {n: a[::-1] for n, a in dump(f, "grid").items()}, "columns and rows are swapped in the grid"),
    ("2.6", lambda f: to_grid(lambda w, h, c, r: math.log((w / c) / (h / r))), "another order: log((W / cols)"),
    ("2.6", lambda f: to_grid(lambda w, h, c, r: math.log(w / h) - (math.log(c) - math.log(r))), "log(W / H) - ("),
    ("2.6", lambda f: {n: a[:, ::-1] for n, a in dump(f, "sizes").items()}, "each size is (height, width)"),
    ("2.6", sizes_with_c_round, "C's round"),
    ("2.6", lambda f: {n: np.roll(a, -1, 0) for n, a in dump(f, "sizes").items()}, "the overview comes last"),
    ("2.6", positions(lambda i, j, r, c: 70 * BUCKET(i, r) + BUCKET(j, c)), "positions use exact buckets"),
    ("2.6", positions(lambda i, j, r, c: BUCKET(i, r) + 70 * BUCKET(j, c)), "position ids, which are exact"),
    ("2.6", positions(lambda i, j, r, c: min(70 * i + j, 4899)), "a fixed 70 x 70 table"),
    ("2.6", positions(lambda i, j, r, c: 70 * min(round(70 * i / r), 69) + min(round(70 * j / c), 69)), "use round"),
    ("2.6", positions(lambda i, j, r, c: 70 * min(UP(70 * i / r), 69) + min(UP(70 * j / c), 69)), "halves up"),
    ("2.6", positions(lambda i, j, r, c: 70 * (i * c + j) // (r * c)), "positions are 2.5's"),
    ("2.5", positions(lambda i, j, r, c: 70 * BUCKET(i, r) + BUCKET(j, c)), "positions use exact buckets"),
    *(("2.6", moved(stage, by_column), "column by column") for stage in ("pixels", "vit", "resampler")),
    *(("2.6", moved(s, lambda c, r: [*range(1, c * r + 1), 0]), "the overview comes last") for s in PER_VIEW),
    ("2.6", pixels(lambda a: ((a + 1) / 2 - mean) / std), "0.485, 0.456, 0.406 and standard deviation 0.229, 0.224"),
    ("2.6", pixels(lambda a: (a + 1) / 2), "mean 0.000, 0.000, 0.000 and standard deviation 1.000"),
    ("2.6", pixels(lambda a: a[::-1]), "blue, green, red"),
    ("2.6", pixels(lambda a: a.transpose(1, 2, 0)), "(height, width, 3)"),
    ("2.6", bilinear, "another resize: bilinear"),
    ("2.6", prompts(lambda t: re.sub(r"</slice>(?!\n?<slice>)", "</slice>\n", t)), "newline after the last row"),
    ("2.5", prompts(lambda t: t.replace("</image></slice>", "</image>\n</slice>")), "newline after the last row"),
    ("2.6", prompts(lambda t: t.replace("</slice>\n<slice>", "</slice><slice>")), "no newline stands between the rows"),
    ("2.6", prompts(like_2_5), "the layout is that of 2.5"),
    ("2.6", prompts(lambda t: t.replace("</image>", "<unk></image>").replace("</slice>", "<unk></slice>")), "5 slots"),
    ("2.6", prompts(lambda t: t.replace("<image_id>1", "<image_id>3")), "counts all views"),
    ("2.6", prompts(lambda t: re.sub("<image_id>.</image_id>", "", t)), "<image_id> is missing"),
    ("2.6", swapped_batch, "<unk>'s id stands in place of the pad id"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("version", "plant", "name"), PLANTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_planted_mistake_is_named(version, plant, name, kits, tmp_path):
    assert name in mistakes(kits / version, plant(kits / version), tmp_path)[0]


def test_two_mistakes_in_different_pictures_are_both_named(kits, tmp_path):
    theirs = {name: array for name, array in dump(kits / "2.6", "pixels").items() if "small" in name}
    for name in ("alpha.png", "turned.jpg"):
        with Image.open(kits / "2.6/pictures" / name) as stored:  # not turned, and laid on white
            layered = stored.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
        plan = plan_slices(image.size, SliceConfig(56))
        overview, refined = (image.resize(size, 3) for size in (plan.overview_size, plan.refined_size or (1, 1)))
        for view, cut in enumerate([overview, *(refined.crop(box) for box in plan.boxes)]):
            theirs[f"pixels/{name.split('.')[0]}/{view}"] = np.asarray(cut).transpose(2, 0, 1) / 127.5 - 1
    found = mistakes(kits / "2.6", theirs, tmp_path)
    assert sorted(name[:18] for name in found) == ["the EXIF orientati", "transparent pixels"]


def test_an_unknown_difference_is_its_index_and_both_values(kits, tmp_path, capsys):
    theirs = dump(kits / "2.6", "vit")
    right = theirs["vit/small/0"][3, 7]
    theirs["vit/small/0"] = theirs["vit/small/0"].copy()
    theirs["vit/small/0"][3, 7] += 1
    np.savez(tmp_path / "theirs.npz", **theirs)
    assert main(["compare", "check", str(kits / "2.6"), str(tmp_path / "theirs.npz")]) == 1
    out = capsys.readouterr().out
    assert f"small: view 0: the first difference is at index 3, 7: {right + 1:.6g}, should be {right:.6g}" in out
    assert "Begin with vit" in out


def test_small_differences_are_within_the_tolerance(kits, tmp_path):
    rng = np.random.default_rng(0)
    theirs = {n: a + rng.normal(0, 1e-5, a.shape) for n, a in dump(kits / "2.6", "logits").items()}
    np.savez(tmp_path / "theirs.npz", **theirs)
    (verdict,) = check(kits / "2.6", tmp_path / "theirs.npz")
    assert (verdict.equal, verdict.close, verdict.different) == (0, len(theirs), 0)
    assert "within a tolerance" in str(verdict)


# ---- bad input


BAD = {
    "unknown stage": {"grids/640x480": [2, 1]},
    "no item": {"grid/641x1": [2, 1]},
    "must be named": {"pixels/small": [[[0.0]]]},
    "numbered": {"vit/small/1": [[0.0]]},
    "has the shape": {"grid/640x480": [2, 1, 1]},
    "NaN": {"logits/text": np.full(1024, np.nan)},
    "whole numbers": {"grid/640x480": [2.5, 1]},
    "must hold numbers": {"grid/640x480": ["2", "1"]},
    "no arrays": {},
    "got 1e+300": {"grid/640x480": [1e300, 1]},
    "cannot be read": {"grid/640x480": np.array([{}], object)},  # a pickle
}


@pytest.mark.parametrize("message", BAD)
def test_bad_dumps_are_one_error(message, kits, tmp_path, capsys):
    np.savez(tmp_path / "bad.npz", **{name: np.asarray(value) for name, value in BAD[message].items()})
    assert main(["compare", "check", str(kits / "2.6"), str(tmp_path / "bad.npz")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["compare", "--help"])
    assert "make" in capsys.readouterr().out


def test_damaged_files_are_one_error(kits, tmp_path, capsys):
    np.savez(tmp_path / "whole.npz", **dump(kits / "2.6", "grid"))
    whole, rng = (tmp_path / "whole.npz").read_bytes(), np.random.default_rng(0)
    for ending in ("npz", "safetensors", "json", "bin"):
        for _ in range(5):
            data = bytearray(whole[: rng.integers(len(whole))])
            (tmp_path / f"bad.{ending}").write_bytes(bytes(data))
            assert main(["compare", "check", str(kits / "2.6"), str(tmp_path / f"bad.{ending}")]) == 1
            assert "Traceback" not in capsys.readouterr().err
    for argv in (
        ["check", str(tmp_path), "a.npz"],
        ["check", str(kits / "2.6"), "no.npz"],
        ["check", "a"],
        ["make", "a", "b"],
    ):
        assert main(["compare", *argv]) == 1
    assert main(["compare", "make", str(tmp_path)]) == 1  # it holds other files
    assert main(["compare", "make", str(tmp_path / "b"), "--version=2.0", "--model=nano"]) == 1
    assert capsys.readouterr().err.count("error: ") == 6


def test_a_kit_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(self, data):
        if self.name.startswith(".right"):
            raise OSError(28, "No space left on device")
        return len(data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        make(tmp_path / "kit")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# ---- foreign implementations


def test_grids_of_transformers(kits, tmp_path):
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    peer = MiniCPMV4_6ImageProcessorPil()
    grids = {f"grid/{w}x{h}": peer.get_sliced_grid((h, w), 9, 448) or (0, 0) for w, h in SIZES}
    assert mistakes(kits / "2.6", grids, tmp_path) == [
        "columns and rows are swapped in the grid"
    ]  # it says (rows, cols)
    np.savez(tmp_path / "a.npz", **{name: grid[::-1] for name, grid in grids.items()})
    (verdict,) = check(kits / "2.6", tmp_path / "a.npz")
    assert verdict.equal == len(SIZES)


TOKENIZE = """
import json, sys
import llama_cpp
model = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
texts = json.load(sys.stdin)
print(json.dumps({name: model.tokenize(text.encode(), add_bos=False, special=True) for name, text in texts.items()}))
"""


@pytest.mark.llamacpp
def test_llama_cpp_stage_by_stage(tmp_path):
    """A GGUF of the kit's model: prompt ids, and what llama.cpp shows of a picture that it resizes as we do."""
    pytest.importorskip("llama_cpp", reason="needs the extra: pip install minicpmv-ref[llamacpp]")
    from tiny import phone_model

    from minicpmv_ref.deploy import llamacpp
    from minicpmv_ref.deploy.gguf import export

    model, processor = phone_model()
    model.save_pretrained(tmp_path / "model"), processor.save_pretrained(tmp_path / "model")
    kit = tmp_path / "kit"
    make(kit, model=tmp_path / "model")
    about = json.loads((kit / "kit.json").read_text())
    files = export(model, processor, tmp_path, "F32")
    texts = {f"prompt/{name}": prompt["text"] for name, prompt in about["prompts"].items()}
    run = [sys.executable, "-c", TOKENIZE, str(files[0])]  # a process of its own, because llama.cpp may end it
    answer = subprocess.run(run, input=json.dumps(texts), capture_output=True, text=True, check=True).stdout
    with Image.open(kit / about["pictures"]["square"]["file"]) as square:
        asked = [llamacpp.prompt_text(QUESTION, processor, images=number) for number in range(2)]
        text, seen = llamacpp.run(*files, list(zip(asked, (None, square))), max_new_tokens=1)
    theirs = {name: np.array(ids) for name, ids in json.loads(answer).items()}
    theirs |= {"logits/text": text.logits, "logits/square": seen.logits, "resampler/square/0": seen.visual[0]}
    np.savez(tmp_path / "theirs.npz", **theirs)
    ids, visual, logits = check(kit, tmp_path / "theirs.npz")
    assert (ids.equal, ids.different, visual.different) == (len(texts), 0, 0)
    assert logits.different == 1  # it writes no <image_id>
    assert "square" in str(logits)
