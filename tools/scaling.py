"""Make docs/scaling.md: what training the real model would cost, from formulas and from measured costs.

    python tools/scaling.py --measure     measure on this machine (a few minutes), then write the page
    python tools/scaling.py               write the page again from what was measured

What was measured stands in docs/scaling.json. Formulas, guesses and measurements are in scaling_costs.py; here are the
words. A function for each section takes what was measured and returns markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from textwrap import fill

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from scaling_costs import (  # noqa: E402
    CARD,
    CARDS,
    CORES,
    EVERY,
    EVERYTHING,
    FEW,
    MFU,
    MODELS,
    NETWORK,
    NVLINK,
    PATTERNS,
    PEAK,
    PHOTO,
    RESERVE,
    REWRITER,
    SHARDINGS,
    SIZES,
    STAGES,
    STORE,
    activations,
    card_seconds,
    flops,
    least_sharding,
    measure,
    patches_of,
    per_card,
    prediction,
    scaled,
    stage_flops,
    states,
    toy_operations,
)

from experiments._frame import write  # noqa: E402
from minicpmv_ref.config import nano, v2_6  # noqa: E402
from minicpmv_ref.counts import parameters  # noqa: E402
from minicpmv_ref.deploy.memory import estimate  # noqa: E402
from minicpmv_ref.inputs.files import read_json  # noqa: E402
from minicpmv_ref.inputs.pictures import picture_size  # noqa: E402

DATA, PAGE = ROOT / "docs/scaling.json", ROOT / "docs/scaling.md"


def page(kept: dict) -> str:
    sections = (published, operations, hours, storage, memory, growth, breaks, engines, toys, limits)
    blocks = "\n\n".join([HEAD, *(section(kept) for section in sections)]).split("\n\n")
    # Paragraphs are filled here, so that nobody has to count columns around numbers that change.
    return (
        "\n\n".join(b if b.startswith(("#", "|", "- ")) else fill(b, 120, break_on_hyphens=False) for b in blocks)
        + "\n"
    )


HEAD = f"""# Scale on paper

What would it cost to train the real thing? Nobody published it. So you take what the paper does say, count operations
with a formula, and divide by the speed of a card. `python tools/scaling.py --measure` measures what has to be measured
and writes this page; do not edit it by hand. A guess is called a guess: it has no source, and you can change it in
[scaling_costs.py](../tools/scaling_costs.py).

One card is an H100 SXM: {PEAK / 1e12:,.1f} TFLOP/s in bfloat16 without sparsity, {CARD / 1e9:.0f} GB (NVIDIA's data
sheet). It reaches a share of that, the MFU (model FLOPs utilization): {MFU:.0%} here. That is the most important guess
of the page, and all times are proportional to 1 / MFU. Llama 3 405B reached 38 to 43 % on H100s (arXiv 2407.21783); a
small model with pictures of all shapes may well stay below. GB and TB are powers of ten."""


def published(kept: dict) -> str:
    rows = []
    for name, stage in STAGES.items():
        views = f"{len(stage.patches)} view{'s' * (len(stage.patches) > 1)}, {sum(stage.patches):,} patches"
        rows.append([name, stage.title, stage.published, f"{size(stage)}, {views}, {stage.text} tokens of text"])
    return f"""## What is published

Section 4 of the paper (arXiv 2408.01800) has the first three columns. The last one is a guess: what one sample looks
like. pre-2 raises its resolution on the way; here it all is at the end's.

{table(["stage", "what learns", "samples", "one sample (guess)"], rows)}

The paper gives no learning rate, batch size, number of epochs or steps, and we found no cards or hours. Here every
sample is seen once. 2.5 adds 2 M pictures of Cauldron and 90 K multilingual samples to SFT; they are not counted."""


def operations(kept: dict) -> str:
    rows = []
    for name, stage in STAGES.items():
        parts = flops(v2_6, stage.patches, stage.text, stage.trains)
        whole, forward = sum(parts.values()), sum(flops(v2_6, stage.patches, stage.text).values())
        each = [tera(stage_flops(version, stage)) for version in MODELS]
        rows.append([name, *each, *(f"{part / whole:.0%}" for part in parts.values()), f"{whole / forward:.2f}"])
    first = STAGES["pre-1"]
    parts = flops(v2_6, first.patches, first.text, first.trains)
    resampler, llm = (parts[part] / sum(parts.values()) for part in ("resampler", "llm"))
    worst = max(
        abs(sum(flops(config, patches_of(config, 4), kept["text"], case["trains"]).values()) / case["operations"] - 1)
        for case in kept["counted"]
        for config in [MODELS.get(case["model"], nano)]
    )
    return f"""## Operations of one sample

