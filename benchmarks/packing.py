"""How much does packing save? Useful tokens per second, forward and backward, against what people use instead.

    python benchmarks/packing.py --threads 2 --rounds 7
    PYTHONPATH=folder python benchmarks/packing.py --trl      after pip install --target folder trl datasets accelerate

A Llama of width 256, 4 layers, vocabulary 4096, random weights; 32 samples of text, the second half of each supervised.
padded, sorted: batches of 8, padded to the longest; in random order, or sorted by length first.
flattening: DataCollatorWithFlattening of transformers, 8 samples a row, dense mask, use_cache=False, no attention_mask.
trl: rows of 1024 by trl.pack_dataset ("bfd"), positions restart, dense mask, one row a call.
ours, full head: `score`; ours: `packed_loss`, which runs the LM head on supervised tokens only, so a part of its gain
is not packing. Rows of 2048, one row a call: without a mask a longer row costs nothing.
All batches are made beforehand. Loss and gradient are asserted equal first. Wall and CPU time come from the same runs.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from transformers import DataCollatorWithFlattening

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report
from _timing import measure, speedup

from experiments._fair import LONGEST, assert_same_training, draw_length
from minicpmv_ref.config import nano
from minicpmv_ref.learn.packing import pack, pack_batch, packed_loss, sample_lengths, score
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Batch

VOCAB, BATCH = 4096, 8
THEIR_ROW, OUR_ROW = LONGEST, 2048  # theirs has a mask of row x row
LLM = replace(nano.llm, vocab_size=VOCAB, intermediate_size=704, num_key_value_heads=4, tie_word_embeddings=False)


def draw_samples(lengths: list[int]) -> list[dict]:
    samples = []
    for length in lengths:
        ids = torch.randint(0, VOCAB, (length,)).tolist()
        samples.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return samples


def pad(samples: list[dict], left: bool = False) -> dict[str, torch.Tensor]:
    width = max(len(s["input_ids"]) for s in samples)
    out = {
        "input_ids": torch.zeros(len(samples), width, dtype=torch.long),
        "attention_mask": torch.zeros(len(samples), width, dtype=torch.long),
        "labels": torch.full((len(samples), width), -100),
    }
    for row, s in enumerate(samples):
        n = len(s["input_ids"])
        place = slice(width - n, width) if left else slice(0, n)
        out["input_ids"][row, place] = torch.tensor(s["input_ids"])
        out["attention_mask"][row, place] = 1
        out["labels"][row, place] = torch.tensor(s["labels"])
    return out


def in_batches(samples: list[dict], collate) -> list[dict]:
    return [collate(samples[i : i + BATCH]) for i in range(0, len(samples), BATCH)]


def trl_rows(samples: list[dict]) -> list[dict]:
    import datasets
    import pyarrow
    from trl import pack_dataset

    once = {"new_fingerprint": "packed", "keep_in_memory": True}  # no cache files, no hashing
    datasets.disable_progress_bars()
    columns = pyarrow.Table.from_pylist(samples)
    rows = pack_dataset(datasets.Dataset(columns, fingerprint="s"), THEIR_ROW, strategy="bfd", map_kwargs=once)
    flatten = DataCollatorWithFlattening()
    batches = []
    for row in rows:  # cut the rows apart again, so that positions and labels are collated as for "flattening"
        parts, start = [], 0
        for n in row["seq_lengths"]:
            parts.append({name: row[name][start : start + n] for name in ("input_ids", "labels")})
            start += n
        batches.append(flatten(parts))
    return batches


def to_batch(samples: list[dict]) -> Batch:
    padded = pad(samples, left=True)
    return Batch(
        **padded,
        position_ids=(padded["attention_mask"].cumsum(1) - 1).clamp(min=0),
        images=[[] for _ in samples],
        patch_grids=[[] for _ in samples],
        image_bounds=[torch.zeros(0, 2, dtype=torch.long) for _ in samples],
        plans=[[] for _ in samples],
        stop_ids=(),
        pad_id=0,
    )


def candidates(model: MiniCPMV, samples: list[dict], trl: bool) -> dict:
    judged = sum(label != -100 for s in samples for label in s["labels"][1:])
    by_length = sorted(samples, key=lambda s: len(s["input_ids"]), reverse=True)
    batch = to_batch(samples)
    packed = [pack_batch(batch, [row]) for row in pack(sample_lengths(batch), OUR_ROW)]
    shares = [(row.labels != -100).sum().item() / judged for row in packed]  # a mean over all samples, not over rows

    def theirs(batches):
        def run():
            model.zero_grad(set_to_none=True)
            total = 0.0
            for each in batches:  # gradient accumulation, as their Trainer does it
                loss = model.llm(**each, use_cache=False, num_items_in_batch=judged).loss
                loss.backward()
                total += loss.item()
            return total

        return run

    def ours(loss_of):
        def run():
            model.zero_grad(set_to_none=True)
            total = 0.0
            for row, share in zip(packed, shares):
                loss = loss_of(row) * share
                loss.backward()
                total += loss.item()
            return total

        return run

    calls = {
        "padded": theirs(in_batches(samples, pad)),
        "sorted": theirs(in_batches(by_length, pad)),
        "flattening": theirs(in_batches(samples, DataCollatorWithFlattening())),
    }
    if trl:
        calls["trl"] = theirs(trl_rows(samples))
    calls["ours, full head"] = ours(lambda row: score(model, row).loss)
    calls["ours"] = ours(lambda row: packed_loss(model, row))
    return calls


def check(model: MiniCPMV, calls: dict) -> None:
    found = {}
    for name, run in calls.items():
        loss = run()
        found[name] = loss, torch.cat([p.grad.flatten() for p in model.llm.parameters()])
    assert_same_training(found)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--docs", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trl", action="store_true", help="needs trl and datasets")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = MiniCPMV.seeded(replace(nano, llm=LLM)).train()

    rows = []
    for kind in ("caption-like", "wide lognormal", "uniform 16..512", "constant 128"):
        rng = random.Random(args.seed)
        lengths = [draw_length(kind, rng) for _ in range(args.docs)]
        calls = candidates(model, draw_samples(lengths), args.trl)
        check(model, calls)  # also the untimed call of each
        wall, cpu = measure(calls, args.rounds)
        padded = sum(max(lengths[i : i + BATCH]) * len(lengths[i : i + BATCH]) for i in range(0, args.docs, BATCH))
        rows.append({"lengths": kind, "useful of padded": sum(lengths) / padded})
        rows[-1]["useful tokens/s"] = 1000 * sum(lengths) / median(wall["ours"])
        peers = [name for name in calls if not name.startswith("ours")]
        for times, suffix in ((wall, ""), (cpu, ", CPU")):
            rows[-1] |= {name + suffix: speedup(times["padded"], times[name]) for name in calls if name != "padded"}
            for own in ("ours, full head", "ours"):
                rows[-1][f"{own} / best peer{suffix}"] = min(speedup(times[peer], times[own]) for peer in peers)
        print(rows[-1], file=sys.stderr, flush=True)
    report("packing", args, rows, dtype="float32", unit="times faster than padding in random order")


if __name__ == "__main__":
    main()
