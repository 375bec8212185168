"""Measure what loss each stage of the toy training has in its first steps: data_samples/checkpoints/expected.json.

    python tools/expected_loss.py

Three seeds of each stage whose predecessor is shipped, as `python3 lab.py train --profile cpu` begins it. How far a
loss may be from these stands in minicpmv_ref/scale/expected.py. About 12 minutes on one core.
"""

import json
import sys
from itertools import islice
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minicpmv_ref import MiniCPMV, Processor  # noqa: E402
from minicpmv_ref.inputs.published import BUNDLED  # noqa: E402
from minicpmv_ref.learn.stages import stage_named, start  # noqa: E402
from minicpmv_ref.learn.train import train  # noqa: E402
from minicpmv_ref.scale.run import DATA_VERSION  # noqa: E402

WINDOW, SEEDS = 10, (0, 1, 2)
BEGINNINGS = {  # stage: (the checkpoint before it, None for random weights; steps: fewer where a step takes long)
    "stage-1": ("nano-start", 100),
    "stage-2": ("nano-stage-1", 60),
    "start-text": (None, 50),
    "start-vit": (None, 50),
    "stage-3": ("nano-stage-2", 40),
    "sft-1": ("nano-stage-3", 30),
}


def main():
    processor, stages = Processor.from_pretrained("nano"), {}
    for name, (before, steps) in BEGINNINGS.items():
        means = []
        for seed in SEEDS:
            model = MiniCPMV.from_pretrained(before) if before else start(seed=seed)
            losses = [step.loss for step in islice(train(model, processor, stage_named(name), seed), steps)]
            means.append([round(fmean(losses[at : at + WINDOW]), 4) for at in range(0, steps, WINDOW)])
            print(name, seed, means[-1], flush=True)
        stages[name] = {"from": before or "random weights", "steps": steps, "losses": means}
        found = {"command": "python tools/expected_loss.py", "data_version": DATA_VERSION, "window": WINDOW}
        found |= {"seeds": list(SEEDS), "stages": stages}
        (BUNDLED / "expected.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
