"""The answer machine: a model that chats learns from short answers only. Does it still chat, and does a prompt help?"""

from __future__ import annotations

import re
from dataclasses import replace

from minicpmv_ref import Processor
from minicpmv_ref.learn.evaluate import answers
from minicpmv_ref.learn.stages import stage_named
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.scale.steps import train_steps
from minicpmv_ref.toy.data import Sample, draw

from ._arms import checkpoint, cost_of, figures, gains, held_out, in_words, processor_of, table, verdict, weakest
from ._frame import Claim, Finding

CLAIM = Claim(
    title="Short answers make an answer machine, and a prompt that asks for them prevents it",
    place="Cambrian-1, arXiv 2406.16860, on the answer machine phenomenon: much training data answers with a word; a "
    "prompt in these data, such as 'Answer the question using a single word or phrase', keeps the model able to chat.",
    says="Trained on short answers, a model no longer answers in sentences. Where the short answers came with a prompt "
    "that asks for them, it gives them on demand and chats without it.",
    done="The LLM of nano first learns to answer questions of color, shape and place in a sentence ('The star is "
    "red.'). Then it learns from short answers ('red'): plainly; or each with 'Answer with one word.' before the "
    "question; or plainly with 20 % of sentences among them, which come with 'Answer in a sentence.' Graded is whether "
    "the whole answer is right: a sentence, asked as the chat model was (in the last arm with its prompt), and a short "
    "answer, asked as it was trained. Confirmed means: plain short answers lower the share of right sentences; with "
    "the prompt this share is higher than without; and right short answers are at most 0.1 fewer. Predicted before the "
    "run: confirmed, with fewer than 5 % sentences after plain short answers and more than 80 % with the prompt. Two "
    "arms were added after that, without a say in the verdict: 20 % plain sentences among short answers that come with "
    "the prompt, or plainly.",
    limits="Whether a model chats is here whether it answers in a sentence of one pattern for each kind of question. "
    "Between the two trainings there is nothing else, so the plain arm has no reason to keep a sentence; Cambrian-1's "
    "data have both, as the two added arms do: there the prompt does what is claimed. What is not confirmed is the "
    "stronger reading, short answers only. By chance one color of six is right, one shape and one place of four.",
)
SETTINGS = {
    "fast": {"begin": "random", "steps": [1, 1], "batch": 1, "n": 1, "seeds": 1, "device": "cpu"},
    "cpu": {"begin": "nano", "steps": [30, 40], "batch": 12, "n": 16, "seeds": 3, "device": "cpu"},
    "gpu": {"begin": "nano", "steps": [600, 600], "batch": 64, "n": 200, "seeds": 3, "device": "cuda"},
}
CHAT, PLAIN, PROMPTED, MIXED = "before", "short", "short, with a prompt", "short, 20 % sentences"
BOTH, UNCLEAR = "short with a prompt, 20 % plain sentences", "short, 20 % plain sentences"
ARMS = (CHAT, PLAIN, PROMPTED, MIXED, BOTH, UNCLEAR)
RATES = {"llm": stage_named("sft-1").learning_rates["llm"]}
SHORTLY, AT_LENGTH = "Answer with one word.", "Answer in a sentence."
LOSS = 0.1  # share of short answers that the prompt may cost
SENTENCES = {  # topic: (the question, the sentence)
    "color": (r"What color is the (.*)\?", "The {about} is {answer}."),
    "shape": (r"What shape is at the (.*)\?", "There is a {answer} at the {about}."),
    "place": (r"Where is the (.*)\?", "The {about} is at the {answer}."),
}


def in_a_sentence(sample: Sample) -> str:
    """The answer of a question as a sentence."""
    question, sentence = SENTENCES[sample.topics[0]]
    (about,) = re.fullmatch(question, sample.messages[0]["content"][-1]).groups()
    return sentence.format(about=about, answer=sample.answer)


