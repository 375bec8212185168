"""How fast do pixels become tensors? One RGB image in memory -> normalized views, beside the libraries' ways.

    python benchmarks/preprocess.py --threads 2 --rounds 7

transformers: MiniCPMV4_6ImageProcessorPil, called as its users call it.
official: what the released 2.6 code does, written plainly: Pillow resizes, then for each view numpy's / 255,
    - 0.5, / 0.5 and torch's unfold.
torchvision (with --torchvision): MiniCPMV4_6ImageProcessor. It resizes with torch, so its pixels differ by up to two
    steps of 255. torchvision of the same torch release must be importable; it is no requirement of this project.

Results are asserted first. The official form must equal ours to the last bit. The 4.6 processors round sides to 56
pixels, ours (as 2.0 to 2.6 did) to 14, so they are compared where both roundings agree, as at 1344x1344; the column
"pixels" says how many more pixels transformers makes than we do. Peers hand out strips of patches, ours are pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

try:
    import torchvision
except ImportError:
    torchvision = None
except RuntimeError:
    # Its C++ library did not load (PyPI's wheel wants CUDA). Resizing needs none of it, but the import wants two of its
    # operators declared, and transformers imports it wherever it is installed.
    declarations = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        declarations.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import arguments, report
from _timing import paired, speedup

from minicpmv_ref.processor import load_image, normalize_views
from minicpmv_ref.slicing import plan_slices

SIZES = [(640, 480), (1344, 1344), (1920, 1080), (3000, 4000)]  # (width, height)


def picture(size: tuple[int, int]) -> Image.Image:
    """A smooth picture with some noise, as photographs are."""
    width, height = size
    noise = np.random.default_rng(0).integers(0, 64, (height, width, 3))
    x, y = np.arange(width)[None, :, None], np.arange(height)[:, None, None]
    return Image.fromarray((96 + 60 * np.sin(x / 37 + [0, 1, 2]) * np.cos(y / 53) + noise).astype(np.uint8))


def ours(image: Image.Image) -> list[torch.Tensor]:
    image = load_image(image)
    return normalize_views(image, plan_slices(image.size))


def official_form(image: Image.Image) -> list[torch.Tensor]:
    plan = plan_slices(image.size)
    image = image.convert("RGB")
    views = [image.resize(plan.overview_size, Image.Resampling.BICUBIC)]
    if plan.grid:
        refined = image.resize(plan.refined_size, Image.Resampling.BICUBIC)
        views += [refined.crop(box) for box in plan.boxes]
    strips = []
    for view in views:
        pixels = (np.asarray(view).astype(np.float32) / 255 - 0.5) / 0.5
        patches = F.unfold(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None], 14, stride=14)
        strips.append(patches.reshape(3, 14, 14, -1).permute(0, 1, 3, 2).reshape(3, 14, -1))
    return strips


def strips_of(views: list[torch.Tensor]) -> list[torch.Tensor]:
    """Our views in the peers' layout: patch after patch in one strip 14 pixels high."""
    return [rearrange(view, "c (r p) (w q) -> c p (r w q)", p=14, q=14) for view in views]


def peer(kind):
    """An image processor of transformers as a function from an image to strips."""
    processor = kind()

    def run(image: Image.Image) -> list[torch.Tensor]:
        out = processor(image, return_tensors="pt")
        return out["pixel_values"][0].split([14 * int(rows * cols) for rows, cols in out["target_sizes"]], dim=-1)

    return run


def check(image: Image.Image, peers: dict) -> float:
    """Assert that all make the same pixels. Returns how many pixels the 4.6 processor makes for one of ours."""
    mine = strips_of(ours(image))
    for name, run in peers.items():
        theirs = run(image)
        assert len(theirs) == len(mine), f"{name}: {len(theirs)} views, ours {len(mine)}"
        same_sizes = [a.shape for a in theirs] == [b.shape for b in mine]
        assert same_sizes or (name != "official" and image.size != (1344, 1344)), f"{name}: other sizes"
        if same_sizes:
            error = max((a - b).abs().max().item() for a, b in zip(theirs, mine))
            limit = {"official": 0, "transformers": 1e-6, "torchvision": 2.01 / 127.5}[name]
            assert error <= limit, f"{name}: differs by {error}"
    counts = [sum(strip.numel() for strip in strips) for strips in (peers["transformers"](image), mine)]
    return counts[0] / counts[1]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="images per timed call")
    parser.add_argument("--torchvision", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    peers = {"transformers": peer(MiniCPMV4_6ImageProcessorPil), "official": official_form}
    if args.torchvision:
        if torchvision is None:
            parser.error("--torchvision needs torchvision of the same release as torch")
        from transformers.models.minicpmv4_6.image_processing_minicpmv4_6 import MiniCPMV4_6ImageProcessor

        peers["torchvision"] = peer(MiniCPMV4_6ImageProcessor)
    rows = []
    for size in SIZES:
        image = picture(size)
        more_pixels = check(image, peers)

        def repeated(run, image=image):
            return lambda: [run(image) for _ in range(args.repeats)]

        times = paired({name: repeated(run) for name, run in {**peers, "ours": ours}.items()}, args.rounds)
        rows.append({"size": f"{size[0]}x{size[1]}", "pixels": more_pixels})
        rows[-1] |= {name: 1000 * args.repeats / median(t) for name, t in times.items()}
        rows[-1] |= {f"ours / {name}": speedup(times[name], times["ours"]) for name in peers}
        print(rows[-1], file=sys.stderr, flush=True)
    report("preprocess", args, rows, dtype="float32", unit="images per second")


if __name__ == "__main__":
    main()
