"""Turn a finished run of the stages in LATER into the checkpoint nano-many, and grade it.

    python tools/ship_many.py runs/many             weights and grades, as shipped
    python tools/ship_many.py runs/many --grade     grades only, printed

Writes data_samples/checkpoints/nano-many and data_samples/many.json: the commands, seconds, losses and grades on 200
held-out items of each kind. Weights are rounded to bfloat16 and graded after that.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minicpmv_ref import MiniCPMV, Processor  # noqa: E402
from minicpmv_ref.decoding import decode_answer, until_stop  # noqa: E402
from minicpmv_ref.deploy import llamacpp  # noqa: E402
from minicpmv_ref.deploy.gguf import export  # noqa: E402
from minicpmv_ref.inputs.published import BUNDLED  # noqa: E402
from minicpmv_ref.learn.evaluate import evaluate, share_of_words  # noqa: E402
from minicpmv_ref.learn.stages import LATER  # noqa: E402
from minicpmv_ref.toy.boxes import SIZES, iou  # noqa: E402
from minicpmv_ref.toy.clips import CLIP_TOPICS  # noqa: E402
from minicpmv_ref.toy.data import MOST_PICTURES, draw, draw_more  # noqa: E402
from minicpmv_ref.toy.many import answers_about  # noqa: E402

COMMANDS = tuple(
    f"python3 lab.py train --profile cpu --stage {stage.name} --from {before} --out runs/many"
    for before, stage in zip(("nano", *(f"runs/many/{stage.name}" for stage in LATER)), LATER)
)
COUNTS = range(1, MOST_PICTURES + 1)
FRAMES = (4, 8, 16, 32)
ONE_BOX = re.compile(r"<ref>(.+)</ref><box>(\d+) (\d+) (\d+) (\d+)</box>")
BATCH = 50  # conversations answered side by side


def items(kind: str, n: int, **options) -> list:
    return [draw_more(f"shipped/{number}", kind, "test", **options) for number in range(n)]


@torch.no_grad()
def say(
    model: MiniCPMV, processor: Processor, samples: list, ids: bool = True, only_id: int | None = None
) -> list[str]:
    """Greedy answers. `only_id` stands between the marks of the first picture's id, instead of 0."""
    said = []
    for begin in range(0, len(samples), BATCH):
        batch = processor([sample.prompt for sample in samples[begin : begin + BATCH]], use_image_id=ids)
        if only_id is not None:
            zero, digit = processor.tokenizer.convert_tokens_to_ids(["0", str(only_id)])
            first = (batch.input_ids == processor.tokenizer.convert_tokens_to_ids("<image_id>")).int().argmax(dim=1)
            rows = torch.arange(len(first))
            assert (batch.input_ids[rows, first + 1] == zero).all()
            batch.input_ids[rows, first + 1] = digit
        for row in model.generate(batch, 48).tolist():
            said.append(processor.tokenizer.decode(list(until_stop(row, batch.stop_ids))).strip())
    return said


def exact(model, processor, samples: list, **options) -> float:
    return right(say(model, processor, samples, **options), samples)


# ---- the three parts


def pictures(model, processor, n: int = 200) -> dict:
    """Shares of right answers over 1 to 8 pictures, with `<image_id>` and without."""
    grades = {}
    for topic in ("unnamed", "named"):
        asked = {count: items("many", n, count=count, topic=topic) for count in COUNTS}
        for name, ids in (("ids", True), ("no ids", False)):
            grades[f"{topic}, {name}"] = [exact(model, processor, asked[count], ids=ids) for count in COUNTS]
        if topic == "named":
            chance = [sum(map(of_a_random_picture, samples)) / n for samples in asked.values()]
            grades["named, answer of a random picture"] = [round(share, 4) for share in chance]
    for topic in ("describe", "which", "both", "all"):
        samples = items("many", n, count=3, topic=topic)
        grades[f"{topic}, 3 pictures"] = {
            name: exact(model, processor, samples, ids=ids) for name, ids in (("ids", True), ("no ids", False))
        }
    one = items("many", n, count=1, topic="unnamed")
    grades["unnamed, one picture with another id"] = [
        exact(model, processor, one, only_id=digit) for digit in range(10)
    ]
    return grades


def of_a_random_picture(sample) -> float:
    """The share of an album's pictures that give the right answer to a question about one of them."""
    unnamed = re.sub(r" in picture \d", "", question(sample))
    scenes, topics = sample.facts.scenes, ("color", "shape", "total", "exist")
    pairs = sorted({(thing.color, thing.shape) for scene in scenes for thing in scene.things})
    known = [{k: v for topic in topics for k, v in answers_about(topic, scene, pairs).items()} for scene in scenes]
    return sum(answers.get(unnamed) == sample.answer for answers in known) / len(known)


def clips(model, processor, n: int = 200) -> dict:
    """Shares of right answers for each topic over the number of frames; training shows 3 to 8."""
    return {
        topic: {str(count): exact(model, processor, items("clip", n, count=count, topic=topic)) for count in FRAMES}
        for topic in CLIP_TOPICS
    }


def boxes(model, processor, n: int = 200) -> dict:
    """How well boxes are found: the share of well-formed answers, of an IoU above .5, and the mean IoU."""
    grades, single = {}, []
    for count in (1, 2, 3):
        samples = items("box", n, count=count, topic="box")
        found = overlaps(say(model, processor, samples), samples)
        grades[f"{count} of them"] = summary(found)
        single = single or list(zip(samples, found))
    for name, radius in SIZES.items():
        grades[f"one, {name}"] = summary([o for sample, o in single if sample.facts.things[0].radius == radius])
    words = items("word box", n)
    grades["a word of a crop"] = summary(overlaps(say(model, processor, words), words))
    inside = items("box", n, count=2, topic="inside")
    return grades | {"what is in a box, of 2 shapes": exact(model, processor, inside)}


