"""Nano with a peer's connector and a peer's rule to cut pictures; trained, saved, loaded and asked like nano itself.

`swap` takes the ViT and the LLM of a model and puts a new connector between them. `load` reads what was saved.
CogVLM2 differs inside the LLM, too: a second set of weights for image tokens, and one position for all of an image.
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
from ..model import MiniCPMV, Output
from ..processor import Batch, Processor
from ..slicing import SlicePlan, plan_slices
from .cogvlm import LANGUAGE, VISION, expert_mask, expert_position_ids
from .connectors import CONNECTORS
from .llava import pad_to_square
from .sizes import tile_grid

CUTTINGS = ("minicpm-v", "square", "padded", "tiles")


class PeerConfig(MiniCPMVConfig):
    """The config of a model with another connector or an expert, which its numbers do not tell: see counts.py."""

    peer = True


class PeerModel(MiniCPMV):
    """A MiniCPMV whose connector may be another one; made by `swap` and `load`.

    Args:
        config: its resampler says how many tokens a view becomes.
        connector: "resampler", or a name of CONNECTORS.
        cutting: a name of CUTTINGS.
        expert: whether the LLM has CogVLM2's second set of weights; its image tokens use them.
        one_position: whether all tokens of an image share one position; its processor sees to that.
    """

    def __init__(
        self,
        config: MiniCPMVConfig,
        connector: str = "resampler",
        cutting: str = "minicpm-v",
        expert: bool = False,
        one_position: bool = False,
    ):
        check_choice("connector", connector, ["resampler", *CONNECTORS])
        check_choice("cutting", cutting, CUTTINGS)
        extras = {"expert": check_type("expert", expert, bool)}
        extras["one_position"] = check_type("one_position", one_position, bool)
        if connector != "resampler" and cutting == "minicpm-v":
            raise ValueError(f'connector "{connector}" takes square views: cut pictures with one of {CUTTINGS[1:]}')
        plain = connector == "resampler" and not expert
        config = (MiniCPMVConfig if plain else PeerConfig)(**vars(check_type("config", config, MiniCPMVConfig)))
        super().__init__(config, None if connector == "resampler" else CONNECTORS[connector](config))
        self.peer = {"connector": connector, "cutting": cutting} | {name: True for name in extras if extras[name]}
        if expert:
            self.add_expert()

    def add_expert(self) -> None:
        """Give the LLM a visual expert, which begins as a copy of its weights."""
        from .expert import ExpertLlama  # here, because transformers takes long

        if self.config.llm.family != "llama":
            raise ValueError(f"the expert stands in a Llama, but this model has a {self.config.llm.family}")
        self.llm = ExpertLlama(self.llm)

    def embed(self, batch: Batch, visual: torch.Tensor | None = None) -> torch.Tensor:
        """As `MiniCPMV.embed`; with an expert, one more number says which tokens use it: (S, T, D + 1)."""
        embeddings = super().embed(batch, visual)
        if "expert" not in self.peer or not any(map(len, batch.image_bounds)):
            return embeddings
        return torch.cat([embeddings, expert_mask(token_types(batch))[..., None].to(embeddings)], dim=-1)

    def forward(self, batch: Batch) -> Output:
        """As `MiniCPMV.forward`; rows in which positions repeat need their mask."""
        if "one_position" in self.peer and isinstance(batch, Batch) and batch.attention_mask is None:
            raise ValueError("transformers would cut packed rows where positions repeat: use learn.packing.score")
        return super().forward(batch)

    def chat(self, messages, processor: Processor, stream: bool = False, **options):
        """As `MiniCPMV.chat`; ValueError for a processor that cuts pictures or counts positions otherwise."""
        own = self.peer["cutting"], "one_position" in self.peer
        given = getattr(processor, "cutting", "minicpm-v"), getattr(processor, "one_position", False)
        if isinstance(processor, Processor) and given != own:
            raise ValueError(
                f'processor must cut pictures by "{own[0]}" with one_position={own[1]}, as this model, got '
                f'"{given[0]}" with {given[1]}: take the one that swap or load gave with the model'
            )
        return super().chat(messages, processor, stream, **options)

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """As `MiniCPMV.save_pretrained`; config.json also says what it shares with which peer."""
        super().save_pretrained(path, peer=self.peer)


class PeerProcessor(Processor):
    """A Processor that cuts pictures by another rule.

    "square" squeezes every picture into one square view (VILA-1.5, CogVLM2), "padded" pads it to a square first
    (LLaVA-1.5), "tiles" stretches it over a grid of square tiles and adds a square overview (InternVL-1.5).

    Args:
        tokenizer, config: as for Processor.
        cutting: a name of CUTTINGS.
        one_position: whether all tokens of an image share one rotary position, as in CogVLM2.
    """

    def __init__(self, tokenizer, config: MiniCPMVConfig, cutting: str = "minicpm-v", one_position: bool = False):
        super().__init__(tokenizer, config)
        self.cutting = check_choice("cutting", cutting, CUTTINGS)
        self.one_position = check_type("one_position", one_position, bool)

    def plan(self, size: tuple[int, int], cfg: SliceConfig) -> SlicePlan:
        return cut(size, cfg, self.cutting)

    def views(self, picture: Image.Image, plan: SlicePlan) -> list[torch.Tensor]:
        if self.cutting == "padded":
            picture = pad_to_square(picture)
        return super().views(picture, plan)

    def collate(self, samples: list[dict]) -> Batch:
        """As `Processor.collate`, with this processor's positions."""
        batch = super().collate(samples)
        if not self.one_position:
            return batch
        positions = expert_position_ids(token_types(batch))
        first = batch.attention_mask.argmax(dim=1, keepdim=True)  # after padding CogVLM2 begins at 1; we count from 0
        return replace(batch, position_ids=(positions - positions.gather(1, first)).clamp(min=0))


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
    grid = tile_grid(size, cfg.max_slice_nums, cfg.scale_resolution) if cutting == "tiles" else (1, 1)
    if grid == (1, 1):
        return SlicePlan(size, cfg.patch_size, view)
    return SlicePlan(size, cfg.patch_size, view, grid, view)


