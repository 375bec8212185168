"""Where does the time go as slices grow from 0 to 9? ViT, resampler, prefill and one new token, timed and counted."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from statistics import median

from minicpmv_ref import plan_slices
from minicpmv_ref.config import nano, v2_5

from ._frame import CONFIRMED, NOT_CONFIRMED, Claim, Finding, median_interval

CLAIM = Claim(
    title="With the ViT on an NPU, the prefill is the bottleneck",
    place="Section 5: an NPU takes visual encoding from 3.7 to 1.3 s; what is left to wait for is the prefill of the "
    "language model, because of the image tokens.",
    says="Then most of the time before the first token is spent by the language model that reads the slices.",
    done="One picture of 0 to 9 slices and 32 tokens of text pass through models with seeded weights (time does not "
    "depend on them); each stage is timed, all slice counts in turns. nano is timed whole, 2.5 layer by layer: one "
    "layer of ViT and LLM in real size and float32, times 27 and 32. All operations of 2.5 are counted too, by "
    "PyTorch's counter on the meta device. An NPU is imagined: the ViT's time is divided by 3.7 / 1.3. Confirmed "
    "means: then the prefill is more than half of the time to the first token, at the most slices, in every row.",
    limits="Times of a phone: another processor, another engine, 4-bit weights. One layer times their number leaves "
    "out what layers share, and nano's LLM is smaller against its ViT than 2.5's. Slicing and normalizing are not "
    "timed. The NPU's gain is the paper's, not measured here.",
)
SLICES = [0, 2, 3, 4, 5, 6, 7, 8, 9]  # one slice alone never happens
SETTINGS = {  # timed: [model, slice counts, rounds]
    "fast": dict(timed=[["nano", [0, 9], 2]], counted=["nano", [0, 9]], new=2, device="cpu", threads=1),
    "cpu": dict(
        timed=[["nano", SLICES, 21], ["2.5 by layers", [0, 4, 9], 6]],
        counted=["2.5", SLICES],
        new=8,
        device="cpu",
        threads=1,
    ),
    "gpu": dict(
        timed=[["nano", SLICES, 21], ["2.5", SLICES, 21]], counted=["2.5", SLICES], new=8, device="cuda", threads=1
    ),
}
ONE_LAYER = replace(
    v2_5, vision=replace(v2_5.vision, layers=1), llm=replace(v2_5.llm, num_hidden_layers=1, vocab_size=256)
)
MODELS = {"nano": nano, "2.5": v2_5, "2.5 by layers": ONE_LAYER}
STAGES = ("ViT", "resampler", "prefill", "one new token")
TEXT, NPU = 32, 3.7 / 1.3


def through(model, slices: int, new: int, watch) -> None:
    """Pass one picture through the model; `watch(stage)` is called when a stage has ended."""
    import torch

    weight = model.resampler.query
    side = model.config.slicing.scale_resolution
    plan = plan_slices((max(1, slices) * side, side), model.config.slicing)
    assert plan.num_slices == slices
    views = [torch.zeros(3, 14 * rows, 14 * cols).to(weight) for rows, cols in plan.patch_grids]
    text = torch.zeros(1, TEXT, dtype=torch.long).to(weight.device)
    text = model.llm.get_input_embeddings()(text)
    watch(None)
    features = model.vpm(views)
    watch("ViT")
    visual = model.resampler(features, plan.patch_grids)
    watch("resampler")
    prompt = torch.cat([visual.flatten(0, 1)[None], text], dim=1)
    out = model.llm(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)
    watch("prefill")
    for _ in range(new):
        token = torch.zeros(1, 1, dtype=torch.long).to(weight.device)
        out = model.llm(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
    watch("one new token")


def first_token_share(stages: list[float], npu: float = 1.0) -> float:
    """The prefill's part of ViT, resampler and prefill, with a ViT that is `npu` times faster."""
    vit, resampler, prefill = stages[:3]
    return prefill / (vit / npu + resampler + prefill)


