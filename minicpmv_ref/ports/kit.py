"""The kit for porters: pictures, prompts, a tiny model, and for each stage what is right.

A kit is a folder: kit.json (what to compute), right.safetensors (the answers), pictures/, and the tiny model as a
checkpoint. docs/ports.md describes the format for other languages.
Sizes are (width, height), grids of slices (cols, rows), grids of patches (rows, cols).
"""

from __future__ import annotations

import io
import json
import os
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from ..config import VERSIONS, MiniCPMVConfig, ResamplerConfig, SliceConfig, nano
from ..inputs.checks import check_choice, check_type
from ..inputs.files import replacing
from ..inputs.pictures import load_image
from ..inputs.tokenizer import read_tokenizer
from ..model import MiniCPMV
from ..positions import bucket_position_ids, interpolate_position_table
from ..processor import Processor, normalize_views
from ..prompt import image_layout, render_chat
from ..slicing import plan_slices

KIT, RIGHT = "kit.json", "right.safetensors"
STAGES = ("grid", "sizes", "positions", "pixels", "prompt", "bounds", "batch", "vit", "resampler", "logits")
PER_VIEW = ("positions", "pixels", "vit", "resampler")

# Sizes without pictures, at the released 448 pixels: ties, halves, borders of the rule, extreme shapes.
SIZES = [
    *((448, 448), (449, 448), (633, 633), (1002, 1002), (1004, 1004), (1080, 1080), (1185, 1185), (1344, 1344)),
    *((640, 480), (480, 640), (1920, 1080), (1080, 1920), (800, 1300), (3840, 2160), (300, 200), (1024, 768)),
    *((4000, 400), (400, 4000), (500, 1), (1, 500), (7, 7), (896, 448), (1000, 201), (1201, 337), (641, 640)),
    *((450, 462), (450, 465), (450, 528), (777, 1999), (1500, 500)),
]
# Patch grids without pictures: where float32 and exact arithmetic differ, and beyond a 70 x 70 table.
GRIDS = [(32, 32), (25, 41), (49, 20), (4, 227), (10, 101), (101, 10), (1, 77)]
PICTURES = {  # name -> width and height at 56 pixels, mode
    **{"two slices": (81, 62, "RGB"), "six slices": (131, 88, "RGB"), "nine slices": (150, 166, "RGB")},
    **{"small": (31, 23, "RGB"), "square": (56, 56, "RGB"), "dot": (1, 1, "RGB"), "wide": (260, 13, "RGB")},
    **{"tall": (9, 190, "RGB"), "gray": (64, 25, "L"), "black and white": (60, 64, "1"), "palette": (75, 61, "P")},
    **{"alpha": (50, 66, "RGBA"), "16 bit": (64, 41, "I;16"), "turned": (96, 48, "EXIF")},
}
QUESTION = "What is this?"
BATCH = ["text", "small", "two slices", "two pictures"]


