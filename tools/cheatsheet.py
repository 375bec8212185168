"""Write docs/cheatsheet.html: rules, formulas and numbers on two pages to print. Every number is computed here.

    python tools/cheatsheet.py

The words stand in docs/site/cheatsheet.html.j2, the numbers come from the package.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import jinja2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minicpmv_ref.config import MiniCPMVConfig, v2_0, v2_5, v2_6  # noqa: E402
from minicpmv_ref.counts import kv_cache_numbers, parameters  # noqa: E402
from minicpmv_ref.deploy.gguf_plan import plan_mixture, plan_vision  # noqa: E402
from minicpmv_ref.deploy.kquant import FORMATS  # noqa: E402
from minicpmv_ref.learn.stages import STAGES  # noqa: E402
from minicpmv_ref.peers import SYSTEMS, plan  # noqa: E402
from minicpmv_ref.prompt import image_layout  # noqa: E402
from minicpmv_ref.slicing import plan_slices  # noqa: E402

PAGE = ROOT / "docs/cheatsheet.html"
SIZES = "448x448 449x448 640x480 1000x200 1080x1080 1280x720 1344x1344 1920x1080 1080x1920 3000x200 3024x4032"
PICTURES = ((448, 448), (640, 480), (1344, 1344), (1920, 1080))
PARTS = {"vpm": "ViT", "resampler": "resampler", "llm": "LLM"}


def times(pair) -> str:
    return " x ".join(map(str, pair)) if pair else "none"


def model(name: str, config: MiniCPMVConfig) -> dict:
    """One column of the table of versions."""
    counts, llm, bits = parameters(config), config.llm, plan_mixture(config).total_bytes
    total, seen = sum(counts.values()), plan_slices((1344, 1344)).visual_tokens(config.resampler.num_queries)
    cache = 2 * kv_cache_numbers(llm)
    return {
        "version": name,
        "parameters": f"{total / 1e9:.2f} billion",
        "of them ViT, resampler, LLM": ", ".join(f"{n / 1e9:.2f}" for n in counts.values()),
        "weights in 16 bit": f"{2 * total / 1e9:.1f} GB",
        "Q4_K_M, ViT in F16": f"{(bits + plan_vision(config).total_bytes) / 1e9:.1f} GB",
        "ViT: layers, width, heads": f"{config.vision.layers}, {config.vision.width:,}, {config.vision.heads}",
        "positions": {"interpolate": "27 x 27, resized", "bucket": "70 x 70, nearest"}.get(
            config.vision.position, "70 x 70, by a bug one-dimensional"
        ),
        "queries": config.resampler.num_queries,
        "LLM: layers, width": f"{llm.num_hidden_layers}, {llm.hidden_size:,}",
        "heads, of keys and values": f"{llm.num_attention_heads}, {llm.num_key_value_heads}",
        "vocabulary": f"{llm.vocab_size:,}",
        "KV cache of a token, 16 bit": f"{cache / 1000:.1f} kB",
        "the same, 1344 x 1344": f"{seen * cache / 1e6:.1f} MB",
        "pixels of a token, at best": f"{1344**2 / seen:,.0f}",
    }


def numbers() -> dict:
    """What the template names."""
    plans = [plan_slices(tuple(map(int, size.split("x")))) for size in SIZES.split()]
    versions = [model(*each) for each in (("2.0", v2_0), ("2.5", v2_5), ("2.6", v2_6))]
    small = plan_slices((640, 480))
    resampler = v2_6.resampler
    patches = math.prod(plan_slices((448, 448)).patch_grids[0])
    return {
        "sizes": [
            [times(p.image_size), times(p.grid), times(p.overview_size), times(p.slice_size)]
            + [p.visual_tokens(n) for n in (64, 96)]
            for p in plans
        ],
        "pair": tuple(f"{-abs(math.log(16 / 9) - math.log(n)):.3f}" for n in (4 / 2, 3 / 3)),
        "versions": {row: [each[row] for each in versions] for row in versions[0]},
        "layouts": {v: image_layout(small, 1, v) for v in ("2.0", "2.5", "2.6")},
        "patches": f"{patches:,}",
        "fewer": round(patches / resampler.num_queries),
        "resampler": [f"{parameters(v2_6)['resampler'] / 1e6:.1f}", f"{resampler.width:,}", resampler.heads],
        "formats": [[name, f.weights, f.bytes, f"{8 * f.bytes / f.weights:g}"] for name, f in FORMATS.items()],
        "mixed": f"{plan_mixture(v2_6).bits_per_weight:.2f}",
        "read": f"{plan_mixture(v2_6).total_bytes / 1e9:.2f}",
        "tokens_per_second": f"{50e9 / plan_mixture(v2_6).total_bytes:.0f}",
        "train": f"{16 * sum(parameters(v2_6).values()) / 1e9:.0f}",
        "stages": [
            [
                s.name,
                ", ".join(words for part, words in PARTS.items() if part in s.learning_rates),
                ", ".join(s.data_mix),
            ]
            for s in STAGES
        ],
        "pictures": [times(size) for size in PICTURES],
        "peers": [[name] + [f"{plan(name, size).visual_tokens:,}" for size in PICTURES] for name in SYSTEMS],
    }


def page() -> str:
    """The page with today's numbers."""
    template = (ROOT / "docs/site/cheatsheet.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(numbers()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
