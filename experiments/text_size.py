"""From which size of text on do slices pay? The trained model reads pages, with slices and in one view."""

from __future__ import annotations

import math

from minicpmv_ref.learn.evaluate import answers, share_of_words
from minicpmv_ref.slicing import plan_slices

from ._arms import checkpoint, figures, in_words, mean_over_items, processor_of, verdict
from ._frame import Claim, Finding
from ._pages import letters, page

CLAIM = Claim(
    title="Slices read small text",
    place="Section 3.2 (adaptive visual encoding): fine details and OCR need high resolution.",
    says="With slices the model reads text that is too small in one view.",
    done="The shipped model reads pages of 1 to 16 cells, once with up to nine slices and once in one view. A letter "
    "is as tall as the model learned to read it, in its cell; the more cells a page has, the smaller it gets in one "
    "view, and with more than nine cells in the slices, too. Three draws of pages. Confirmed means: on pages of six "
    "cells and more, the share of words read right is higher with slices, in every draw, and its interval is above 0.",
    limits="One trained model; seeds draw pages, not models. It learned to read in slices, and never saw legible text "
    "in a view of many cells: the next claim trains models in one view, too. Two, four and sixteen cells were not in "
    "its training. One font.",
)
GRIDS = [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (4, 3), (4, 4)]
SETTINGS = {
    "fast": {"begin": "random", "grids": [[1, 1], [2, 3]], "n": 1, "seeds": 2, "device": "cpu"},
    "cpu": {"begin": "nano", "grids": [list(grid) for grid in GRIDS], "n": 50, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano", "grids": [list(grid) for grid in GRIDS], "n": 400, "seeds": 3, "device": "cuda"},
}
SLICES, ONE = "with slices", "one view"
SMALL = 6  # cells


def run(setting: dict, each) -> Finding:
    model = checkpoint(setting["begin"], setting["device"])

    def read(item: list) -> dict[str, list[float]]:
        """For each page the share of its words that is read right, both ways."""
        (cols, rows), seed = item
        pages = [page(f"{seed}/{i}", (cols, rows)) for i in range(setting["n"])]
        prompts = [[{"role": "user", "content": [image, "Read the text."]}] for image, _ in pages]
        found = {}
        for name, most in ((SLICES, 9), (ONE, 1)):
            said = answers(model, processor_of(model), prompts, max_slice_nums=most)
            found[name] = [share_of_words([text], [wanted]) for text, (_, wanted) in zip(said, pages)]
        return found

    seeds = list(range(setting["seeds"]))
    found = {tuple(grid): each([[grid, seed] for seed in seeds], read) for grid in setting["grids"]}

    gained = [
        [
            a - b
            for grid in found
            if math.prod(grid) >= SMALL
            for a, b in zip(found[grid][i][SLICES], found[grid][i][ONE])
        ]
        for i in range(len(seeds))
    ]
    table = [["cells", "slices", "letters, in one view", "in slices", "read in one view", "with slices", "interval"]]
    for (cols, rows), results in found.items():
        slices = plan_slices((cols * 112, rows * 112), model.config.slicing).num_slices or 1
        both = [mean_over_items([seed[name] for seed in results]) for name in (ONE, SLICES)]
        table.append([f"{cols} x {rows}", str(slices if slices > 1 else 0)])
        table[-1] += [f"{letters((cols, rows), n):.1f} px" for n in (1, slices)]
        table[-1] += [f"{both[0][0]:.1%}", f"{both[1][0]:.1%}", "{:.1%} to {:.1%}".format(*both[1][1])]
    return Finding(
        verdict(gained),
        f"On pages of six cells and more, slices read {in_words(gained)} more of the words. "
        "A page of one cell is not sliced, so both ways are the same there.",
        *figures({"share of words that slices add, six cells and more": gained}),
        table,
        seeds,
    )