def asked(sample: Sample, sentence: bool, prompt: str = "") -> Sample:
    """A question with a prompt before it and its answer, as a sentence or short."""
    *pictures, question = sample.messages[0]["content"]
    answer = in_a_sentence(sample) if sentence else sample.answer
    content = [*pictures, f"{prompt} {question}".strip()]
    return replace(sample, messages=[{"role": "user", "content": content}, {"role": "assistant", "content": answer}])


def training(arm: str, seed: int):
    """From a number to the sample that an arm learns from."""

    def sample(number: int) -> Sample:
        drawn = draw(f"answer machine/{arm == CHAT}/{seed}/{number}", "question", topic=list(SENTENCES)[number % 3])
        if arm == CHAT:
            return asked(drawn, True)
        if arm in (MIXED, BOTH, UNCLEAR) and number % 5 == 0:
            return asked(drawn, True, AT_LENGTH if arm == MIXED else "")
        return asked(drawn, False, SHORTLY if arm in (PROMPTED, BOTH) else "")

    return sample


def graded(model: MiniCPMV, processor: Processor, arm: str, n: int) -> dict[str, list[float]]:
    """Whether sentences and short answers are right, and how many are sentences where sentences are wanted."""
    questions = [sample for topic in SENTENCES for sample in held_out("question", n, topic=topic)]
    at_length = [asked(sample, True, AT_LENGTH if arm == MIXED else "") for sample in questions]
    shortly = [asked(sample, False, SHORTLY if arm in (CHAT, PROMPTED, BOTH) else "") for sample in questions]
    found = {}
    for name, samples in {"sentence": at_length, "short answer": shortly}.items():
        said = answers(model, processor, [sample.prompt for sample in samples], max_new_tokens=24)
        found[f"{name}, right"] = [float(text == sample.answer) for text, sample in zip(said, samples)]
        if name == "sentence":
            found["in a sentence"] = [float(text.endswith(".")) for text in said]
    return found


def run(setting: dict, each) -> Finding:
    def arm(item: list) -> dict:
        name, seed = item
        model = checkpoint(setting["begin"], setting["device"])
        processor = processor_of(model, max_slice_nums=1)
        for steps, taught in zip(setting["steps"], (CHAT, name) if name != CHAT else (CHAT,)):
            stage = replace(stage_named("sft-2"), steps=steps, batch=setting["batch"], turns=1, learning_rates=RATES)
            done = list(train_steps(model, processor, stage, seed, samples=training(taught, seed)))
        return cost_of(done) | graded(model, processor, name, setting["n"])

    seeds = list(range(setting["seeds"]))
    arms = {name: each([[name, seed] for seed in seeds], arm) for name in ARMS}
    lost, kept = (gains(arms, better, PLAIN, "sentence, right") for better in (CHAT, PROMPTED))
    mixed, short = gains(arms, MIXED, PLAIN, "sentence, right"), gains(arms, PROMPTED, PLAIN, "short answer, right")
    both = gains(arms, BOTH, UNCLEAR, "sentence, right")
    return Finding(
        weakest(verdict(lost), verdict(kept), verdict(short, -LOSS)),
        f"Plain short answers lower the share of right sentences by {in_words(lost)}. Where short answers came with a "
        f"prompt it is higher by {in_words(kept)}, and the share of right short answers differs by {in_words(short)}. "
        f"With 20 % of sentences that come with a prompt, the share of right sentences on demand is higher by "
        f"{in_words(mixed)}. Where sentences come plainly and short answers with the prompt, it is higher by "
        f"{in_words(both)} than where both come plainly.",
        *figures(
            {
                "share of right sentences that the prompt keeps": kept,
                "share that plain short answers lose": lost,
                "share that 20 % of sentences keep": mixed,
                "share that the prompt adds among 20 % plain sentences": both,
                "right short answers, with the prompt against without": short,
            }
        ),
        table(arms, ["sentence, right", "in a sentence", "short answer, right"]),
        seeds,
    )
