"""How fast is the ViT? Ours against two towers of transformers, in one process, with equal weights.

    python benchmarks/vision.py --threads 2 --layers 1 --rounds 5

4.6 packed: MiniCPM-V 4.6's encoder, all slices in one row and a loop over slices inside attention (sdpa).
Idefics2 padded: every slice padded to the largest of the batch, with a mask (sdpa).
The towers have the real width (1152, MLP 4304, 16 heads) and random weights. Both peers get their batch ready-made,
ours packs inside the timed call. Results are asserted equal first.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from einops import rearrange
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionConfig, Idefics2VisionTransformer
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import (
    MiniCPMV4_6VisionConfig,
    MiniCPMV4_6VisionModel,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report
from _timing import gemm_rate, paired, speedup

from experiments._fair import assert_same_output
from minicpmv_ref.config import v2_6
from minicpmv_ref.counts import Workload, flops_by_part
from minicpmv_ref.vision import VisionTransformer

# Patch grids (rows, cols) of real images. No side is one where the three position formulas differ (25, 49, 50, ...).
CASES = {
    "10 of 32x32 patches": [(32, 32)] * 10,
    "1920x1080: 9": [(24, 43), *[(34, 30)] * 8],
    "640x480: 3": [(28, 37), *[(39, 26)] * 2],
    "4 mixed images": [(14, 71), (28, 37), *[(39, 26)] * 2, (32, 32), (24, 43), *[(34, 30)] * 8],
}
NAMES = ("packed", "padded", "ours")


def peer(kind, config_kind, ours: VisionTransformer):
    """A tower of transformers with our parameters. Parts that have none (4.6's merger) stay on the meta device."""
    cfg = ours.cfg
    config = config_kind(
        hidden_size=cfg.width,
        intermediate_size=cfg.mlp_width,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        image_size=cfg.table_side * cfg.patch_size,
        patch_size=cfg.patch_size,
        hidden_act="gelu_pytorch_tanh",
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = kind(config)
    parameters = dict(ours.named_parameters())
    strange = model.load_state_dict(parameters, strict=False, assign=True).unexpected_keys
    assert not strange, strange
    return model.eval()


def packed_call(model, images, grids):
    strips = [rearrange(x, "c (r p) (w q) -> c p (r w q)", p=14, q=14) for x in images]
    pixels, sizes = torch.cat(strips, dim=-1)[None], torch.tensor(grids, dtype=torch.int32)
    return lambda: model(pixels, sizes, use_vit_merger=False).last_hidden_state[0]


def padded_call(model, images, grids):
    rows, cols = (max(sides) for sides in zip(*grids))
    pixels = torch.zeros(len(images), 3, 14 * rows, 14 * cols, dtype=images[0].dtype)
    mask = torch.zeros(len(images), rows, cols, dtype=torch.bool)
    for i, (image, (r, c)) in enumerate(zip(images, grids)):
        pixels[i, :, : 14 * r, : 14 * c] = image
        mask[i, :r, :c] = True
    real = mask.flatten(1)
    return lambda: model(pixels, patch_attention_mask=mask).last_hidden_state[real]


@torch.inference_mode()
def measure(ours: VisionTransformer, grids, rounds: int, clock) -> dict[str, list[float]]:
    dtype = ours.post_layernorm.weight.dtype
    images = [torch.randn(3, 14 * r, 14 * c).to(dtype) for r, c in grids]
    calls = (
        packed_call(peer(MiniCPMV4_6VisionModel, MiniCPMV4_6VisionConfig, ours), images, grids),
        padded_call(peer(Idefics2VisionTransformer, Idefics2VisionConfig, ours), images, grids),
        lambda: torch.cat(ours(images)),
    )
    calls = dict(zip(NAMES, calls))
    limit = 1e-4 if dtype == torch.float32 else 0.1  # outputs have unit variance
    assert_same_output({name: call() for name, call in calls.items()}, limit)
    return paired(calls, rounds, clock)


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--cpu", action="store_true", help="CPU time, for crowded machines; use 1 thread")
    args = parser.parse_args()
    clock = time.process_time if args.cpu else time.perf_counter
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    rows = []
    config = replace(v2_6, vision=replace(v2_6.vision, layers=args.layers))
    for dtype in args.dtypes:
        ours = VisionTransformer(config.vision).eval().to(getattr(torch, dtype))
        rate = gemm_rate(getattr(torch, dtype), clock)
        for case, grids in CASES.items():
            times = measure(ours, grids, args.rounds, clock)
            packed, padded, own = times.values()
            best = min(packed, padded, key=median)
            rows.append({"dtype": dtype, "views": case, **{name: median(t) for name, t in times.items()}})
            rows[-1] |= {"packed / ours": speedup(packed, own), "best peer / ours": speedup(best, own)}
            lengths = [r * c for r, c in grids]
            work = Workload(0, 0, 0, len(grids), sum(lengths), sum(length**2 for length in lengths))
            rows[-1]["roofline"] = flops_by_part(config, work, [])["vpm"] / median(own) / rate
            print(rows[-1], file=sys.stderr, flush=True)
    report("vision", args, rows, unit="milliseconds")


if __name__ == "__main__":
    main()
