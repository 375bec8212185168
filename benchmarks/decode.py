"""How fast are new tokens? The decoder of deploy/runtime.py against transformers' generate().

    python benchmarks/decode.py --threads 2 --rounds 9

Greedy, one conversation, 64 new tokens after a prompt of 64, 128 or 512 embeddings (reading it counts), random weights,
equal dtype and threads.
transformers: LlamaForCausalLM.generate with its KV cache. MiniCPMV: the same LLM in this package's own loop.
Runtime: the same loop with the decoder. Tokens are asserted equal first. Wall and CPU time come from the same runs.
The table has Runtime's CPU-time ratios. A file given to --json keeps the lowest and highest of all runs that it saw.
Each new token reads all weights: "of memory rate" is the share that Runtime reaches of the rate of one large product.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import transformers
from transformers import GenerationConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report
from _timing import measure, read_rate, speedup

from minicpmv_ref.config import nano
from minicpmv_ref.deploy.runtime import Runtime
from minicpmv_ref.inputs.files import read_json
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Batch

NEW, LENGTHS = 64, (64, 128, 512)
WIDE = dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, vocab_size=32000)
SIZES = {
    "nano": nano,
    "768 x 12": replace(
        nano,
        resampler=replace(nano.resampler, width=768),
        llm=replace(nano.llm, **WIDE, num_key_value_heads=4, tie_word_embeddings=False),
    ),
}


def lively(config) -> MiniCPMV:
    """A model whose LLM has random weights of unit gain, so that tokens are not near ties."""
    model = MiniCPMV.seeded(config)
    with torch.no_grad():
        for p in model.llm.parameters():
            if p.ndim == 2:
                p.normal_(std=p.shape[1] ** -0.5)
    return model


def prompt(length: int, vocab: int) -> Batch:
    """Text only, and nothing stops it."""
    return Batch(
        input_ids=torch.randint(0, vocab, (1, length)),
        attention_mask=torch.ones(1, length, dtype=torch.long),
        position_ids=torch.arange(length)[None],
        labels=torch.full((1, length), -100),
        images=[[]],
        patch_grids=[[]],
        image_bounds=[torch.zeros(0, 2, dtype=torch.long)],
        plans=[[]],
        stop_ids=(),
        pad_id=0,
    )


def candidates(model: MiniCPMV, batch: Batch) -> dict:
    visual = torch.zeros(0, model.config.resampler.num_queries, model.config.llm.hidden_size)
    embeddings = model.embed(batch, visual).detach()
    greedy = GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True
    )
    quick = Runtime(model)
    return {
        "transformers": lambda: model.llm.generate(
            inputs_embeds=embeddings, attention_mask=batch.attention_mask, generation_config=greedy
        ),
        "MiniCPMV": lambda: model.generate(batch, NEW, visual=visual),
        "Runtime": lambda: quick.generate(batch, NEW, visual=visual),
    }


def check(calls: dict, model: MiniCPMV, dtype: str) -> None:
    """Equal tokens; in bfloat16, where likely tokens tie, equal logits up to its rounding."""
    found = {name: run() for name, run in calls.items()}
    if dtype == "float32":
        assert all(torch.equal(tokens, found["transformers"]) for tokens in found.values())
    ids, decoder, steps = found["transformers"], Runtime(model).llm, []
    for token in ids.split(1, dim=1):
        steps.append(decoder(token, past_key_values=steps[-1].past_key_values if steps else None))
    with torch.no_grad():
        theirs, ours = model.llm(ids).logits.float(), torch.cat([step.logits for step in steps], dim=1).float()
    error = ((ours - theirs).norm() / theirs.norm()).item()
    assert error < (1e-5 if dtype == "float32" else 5e-2), f"logits differ by {error}"


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    rows = []
    for size, config in SIZES.items():
        model = lively(config)
        for dtype in ("float32", "bfloat16"):
            model = model.to(getattr(torch, dtype))
            rows.append({"LLM": size, "dtype": dtype})
            rate, nbytes = read_rate(getattr(torch, dtype)), Runtime(model).llm.nbytes
            for length in LENGTHS:
                calls = candidates(model, prompt(length, config.llm.vocab_size))
                check(calls, model, dtype)  # also the untimed call of each
                wall, cpu = measure(calls, args.rounds)
                speeds = [f"{name} {NEW * 1000 / median(times):.0f}" for name, times in wall.items()]
                for name in ("MiniCPMV", "Runtime"):
                    ratios = [speedup(times["transformers"], times[name]) for times in (wall, cpu)]
                    speeds.append("{} x {:.2f} (CPU {:.2f})".format(name, *ratios))
                rows[-1][str(length)] = [ratios[1]] * 2
                if length == LENGTHS[0]:
                    rows[-1]["of memory rate"] = [NEW * nbytes / median(wall["Runtime"]) / rate] * 2
                print(size, dtype, length, *speeds, sep=" | ", file=sys.stderr, flush=True)
    if args.json and Path(args.json).exists():
        rows = widened(rows, read_json(args.json)["rows"])
    unit = "times faster than transformers' generate(), CPU time, lowest and highest of the runs"
    report("decode", args, rows, transformers=transformers.__version__, unit=unit)


def widened(rows: list[dict], earlier: list[dict]) -> list[dict]:
    """The ranges of these rows and of those of earlier runs together."""
    found = []
    for row, old in zip(rows, earlier, strict=True):
        assert row["LLM"] == old["LLM"] and row["dtype"] == old["dtype"], "another file"
        ranges = {key: [*row[key], *old[key]] for key in (*map(str, LENGTHS), "of memory rate")}
        found.append(row | {n: [min(both), max(both)] for n, both in ranges.items()})
    return found


if __name__ == "__main__":
    main()
