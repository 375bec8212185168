"""Pictures in two languages, then a pinch of the third: is that enough, and what is it that helps?"""

from __future__ import annotations

from copy import deepcopy
from functools import cache

from ._arms import checkpoint, figures, gains, grades, in_words, learn, processor_of, table, verdict, weakest
from ._frame import Claim, Finding

CLAIM = Claim(
    title="A pinch of a third language is enough",
    place="Section 4.2, multilingual generalization: pre-training on English and Chinese pictures, then light "
    "fine-tuning (less than 0.5 % of it in the new languages) adds 25 points and more.",
    says="An LLM that knows a language lends it to the pictures; a few samples are enough to wake it.",
    done="The LLM first reads three languages, from pictures spelled in words. Then short stages 1 and 2 with captions "
    "in English and Chinese only, then a light fine-tuning in which so many samples are French that they are 1 % of "
    "all pictures. Against it: no fine-tuning; the same one without French; and the same one with an LLM that never "
    "read French, but English and Chinese for as long. Confirmed means: on held-out French captions and questions, the "
    "loss is lower than in all three.",
    limits="One seed. The LLM is small, and so is the world that it speaks of. The French samples are 1 % of all "
    "pictures, but a larger part of the light fine-tuning itself, which is short here.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": [2, 2, 2, 2], "batch": 2, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano-start", "steps": [200, 80, 160, 40], "batch": 16, "n": 80, "seeds": 1, "device": "cpu"},
    "gpu": {
        "begin": "nano-start",
        "steps": [2000, 600, 3000, 400],
        "batch": 64,
        "n": 400,
        "seeds": 1,
        "device": "cuda",
    },
}
FRENCH, NOTHING, WITHOUT, UNREAD = "light fine-tuning", "none", "the same without French", "an LLM without French"
TWO, THREE = {"en": 1, "zh": 1}, {"en": 1, "zh": 1, "fr": 1}
SHARE = 0.01  # of all pictures


def run(setting: dict, each) -> Finding:
    reading, warm, seeing, tuning = setting["steps"]
    batch = setting["batch"]
    french = SHARE * (warm + seeing + tuning) / tuning  # so much of the fine-tuning

    @cache
    def pretrained(languages: str, seed: int):
        model = checkpoint(setting["begin"], setting["device"])
        processor, read = processor_of(model), dict.fromkeys(languages.split(), 1)
        mixture = {"question": 2, "caption": 1}
        learn(model, processor, "start-chat", seed, read, steps=reading, batch=batch, data_mix=mixture, large=0.0)
        learn(model, processor, "stage-1", seed, TWO, steps=warm, batch=batch)
        learn(model, processor, "stage-2", seed, TWO, steps=seeing, batch=batch, data_mix={"caption": 1})
        return model

    def arm(item: list) -> dict:
        name, seed = item
        model = deepcopy(pretrained(" ".join(TWO if name == UNREAD else THREE), seed))
        processor, cost = processor_of(model), {"steps": 0, "views": 0, "tokens": 0}
        if name != NOTHING:
            spoken = TWO if name == WITHOUT else {"en": (1 - french) / 2, "zh": (1 - french) / 2, "fr": french}
            mixture = {"question": 1, "caption": 1}
            cost = learn(model, processor, "sft-1", seed, spoken, steps=tuning, batch=batch, data_mix=mixture, turns=1)
        found = {}
        for language in THREE:
            of_language = grades(model, processor, ["caption", "question"], setting["n"], language=language)
            found |= {f"{language} {name}": values for name, values in of_language.items()}
        return cost | found

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in (FRENCH, NOTHING, WITHOUT, UNREAD)}
    names = [f"{language} {kind}, nats" for language in THREE for kind in ("caption", "question")]
    gained = {name: gains(arms, FRENCH, name, *names[-2:]) for name in (NOTHING, WITHOUT, UNREAD)}
    english = gains(arms, FRENCH, NOTHING, *names[:2])
    return Finding(
        weakest(*map(verdict, gained.values())),
        f"With {french:.1%} of the fine-tuning in French, French costs {in_words(gained[NOTHING])} nats a token less "
        f"than before it, {in_words(gained[WITHOUT])} less than with the same fine-tuning without French, and "
        f"{in_words(gained[UNREAD])} less than with an LLM that never read French. English gains {in_words(english)} "
        "in the same steps.",
        *figures({f"nats less in French than with: {name}": gain for name, gain in gained.items()}),
        table(arms, [*names, "fr caption, right", "fr question, right"]),
        seeds,
    )