def run(setting: dict, each) -> Finding:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from minicpmv_ref.model import MiniCPMV

    torch.set_num_threads(setting["threads"])
    models = {}

    def build(name: str, device: str) -> MiniCPMV:
        if (name, device) not in models:
            models.clear()  # one at a time: the real size is large
            with torch.device(device):
                model = MiniCPMV.seeded(MODELS[name]).to(torch.bfloat16 if device == "cuda" else torch.float32)
            models[name, device] = model
            if device != "meta":
                through(model, 2, 1, lambda stage: None)  # the first pass is always slow
        return models[name, device]

    @torch.no_grad()
    def milliseconds(item: list) -> list[list[float]]:
        """One round: the four stages at every slice count."""
        name, slice_counts, _ = item
        model, rows = build(name, setting["device"]), []
        layers = (27, 1, 32, 32) if name == "2.5 by layers" else (1, 1, 1, 1)
        for slices in slice_counts:
            laps = []

            def watch(stage, laps=laps):
                if setting["device"] == "cuda":
                    torch.cuda.synchronize()
                laps.append(time.perf_counter())

            through(model, slices, setting["new"], watch)
            times = [1000 * n * (end - start) for n, (start, end) in zip(layers, pairwise(laps))]
            rows.append([*times[:3], times[3] / setting["new"]])
        return rows

    @torch.no_grad()
    def operations(slices: int) -> list[float]:
        """The same stages, in 10^9 multiplications and additions."""
        model, laps = build(setting["counted"][0], "meta"), []
        with FlopCounterMode(display=False) as counter:
            through(model, slices, 1, lambda stage: laps.append(counter.get_total_flops() / 1e9))
        return [end - start for start, end in pairwise(laps)]

    found, shares, faster = {}, {}, {}
    for name, slice_counts, rounds in setting["timed"]:
        measured = each([[name, slice_counts, i] for i in range(rounds)], milliseconds)
        for slices, stages in zip(slice_counts, zip(*measured)):
            key = f"{name}, ms", slices
            found[key] = [median(stage) for stage in zip(*stages)]
            shares[key] = [first_token_share(stage) for stage in stages]
            faster[key] = [first_token_share(stage, NPU) for stage in stages]
    name, slice_counts = setting["counted"]
    for slices, stages in zip(slice_counts, each(slice_counts, operations)):
        key = f"{name}, 10^9 operations", slices
        found[key], shares[key], faster[key] = stages, [first_token_share(stages)], [first_token_share(stages, NPU)]
    return conclude(found, shares, faster)


def conclude(found: dict, shares: dict, faster: dict) -> Finding:
    """From, for each (row, slices), the medians of the stages, and the prefill's shares of the rounds."""
    table = [["what", "slices", *STAGES, "prefill's share", "with an NPU"]]
    for key, stages in found.items():
        table.append([key[0], str(key[1]), *(f"{stage:,.1f}" for stage in stages)])
        table[-1] += [f"{median(shares[key]):.0%}", f"{median(faster[key]):.0%}"]
    most = {key[0]: key for key in found if key[1] == max(SLICES)}
    lows = [median_interval(faster[key])[0] for key in most.values()]
    alone = all(median(shares[key]) > 0.5 for key in most.values())
    words = [f"{median(shares[key]):.0%} ({what})" for what, key in most.items()]
    words_npu = [f"{median(faster[key]):.0%}" for key in most.values()]
    figures = {f"{what}: share at 9 slices with an NPU": round(median(faster[key]), 3) for what, key in most.items()}
    intervals = {
        f"{what}: share at 9 slices with an NPU": [round(end, 3) for end in median_interval(faster[key])]
        for what, key in most.items()
        if len(faster[key]) > 1
    }
    return Finding(
        CONFIRMED if min(lows) > 0.5 else NOT_CONFIRMED,
        f"On one processor, at 9 slices, the prefill is {', '.join(words)} of the time to the first token: "
        f"{'more' if alone else 'not more'} than half in every row. With a ViT that is {NPU:.2f} times faster it is "
        f"{', '.join(words_npu)}.",
        figures,
        intervals,
        table,
        [0],
    )
