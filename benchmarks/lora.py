"""What does LoRA save, and what does it cost in quality? Three ways to learn the example records, beside each other.

    python benchmarks/lora.py --from CHECKPOINT --steps 150 --threads 1

full: every parameter. official: adapters, and word embeddings, resampler and ViT in full, as the official script does
with --use_lora. lora: adapters alone. All see the same samples in the same order, in float32, with AdamW.
Bytes: what `training_bytes` says before the first step, and what gradients and AdamW's state really hold after the
last one. Score: held-out loss, and the share of words of the answers that are in their right place.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report

from minicpmv_ref.inputs.published import BUNDLED
from minicpmv_ref.learn.stages import Stage, start
from minicpmv_ref.learn.train import optimizer_for
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Processor
from minicpmv_ref.scale.finetune import in_order, loss_on, words_right
from minicpmv_ref.scale.lora import (
    MODULES_TO_SAVE,
    add_lora,
    learning,
    load_lora,
    lora_optimizer,
    merge_lora,
    save_lora,
    training_bytes,
)
from minicpmv_ref.scale.machine import Machine
from minicpmv_ref.scale.records import read_records
from minicpmv_ref.scale.steps import train_steps

RECORDS = BUNDLED.parent / "records"
NAMES = {"full": "full", "official": "official", "lora": "LoRA alone"}


def base(checkpoint: str | None) -> MiniCPMV:
    return MiniCPMV.from_pretrained(checkpoint).float() if checkpoint else start()


def learn(way: str, model: MiniCPMV, processor: Processor, args, seen: list, held_out: list) -> dict:
    rates = dict.fromkeys(("vpm", "resampler", "llm"), args.rate)
    stage = Stage(way, "answer", rates, {}, steps=args.steps, batch=args.batch)
    if way == "full":
        optimizer = optimizer_for(model, stage)
    else:
        add_lora(model, args.rank, modules_to_save=MODULES_TO_SAVE if way == "official" else ())
        optimizer = lora_optimizer(model, args.lora_rate, args.rate)
    expected = training_bytes(model)
    began = time.process_time()
    samples = train_steps(
        model,
        processor,
        stage,
        samples=in_order(seen, args.seed),
        optimizer=optimizer,
        machine=Machine(half_precision=False),
    )
    last = [step.loss for step in samples][-1]
    seconds = time.process_time() - began
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    state = sum(tensor.nbytes for each in optimizer.state.values() for tensor in each.values())
    row = {"way": NAMES[way], "parameters": sum(some for some, _ in learning(model).values())}
    row |= {"weights": expected["weights"] / 1e6, "gradients": gradients / 1e6, "AdamW": state / 1e6}
    row |= {f"{what}, expected": expected[what] / 1e6 for what in ("gradients", "optimizer")}
    row |= {"step": 1000 * seconds / args.steps, "last loss": last}
    row |= {"loss": loss_on(model, processor, held_out), "words": words_right(model, processor, held_out)}
    with tempfile.TemporaryDirectory() as folder:
        if way == "full":
            model.save_pretrained(folder)
        else:
            before = loss_on(model, processor, held_out)
            save_lora(model, folder)
            again = merge_lora(load_lora(base(args.checkpoint), folder))
            after = loss_on(again, processor, held_out)
            assert abs(before - after) < 1e-4, f"{way}: merged, the loss is {after} and not {before}"
        row["disk"] = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
    return row


def main() -> None:
    parser = arguments(__doc__, threads=1, rounds=None)
    parser.add_argument("--from", dest="checkpoint", help="a checkpoint folder (default: the nano model, untrained)")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=4e-4, help="of what learns in full")
    parser.add_argument("--lora-rate", type=float, default=4e-3, help="of the adapters")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    processor = Processor.from_pretrained(args.checkpoint or "nano")
    seen, held_out = (read_records(RECORDS / name)[0] for name in ("train.json", "test.json"))
    model = base(args.checkpoint)
    before = {"loss": loss_on(model, processor, held_out), "words": words_right(model, processor, held_out)}
    print(f"{args.checkpoint or 'untrained nano'}: {len(seen)} records seen, {len(held_out)} held out", flush=True)
    rows = [learn(way, base(args.checkpoint), processor, args, seen, held_out) for way in NAMES]
    report("lora", args, rows, dtype="float32", before=before, unit="MB, CPU milliseconds")


if __name__ == "__main__":
    main()
