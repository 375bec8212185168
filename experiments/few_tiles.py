"""Trained on up to nine slices, asked with more: do larger pages profit from slices that no training has shown?"""

from __future__ import annotations

from minicpmv_ref.learn.evaluate import answers, share_of_words

from ._arms import checkpoint, figures, in_words, mean_over_items, processor_of, verdict, weakest
from ._frame import Claim, Finding
from ._pages import letters, page

CLAIM = Claim(
    title="Train on few tiles, test on many",
    place="InternVL-1.5, arXiv 2404.16821, on the number of tiles: trained with 1 to 12, tested with up to 40; scores "
    "on documents rise beyond 12.",
    says="A model can use more tiles than its training showed, so that it reads larger pictures.",
    done="Nano, which learned from at most nine slices, reads pages of 12, 16 and 25 cells with three lines of text: "
    "with at most four or nine slices, then with one for each cell. In cells of their own the letters are as large as "
    "in training; with nine slices they are smaller, and slices cut through cells. Confirmed means: of each page more "
    "words are right with a slice for each cell than with nine. Predicted before the run: confirmed for 12 and 16 "
    "cells; for 25 the prompt has so many views that nano may find no line, so not confirmed in all.",
    limits="Nothing is trained here, so no arm is fair or unfair to a model that learned from more. Pages hold three "
    "lines, however large they are. Nano is small: InternVL-1.5's language model knows long prompts.",
)
SETTINGS = {
    "fast": {"begin": "random", "grids": [[3, 4]], "limits": [9], "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {
        "begin": "nano",
        "grids": [[3, 3], [3, 4], [4, 4], [5, 5]],
        "limits": [4, 9],
        "n": 20,
        "seeds": 3,
        "device": "cpu",
    },
}
SETTINGS["gpu"] = SETTINGS["cpu"] | {"n": 400, "device": "cuda"}
TRAINED = 9  # slices at most


def run(setting: dict, each) -> Finding:
    model = checkpoint(setting["begin"], setting["device"])

    def read(item: list) -> list[float]:
        grid, most, seed = item
        pages = [page(f"{seed}/{number}", tuple(grid)) for number in range(setting["n"])]
        prompts = [[{"role": "user", "content": [image, "Read the text."]}] for image, _ in pages]
        said = answers(model, processor_of(model, most), prompts)
        return [share_of_words([text], [wanted]) for text, (_, wanted) in zip(said, pages)]

    seeds = list(range(setting["seeds"]))
    rows = [["cells of the page", "slices at most", "letters, pixels", "words right", "interval"]]
    gained = {}
    for grid in setting["grids"]:
        cells = grid[0] * grid[1]
        found = {
            most: each([[grid, most, seed] for seed in seeds], read) for most in sorted({*setting["limits"], cells})
        }
        for most, shares in found.items():
            mean, ends = mean_over_items([[share for items in shares for share in items]])
            rows.append([str(cells), str(most), f"{letters(tuple(grid), most):.1f}", f"{mean:.1%}"])
            rows[-1].append("{:.1%} to {:.1%}".format(*ends))
        if cells > TRAINED:
            gained[cells] = [[a - b for a, b in zip(*pair)] for pair in zip(found[cells], found[TRAINED])]
    return Finding(
        weakest(*map(verdict, gained.values())),
        "A slice for each cell reads more words right than nine slices: "
        + "; ".join(f"{in_words(items)} on pages of {cells} cells" for cells, items in gained.items())
        + ".",
        *figures({f"share of words that {cells} slices add to nine": items for cells, items in gained.items()}),
        rows,
        seeds,
    )
