"""Scaled-down checkpoints in exactly the published layout, for tests: names, index, shards, dtypes, tokenizer files.

Names and shapes come from golden/published_layouts.json, every tensor of the three releases. Only numbers shrink:
fewer layers, and each full-size dimension is replaced by a small one. No code of the package is used here, so the
package's own idea of names and shapes is tested against this one.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from places import ROOT
from safetensors.torch import save_file

LAYOUTS = json.loads((ROOT / "tests/golden/published_layouts.json").read_text(encoding="utf-8"))
TOKENIZER = ROOT / "data_samples/checkpoints/nano/tokenizer.json"
VERSIONS = ("2.0", "2.5", "2.6")

VPM_LAYERS, LLM_LAYERS, WIDTH, HIDDEN, QUERIES, VOCAB, TABLE_SIDE = 2, 3, 32, 64, 4, 1024, 6

# Full-size dimension -> small one. 14 (patch), 3 (colors) and 1 stay.
_VISION = {1152: WIDTH, 3456: 3 * WIDTH, 4304: 48, 729: TABLE_SIDE**2, 4900: TABLE_SIDE**2}
SMALL = {
    "2.0": {2304: HIDDEN, 5760: 96, 6912: 3 * HIDDEN, 64: QUERIES, 122753: VOCAB, **_VISION},
    "2.5": {4096: HIDDEN, 14336: 96, 12288: 3 * HIDDEN, 1024: 32, 96: QUERIES, 128256: VOCAB, **_VISION},
    "2.6": {3584: HIDDEN, 18944: 96, 10752: 3 * HIDDEN, 512: 32, 64: QUERIES, 151666: VOCAB, **_VISION},
}


def small_shapes(version: str) -> dict[str, tuple[int, ...]]:
    """Every published tensor of the first layers, with its scaled-down shape."""
    shapes = {}
    for name, shape in LAYOUTS[version]["tensors"].items():
        layer = re.search(r"\.(?:layers|blocks)\.(\d+)\.", name)
        if layer and int(layer[1]) >= (VPM_LAYERS if name.startswith("vpm.") else LLM_LAYERS):
            continue
        shapes[name] = tuple(SMALL[version].get(n, n) for n in shape)
    return shapes


def small_config(version: str) -> dict:
    """The published config.json with the small numbers; a vision_config in all three."""
    config = json.loads(json.dumps(LAYOUTS[version]["config"]))
    drops_last = config["drop_vision_last_layer"]
    config |= dict(hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=LLM_LAYERS, vocab_size=VOCAB)
    config |= dict(num_attention_heads=4, num_key_value_heads=4 if version == "2.0" else 2)
    config |= dict(query_num=QUERIES, max_position_embeddings=2048, scale_resolution=56)
    if version == "2.0":
        config["dim_model_base"] = 16
    config.setdefault("slice_config", {})
    config["slice_config"] |= dict(scale_resolution=56, max_slice_nums=9)
    config["vision_config"] = dict(
        hidden_size=WIDTH,
        num_hidden_layers=VPM_LAYERS + drops_last,  # counted before the last one is dropped
        num_attention_heads=2,
        intermediate_size=48,
        image_size=14 * TABLE_SIDE,
        patch_size=14,
    )
    return config


def small_tensors(version: str, dtype=torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors, all different; gains around 1, so that activations stay tame."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(small_shapes(version).items()):
        gain = re.search(r"norm\d?\.weight$|ln_\w+\.weight$", name)
        noise = 0.2 * torch.randn(shape, generator=generator)
        tensors[name] = (1 + noise if gain else noise).to(dtype)
    return tensors


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """Spread tensors over `shards` files with an index, or write one file when `shards` is 0."""
    if not shards:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    weight_map = {name: files[i * shards // len(tensors)] for i, name in enumerate(tensors)}
    for file in files:
        part = {name: tensors[name] for name, its_file in weight_map.items() if its_file == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_published(folder: Path, version: str, dtype=torch.float32, shards: int = 3, seed: int = 0) -> dict:
    """Write a whole scaled-down published folder; returns its tensors by published name."""
    folder.mkdir(parents=True, exist_ok=True)
    config = small_config(version) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    config["auto_map"] = {"AutoModel": "modeling_minicpmv.MiniCPMV"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = small_tensors(version, dtype, seed)
    write_shards(folder, tensors, shards)
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    settings = {
        "tokenizer_class": "MiniCPMVTokenizerFast",  # a class of their own, which must not be run
        "auto_map": {"AutoTokenizer": ["tokenization_minicpmv.MiniCPMVTokenizer", None]},
        "bos_token": {"__type": "AddedToken", "content": "<|im_start|>", "special": True},
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        "unk_token": "<unk>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 1000000000000000019884624838656,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "modeling_minicpmv.py").write_text("raise SystemExit('must never be run')\n", encoding="utf-8")
    (folder / "tokenization_minicpmv.py").write_text("raise SystemExit('must never be run')\n", encoding="utf-8")
    return tensors
