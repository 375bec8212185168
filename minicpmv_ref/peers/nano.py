"""Nano with a peer's connector and a peer's rule to cut pictures; trained, saved, loaded and asked like nano itself.

`swap` takes the ViT and the LLM of a model and puts a new connector between them. `load` reads what was saved.
"""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import replace

import torch
from PIL import Image

from ..config import MiniCPMVConfig, SliceConfig
from ..inputs.checks import check_choice, check_int, check_type, shown
from ..inputs.files import read_json
from ..inputs.published import CONFIG, find_folder
from ..model import MiniCPMV
from ..processor import Processor
from ..slicing import SlicePlan, plan_slices
from .connectors import CONNECTORS
from .llava import pad_to_square
from .sizes import tile_grid

CUTTINGS = ("minicpm-v", "square", "padded", "tiles")


class PeerModel(MiniCPMV):
    """A MiniCPMV whose connector may be another one; made by `swap` and `load`.

    Args:
        config: its resampler says how many tokens a view becomes.
        connector: "resampler", or a name of CONNECTORS.
        cutting: a name of CUTTINGS.
    """

    def __init__(self, config: MiniCPMVConfig, connector: str = "resampler", cutting: str = "minicpm-v"):
        check_choice("connector", connector, ["resampler", *CONNECTORS])
        check_choice("cutting", cutting, CUTTINGS)
        if connector != "resampler" and cutting == "minicpm-v":
            raise ValueError(f'connector "{connector}" takes square views: cut pictures with one of {CUTTINGS[1:]}')
        super().__init__(config, None if connector == "resampler" else CONNECTORS[connector](config))
        self.peer = {"connector": connector, "cutting": cutting}

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """As `MiniCPMV.save_pretrained`; config.json also says which connector and which cutting rule."""
        super().save_pretrained(path, peer=self.peer)


class PeerProcessor(Processor):
    """A Processor that cuts pictures by another rule.

    "square" squeezes every picture into one square view (VILA-1.5, CogVLM2), "padded" pads it to a square first
    (LLaVA-1.5), "tiles" stretches it over a grid of square tiles and adds a square overview (InternVL-1.5).

    Args:
        tokenizer, config: as for Processor.
        cutting: a name of CUTTINGS.
    """

    def __init__(self, tokenizer, config: MiniCPMVConfig, cutting: str = "minicpm-v"):
        super().__init__(tokenizer, config)
        self.cutting = check_choice("cutting", cutting, CUTTINGS)

    def plan(self, size: tuple[int, int], cfg: SliceConfig) -> SlicePlan:
        return cut(size, cfg, self.cutting)

    def views(self, picture: Image.Image, plan: SlicePlan) -> list[torch.Tensor]:
        if self.cutting == "padded":
            picture = pad_to_square(picture)
        return super().views(picture, plan)


def cut(size: tuple[int, int], cfg: SliceConfig, cutting: str) -> SlicePlan:
    """Plan the views of a picture by one of the peers' rules, with views of nano's size.

    Args:
        size: (width, height) of the picture.
        cfg: side of a view and the most slices.
        cutting: a name of CUTTINGS.

    Returns:
        A SlicePlan.

    Raises:
        TypeError, ValueError: as for `plan_slices`; an unknown rule.

    Example:
        >>> small = SliceConfig(scale_resolution=112)
        >>> cut((300, 100), small, "square").patch_grids, cut((300, 100), small, "tiles").grid
        ([(8, 8)], (3, 1))
    """
    plan = plan_slices(size, cfg)  # checks the size
    if check_choice("cutting", cutting, CUTTINGS) == "minicpm-v":
        return plan
    view = (cfg.scale_resolution, cfg.scale_resolution)
    if cutting == "padded":
        size = (max(size), max(size))
    scale = 448 / cfg.scale_resolution  # InternVL's rule counts in tiles of 448 pixels
    larger = tuple(round(side * scale) for side in size)
    grid = tile_grid(larger, cfg.max_slice_nums) if cutting == "tiles" else (1, 1)
    if grid == (1, 1):
        return SlicePlan(size, cfg.patch_size, view)
    return SlicePlan(size, cfg.patch_size, view, grid, view)


def swap(
    model: MiniCPMV, processor: Processor, connector: str = "resampler", cutting: str = "minicpm-v", seed: int = 0
) -> tuple[PeerModel, PeerProcessor]:
    """Put a new connector between the ViT and the LLM of a model, and let its pictures be cut by another rule.

    Args:
        model: is not changed; its ViT and LLM are copied.
        processor: of the model.
        connector: "resampler" (a new one) or a name of CONNECTORS.
        cutting: a name of CUTTINGS.
        seed: of the connector's random weights.

    Returns:
        The new model in evaluation mode, and its processor. Train it with `learn.train` before you ask it.

    Raises:
        TypeError, ValueError: no such model, an unknown name, a connector and a cutting rule that do not fit.

    Example:
        >>> nano = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
        >>> peer, processor = swap(*nano, "shuffle", "tiles")
        >>> peer.config.resampler.num_queries, sum(p.numel() for p in peer.resampler.parameters())
        (16, 198144)
    """
    check_type("model", model, MiniCPMV)
    check_type("processor", processor, Processor)
    seed = check_int("seed", seed, least=0)
    check_choice("connector", connector, ["resampler", *CONNECTORS])
    config = model.config
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        if connector in CONNECTORS:
            queries = CONNECTORS[connector](config).num_queries
            config = replace(config, resampler=replace(config.resampler, num_queries=queries))
        torch.random.default_generator.manual_seed(seed)
        peer = PeerModel(config, connector, cutting)
    peer.vpm, peer.llm = deepcopy(model.vpm), deepcopy(model.llm)
    peer.resampler.to(model.vpm.post_layernorm.weight)
    return peer.eval(), PeerProcessor(processor.tokenizer, config, cutting)


def load(path: str | os.PathLike) -> tuple[MiniCPMV, Processor]:
    """Load a model and its processor, whether it has another connector or cutting rule or not.

    Args:
        path: a folder that `PeerModel.save_pretrained` and `Processor.save_pretrained` wrote, or any that
            `MiniCPMV.from_pretrained` takes.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        TypeError, OSError, ValueError: something is missing, damaged or unknown; the message names it.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> peer = swap(MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano"), "mlp", "square")
        >>> [part.save_pretrained(folder) for part in peer]
        [None, None]
        >>> load(folder)[0].peer
        {'connector': 'mlp', 'cutting': 'square'}
    """
    folder = find_folder(path)
    data = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "peer" not in data:
        return MiniCPMV.from_pretrained(path), Processor.from_pretrained(path)
    peer = data.pop("peer")
    if not isinstance(peer, dict) or set(peer) != {"connector", "cutting"}:
        raise ValueError(f'{folder / CONFIG}: "peer" must name a connector and a cutting, got {shown(peer)}')
    config = MiniCPMVConfig.from_dict(data)
    model = PeerModel.without_memory(config, **peer)
    model.read_weights(folder)
    tokenizer = Processor.tokenizer_in(folder, config.version)
    return model.eval(), PeerProcessor(tokenizer, config, peer["cutting"])