An (n, a) times an (a, b) matrix costs 2nab operations. In the backward pass the gradient of the input costs the same
again, and so does the gradient of the weight. Now freeze parts:

- A part that learns costs 3 times its forward pass.
- A frozen part *after* one that learns costs 2 times: the gradient must pass through. (Its attention 3 times: both
  factors depend on the input.)
- A frozen part with nothing that learns before it costs 1.

So a frozen LLM is not free. In pre-1 the resampler learns and takes {resampler:.0%} of the operations; the LLM, which
stays as it is, takes {llm:.0%}. Attention costs 4T²D in a layer, the whole square; a causal kernel skips half of it.
The LM head runs on every token. Norms, softmax and the optimizer are not counted.

TFLOP of one sample (in DPO of one pair: two answers learn, a frozen copy reads both); shares of the parts in 2.6; and
learning against a forward pass:

{table(["stage", *MODELS, "ViT", "resampler", "LLM", "x forward"], rows)}

Is the formula right? PyTorch's counter sees every product, for nano in {len(PATTERNS)} freezing patterns and for the
three real models in full size (on the meta device, without memory). The largest difference is {worst:.2%}, and a test
keeps it so."""


def hours(kept: dict) -> str:
    rows, sums = [], [0.0] * len(MODELS)
    for name, stage in STAGES.items():
        seconds = [card_seconds(stage.samples * stage_flops(version, stage)) for version in MODELS]
        sums = [a + b for a, b in zip(sums, seconds)]
        rows.append([name, *map(card_hours, seconds), *(lasting(seconds[-1] / n) for n in CARDS)])
    rows.append(["sum", *map(card_hours, sums), *(lasting(sums[-1] / n) for n in CARDS)])
    sft, first = STAGES["SFT"], STAGES["pre-1"]
    captions = first.samples + STAGES["pre-2"].samples
    again = 1 + flops(v2_6, sft.patches, sft.text)["llm"] / stage_flops("2.6", sft)
    rewriting = card_seconds(captions * 2 * REWRITER * 2 * first.text)
    return f"""## Hours and days

{table(["stage", *(f"{v}, card hours" for v in MODELS), *(f"2.6 on {n} cards" for n in CARDS)], rows)}

At an MFU of 50 or 30 % the sum for 2.6 is {card_hours(sums[-1] * MFU / 0.5)} or {card_hours(sums[-1] * MFU / 0.3)} card
hours. The table counts nothing twice: computing the LLM's layers again in the backward pass, to save memory,
makes SFT {again:.2f} times
as long. It counts no padding; without packing that comes on top ([claims](claims.md)). And training
is not all: to rewrite {captions / 1e6:.0f} M captions, {first.text} tokens in and {first.text} out, with a model of
{REWRITER / 1e9:.0f} B parameters (guesses) is {card_hours(rewriting)} card hours at this MFU, and engines that write
text stay far below it. RLAIF-V is small beside all that: ten answers for each of 3 K pictures."""


def storage(kept: dict) -> str:
    first, third = STAGES["pre-1"], STAGES["pre-3"]
    pixel, captions = bytes_of_a_pixel(), first.samples + STAGES["pre-2"].samples
    photos = captions * PHOTO[0] * PHOTO[1] * pixel
    features = first.samples * sum(first.patches) * v2_6.vision.width * 2
    parts = flops(v2_6, first.patches, first.text, first.trains)
    most = v2_6.slicing.scale_resolution**2 * v2_6.slicing.max_slice_nums
    scans, shrunk = (third.samples * pixels * pixel for pixels in (third.size[0] * third.size[1], most))
    held = [states(config, EVERYTHING) for config in MODELS.values()]
    rows = [
        ["pictures of pre-1 and pre-2", f"{captions / 1e6:.0f} M of {size(first)}", f"{photos / 1e12:,.0f} TB"],
        ["pages of pre-3", f"{third.samples / 1e6:.0f} M of {size(third)}", f"{scans / 1e12:,.0f} TB"],
        ["the same, shrunk before", f"slices keep about {most / 1e6:.1f} million pixels", f"{shrunk / 1e12:,.0f} TB"],
        ["text of pre-1 and pre-2", f"{first.text} tokens of 4 bytes", f"{captions * first.text * 4 / 1e9:,.0f} GB"],
        [
            "ViT features of pre-1",
            f"{sum(first.patches)} x {v2_6.vision.width} x 2 bytes",
            f"{features / 1e12:,.0f} TB",
        ],
        ["checkpoint of 2.0, 2.5, 2.6", "weights in 16 bits", ", ".join(giga(h["weights"]) for h in held) + " GB"],
        [
            "the same, to go on with SFT",
            "float32 weights, two moments",
            ", ".join(giga(h["optimizer"]) for h in held) + " GB",
        ],
    ]
    return f"""## What has to be stored