def make(folder: str | os.PathLike, version: str = "2.6", model: str | os.PathLike | None = None) -> dict[str, int]:
    """Write a kit: all of its files, or none.

    Args:
        folder: where to write; missing or empty.
        version: "2.0", "2.5" or "2.6", of the tiny model.
        model: a checkpoint folder in place of the tiny model; its weights are not copied, and `version` is its own.

    Returns:
        name of each file -> its bytes.

    Raises:
        OSError: the folder cannot be written, or holds something else.
        ValueError: an unknown version, a damaged checkpoint.
    """
    folder = Path(check_type("folder", folder, str, os.PathLike))
    if any(path.is_file() and path.suffix != ".part" for path in folder.rglob("*")):
        raise FileExistsError(f"{folder} holds other files: choose another folder")
    tiny = model is None
    model, processor = _tiny(version) if tiny else (MiniCPMV.from_pretrained(model), Processor.from_pretrained(model))
    files = {f"pictures/{name}.{kind}": data for name, (kind, data) in _pictures(processor.config.slicing).items()}
    with TemporaryDirectory(prefix="minicpmv-ref-") as draft:
        if tiny:
            model.save_pretrained(draft)
        else:
            Path(draft, "config.json").write_text(json.dumps(model.config.to_dict(), indent=2), encoding="utf-8")
        processor.save_pretrained(draft)
        files |= {path.name: path.read_bytes() for path in Path(draft).iterdir()}
    about, right = _answers(model, processor, files)
    files[RIGHT] = save({name: torch.as_tensor(array).contiguous() for name, array in right.items()})
    files[KIT] = (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()  # the last one: then all are there
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    with replacing(*(folder / name for name in files)) as drafts:
        for path, data in zip(drafts, files.values()):
            path.write_bytes(data)
    return {name: len(data) for name, data in files.items()}


def _tiny(version: str) -> tuple[MiniCPMV, Processor]:
    multipliers = dict(scale_emb=12, scale_depth=1.4, dim_model_base=16)
    vision, llm = {
        "2.0": (dict(table_side=27, position="interpolate", act="gelu"), dict(family="granite", **multipliers)),
        "2.5": (dict(position="released_2_5"), dict(family="llama", rope_theta=5e5)),
        "2.6": ({}, dict(family="qwen2", rope_theta=1e6)),
    }[check_choice("version", version, VERSIONS)]
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_key_value_heads=4)
    config = MiniCPMVConfig(
        version,
        replace(nano.vision, width=32, layers=2, heads=2, mlp_width=48, **vision),
        ResamplerConfig(num_queries=4, width=64, kv_width=32, heads=2, version=version),
        replace(nano.llm, **sizes, **llm),
        SliceConfig(scale_resolution=56),
    )
    tokenizer = Processor.from_pretrained("nano").tokenizer
    if version != "2.6":
        tokenizer.bos_token = "<|endoftext|>"
    model, seed = MiniCPMV.seeded(config), torch.Generator().manual_seed(0)
    with torch.no_grad():  # usual initial weights are near zero and hide mistakes; these have a gain of about 1
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=seed)
            if name != "resampler.pos_embed":
                weight.copy_(noise * 1.4 / weight[0].numel() ** 0.5 if weight.ndim > 1 else weight + 0.2 * noise)
    return model, Processor(tokenizer, config)


