"""Ask the shipped checkpoints about the three pictures of lesson 07: data_samples/checkpoints/answers.json.

python tools/stage_answers.py
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minicpmv_ref import MiniCPMV, Processor  # noqa: E402
from minicpmv_ref.inputs.published import BUNDLED  # noqa: E402
from minicpmv_ref.learn.evaluate import answers  # noqa: E402
from minicpmv_ref.toy.data import draw  # noqa: E402

PICTURES = (("scene", "caption", 3), ("lines of text", "crop", 3), ("document", "read", 4))  # (name, kind, seed)
CHECKPOINTS = "nano-start", "nano-stage-1", "nano-stage-2", "nano-stage-3", "nano"


def main():
    processor, samples = Processor.from_pretrained("nano"), [draw(seed, kind, "test") for _, kind, seed in PICTURES]
    found = {"command": "python tools/stage_answers.py", "pictures": PICTURES}
    found |= {"truth": [sample.answer for sample in samples], "said": {}}
    for name in CHECKPOINTS:
        prompts, model = [sample.prompt for sample in samples], MiniCPMV.from_pretrained(name)
        found["said"][name] = answers(model, processor, prompts, max_new_tokens=24)
    (BUNDLED / "answers.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