JPEGs take {pixel:.2f} bytes a pixel, measured over the photographs of [data_samples](../data_samples/images).

{table(["what", "how", "size"], rows)}

The frozen ViT of pre-1 invites you to store its features once. Don't: they take {features / (photos / 2):.0f} times the
space of their pictures and save {parts["vpm"] / sum(parts.values()):.0%} of the operations."""


def memory(kept: dict) -> str:
    rows = []
    for version, name in [("2.6", "pre-1"), ("2.6", "pre-2"), ("2.6", "pre-3"), *((v, "SFT") for v in MODELS)]:
        config, stage = MODELS[version], STAGES[name]
        held = states(config, stage.trains)
        ways = [giga(per_card(held, sharded, 8)) for sharded in SHARDINGS.values()]
        alone = "yes" if least_sharding(config, stage, 1) == "DDP" else "no"  # nobody to share with
        rows.append(
            [version, name, giga(activations(config, stage)), *ways, giga(per_card(held, SHARDINGS["FSDP"], 64))]
            + [alone, least_sharding(config, stage, 8)]
        )
    head = ["model", "stage", "activations", *(f"{way}, 8" for way in SHARDINGS), "FSDP, 64", "fits 1", "8 need"]
    return f"""## Memory of one card, and what must be sharded

A frozen parameter takes 2 bytes (bfloat16). One that learns takes 16: a gradient in bfloat16, a float32 copy and two
moments of AdamW come on top. DDP shards nothing, ZeRO-1 the optimizer, ZeRO-2 gradients too, FSDP (or ZeRO-3) all.
GB for one card of 8 or 64; activations are of one sample, the LLM's layers computed again
([memory.py](../minicpmv_ref/deploy/memory.py), tested in small against PyTorch's profiler; too high for a frozen LLM):

{table(head, rows)}

The last two columns put one sample on a card and leave {RESERVE:.0%} of it free (a guess): whether one card is enough,
and the least that 8 cards must shard. Pre-training fits nearly anywhere, because little learns. Full SFT of 2.6 holds
{giga(sum(states(v2_6, EVERYTHING).values()))} GB before the first activation, and that is why people train LoRA."""


def growth(kept: dict) -> str:
    sft, queries = STAGES["SFT"], v2_6.resampler.num_queries
    by_slices, by_queries, by_length, by_batch = [], [], [], []
    whole_picture = sum(flops(v2_6, patches_of(v2_6, 0), sft.text, EVERYTHING).values())
    for slices in (0, 2, 4, 9):
        parts = [*flops(v2_6, patches_of(v2_6, slices), sft.text, EVERYTHING).values()]
        visual = (1 + slices) * queries
        need = estimate(v2_6, training=True, checkpointing=True, slices=slices, tokens=visual + sft.text)
        row = [slices, visual, *map(tera, [*parts, sum(parts)]), f"{sum(parts) / whole_picture:.1f}"]
        by_slices.append([*row, giga(need.vision + need.activations)])
    for count in (16, 64, 96, 256, 1024):
        config = replace(v2_6, resampler=replace(v2_6.resampler, num_queries=count))
        parts = [*flops(config, patches_of(config, 9), sft.text, EVERYTHING).values()]
        by_queries.append([count, f"{10 * count:,}", *map(tera, [*parts, sum(parts)])])
    for length in (512, 2048, 8192, 32768):
        whole = sum(flops(v2_6, [], length, EVERYTHING).values())
        attention = 3 * v2_6.llm.num_hidden_layers * 4 * length**2 * v2_6.llm.hidden_size
        need = estimate(v2_6, training=True, checkpointing=True, images=0, tokens=length)
        row = [f"{length:,}", f"{whole / length / 1e9:.1f}", f"{attention / whole:.0%}", giga(need.activations)]
        by_length.append(row)
    moved = 3 * states(v2_6, EVERYTHING)["weights"]
    for batch in (1, 2, 4, 8):
        seconds = card_seconds(batch * stage_flops("2.6", sft))
        wires = [f"{moved / wire:.2f} ({moved / wire / seconds:.0%})" for wire in (NVLINK, NETWORK)]
        kept_bytes = activations(v2_6, sft, batch)
        full = per_card(states(v2_6, EVERYTHING), SHARDINGS["FSDP"], 8) + kept_bytes > CARD * (1 - RESERVE)
        by_batch.append([batch, f"{seconds:.2f}", *wires, giga(kept_bytes), "no" if full else "yes"])
    parts = ["ViT, TFLOP", "resampler", "LLM", "sum"]
    return f"""## How cost grows

All of 2.6 learns; one sample with {sft.text} tokens of text. **Slices** of 448 x 448 cost the ViT and the LLM in
proportion. Memory grows faster than operations, because the ViT's layers are not computed again:

{table(["slices", "visual tokens", *parts, "x no slices", "activations, GB"], by_slices)}

**Queries**, with nine slices. 1,024 are as many as patches: what the LLM would pay without a resampler that compresses.

{table(["queries", "visual tokens", *parts], by_queries)}

**Length** of a sequence without pictures. A token's price hardly moves until attention's square catches up:

{table(["tokens", "GFLOP a token", "attention's share", "activations, GB"], by_length)}

**Batch** of a card in SFT. FSDP moves the weights twice and the gradients once in every pass, whatever the batch is:
{giga(moved)} GB through NVLink inside a node of 8 ({NVLINK / 1e9:.0f} GB/s one way), or through the network
({NETWORK / 1e9:.0f} GB/s). Seconds, and in brackets against computing. What overlaps costs nothing, so this is the
worst case:

{table(["samples of a card", "computing, s", "NVLink, s", "network, s", "activations, GB", "fits 8 cards"], by_batch)}

So keep FSDP's traffic inside a node, and let only gradients travel between nodes (hybrid sharding)."""


def breaks(kept: dict) -> str:
    rows, cores, reading = [], [], []
    for name in ("pre-1", "pre-2", "pre-3", "SFT"):
        stage, work = STAGES[name], median(kept["pictures"][name])
        rates = [1 / card_seconds(stage_flops(version, stage)) for version in ("2.0", "2.6")]
        cores.append(rates[0] * work)
        reading.append(rates[0] * CARDS[-1] * stage.size[0] * stage.size[1] * bytes_of_a_pixel())
        row = [name, size(stage), *(f"{rate:,.0f}" for rate in rates), f"{1000 * work:.1f}"]
        rows.append([*row, *(f"{rate * work:.1f}" for rate in rates), f"{reading[-1] / 1e9:.1f}"])
    head = ["stage", "picture", "2.0: pictures/s", "2.6", "CPU ms of one", "2.0: cores", "2.6", "storage, GB/s"]
    largest = sum(flops(v2_6, patches_of(v2_6, 9), STAGES["SFT"].text, EVERYTHING).values())
    rate = benchmark_rates()["1344x1344"]
    held = states(v2_6, EVERYTHING)
    disk = kept["write"]["bytes"] / median(kept["write"]["seconds"])
    slow, fast = held["optimizer"] / disk, held["optimizer"] / STORE
    return f"""## What breaks first

**1. The optimizer's memory.** In SFT, weights, gradients and optimizer of 2.6 fill {sum(held.values()) / CARD:.1f}
cards before any picture arrives. Shard them.

**2. Reading and preparing pictures**, where the model is small. What one card eats at {MFU:.0%} MFU; the CPU time of a
picture (decode a JPEG, slice, normalize; median of {kept["rounds"]}, on the machine below); the cores that this takes,
of {CORES} that a DGX H100 has for a card; and what {CARDS[-1]} cards that train 2.0 read from storage:

{table(head, rows)}

At most {max(cores):.1f} cores: enough in such a node, not on a machine with few. Storage breaks sooner:
{max(reading) / 1e9:.1f} GB/s in the worst stage, against {STORE / 1e9:.0f} GB/s for a shared file system (a guess).
Shrink large scans beforehand. From pixels in memory, our code makes {rate:.1f} pictures of 1344 x 1344 a second on
two threads ([benchmarks](../benchmarks/README.md)), which feeds {rate * card_seconds(largest):.0f} cards of 2.6 in SFT.

**3. Checkpoints.** To go on with SFT you save {giga(held["optimizer"])} GB. The disk here takes {disk / 1e6:,.0f} MB/s
(median of {len(kept["write"]["seconds"])}; it is shared, and they range from
{kept["write"]["bytes"] / max(kept["write"]["seconds"]) / 1e6:,.0f} to
{kept["write"]["bytes"] / min(kept["write"]["seconds"]) / 1e6:,.0f}): {lasting(slow)}, which is {slow / EVERY:.0%} of
the time if you save every {EVERY / 60:.0f} minutes (a guess). At {STORE / 1e9:.0f} GB/s it is {lasting(fast)},
{fast / EVERY:.1%}. Let every card write its own shard, and write in the background."""


ENGINES = {
    "pre-1 to pre-3": (
        "PyTorch DDP, or DeepSpeed ZeRO-1",
        "little learns: the frozen LLM is copied to every card, and only small gradients travel",
    ),
    "SFT, DPO": (
        "PyTorch FSDP2, or DeepSpeed ZeRO-3",
        "everything learns and only sharding makes it fit, without a change to the model",
    ),
    "beyond": (
        "Megatron-LM",
        "cuts the layers themselves (tensor and pipeline parallel), which pays when a layer or a sequence is too large "
        "for a card; at 8 B none is",
    ),
    "one card": ("peft (LoRA)", "16 bytes of a parameter become 2 for all that is frozen"),
    "reading data": (
        "webdataset",
        "hundreds of millions of pictures are read in order, from tars, each rank its own part",
    ),
    "rewriting captions": (
        "vLLM or SGLang",
        "writing waits for memory, so many captions are written at once, and their common prompt is read once",
    ),
    "RLAIF-V, answers": ("vLLM or SGLang", "ten answers share a picture: its prefix is read once"),
    "RLAIF-V, labels": (
        "vLLM or SGLang",
        "a verdict is one token: prefill alone, and all questions about a picture share its cache",
    ),
    "the phone": (
        "llama.cpp",
        "4-bit weights on CPU or GPU, no Python ([lesson 10](../notebooks/10_on_the_phone.ipynb))",
    ),
}

# What is handed over to them -> the test that shows it, below tests/.
HAND_OVER = {
    "one process, two and four under torchrun (gloo): equal curves and weights, sharded or not": "scale/test_parallel",
    "several machines, NCCL": "",
    "weights: `transformers` reads the LLM of a folder, with equal logits": "inputs/test_checkpoint",
    "weights: llama.cpp reads both GGUF files, with equal logits": "deploy/test_llamacpp",
    "shards: webdataset reads them from a server with two workers, and says if one dies": "scale/test_shards",
}


def engines(kept: dict) -> str:
    rows = [[part, engine, why] for part, (engine, why) in ENGINES.items()]
    shown = [[what, f"[{test}](../tests/{test}.py)" if test else "not shown"] for what, test in HAND_OVER.items()]
    return f"""## Which engine serves which part

{table(["part", "engine", "why"], rows)}

DeepSpeed, Megatron-LM, vLLM and SGLang were not run for this page: the reasons follow from the tables above. What is
handed over to other programs, and which test shows that it arrives:

{table(["what", "shown by"], shown)}"""


def toys(kept: dict) -> str:
    steps, tables, laws = kept["steps"], {}, {}
    for name, column in (("sizes", "model"), ("slices", "slices")):
        counts, times = toy_operations(kept, name), [sorted(t) for t in steps[name].values()]
        law = laws[name] = prediction(counts, [median(t) for t in times])
        law["error of lowest"] = prediction(counts, [t[0] for t in times])["error"]
        rows = [
            [label, f"{n / 1e9:,.1f}", *(f"{s:.3f}" for s in (t[0], median(t), t[-1], p)), f"{p / median(t) - 1:+.1%}"]
            for label, n, t, p in zip(steps[name], counts, times, law["law"])
        ]
        rows[-1][0] = f"{rows[-1][0]} (predicted)"
        tables[name] = table([column, "GFLOP", "lowest, s", "median", "highest", "law", "off"], rows)
    said = {
        name: f"{1000 * law['fixed']:.0f} ms and {law['rate'] / 1e9:.0f} GFLOP/s. The prediction is off by "
        f"**{law['error']:+.1%}**; made from the lowest times, by {law['error of lowest']:+.1%}."
        for name, law in laws.items()
    }
    counts, times = toy_operations(kept, "patterns"), [median(t) for t in steps["patterns"].values()]
    patterns = [
        [label, f"{n / counts[-1]:.2f}", f"{t / times[-1]:.2f}"]
        for label, n, t in zip(steps["patterns"], counts, times)
    ]
    numbers = [sum(parameters(scaled(width)).values()) for width in SIZES.values()]
    updates = [1e9 * median(t) / n for t, n in zip(steps["updates"].values(), numbers)]
    earlier = "; ".join(f"{run['sizes']:+.1%} and {run['slices']:+.1%}" for run in kept["earlier"])
    return f"""## Did small models follow these curves?

The law is: CPU seconds = fixed + operations / rate. It was chosen before anything was measured; its two numbers are
fitted to three points, and the fourth is predicted. One thread, process CPU time, {kept["rounds"]} rounds in turns. The
machine is shared and busy, which moves even CPU time, so the law is of medians, and you see the lowest and highest.

**Size.** One pass forward and backward, {kept["batch"]} samples of one view and {kept["text"]} tokens of text; all
widths double from row to row:

{tables["sizes"]}

{said["sizes"]}

**Slices.** nano x 2, {FEW} samples:

{tables["slices"]}

{said["slices"]}

Earlier runs of this script were off by {earlier or "nothing: there were none"} (size and slices). On a busy machine,
one run is one sample.

**Freezing.** nano x 2. Operations by the formula and time, as shares of training everything; nothing is fitted:

{table(["what learns", "operations", "time"], patterns)}

**AdamW** is not among the operations: it reads and writes memory. Here it costs
{", ".join(f"{ns:.1f}" for ns in updates)} ns a parameter, from the smallest model to the largest.

Measured on {kept["machine"]}."""


def limits(kept: dict) -> str:
    rate = prediction(toy_operations(kept, "sizes"), [median(t) for t in kept["steps"]["sizes"].values()])["rate"]
    return f"""## What this page cannot say

- What was really spent. Cards, batch sizes, epochs and the amount of pre-3 are not published.
- The MFU of a real run. No GPU was at hand: the law was checked on one CPU thread, {PEAK / rate:,.0f} times slower than
  the peak of a card, and without any traffic between cards.
- What failing cards, evaluation, and runs that were thrown away cost. Real projects spend a multiple.
- Whether less would have done. That is a question about data, and no formula here knows it."""


# ---- numbers as words


def table(head: list[str], rows: list[list]) -> str:
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows))


