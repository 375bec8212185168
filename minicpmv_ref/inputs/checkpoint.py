"""Weight files: tensors in, tensors out. Names and shapes, no model classes.

Reads our own folders and the published ones of 2.0, 2.5 and 2.6 (safetensors, one file or shards with an index).
Our state-dict keys are those of 2.5 and 2.6. Only the vision tower of 2.0 has other names, from timm, with q, k and v
fused into one tensor: `published_name` is the whole translation.
Everything is strict: a tensor that is missing, surplus or misshapen, or that holds a NaN or an infinity, is an error
that names it. Left out: pickle files.
Files are read, not mapped: the tensors of a mapped file would change with it, and end the process if it is cut short.

A stage of training changes a few tensors, so its checkpoint may hold these alone and name the folder beside it that
holds the others: {"base": "nano-start", ...} in config.json. That folder may have a base in its turn.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..config import MiniCPMVConfig
from .checks import LIMITS, printable, shown
from .files import parse_json, plain_file, read_json, replacing
from .published import CONFIG, base_folder, read_config

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# Tensors that old files may hold although no parameter needs them, and why.
NOT_PARAMETERS = {
    r"llm\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "recomputed from rope_theta",
    r"vpm\.embeddings\.position_ids": "recomputed from each slice's shape",
}


def published_name(name: str, config: MiniCPMVConfig) -> tuple[str, int | None]:
    """The name of one of our tensors in a published file.

    Args:
        name: a key of MiniCPMV's state dict.
        config: the model's config; only 2.0 differs.

    Returns:
        (name, part): `part` is 0, 1 or 2 where q, k or v is that third of a fused tensor, else None.

    Example:
        >>> from minicpmv_ref import v2_0, v2_6
        >>> published_name("vpm.encoder.layers.3.self_attn.k_proj.bias", v2_0)
        ('vpm.blocks.3.attn.qkv.bias', 1)
        >>> published_name("vpm.encoder.layers.3.self_attn.k_proj.bias", v2_6)
        ('vpm.encoder.layers.3.self_attn.k_proj.bias', None)
    """
    if config.version != "2.0" or not name.startswith("vpm."):
        return name, None
    if match := re.fullmatch(r"vpm\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
        layer, which, kind = match.groups()
        return f"vpm.blocks.{layer}.attn.qkv.{kind}", "qkv".index(which)
    for ours, timm in {
        "embeddings.patch_embedding": "patch_embed.proj",
        "embeddings.position_embedding.weight": "pos_embed",
        "encoder.layers": "blocks",
        "self_attn.out_proj": "attn.proj",
        "layer_norm": "norm",
        "post_layernorm": "norm",
    }.items():
        name = name.replace(ours, timm)
    return name, None


def read_tensors(folder: Path, config: MiniCPMVConfig, shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Read the tensors of a model into memory, in the files' dtype.

    Args:
        folder: a checkpoint folder.
        config: its config.
        shapes: the model's parameters: name -> shape. A tied lm_head is not among them.

    Returns:
        name -> tensor for exactly the names asked for. They are copies: what happens to the files does not matter any
        more. Loading takes no more memory than they do, and one tensor if a tied lm_head is stored.

    Raises:
        OSError: no weights, or a shard that the index names is not there, or no plain file.
        ValueError: a missing, surplus or misshapen tensor, one that holds a NaN or an infinity, dtypes that are mixed
            within a part of the model, an index that lies, a damaged shard, a base with another config. Every tensor of
            the files must be used, but for those in NOT_PARAMETERS and a stored copy of a tied lm_head.
    """
    tensors = _read_chain(Path(folder), config, shapes, set())
    _check_dtypes(folder, config, tensors)
    return tensors


def _read_chain(folder: Path, config: MiniCPMVConfig, shapes: dict, changed: set[str]) -> dict[str, torch.Tensor]:
    """The tensors of a folder and of those that it is based on, without the `changed` ones, which were read already."""
    base = base_folder(folder)
    if base is None:
        return _read_own(folder, config, shapes, changed)
    if read_config(base) != config:
        raise ValueError(f"{folder} changes tensors of {base}, but their configs differ")
    names = {name for shard in _open_shards(folder) for name in shard.header}
    own = _read_own(folder, config, {name: shapes[name] for name in shapes if name in names}, changed)
    return own | _read_chain(base, config, shapes, changed | own.keys())


