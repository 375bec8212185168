"""How fast is the bottleneck? `Resampler` and `fold` against the official form, in one process, with equal weights.

    python benchmarks/resampler.py --threads 2 --rounds 5

official: kv_proj, LayerNorm and torch.nn.MultiheadAttention with queries repeated for every slice, as released.
    Kindly done: its transposed inputs are made contiguous first. As released, in inference mode, torch 2.13 turns each
    projection into L small matmuls, over a copy of the weight per patch in bfloat16: ten times slower, 26 GB.
sdpa: the same around F.scaled_dot_product_attention.
Sines are computed beforehand for both. Weights are random, sizes real (ViT width 1152).
Results are asserted equal first.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report
from _timing import gemm_rate, paired, speedup

from experiments._fair import assert_same_output
from minicpmv_ref.config import MiniCPMVConfig, v2_5, v2_6
from minicpmv_ref.counts import Workload, flops_by_part
from minicpmv_ref.deploy.fold import fold
from minicpmv_ref.positions import sincos_2d
from minicpmv_ref.resampler import Resampler

CASES = [
    ("float32", v2_6, "6 of 32x32", [(32, 32)] * 6),
    ("float32", v2_6, "640x480 twice", [(28, 37), (39, 26), (39, 26)] * 2),
    ("float32", v2_5, "6 of 32x32", [(32, 32)] * 6),
    ("bfloat16", v2_6, "10 of 32x32", [(32, 32)] * 10),
    ("bfloat16", v2_6, "1920x1080", [(24, 43), *[(34, 30)] * 8]),
    ("bfloat16", v2_5, "10 of 32x32", [(32, 32)] * 10),
]
NAMES = ("official", "sdpa", "ours", "fold")


class Official:
    """The released computation on padded batches; `attention` is the only thing that differs between two peers."""

    def __init__(self, ours: Resampler, grids, sdpa: bool):
        self.ours, self.attention = ours, self.sdpa if sdpa else self.multihead
        dtype, width, longest = ours.query.dtype, ours.cfg.width, max(r * c for r, c in grids)
        self.positions = torch.zeros(len(grids), longest, width, dtype=dtype)
        padding = torch.ones(len(grids), longest, dtype=torch.bool)
        for i, (rows, cols) in enumerate(grids):
            self.positions[i, : rows * cols] = rearrange(sincos_2d(width, rows, cols), "r c e -> (r c) e")
            padding[i, : rows * cols] = False
        self.padding = padding if padding.any() else None  # as released: no mask where nothing is padded
        self.torch_attention = nn.MultiheadAttention(width, ours.cfg.heads).to(dtype).eval()
        self.torch_attention.load_state_dict(ours.attn.state_dict())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = self.ours.ln_kv(self.ours.kv_proj(x))
        q = repeat(self.ours.ln_q(self.ours.query), "q e -> b q e", b=len(x))
        return self.ours.ln_post(self.attention(q, x + self.positions, x)) @ self.ours.proj

    def multihead(self, q, k, v):
        q, k, v = (t.transpose(0, 1).contiguous() for t in (q, k, v))  # (L, B, E), as released
        return self.torch_attention(q, k, v, key_padding_mask=self.padding)[0].transpose(0, 1)

    def sdpa(self, q, k, v):
        weights, biases = (p.chunk(3) for p in (self.ours.attn.in_proj_weight, self.ours.attn.in_proj_bias))
        q, k, v = (
            rearrange(F.linear(t, w, b), "b l (h k) -> b h l k", h=self.ours.cfg.heads)
            for t, w, b in zip((q, k, v), weights, biases)
        )
        mask = None if self.padding is None else ~self.padding[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.ours.attn.out_proj(rearrange(out, "b h q k -> b q (h k)"))


@torch.inference_mode()
def measure(dtype: torch.dtype, config: MiniCPMVConfig, grids, rounds: int, clock) -> dict[str, list[float]]:
    cfg = config.resampler
    ours = Resampler(cfg).eval().to(dtype)
    folded = fold(ours)
    features = [torch.randn(r * c, cfg.kv_width).to(dtype) for r, c in grids]
    padded = nn.utils.rnn.pad_sequence(features, batch_first=True)
    official, sdpa = Official(ours, grids, sdpa=False), Official(ours, grids, sdpa=True)
    calls = (
        lambda: official(padded),
        lambda: sdpa(padded),
        lambda: ours(features, grids),
        lambda: folded(features, grids),
    )
    calls = dict(zip(NAMES, calls))
    limit = 1e-4 if dtype == torch.float32 else 0.1  # outputs have about unit variance
    assert_same_output({name: call() for name, call in calls.items()}, limit)
    return paired(calls, rounds, clock)


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--cpu", action="store_true", help="CPU time, for crowded machines; use 1 thread")
    args = parser.parse_args()
    clock = time.process_time if args.cpu else time.perf_counter
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    rows = []
    for dtype, config, case, grids in CASES:
        cfg = config.resampler
        times = measure(getattr(torch, dtype), config, grids, args.rounds, clock)
        rows.append({"dtype": dtype, "width, queries": f"{cfg.width}, {cfg.num_queries}", "views": case})
        rows[-1] |= {name: median(t) for name, t in times.items()}
        for slow, fast in (("sdpa", "ours"), ("sdpa", "fold"), ("official", "fold")):
            rows[-1][f"{slow} / {fast}"] = speedup(times[slow], times[fast])
        work = Workload(0, 0, 0, len(grids), sum(r * c for r, c in grids))
        count = flops_by_part(config, work, [])["resampler"]
        rows[-1]["roofline"] = count / median(times["ours"]) / gemm_rate(getattr(torch, dtype), clock)
        print(rows[-1], file=sys.stderr, flush=True)
    report("resampler", args, rows, unit="milliseconds")


if __name__ == "__main__":
    main()
