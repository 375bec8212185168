"""Does a model read better that learned with slices? Against one view: as many steps, then as many views."""

from __future__ import annotations

from ._arms import checkpoint, figures, gains, grades, in_words, learn, processor_of, table, verdict, weakest
from ._frame import Claim, Finding

CLAIM = Claim(
    title="Learning with slices beats learning with one view",
    place="Section 3.2 (adaptive visual encoding); section 4.1, stage 3, whose point is high resolution and OCR.",
    says="Slices let the model learn what one view of fixed size cannot show: small text.",
    done="From the checkpoint after stage 2, a short stage 3 (captions, lines of text, documents) in three arms: with "
    "slices; with one view for as many steps; with one view for as many encoded views, which is more steps and, "
    "counted in tokens, at least as much work. Each arm is graded as it was trained. Confirmed means: the documents' "
    "loss is lower with slices than in both other arms, in every seed, and the interval over the items is above 0.",
    limits="A short training of a small model on one kind of page. The documents are drawn so that one view cannot "
    "show them: their letters are at most 5 pixels tall there. How much of this text real pictures have is another "
    "question.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": 2, "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-stage-2", "steps": 50, "batch": 16, "n": 60, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano-stage-2", "steps": 1000, "batch": 64, "n": 400, "seeds": 3, "device": "cuda"},
}
SLICES, STEPS, VIEWS = "slices", "one view, as many steps", "one view, as many views"
KINDS, MIXTURE = ["read", "crop", "caption"], {"read": 2, "crop": 2, "caption": 1}


def run(setting: dict, each) -> Finding:
    def arm(item: list) -> dict:
        name, seed, steps = item
        model = checkpoint(setting["begin"], setting["device"])
        processor = processor_of(model, 9 if name == SLICES else 1)
        cost = learn(model, processor, "stage-3", seed, steps=steps, batch=setting["batch"], data_mix=MIXTURE)
        return cost | grades(model, processor, KINDS, setting["n"])

    seeds, steps = list(range(setting["seeds"])), setting["steps"]
    arms = {name: each([[name, seed, steps] for seed in seeds], arm) for name in (SLICES, STEPS)}
    same_views = [round(sliced["views"] / setting["batch"]) for sliced in arms[SLICES]]  # one view for each sample
    arms[VIEWS] = each([[VIEWS, seed, more] for seed, more in zip(seeds, same_views)], arm)
    gained = {name: gains(arms, SLICES, name, "read, nats") for name in (STEPS, VIEWS)}
    others = gains(arms, SLICES, VIEWS, "crop, nats", "caption, nats")
    named = {f"nats less on documents than {name}": values for name, values in gained.items()}
    return Finding(
        weakest(*map(verdict, gained.values())),
        f"On held-out documents, slices save {in_words(gained[STEPS])} nats a token against one view at equal steps "
        f"and {in_words(gained[VIEWS])} at equal views. On what one view shows as well, captions and single lines, "
        f"they save {in_words(others)} at equal views.",
        *figures(named),
        table(arms, [f"{kind}, {grade}" for grade in ("nats", "right") for kind in KINDS]),
        seeds,
    )