def _read_own(folder: Path, config: MiniCPMVConfig, shapes: dict, changed: set[str]) -> dict[str, torch.Tensor]:
    """The tensors that lie in this folder. All of `shapes` must be there; the `changed` ones are not read."""
    published = "resampler" not in read_json(folder / CONFIG)  # our own files use our names for 2.0 as well
    source = {name: published_name(name, config) if published else (name, None) for name in shapes}
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        file_name, part = source[name]
        if part is not None:
            shape = (3 * shape[0], *shape[1:])
        elif file_name == "vpm.pos_embed":
            shape = (1, *shape)
        expected[file_name] = tuple(shape)

    where = {name: shard for shard in _open_shards(folder) for name in shard.header}
    _compare(folder, expected, {name: tuple(shard.header[name]["shape"]) for name, shard in where.items()}, config)
    odd = {name for name in expected if where[name].header[name]["dtype"] not in DTYPES}
    if odd:  # quantized files need their own arithmetic, which lives elsewhere
        raise ValueError(f"{folder}: weights must be 16-bit, 32-bit or 64-bit floats; these are not: {_some(odd)}")
    source = {name: at for name, at in source.items() if name not in changed}
    files = {name: where[name].read(name) for name in dict.fromkeys(name for name, _ in source.values())}
    head, embeddings = "llm.lm_head.weight", files.get("llm.model.embed_tokens.weight")
    if config.llm.tie_word_embeddings and head in where and embeddings is not None:
        about = where[head].header[head]
        same = DTYPES.get(about["dtype"]) == embeddings.dtype and tuple(about["shape"]) == tuple(embeddings.shape)
        if not same or not torch.equal(where[head].read(head), embeddings):
            raise ValueError(f"{folder}: lm_head is tied to the embeddings, but the stored copy differs from them")

    tensors = {}
    for name, (file_name, part) in source.items():
        tensor = files[file_name]
        tensors[name] = tensor.chunk(3)[part] if part is not None else tensor.reshape(shapes[name])
    return tensors


