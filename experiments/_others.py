"""The words of docs/claims.md about what other systems claim and what was not run here: what each source says."""

HEADING = """# The others

From here on the claims are those of the systems that MiniCPM-V is compared with, and of its later versions. nano's ViT
and LLM stand in for theirs, so a verdict says whether an effect shows at this size, not whether a model is good.
"""

NOT_RUN = (  # claim, source, what it says
    (
        "SVA with a fifth of the tokens",
        "Cambrian-1, arXiv 2406.16860",
        "576 tokens of SVA beat 2,880 concatenated ones on OCR, 55.5 against 50.1.",
    ),
    (
        "An LLM that learns, too, learns from examples in its context",
        "VILA, arXiv 2312.07533",
        "With four examples 57.6 where the LLM was frozen in pre-training, 68.8 where it was not; without any, equal.",
    ),
    (
        "A larger LLM helps more than a larger ViT",
        "LLaVA-NeXT, blog of 25 May 2024",
        "Scaling the LLM brings more than scaling the image encoder.",
    ),
    (
        "A stage on clean data before fine-tuning",
        "the same blog",
        "Re-captioned pictures and documents between the two usual stages raise the scores.",
    ),
    (
        "Several encoders, one of them a ConvNet",
        "Cambrian-1",
        "Encoders of different training add up, most of all on vision-centric questions.",
    ),
    (
        "Three balances of data",
        "Cambrian-1",
        "How questions, documents and text are balanced in fine-tuning decides which scores rise; all are needed.",
    ),
    (
        "From 16 to 56 frames by scaled positions",
        "LLaVA-NeXT-Video, blog of 30 April 2024",
        "Linear scaling by 2 lets a model of 4,096 positions read 56 frames of 144 tokens.",
    ),
    (
        "Mixing pictures in place and in front",
        "LLaVA-NeXT-Interleave, arXiv 2407.07895",
        "Trained on both formats, 57.0 and 56.6; trained on one, 55.4 and 54.3 in its own.",
    ),
    (
        "DPO on clips with a judge that reads captions",
        "LLaVA-NeXT-Video-DPO, blog of 30 April 2024",
        "Rewards from a language model that sees a caption in place of the clip improve the answers.",
    ),
    (
        "Three stages: contrast, three losses, then chat",
        "InternVL-1.0, arXiv 2312.14238",
        "Built and shown in lesson 11 (masks and losses); nothing to compare it with at this size.",
    ),
)

MORE = """**Not confirmed from the start.** Three effects are too small for 60 items and three seeds, which tell apart
about 0.1 nats. *More tiles, pooled to as many tokens* (LLaVA-NeXT, blog of 25 May 2024): from 2 x 2 to 6 x 6 tiles
ChartQA goes from 49.2 to 50.1, but DocVQA from 58.8 down to 56.7. *Shuffle against mean* (InternVL-1.5 gives no
number): both rows stand in the table of connectors. *SVA once more inside the LLM* (Cambrian-1): 0.2 to 0.6 points.

**Pictures in place and in front.** The test needs questions that name one of several pictures ("in picture 2"). nano
does not know what such a name means, so nine short trainings from nano would compare guesses; from `nano-many`, which
has learned it, they were not run.

**CV-Bench for all connectors.** The table of connectors has captions and lines of text. To add CV-Bench, its 21
trainings would have to be made again; relation and counting are tested for three of the connectors in a claim of their
own, depth order and relative distance in the claim about an encoder that learns. The shipped nano has, of 50 questions
each, 0.98 of relation (0.58 without the picture) and 0.96 of counting (0.14) right, and nothing of the other two: no
stage of its training asks them, and it answers with a color alone or with "no".

**Several views of one place.** LLaVA-NeXT-Interleave (arXiv 2407.07895) takes a room from several cameras as several
pictures in one conversation, with no module for 3-D: one template for pictures, frames, views and tiles, 1,177.6 k
samples. A flat world of shapes has no second view of the same thing, so there is nothing to test here.

**Translated data.** InternVL-1.5 (arXiv 2404.16821) answers in English and Chinese because its data are bilingual, a
part of them translated by a language model from public English sets. Here the world speaks three languages by rule, so
its translations have no errors; what light fine-tuning in a new language does is a claim of the first part.

**Larger LLM, smaller rates.** VILA's fine-tuning takes 1e-4 for 3 to 13 billion parameters and 2e-5 for 40 billion (its
scripts, branch vila1.5); Cambrian-1 takes 4e-5 for 8 and 13, 2e-5 for 34 (its README). nano has one size: its
LLM of 3 million learns at 6e-4.
"""


def not_run() -> str:
    """The last part of the page."""
    rows = ["| " + " | ".join(row) + " |" for row in (("claim", "source", "what it says"), ("---",) * 3, *NOT_RUN)]
    return "\n".join(["## Claims about the others that were not run\n", *rows, "", MORE])
