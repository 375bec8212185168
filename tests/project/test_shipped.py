"""The checkpoints of the course: they load, hold only what their stage changed, and still earn their grades."""

import json

import pytest
import torch
from safetensors import safe_open

from minicpmv_ref import MiniCPMV, Processor
from minicpmv_ref.inputs.boxes import parse_boxes
from minicpmv_ref.inputs.published import BUNDLED
from minicpmv_ref.learn.evaluate import answers, share_of_words
from minicpmv_ref.learn.stages import LATER, STAGES, stage_named
from minicpmv_ref.scale.run import DATA_VERSION
from minicpmv_ref.toy.boxes import iou
from minicpmv_ref.toy.data import TOPICS, draw, draw_more

METRICS = json.loads((BUNDLED / "metrics.json").read_text(encoding="utf-8"))
PARTIAL = {"nano-stage-1": "stage-1", "nano-stage-2": "stage-2", "nano-stage-3": "stage-3"}


@pytest.fixture(scope="module")
def nano_answers():
    model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
    return lambda samples, **options: answers(model, processor, [s.prompt for s in samples], **options)


def test_the_metrics_say_how_the_weights_were_made():
    assert METRICS["command"].startswith("python3 lab.py train --profile")
    assert METRICS["data_version"] == DATA_VERSION
    assert list(METRICS["stages"]) == [stage.name for stage in STAGES]