def _check_dtypes(folder: Path, config: MiniCPMVConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Within a part of the model torch multiplies one dtype only. Between the parts the model converts."""
    first: dict[str, str] = {}
    for name, tensor in tensors.items():
        part = name.partition(".")[0]
        if name == "llm.model.embed_tokens.weight" and not config.llm.tie_word_embeddings:
            continue  # looked up, not multiplied; adapters that train it leave it in float32
        other = first.setdefault(part, name)
        if tensors[other].dtype != tensor.dtype:
            raise ValueError(
                f"{folder}: {other} is {tensors[other].dtype}, but {name} is {tensor.dtype}; all tensors of {part} "
                "need one dtype: convert the file"
            )


def without_tied_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take a tied lm_head out of a state dict. One that has become another would be lost, so it is a ValueError."""
    head, table = tensors.pop("llm.lm_head.weight"), tensors.get("llm.model.embed_tokens.weight")
    if table is not None and head.data_ptr() != table.data_ptr() and not torch.equal(head, table):
        raise ValueError(
            "llm.lm_head is tied to the embeddings by the config, but differs from them and would be lost: "
            "load_state_dict(..., assign=True) unties them, llm.tie_weights() ties them again"
        )
    return tensors


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A checksum of named weights, from the first 64 numbers of each.

    They are rounded to bfloat16, so weights that were stored in 16 bits are the same in 32.

    Example:
        >>> a, b = torch.zeros(3), torch.ones(3)
        >>> fingerprint({"a": a, "b": b}) == fingerprint({"b": b.half(), "a": a}) != fingerprint({"a": b, "b": a})
        True
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().flatten()[:64].bfloat16().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def write_checkpoint(
    folder: str | os.PathLike, config: MiniCPMVConfig, tensors: dict[str, torch.Tensor], base: str | None = None, **more
) -> None:
    """Write config.json and model.safetensors. Both are complete under a temporary name before either replaces a file.

    Args:
        folder: where to write.
        config: the model's config.
        tensors: name -> tensor, names as in MiniCPMV's state dict.
        base: name of the folder beside this one that holds all tensors that are not given.
        more: what else config.json says, for example `peer`, see peers/nano.py.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before is untouched.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = ({"base": base} if base else {}) | more | config.to_dict()
    try:
        with replacing(folder / WEIGHTS, folder / CONFIG) as (weights, settings):
            save_file(tensors, weights, metadata={"format": "pt"})
            settings.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except SafetensorError as error:
        raise OSError(f"could not write {folder / WEIGHTS}: {error}") from error


def _open_shards(folder: Path) -> list[Shard]:
    """Open every weight file of a folder and check that the index tells the truth about each."""
    # One whole file wins over an index: saving into a published folder leaves the old shards behind.
    if (folder / WEIGHTS).exists() and not (folder / WEIGHTS).is_dir():
        return [Shard(folder / WEIGHTS)]
    if not (folder / INDEX).exists():
        pickles = {file.name for file in folder.glob("*.bin")}
        hint = (
            f"; pickle files ({_some(pickles)}) are not read, because they can run code of their author: "
            "get the safetensors files, or convert them where you trust them"
        )
        raise FileNotFoundError(f"neither {WEIGHTS} nor {INDEX} in {folder}" + (hint if pickles else ""))
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{folder / INDEX} has no weight_map from tensor names to file names")
    shards = []
    for file in sorted(set(weight_map.values())):
        # An index from a stranger must not reach outside its folder.
        if Path(file).name != file or file in ("", "..") or not file.isprintable():
            raise ValueError(f"{folder / INDEX} names {shown(file)}, which is not a plain file name")
        shard = Shard(folder / file)
        claimed, held = {name for name, f in weight_map.items() if f == file}, set(shard.header)
        if claimed != held:
            raise ValueError(
                f"{folder / INDEX} does not match {file}: listed but not there: {_some(claimed - held)}; "
                f"there but not listed: {_some(held - claimed)}"
            )
        shards.append(shard)
    return shards


class Shard:
    """A safetensors file: 8 bytes with the length of a header, the header in JSON, and the bytes of all tensors.

    Args:
        file: its path.

    Attributes:
        header: name -> {"dtype", "shape", "data_offsets"} of each tensor.

    Raises:
        OSError: it is not there, or no plain file.
        ValueError: damaged, or no safetensors file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / WEIGHTS
        >>> save_file({"a": torch.ones(2, 3)}, file)
        >>> Shard(file).header["a"]["shape"], Shard(file).read("a").sum()
        ([2, 3], tensor(6.))
    """

    def __init__(self, file: Path):
        self.file = file
        if file.is_dir():
            raise FileNotFoundError(f"no weight file {file}: that is a folder")
        plain_file(file)
        try:
            with safe_open(file, framework="pt"):  # the library compares the header with the size of the file
                pass
            with open(file, "rb") as content:
                length = int.from_bytes(content.read(8), "little")
                if length > LIMITS["json_bytes"]:
                    raise ValueError(f"its header has {length:,} bytes; at most {LIMITS['json_bytes']:,} are read")
                self.header, self.start = parse_json(content.read(length)), 8 + length
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{file} is damaged or not a safetensors file: {printable(str(error))}") from error
        self.metadata = self.header.pop("__metadata__", {})

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor of floats into memory of its own.

        Raises:
            OSError: the file cannot be read any more.
            ValueError: it holds a NaN or an infinity, or the file has become shorter.
        """
        about = self.header[name]
        tensor = torch.empty(about["shape"], dtype=DTYPES[about["dtype"]], device="cpu")
        with open(self.file, "rb") as content:
            content.seek(self.start + about["data_offsets"][0])
            if content.readinto(tensor.flatten().view(torch.uint8).numpy()) != tensor.nbytes:
                raise ValueError(f"{self.file} has become shorter while it was read")
        # The smallest and the largest: one pass without a copy, and a NaN is both of them.
        if tensor.numel() and not all(number.isfinite() for number in tensor.aminmax()):
            raise ValueError(f"{self.file}: {printable(name)} holds a NaN or an infinity; {_WHY}")
        return tensor


_WHY = "the file is damaged, or its numbers were too large for their dtype when it was written"


def _compare(folder: Path, expected: dict, found: dict, config: MiniCPMVConfig) -> None:
    needless = {name for name in found if any(re.fullmatch(pattern, name) for pattern in NOT_PARAMETERS)}
    if config.llm.tie_word_embeddings:
        needless.add("llm.lm_head.weight")
    if config.version != "2.0":
        needless.add("resampler.pos_embed")  # a buffer in 2.5 and 2.6, recomputed for each slice's shape
    missing, surplus = set(expected) - set(found), set(found) - set(expected) - needless
    misshapen = {name for name in set(expected) & set(found) if expected[name] != found[name]}
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {_some(missing)}")
    if surplus:
        problems.append(f"{len(surplus)} surplus: {_some(surplus)}")
    if misshapen:
        shapes = {f"{name} is {shown(found[name])}, should be {expected[name]}" for name in misshapen}
        problems.append(f"{len(misshapen)} misshapen: {_some(shapes)}")
    if problems:
        raise ValueError(f"{folder} does not hold this {config.version} model: " + "; ".join(problems))


def _some(names: set[str]) -> str:
    listed = ", ".join(printable(name[:200]) for name in sorted(names)[:3]) or "none"
    return listed + (f" and {len(names) - 3} more" if len(names) > 3 else "")