def swap(
    model: MiniCPMV,
    processor: Processor,
    connector: str = "resampler",
    cutting: str = "minicpm-v",
    seed: int = 0,
    *,
    expert: bool = False,
    one_position: bool = False,
) -> tuple[PeerModel, PeerProcessor]:
    """Put a new connector between the ViT and the LLM of a model, and let its pictures be cut by another rule.

    Args:
        model: is not changed; its ViT and LLM are copied.
        processor: of the model.
        connector: "resampler" (a new one) or a name of CONNECTORS.
        cutting: a name of CUTTINGS.
        seed: of the connector's random weights.
        expert: True gives the LLM CogVLM2's second set of weights for image tokens, at first a copy.
        one_position: True gives all tokens of an image one rotary position, as in CogVLM2.

    Returns:
        The new model in evaluation mode, and its processor. Train it with `learn.train` before you ask it.

    Raises:
        TypeError, ValueError: no such model, an unknown name, a connector and a cutting rule that do not fit; an expert
            where there is one already, or in another LLM than a Llama.

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
    if "expert" in getattr(model, "peer", {}):
        raise ValueError("its LLM has a visual expert already: swap the model that it was made of")
    config = model.config
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        if connector in CONNECTORS:
            queries = CONNECTORS[connector](config).num_queries
            config = replace(config, resampler=replace(config.resampler, num_queries=queries))
        torch.random.default_generator.manual_seed(seed)
        peer = PeerModel(config, connector, cutting, expert, one_position)
    peer.vpm, peer.llm = deepcopy(model.vpm), deepcopy(model.llm)
    if expert:
        peer.add_expert()
    peer.resampler.to(model.vpm.post_layernorm.weight)
    return peer.eval(), PeerProcessor(processor.tokenizer, peer.config, cutting, one_position)


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
    if not isinstance(peer, dict) or set(peer) - {"expert", "one_position"} != {"connector", "cutting"}:
        raise ValueError(f'{folder / CONFIG}: "peer" must name a connector and a cutting, got {shown(peer)}')
    config = MiniCPMVConfig.from_dict(data)
    model = PeerModel.without_memory(config, **peer)
    model.read_weights(folder)
    tokenizer = Processor.tokenizer_in(folder, config.version)
    return model.eval(), PeerProcessor(tokenizer, model.config, peer["cutting"], "one_position" in model.peer)


def token_types(batch: Batch) -> torch.Tensor:
    """The types of a batch's tokens, as in cogvlm.py (S, T): markers and visual tokens are VISION, padding is -1.

    Slices whose markers touch are one run, as pictures that touch are in CogVLM2.
    """
    types = torch.full_like(batch.input_ids, LANGUAGE)
    for row, bounds in zip(types, batch.image_bounds):
        for start, end in bounds.tolist():
            row[max(start - 1, 0) : end + 1] = VISION
    return types if batch.attention_mask is None else types.masked_fill(batch.attention_mask == 0, -1)