@pytest.mark.parametrize("folder", PARTIAL)
def test_a_stage_holds_only_what_it_trained(folder):
    with safe_open(BUNDLED / folder / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert {name.split(".")[0] for name in names} == set(stage_named(PARTIAL[folder]).learning_rates)
    whole = MiniCPMV.from_pretrained(folder)
    assert all(p.dtype == torch.float32 for p in whole.parameters())


def test_all_weights_together_are_small():
    assert sum(file.stat().st_size for file in BUNDLED.rglob("*.safetensors")) < 40e6


def exact(samples, said):
    return sum(text == sample.answer for text, sample in zip(said, samples)) / len(samples)


def near(share, recorded, n):
    """Within three standard errors of the recorded share: other items, another machine."""
    spread = 3 * (max(recorded * (1 - recorded), 0.01) / n) ** 0.5
    return abs(share - recorded) <= spread


def test_nano_many_still_finds_a_picture_a_way_and_a_box():
    grades = json.loads((BUNDLED.parent / "many.json").read_text(encoding="utf-8"))["grades"]
    model, processor = MiniCPMV.from_pretrained("nano-many"), Processor.from_pretrained("nano-many")
    asked = {
        "many": (dict(count=2, topic="named"), grades["pictures"]["named, ids"][1]),
        "clip": (dict(count=4, topic="order"), grades["clips"]["order"]["4"]),
        "box": (dict(count=1, topic="box"), grades["boxes"]["1 of them"]["above .5"]),
    }
    for kind, (options, recorded) in asked.items():
        samples = [draw_more(f"again/{i}", kind, "test", **options) for i in range(60)]
        said = answers(model, processor, [sample.prompt for sample in samples])
        if kind == "box":
            boxes = [parse_boxes(text, (1000, 1000)) for text in said]
            found = [iou(each[0][1], s.facts.things[0].box) > 0.5 if each else False for each, s in zip(boxes, samples)]
            assert near(sum(found) / 60, recorded, 60)
        else:
            assert near(exact(samples, said), recorded, 60), kind


def test_nano_still_describes(nano_answers):
    samples = [draw(f"again/{i}", "caption", "test") for i in range(100)]
    assert near(exact(samples, nano_answers(samples)), METRICS["grades"]["nano"]["caption"], 100)


def test_nano_still_answers(nano_answers):
    samples = [draw(f"again/{i}", "question", "test", topic=topic) for topic in TOPICS for i in range(20)]
    assert near(exact(samples, nano_answers(samples)), METRICS["grades"]["nano"]["question"], 140)


def test_nano_still_reads_in_slices_and_only_in_slices(nano_answers):
    samples = [draw(f"again/{i}", "read", "test") for i in range(40)]
    wanted = [sample.answer for sample in samples]
    grades = METRICS["grades"]["nano"]
    assert near(share_of_words(nano_answers(samples), wanted), grades["read"], 40)
    assert near(share_of_words(nano_answers(samples, max_slice_nums=1), wanted), grades["read one view"], 40)


def test_each_stage_is_better_at_its_own_job():
    stages = METRICS["stages"]
    assert all(stage["held_out_after"] < stage["held_out_before"] for stage in stages.values())


def test_the_readme_says_what_the_metrics_say():
    columns = ["caption", "question", "question blind", "crop", "read", "read one view", "read anywhere"]
    readme = (BUNDLED.parent.parent / "README.md").read_text(encoding="utf-8")
    for name, grades in METRICS["grades"].items():
        assert f"| `{name}` | " + " | ".join(f"{grades[column]:.1%}" for column in columns) + " |" in readme


def test_the_readme_says_what_the_three_seeds_say():
    readme = " ".join((BUNDLED.parent.parent / "README.md").read_text(encoding="utf-8").split())
    spread = METRICS["spread"]["grades"]
    for name, words in (("question", "for questions"), ("read", "for documents")):
        assert f"{min(spread[name]):.1%} to {max(spread[name]):.1%} {words}" in readme
    main = json.loads((BUNDLED.parent / "alignment.json").read_text(encoding="utf-8"))["runs"]["main"]
    assert len(main["seeds"]) == 3

    def figure(when, way, name):
        return main[when][way][name]["all"][0]

    greedy, sampled, recall = (
        f"from {100 * figure('before', *each):.1f} % to {100 * figure('after', *each):.1f} %"
        for each in (("greedy", "mention"), ("sampled", "mention"), ("greedy", "recall"))
    )
    assert f"false mentions fall {greedy} greedy and {sampled} sampled, recall moves {recall}" in readme
    shorter = 1 - figure("after", "greedy", "words") / figure("before", "greedy", "words")
    assert f"answers get {100 * shorter:.0f} % shorter (three seeds" in readme


def test_the_readme_says_what_the_later_stages_reached():
    readme = " ".join((BUNDLED.parent.parent / "README.md").read_text(encoding="utf-8").split())
    later = json.loads((BUNDLED.parent / "many.json").read_text(encoding="utf-8"))
    assert list(later["stages"]) == [stage.name for stage in LATER] and later["commands"][-1] in readme
    grades = later["grades"]
    named, read = grades["pictures"]["named, ids"], grades["old kinds"]["read"]
    one, four = grades["pictures"]["unnamed, ids"], {name: shares["4"] for name, shares in grades["clips"].items()}
    for words in (
        f"({min(one):.1%} of 200 new items), which way a shape moves ({four['direction']:.1%})",
        f"what comes before what ({four['order']:.1%})",
        f"in {named[1]:.1%} with two pictures and {named[3]:.1%} with four",
        f"(IoU above 0.5) in {grades['boxes']['1 of them']['above .5']:.1%}",
        f"reads {read:.1%} of a document's words where nano reads {METRICS['grades']['nano']['read']:.1%}",
        f"in {sum(stage['seconds'] for stage in later['stages'].values()) / 60:.0f} minutes on one core",
    ):
        assert words.replace("%", " %") in readme
    page = " ".join((BUNDLED / "README.md").read_text(encoding="utf-8").split())
    first, second = later["after earlier stages"].values()
    old, boxes = grades["old kinds"], grades["boxes"]
    for words in (
        f"{first['named, 2 pictures']:.1%} with two pictures after `sft-3`",
        f"{second['order, 4 frames']:.1%} after `sft-4`, little above chance, and {four['order']:.1%} at the end",
        f"went from {first['direction, 4 frames']:.1%} to {second['direction, 4 frames']:.1%} in the "
        f"{later['stages']['sft-4']['seconds'] / 60:.0f} minutes",
        f"boxes fell from {first['box of one shape']:.1%} to {second['box of one shape']:.1%}",
        f"documents from {first['words of a document']:.1%} to {second['words of a document']:.1%}",
        f"again: {boxes['1 of them']['above .5']:.1%} and {read:.1%}",
        f"large shapes reach {boxes['one, large']['above .5']:.1%}, small ones {boxes['one, small']['above .5']:.1%}",
        f"nano's {METRICS['grades']['nano']['question count']:.1%} to {old['question count']:.1%}",
    ):
        assert words.replace("%", " %") in page, words
    for name, right in grades["llama.cpp"].items():
        assert right["F16 equal"] >= 0.99 and right["Q4_K_M"] >= right["float32"] - 0.02, name
