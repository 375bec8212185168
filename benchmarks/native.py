"""What does compiling on the target bring? llama.cpp built for any computer, beside llama.cpp built for this one.

    CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --no-cache-dir --target PORTABLE llama-cpp-python==0.3.36
    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-cache-dir --target NATIVE llama-cpp-python==0.3.36
    python benchmarks/native.py PORTABLE NATIVE --rounds 5

A random model of 90 million parameters (the larger one of the course with twice the LLM layers) reads a picture of
nine views and a question, then writes 64 tokens. Both builds take turns; the least time of each counts, for other
programs only make a run slower. Answers may differ where rounding does, so their first logits are compared, loosely.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report

from minicpmv_ref import MiniCPMV, Processor
from minicpmv_ref.deploy import llamacpp
from minicpmv_ref.deploy.gguf import export
from minicpmv_ref.scale.profiles import larger

MIXTURES = ("F16", "Q8_0", "Q4_K_M")
TOKENS = 64


def timed(build: str, files: list[Path], prompts: list, threads: int) -> tuple[float, float, np.ndarray]:
    """(prompt tokens a second, new tokens a second, first logits) of one build, in a process of its own."""
    os.environ["PYTHONPATH"] = build
    _, answer = llamacpp.run(*files, prompts, TOKENS, threads)  # the first one warms up
    return answer.prompt_tokens / answer.prompt_seconds, len(answer.tokens) / answer.answer_seconds, answer.logits


def main() -> None:
    parser = arguments(__doc__, threads=1, rounds=5)
    parser.add_argument("builds", nargs=2, metavar="FOLDER", help="where pip put the portable and the native build")
    args = parser.parse_args()
    sys.path.insert(0, args.builds[0])
    importlib.invalidate_caches()

    config = replace(larger, llm=replace(larger.llm, num_hidden_layers=20))
    processor = Processor(Processor.from_pretrained("nano").tokenizer, config)
    model = MiniCPMV.seeded(config)
    image = Image.effect_noise((448, 224), 64).convert("RGB")
    prompts = [(llamacpp.prompt_text("What is this?", processor), image)] * 2
    count = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{count:.0f} M random parameters, {args.threads} threads, least of {args.rounds} rounds\n", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for mixture in MIXTURES:
            files = export(model, processor, Path(folder, mixture), mixture)
            best, logits = np.zeros((2, 2)), [None, None]
            for _ in range(args.rounds):
                for which, build in enumerate(args.builds):
                    *speeds, logits[which] = timed(build, files, prompts, args.threads)
                    best[which] = np.maximum(best[which], speeds)
            apart = np.abs(logits[0] - logits[1]).max() / logits[0].std()
            assert apart < 0.5 and not math.isnan(apart), f"{mixture}: the logits are {apart} standard deviations apart"
            rows.append({"LLM": mixture})
            for what, (portable, native) in zip(("reading", "writing"), best.T.tolist()):
                rows[-1] |= {f"{what}, portable": portable, f"{what}, native": native}
                rows[-1][f"{what}, times"] = native / portable
    of = {"llama-cpp-python": version("llama-cpp-python"), "parameters": f"{count:.0f} M", "unit": "tokens per second"}
    report("native", args, rows, **of)


if __name__ == "__main__":
    main()