def _pictures(slicing: SliceConfig) -> dict[str, tuple[str, bytes]]:
    """name -> (ending, file). PNG, because decoders of JPEG differ; the one JPEG is flat in every block of it."""
    made, rng = {}, np.random.default_rng(0)
    for name, (*size, mode) in PICTURES.items():
        width, height = (max(1, side * slicing.scale_resolution // 56) for side in size)
        y, x = np.mgrid[:height, :width] * (56 / slicing.scale_resolution)
        waves = [np.sin(x / 3.1 + y / 7.9) + np.cos(y / 2.3), np.sin(x * y / 90), np.cos(x / 5) * np.sin(y / 4.1)]
        pixels = np.stack(waves, -1) * (50, 90, 110) + 128 + rng.integers(-9, 10, (height, width, 3))
        image, file, exif = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), io.BytesIO(), Image.Exif()
        if mode == "RGBA":
            image.putalpha(image.getchannel("G"))
        elif mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        elif mode == "EXIF":
            exif[0x0112] = 6  # turned by a quarter
            flat = np.kron(rng.integers(0, 256, (-(-height // 16), -(-width // 16)), np.uint8), np.ones((16, 16)))
            image = Image.fromarray(flat[:height, :width].astype(np.uint8))
        elif mode != "RGB":
            image = image.convert(mode)
        image.save(file, "JPEG" if mode == "EXIF" else "PNG", exif=exif, quality=100)
        made[name] = "jpg" if mode == "EXIF" else "png", file.getvalue()
    return made


def _answers(model: MiniCPMV, processor: Processor, files: dict[str, bytes]) -> tuple[dict, dict]:
    """What kit.json and right.safetensors hold."""
    config, right, queries = model.config, {}, model.config.resampler.num_queries
    bos, eos = (token or "" for token in (processor.tokenizer.bos_token, processor.tokenizer.eos_token))
    paths = [Path(name) for name in files if name.startswith("pictures/")]
    with warnings.catch_warnings(action="ignore"):  # that alpha is dropped: one of them tests it
        pictures = {path.stem: (path.as_posix(), load_image(io.BytesIO(files[path.as_posix()]))) for path in paths}
    prompts = {"text": [], "two pictures": ["two slices", "small"], **{name: [name] for name in pictures}}
    about = {
        "format": 1,
        "version": config.version,
        "read": "docs/ports.md of minicpmv-ref says what each stage holds and how its arrays are named",
        "picture rule": vars(config.slicing),
        "size rule": vars(SliceConfig()),
        "sizes": {f"{width}x{height}": (width, height) for width, height in SIZES},
        "grids": {f"grid {rows}x{cols}": (rows, cols) for rows, cols in GRIDS},
        "pictures": {name: dict(file=file, upright=image.size) for name, (file, image) in pictures.items()},
        "prompts": {},
        "batch": BATCH,
        "ids": dict(pad=processor.pad_id, slot=processor.tokenizer.convert_tokens_to_ids("<unk>")),
    }
    plans = {name: plan_slices(size) for name, size in about["sizes"].items()}
    plans |= {name: plan_slices(image.size, config.slicing) for name, (_, image) in pictures.items()}
    for name, plan in plans.items():
        right[f"grid/{name}"] = np.array(plan.grid or (0, 0), np.int32)
        right[f"sizes/{name}"] = np.array([plan.overview_size] + [plan.slice_size] * plan.num_slices, np.int32)
    resized = config.vision.position == "interpolate"
    table = model.vpm.embeddings.position_embedding.weight.detach().float() if resized else None
    right |= {"table": table} if resized else {}
    grids = {name: [grid] for name, grid in about["grids"].items()}
    for name, patches in (grids | {name: plans[name].patch_grids for name in pictures}).items():
        for view, ids in enumerate(position_answers(config, patches, table)):
            right[f"positions/{name}/{view}"] = ids
    for name, shown in prompts.items():
        images = [pictures[picture][1] for picture in shown]
        batch = processor([{"role": "user", "content": [*images, QUESTION]}])
        layouts = [image_layout(plans[p], queries, config.version, number) for number, p in enumerate(shown)]
        content = "".join(layout + "\n" * (config.version != "2.0") for layout in layouts) + QUESTION
        text, _ = render_chat([{"role": "user", "content": content}], config.version, bos, eos)
        about["prompts"][name] = dict(pictures=shown, question=QUESTION, text=text)
        right[f"prompt/{name}"], right[f"bounds/{name}"] = batch.input_ids[0].int(), batch.image_bounds[0].int()
        with torch.inference_mode():
            right[f"logits/{name}"] = model(batch).logits[0, -1].float()
            if name not in pictures:
                continue
            features = model.vpm([view.to(model.vpm.post_layernorm.weight) for view in batch.images[0]])
            tokens = model.encode_images(batch.images[0], batch.patch_grids[0])
        for view, pixels in enumerate(normalize_views(images[0], plans[name])):
            right[f"pixels/{name}/{view}"] = pixels
            right[f"vit/{name}/{view}"] = features[view].float()
            right[f"resampler/{name}/{view}"] = tokens[view].float()
    rows = [right[f"prompt/{name}"].tolist() for name in BATCH]
    right["batch/all"] = np.array(padded(rows, processor.pad_id), np.int32)
    return about, right


def position_answers(config: MiniCPMVConfig, grids: list[tuple[int, int]], table=None) -> list[torch.Tensor]:
    """What each view of one prompt takes from the position table: ids, or in 2.0 the resized table itself."""
    side, longest = config.vision.table_side, max(rows * cols for rows, cols in grids)
    if table is not None:
        return [interpolate_position_table(table, *grid) for grid in grids]
    if config.vision.position == "released_2_5":
        return [bucket_position_ids(1, longest, side)[: rows * cols].int() for rows, cols in grids]
    return [bucket_position_ids(*grid, side).int() for grid in grids]


def padded(rows: list[list[int]], pad: int, left: bool = True) -> list[list[int]]:
    most = max(map(len, rows))
    return [[pad] * (most - len(row)) * left + row + [pad] * (most - len(row)) * (not left) for row in rows]


@dataclass
class Kit:
    """A kit that was read: `right` holds for each stage its items, and each item is a list of arrays."""

    folder: Path
    about: dict
    config: MiniCPMVConfig
    right: dict[str, dict[str, list[np.ndarray]]]
    table: torch.Tensor | None

    @cached_property
    def processor(self) -> Processor:
        return Processor(read_tokenizer(self.folder, self.config.version), self.config)

    def plan(self, item: str):
        """The right SlicePlan of a size or a picture, and its SliceConfig."""
        size, picture = self.about["sizes"].get(item), self.about["pictures"].get(item)
        cfg = SliceConfig(**self.about["size rule" if size else "picture rule"])
        return plan_slices(tuple(size or picture["upright"]), cfg), cfg
