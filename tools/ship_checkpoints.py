"""Turn a finished run of `python3 lab.py train --profile cpu` into the checkpoints of the course.

    python tools/ship_checkpoints.py runs/cpu

Writes data_samples/checkpoints/nano-start (the LLM and the ViT before they met), nano-stage-1, -2, -3 (only what each
stage changed), nano (whole, after fine-tuning) and metrics.json. Weights are rounded to bfloat16 and graded after that.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minicpmv_ref import MiniCPMV, Processor  # noqa: E402
from minicpmv_ref.inputs.checkpoint import write_checkpoint  # noqa: E402
from minicpmv_ref.inputs.published import BUNDLED  # noqa: E402
from minicpmv_ref.learn.evaluate import evaluate  # noqa: E402
from minicpmv_ref.learn.stages import STAGES, stage_named  # noqa: E402
from minicpmv_ref.scale.run import DATA_VERSION  # noqa: E402

# run folder -> (shipped folder, its base, the stage whose parts it holds)
PARTIAL = {
    "stage-1": ("nano-stage-1", "nano-start"),
    "stage-2": ("nano-stage-2", "nano-stage-1"),
    "stage-3": ("nano-stage-3", "nano-stage-2"),
}
WHOLE = {"start-vit": "nano-start", "sft-2": "nano"}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
GRADED = 200  # items for each grade


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--machine", default="2 threads of an AMD EPYC server", help="in words, for metrics.json")
    args = parser.parse_args()
    processor = Processor.from_pretrained("nano")
    for stage, folder in WHOLE.items():
        model = MiniCPMV.from_pretrained(args.run / stage).bfloat16()
        model.save_pretrained(BUNDLED / folder)
        for name in TOKENIZER:  # byte for byte; writing it anew would change the second
            if folder != "nano":
                shutil.copyfile(BUNDLED / "nano" / name, BUNDLED / folder / name)
    for stage, (folder, base) in PARTIAL.items():
        model = MiniCPMV.from_pretrained(args.run / stage).bfloat16()
        parts = tuple(stage_named(stage).learning_rates)
        changed = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(parts)}
        write_checkpoint(BUNDLED / folder, model.config, changed, base=base)

    rows = [json.loads(line) for line in (args.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = {
        "command": "python3 lab.py train --profile cpu --seed 0",
        "seed": 0,
        "data_version": DATA_VERSION,
        "machine": args.machine,
        "stages": {},
        "grades": {},
    }
    for stage in STAGES:
        curve = [[row["step"], round(row["loss"], 4)] for row in rows if row["stage"] == stage.name and "loss" in row]
        last = [row for row in rows if row["stage"] == stage.name and "seconds" in row and "loss" not in row][-1]
        numbers = {name: round(last[name], 4) for name in ("held_out_before", "held_out_after")}
        metrics["stages"][stage.name] = {"seconds": round(last["seconds"]), **numbers, "loss": curve}
    torch.set_grad_enabled(False)
    for folder in ("nano-stage-1", "nano-stage-2", "nano-stage-3", "nano"):
        grades = evaluate(MiniCPMV.from_pretrained(folder), processor, seed="shipped", n=GRADED)
        metrics["grades"][folder] = {name: round(share, 4) for name, share in grades.items()}
        print(folder, metrics["grades"][folder], flush=True)
    text = json.dumps(metrics, indent=1)
    (BUNDLED / "metrics.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