def size(stage) -> str:
    return "{} x {}".format(*stage.size)


def tera(number: float) -> str:
    return f"{number / 1e12:,.{0 if number >= 1e14 else 1 if number >= 1e13 else 2}f}"


def giga(number: float) -> str:
    return f"{number / 1e9:,.{0 if number >= 1e11 else 1}f}"


def card_hours(seconds: float) -> str:
    return f"{seconds / 3600:,.{0 if seconds >= 36000 else 1}f}"


def lasting(seconds: float) -> str:
    """The largest unit of which there are two."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.{0 if seconds >= 20 * length else 1}f} {unit}"
    return f"{seconds:.0f} s"


def bytes_of_a_pixel() -> float:
    """Of the photographs among the samples, as JPEG."""
    pixels = stored = 0
    for path in sorted((ROOT / "data_samples/images").glob("*.jpg")):
        pixels += math.prod(picture_size(path))
        stored += path.stat().st_size
    return stored / pixels


def benchmark_rates() -> dict[str, float]:
    """Our pictures a second by size, on two threads, as benchmarks/preprocess.py measured them."""
    return {row["size"]: row["ours"] for row in read_json(ROOT / "benchmarks/results/preprocess.json")["rows"]}


def errors(kept: dict) -> dict[str, float]:
    """How far the two predictions of a run were off: what a new run keeps of an old one."""
    steps = kept["steps"]
    return {
        name: prediction(toy_operations(kept, name), [median(t) for t in steps[name].values()])["error"]
        for name in ("sizes", "slices")
    }


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure again; otherwise only the page is written")
    if parser.parse_args(arguments).measure:
        old = read_json(DATA) if DATA.exists() else None
        # A prediction that failed must not be hidden by one that did not.
        earlier = [*old["earlier"], {"rounds": old["rounds"], **errors(old)}] if old else []
        write(DATA, json.dumps({**measure(), "earlier": earlier}, indent=1) + "\n")
    write(PAGE, page(read_json(DATA)))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
