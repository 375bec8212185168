"""What do more slices cost, and what are they worth? The trained model reads with 1 to 9 slices at most."""

from __future__ import annotations

from statistics import fmean

from ._arms import checkpoint, figures, held_out, in_words, mean_over_items, processor_of, right, verdict, weakest
from ._frame import Claim, Finding

CLAIM = Claim(
    title="More slices, more tokens, better reading",
    place="Section 3.2: at most nine slices, that is ten times the tokens of one view; section 5: tokens are time.",
    says="The limit on slices trades tokens for detail.",
    done="The shipped model reads the same documents of six to nine cells, and answers questions about them, with "
    "max_slice_nums from 1 to 9. Tokens are those of the whole prompt. Confirmed means: of the words it reads more "
    "right at 9 than at 4, at 4 than at 1, and the intervals are above 0.",
    limits="One seed, one trained model. It learned from slices that end between the cells of these documents. With a "
    "lower limit, slices cut through the cells and letters change their size, and training showed neither.",
)
SETTINGS = {
    "fast": {"begin": "random", "limits": [1, 4, 9], "n": 1, "device": "cpu"},
    "cpu": {"begin": "nano", "limits": [1, 2, 3, 4, 6, 9], "n": 100, "device": "cpu"},
    "gpu": {"begin": "nano", "limits": [1, 2, 3, 4, 6, 9], "n": 1000, "device": "cuda"},
}


def run(setting: dict, each) -> Finding:
    model = checkpoint(setting["begin"], setting["device"])
    documents, lookups = (held_out(kind, setting["n"]) for kind in ("read", "lookup"))

    def limit(most: int) -> dict:
        processor = processor_of(model, most)
        batch = processor([sample.prompt for sample in documents])
        return {
            "views": fmean(len(views) for views in batch.images),
            "tokens": fmean(batch.attention_mask.sum(1).tolist()),
            "read": right(model, processor, documents),
            "lookup": right(model, processor, lookups),
        }

    found = dict(zip(setting["limits"], each(setting["limits"], limit)))
    table = [["max_slice_nums", "views", "tokens of a prompt", "words read", "interval", "lookups right", "interval"]]
    for most, row in found.items():
        table.append([str(most), f"{row['views']:.1f}", f"{row['tokens']:.0f}"])
        for name in ("read", "lookup"):
            mean, ends = mean_over_items([row[name]])
            table[-1] += [f"{mean:.1%}", "{:.1%} to {:.1%}".format(*ends)]

    def gained(more: int, fewer: int) -> list[list[float]]:
        return [[a - b for a, b in zip(found[more]["read"], found[fewer]["read"])]]

    steps = {f"share of words that {more} add to {fewer}": gained(more, fewer) for more, fewer in ((9, 4), (4, 1))}
    return Finding(
        weakest(*map(verdict, steps.values())),
        f"From 1 to 4 slices the share of words read right grows by {in_words(gained(4, 1))}, from 4 to 9 by "
        f"{in_words(gained(9, 4))}. A prompt grows from {found[1]['tokens']:.0f} to {found[4]['tokens']:.0f} and "
        f"{found[9]['tokens']:.0f} tokens.",
        *figures(steps),
        table,
        [0],
    )