def overlaps(said: list[str], samples: list) -> list[float | None]:
    """The IoU of each answer with the true box; None where the answer is no box."""
    found = []
    for text, sample in zip(said, samples):
        said, true = (ONE_BOX.fullmatch(words) for words in (text, sample.answer))
        found.append(iou(*(tuple(map(int, match.groups()[1:])) for match in (said, true))) if said else None)
    return found


def summary(found: list[float | None]) -> dict:
    reached = [overlap or 0.0 for overlap in found]
    numbers = {
        "form": sum(overlap is not None for overlap in found) / len(found),
        "above .5": sum(overlap > 0.5 for overlap in reached) / len(found),
        "mean": sum(reached) / len(found),
    }
    return {"n": len(found)} | {name: round(number, 4) for name, number in numbers.items()}


def on_a_phone(model, processor, n: int = 200) -> dict:
    """Right answers of float32 here and of files in llama.cpp, which writes no `<image_id>`; equal: to float32."""
    if llamacpp.missing():
        return {}
    grades = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {mixture: export(model, processor, Path(folder, mixture), mixture) for mixture in ("F16", "Q4_K_M")}
        for name, (kind, options) in ON_A_PHONE.items():
            samples = items(kind, n, **options)
            said = {"float32": say(model, processor, samples, ids=False)}
            asked = [(llamacpp.prompt_text(question(s), processor, len(s.images)), s.images) for s in samples]
            for mixture, paths in files.items():
                tokens = [answer.tokens for answer in llamacpp.run(*paths, asked, 48)]
                said[mixture] = [decode_answer(row, processor.tokenizer, processor.stop_ids) for row in tokens]
            grades[name] = {way: right(texts, samples) for way, texts in said.items()}
            same = [one == other for one, other in zip(said["F16"], said["float32"])]
            grades[name]["F16 equal"] = round(sum(same) / n, 4)
    return grades


def question(sample) -> str:
    return sample.messages[0]["content"][-1]


def right(said: list[str], samples: list) -> float:
    """The share of right answers; a box is right above an IoU of .5."""
    if ONE_BOX.fullmatch(samples[0].answer):
        return summary(overlaps(said, samples))["above .5"]
    return round(sum(text == sample.answer for text, sample in zip(said, samples)) / len(samples), 4)


ON_A_PHONE = {
    "named, 2 pictures": ("many", dict(count=2, topic="named")),
    "unnamed, 4 pictures": ("many", dict(count=4, topic="unnamed")),
    "direction, 4 frames": ("clip", dict(count=4, topic="direction")),
    "box of one shape": ("box", dict(count=1, topic="box")),
}
FEW = {name: ON_A_PHONE[name] for name in ("named, 2 pictures", "direction, 4 frames", "box of one shape")}
FEW["order, 4 frames"] = "clip", dict(count=4, topic="order")


def on_the_way(run: Path, processor, n: int = 200) -> dict:
    """A few grades after each stage but the last that learned from pixels."""
    grades = {}
    for stage in LATER[:-1]:
        if stage.objective == "answer":
            model = MiniCPMV.from_pretrained(run / stage.name).bfloat16().float()
            grades[stage.name] = {name: exact(model, processor, items(k, n, **o)) for name, (k, o) in FEW.items()}
            documents = [draw(f"shipped/{number}", "read", "test") for number in range(n)]
            said, wanted = say(model, processor, documents), [document.answer for document in documents]
            grades[stage.name]["words of a document"] = round(share_of_words(said, wanted), 4)
    return grades


PARTS = {"pictures": pictures, "clips": clips, "boxes": boxes, "llama.cpp": on_a_phone}


def stages(run: Path) -> dict:
    """Seconds and losses of the stages, from the log of the run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {}
    for stage in LATER:
        own = [row for row in rows if row["stage"] == stage.name]
        last = [row for row in own if "seconds" in row and "loss" not in row][-1]
        found[stage.name] = {"seconds": round(last["seconds"])}
        found[stage.name] |= {name: round(last[name], 4) for name in ("held_out_before", "held_out_after")}
        found[stage.name]["loss"] = [[row["step"], round(row["loss"], 4)] for row in own if "loss" in row]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--grade", action="store_true", help="print the grades, write nothing")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    processor, model = Processor.from_pretrained("nano"), MiniCPMV.from_pretrained(args.run / LATER[-1].name).bfloat16()
    if not args.grade:
        model.save_pretrained(BUNDLED / "nano-many")
        for name in ("tokenizer.json", "tokenizer_config.json"):  # byte for byte
            shutil.copyfile(BUNDLED / "nano" / name, BUNDLED / "nano-many" / name)
    model = model.float()  # rounded, as from_pretrained gives it
    old = evaluate(model, processor, seed="shipped", n=200)
    grades = {"old kinds": {name: round(share, 4) for name, share in old.items()}}
    print(json.dumps(grades, indent=1), flush=True)
    for part, grade in PARTS.items():
        grades[part] = grade(model, processor)
        print(json.dumps({part: grades[part]}, indent=1), flush=True)
    if not args.grade:
        notes = {"commands": COMMANDS, "machine": "1 thread of an AMD EPYC server", "stages": stages(args.run)}
        notes["after earlier stages"] = on_the_way(args.run, processor)
        text = json.dumps(notes | {"grades": grades}, indent=1)
        (ROOT / "data_samples" / "many.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
