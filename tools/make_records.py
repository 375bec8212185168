"""Draw the example of your own data: faded receipts with questions, as a JSON file and PNGs.

    python tools/make_records.py

Writes data_samples/records: train.json, test.json and images/. The test receipts are held out from every training on
the synthetic world, by their content. That world prints in dark ink; here it has faded, as on thermal paper, and nano
has never seen such a receipt. The same Pillow and matplotlib give the same bytes.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minicpmv_ref.toy.data import draw, reading  # noqa: E402
from minicpmv_ref.toy.words import LANGUAGES  # noqa: E402

INK = 0.4  # of the contrast is left
SIZES = {"train": (40, 8), "test": (12, 4)}  # receipts, questions about two of them


def receipts(split, count):
    """The first `count` lookups of the world whose picture is a receipt."""
    found, seed = [], 0
    while len(found) < count:
        sample = draw(f"records/{seed}", "lookup", split)
        seed += 1
        if sample.facts.layout == "receipt":
            found.append(sample)
    return found


def faded(image):
    return image.convert("L").point([round(255 - INK * (255 - level)) for level in range(256)])


def talk(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def one_receipt(split, number, sample):
    """Read it all, then look one number up."""
    question = sample.messages[0]["content"][1]
    turns = talk(f"<image>\n{LANGUAGES['en'].read}", reading(sample.facts), question, sample.answer)
    return {"id": f"{split}-{number:02}", "image": f"images/{split}_{number:02}.png", "conversations": turns}


def two_receipts(split, number, samples):
    """Look up a word that only one of two receipts has. None if there is no such word."""
    (a, first), (b, second) = samples
    lines = [line for line in second.facts.lines if line.word not in {line.word for line in first.facts.lines}]
    line = next(line for line in lines if line.word is not None and line.number is not None)
    question = LANGUAGES["en"].lookup.format(word=line.word)
    names = {f"<image_{i:02}>": f"images/{split}_{k:02}.png" for i, k in enumerate((a, b))}
    turns = talk(f"<image_00>\n<image_01>\n{question}", str(line.number))
    return {"id": f"{split}-two-{number:02}", "image": names, "conversations": turns}


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Draw the example records.")
    parser.add_argument("--out", type=Path, default=ROOT / "data_samples" / "records", help="folder to write to")
    out = parser.parse_args(arguments).out
    (out / "images").mkdir(parents=True, exist_ok=True)
    for split, (count, pairs) in SIZES.items():
        drawn = list(enumerate(receipts(split, count)))
        for number, sample in drawn:
            faded(sample.image).save(out / "images" / f"{split}_{number:02}.png", optimize=True)
        records = [one_receipt(split, number, sample) for number, sample in drawn]
        records += [two_receipts(split, i, (drawn[i], drawn[i + 1])) for i in range(pairs)]
        text = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
        (out / f"{split}.json").write_text(text, encoding="utf-8")
        print(f"{split}.json: {len(records)} records, {count} pictures")


if __name__ == "__main__":
    main()
