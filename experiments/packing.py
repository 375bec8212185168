"""How much time does packing save, end to end? Forward and backward, pictures included, once losses are found equal."""

from __future__ import annotations

import random
import time
from statistics import median

import torch

from minicpmv_ref.learn.packing import pack, pack_batch, packed_loss, sample_lengths, score
from minicpmv_ref.learn.stages import stage_named
from minicpmv_ref.toy.data import draw

from ._arms import checkpoint, processor_of
from ._fair import assert_same_training
from ._frame import CONFIRMED, NOT_CONFIRMED, REFUTED, Claim, Finding, median_interval

CLAIM = Claim(
    title="Packing against padding, end to end",
    place="Section 4.1, data packing: 2 to 3 times faster.",
    says="Pre-training on packed rows is 2 to 3 times as fast as on padded batches.",
    done="Samples of stage 3 (captions, lines of text, documents in slices) pass through ViT, resampler and LLM, "
    "forward and backward, in four ways: in batches of 8, padded to the longest; the same, sorted by length first; "
    "packed in rows of 2,048 with all logits; packed, with the logits of supervised tokens only, as we train. All ways "
    "give the same loss and gradient, which is asserted before any time is taken; ways take turns. Weights are random: "
    "time does not depend on them. Confirmed means: packed as we train is at least twice as fast as padded.",
    limits="One processor and a small LLM, beside whose work that of the ViT weighs more than in the paper: views cost "
    "the same in all ways. Drawing, slicing and the optimizer's step are not timed. Sorting needs to see all samples "
    "first.",
)
SETTINGS = {
    "fast": {"samples": 4, "seeds": 1, "rounds": 1, "device": "cpu"},
    "cpu": {"samples": 64, "seeds": 3, "rounds": 5, "device": "cpu"},
    "gpu": {"samples": 1024, "seeds": 3, "rounds": 15, "device": "cuda"},
}
PADDED, SORTED, ALL_LOGITS, PACKED = "padded", "sorted, padded", "packed, all logits", "packed"
BATCH, ROW = 8, 2048


def draw_samples(n: int, seed: int) -> list:
    mixture = stage_named("stage-3").data_mix
    kinds = random.Random(seed).choices(list(mixture), list(mixture.values()), k=n)
    return [draw(f"{seed}/{i}", kind) for i, kind in enumerate(kinds)]


def ways(model, processor, samples: list, device: str) -> dict:
    """For each way its batches and the function that gives a batch's loss."""
    chats = [sample.messages for sample in samples]
    whole = processor(chats)
    lengths = sample_lengths(whole)
    by_length = [chats[i] for i in sorted(range(len(chats)), key=lambda i: lengths[i])]
    rows = [pack_batch(whole, [row]).to(device) for row in pack(lengths, ROW)]

    def padded(chats):
        return [processor(chats[i : i + BATCH]).to(device) for i in range(0, len(chats), BATCH)]

    return {
        PADDED: (padded(chats), lambda batch: model(batch).loss),
        SORTED: (padded(by_length), lambda batch: model(batch).loss),
        ALL_LOGITS: (rows, lambda row: score(model, row).loss),
        PACKED: (rows, lambda row: packed_loss(model, row)),
    }


def one_pass(model, batches: list, loss_of) -> float:
    """Forward and backward over all batches; each loss counts as its supervised tokens do."""
    judged = [(batch.labels[:, 1:] != -100).sum().item() for batch in batches]
    total = 0.0
    for batch, count in zip(batches, judged):
        loss = loss_of(batch) * count / sum(judged)
        loss.backward()
        total += loss.item()
    return total


def assert_equal(model, calls: dict) -> None:
    found = {}
    for way, call in calls.items():
        model.zero_grad(set_to_none=True)
        loss = one_pass(model, *call)
        found[way] = loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert_same_training(found, loss_limit=1e-4, gradient_limit=1e-3)


def run(setting: dict, each) -> Finding:
    device = setting["device"]
    model = checkpoint("random", device)
    processor = processor_of(model)

    def seconds(seed: int) -> dict:
        """For each way: tokens that the LLM reads, and the time of each round."""
        samples = draw_samples(setting["samples"], seed)
        calls = ways(model, processor, samples, device)
        assert_equal(model, calls)  # this also warms up
        found = {way: [sum(batch.input_ids.numel() for batch in batches), []] for way, (batches, _) in calls.items()}
        for _ in range(setting["rounds"]):
            for way, call in calls.items():
                model.zero_grad(set_to_none=True)
                began = time.perf_counter()
                one_pass(model, *call)  # ends with .item(), which waits for a GPU
                found[way][1].append(time.perf_counter() - began)
        useful = sum(sample_lengths(processor([sample.messages for sample in samples])))
        return {"useful": useful, "ways": found}

    seeds = list(range(setting["seeds"]))
    measured = each(seeds, seconds)
    useful = sum(seed["useful"] for seed in measured)
    times = {way: [t for seed in measured for t in seed["ways"][way][1]] for way in measured[0]["ways"]}
    table = [["way", "tokens of the LLM", "of them useful", "microseconds a useful token", "times as fast as padded"]]
    for way, values in times.items():
        tokens = sum(seed["ways"][way][0] for seed in measured)
        gain = median(a / b for a, b in zip(times[PADDED], values))
        table.append([way, f"{tokens:,}", f"{useful / tokens:.0%}"])
        table[-1] += [f"{1e6 * sum(values) / setting['rounds'] / useful:.0f}", f"{gain:.2f}"]
    ratios = {way: [a / b for a, b in zip(times[way], times[PACKED])] for way in (PADDED, SORTED, ALL_LOGITS)}
    low, high = median_interval(ratios[PADDED])
    figures = {f"times as fast as {way}": round(median(values), 3) for way, values in ratios.items()}
    ends = {f"times as fast as {way}": [round(end, 3) for end in median_interval(v)] for way, v in ratios.items()}
    return Finding(
        CONFIRMED if low >= 2 else REFUTED if high < 1 else NOT_CONFIRMED,
        f"With equal losses and gradients, packing as we train is {median(ratios[PADDED]):.2f} times as fast as "
        f"padding, and {median(ratios[SORTED]):.2f} times as fast as padding what was sorted. Packed rows are "
        f"{median(ratios[ALL_LOGITS]):.2f} times as fast without the logits that nobody needs, which is no packing.",
        figures,
        ends,
        table,
        seeds,
    )
