"""Views of other shapes than in training: does the ViT read better with 2.0's positions or with those of 2.6?"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import chain, count

import torch

from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.positions import bucket_position_ids
from minicpmv_ref.toy.data import MARGIN, RULE, Document, Line, Sample, draw_document, is_held_out, measure, reading

from ._arms import checkpoint, figures, gains, in_words, nats, processor_of, right, verdict
from ._frame import Claim, Finding

CLAIM = Claim(
    title="Interpolated positions fit views of any shape",
    place="Section 3.2, slice encoding: the table of positions is interpolated to the slice's shape. 2.6 looks up the "
    "nearest cell of a finer table instead.",
    says="What the ViT learned about positions in one shape serves it in every other.",
    done="The shipped model learned to read in views of 8 x 8 patches, with 2.6's buckets. It reads numbers in views "
    "of other shapes and about the same area, and its positions come from: the whole 70 x 70 table by buckets (2.6); "
    "the 64 entries that training used, as a table of 8 x 8, by buckets; the same table, interpolated (2.0). At 8 x 8 "
    "all three are the same, which is asserted. Confirmed means: over the other shapes together, interpolation has a "
    "lower loss than 2.6's lookup.",
    limits="One seed, one trained model, and no training with interpolation. Overviews of documents have other shapes, "
    "so training touched other entries of the table as well. Wide views also bend the grid that the resampler sees.",
)
SHAPES = [(8, 8), (7, 9), (6, 10), (5, 12), (4, 16), (9, 7), (10, 6), (12, 5), (16, 4)]  # rows, columns
SETTINGS = {
    "fast": {"begin": "random", "shapes": [[8, 8], [4, 16]], "n": 2, "device": "cpu"},
    "cpu": {"begin": "nano", "shapes": [list(shape) for shape in SHAPES], "n": 60, "device": "cpu"},
    "gpu": {"begin": "nano", "shapes": [list(shape) for shape in SHAPES], "n": 500, "device": "cuda"},
}
AS_2_6, FEW, AS_2_0 = "70 x 70, buckets (2.6)", "8 x 8, buckets", "8 x 8, interpolated (2.0)"
SIDE = 8  # patches of a view in training


def schemes(model: MiniCPMV) -> dict[str, MiniCPMV]:
    """The same model with each of the three ways to find a position."""
    name = "vpm.embeddings.position_embedding.weight"
    weights = model.state_dict()
    used = weights[name][bucket_position_ids(SIDE, SIDE, model.config.vision.table_side).to(weights[name].device)]
    found = {AS_2_6: model}
    for scheme, position in ((FEW, "bucket"), (AS_2_0, "interpolate")):
        vision = replace(model.config.vision, table_side=SIDE, position=position)
        found[scheme] = MiniCPMV(replace(model.config, vision=vision)).to(used).eval()
        found[scheme].load_state_dict(weights | {name: used})
    return found


def numbers(seed: int, rows: int, cols: int) -> Sample:
    """Two numbers, one below the other, where the lines of training stand: at the margin, on two of the rules."""
    for number in count():
        rng = random.Random(f"numbers {seed}/{number}")
        values = rng.sample(range(10, 100), 2)  # before the rules are drawn, so they are the same in all shapes
        rules = sorted(rng.sample(range(14 * rows // RULE), 2))
        heights = [measure(str(value), 16)[1] for value in values]
        tops = [round((rule + 0.5) * RULE - height / 2) for rule, height in zip(rules, heights)]
        lines = tuple(Line(None, value, MARGIN, top) for value, top in zip(values, tops))
        document = Document("crop", (1, 1), (14 * cols, 14 * rows), 16, lines)
        if is_held_out(document.content):
            break
    image, text = draw_document(document), reading(document)
    chat = [{"role": "user", "content": [image, "Read the text."]}, {"role": "assistant", "content": text}]
    return Sample(image, chat, "crop", "en", document.content, True, document)


def run(setting: dict, each) -> Finding:
    models = schemes(checkpoint(setting["begin"], setting["device"]))
    processor = processor_of(models[AS_2_6])

    def read(item: list) -> dict[str, list[float]]:
        scheme, (rows, cols) = item
        samples = [numbers(seed, rows, cols) for seed in range(setting["n"])]
        assert processor([samples[0].prompt]).patch_grids == [[(rows, cols)]]
        model = models[scheme]
        return {"nats": nats(model, processor, samples), "right": right(model, processor, samples)}

    shapes = [tuple(shape) for shape in setting["shapes"]]
    found = {scheme: dict(zip(shapes, each([[scheme, shape] for shape in shapes], read))) for scheme in models}
    trained = {scheme: torch.tensor(of.pop((SIDE, SIDE))["nats"]) for scheme, of in found.items()}
    for scheme in models:
        assert torch.allclose(trained[scheme], trained[AS_2_6], atol=1e-4), f"at 8 x 8, {scheme} differs from 2.6"
    arms = {
        scheme: [{grade: list(chain.from_iterable(on[grade] for on in of.values())) for grade in ("nats", "right")}]
        for scheme, of in found.items()
    }
    gained = {scheme: gains(arms, AS_2_0, scheme, "nats") for scheme in (AS_2_6, FEW)}
    rows = [["rows x columns", *(f"{grade}, {scheme}" for grade in ("nats", "right") for scheme in models)]]
    for shape in found[AS_2_6]:
        row = [f"{sum(found[s][shape][grade]) / setting['n']:.3f}" for grade in ("nats", "right") for s in models]
        rows.append(["{} x {}".format(*shape), *row])
    return Finding(
        verdict(gained[AS_2_6]),
        f"Over the shapes other than 8 x 8, interpolation saves {in_words(gained[AS_2_6])} nats a token against 2.6's "
        f"lookup and {in_words(gained[FEW])} against the nearest entry of the same small table; it reads "
        f"{in_words(gains(arms, AS_2_0, AS_2_6, 'right'))} more of the words than 2.6's.",
        *figures({f"nats less, interpolated, than {scheme}": gain for scheme, gain in gained.items()}),
        rows,
        [0],
    )
