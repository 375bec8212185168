"""SigLIP at toy scale: which caption belongs to which picture? That is how the ViT learns to see.

A picture and a caption each become one vector, and every pair of the batch is a yes/no question of its own. Only the
ViT is kept; the text tower and the pooling are scaffolding. Left out: learned resolution schedules.
B pictures with their captions, L patches, D width of the ViT, T tokens of a caption.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..inputs.checks import check_int, check_list, check_type
from ..model import MiniCPMV
from ..processor import normalize_views
from ..slicing import SliceConfig, plan_slices
from ..toy.data import Sample

WIDTH = 128  # of the text tower and of the vectors that are compared


class Contrast(nn.Module):
    """The two towers: the model's own ViT with attention pooling, and a small text encoder. `vpm` is trained in place.

    `gather` takes (image vectors, text vectors, keys=keys) to those of the larger batch that these are a part of; None:
    they are the full batch.

    Raises:
        TypeError: no MiniCPMV.

    Source: Zhai et al., Sigmoid loss for language image pre-training (2023), section 3 and algorithm 1.
    """

    def __init__(self, model: MiniCPMV, tokenizer, gather: Callable | None = None):
        super().__init__()
        self.gather = gather or (lambda *vectors, keys: (*vectors, list(keys)))
        check_type("model", model, MiniCPMV)
        self.vpm, self.tokenizer, self.slicing = model.vpm, tokenizer, model.config.slicing
        width, glances = model.config.vision.width, 4
        self.glances = nn.Parameter(torch.randn(glances, width) * 0.5)  # queries that look at all patches
        self.look = nn.Linear(width, 2 * width)
        self.image_vector = nn.Linear(glances * width, WIDTH)
        self.words = nn.Embedding(model.config.llm.vocab_size, WIDTH)
        nn.init.normal_(self.words.weight, std=0.1)
        self.places = nn.Parameter(torch.randn(64, WIDTH) * 0.02)
        options = dict(dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, **options)
        self.text = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.text_vector = nn.Linear(WIDTH, WIDTH)
        # Nearly all pairs do not match, so the paper starts at "no": sigmoid(10 x - 10), with x from -1 to 1.
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def inputs(self, samples: list[Sample], view: int | None = None) -> tuple:
        """Turn samples of one view each into tensors, scaled to `view` pixels. This needs no weights.

        Returns:
            (B views of 3 x H x W, token ids (B, T), their mask (B, T), keys that say which captions are the same).

        Raises:
            TypeError, ValueError: no Samples; a view smaller than a patch.
        """
        check_list("samples", samples, Sample, empty=False)
        if view is not None:
            check_int("view", view)
        slicing = SliceConfig(view or self.slicing.scale_resolution, self.slicing.patch_size, max_slice_nums=1)
        views = [normalize_views(s.image, plan_slices(s.image.size, slicing))[0] for s in samples]
        texts = self.tokenizer([s.answer for s in samples], padding=True, padding_side="right", return_tensors="pt")
        return views, texts.input_ids, texts.attention_mask, [sample.key for sample in samples]

    def vectors(self, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode pictures and captions: two Tensors (B, 128) of unit length."""
        return self.encode(*self.inputs(samples)[:3])

    def encode(self, views, ids, mask) -> tuple[torch.Tensor, torch.Tensor]:
        """The same from `inputs`."""
        device = self.glances.device
        ids, mask = ids.to(device), mask.to(device)
        features = torch.stack(self.vpm([view.to(device) for view in views]))
        keys, values = self.look(features).chunk(2, dim=-1)  # (B, L, D) each
        looks = (self.glances @ keys.mT / math.sqrt(keys.shape[-1])).softmax(dim=-1)  # (B, 4, L)
        image = self.image_vector(rearrange(looks @ values, "b g d -> b (g d)"))

        x = self.text(self.words(ids) + self.places[: ids.shape[1]], src_key_padding_mask=mask == 0)
        text = self.text_vector((x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))
        return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)

    def forward(self, samples: list[Sample], view: int | None = None) -> torch.Tensor:
        """The sigmoid loss, a scalar: B * B yes/no questions. In training B counts the samples of all processes."""
        return self.compare(*self.inputs(samples, view))

    def compare(self, views, ids, mask, keys) -> torch.Tensor:
        """The same from `inputs`."""
        image, text, keys = self.gather(*self.encode(views, ids, mask), keys=keys)
        logits = image @ text.T * self.log_scale.exp() + self.bias
        # A small world repeats itself, so a caption may belong to two pictures of the batch.
        match = torch.tensor([[1.0 if a == b else -1.0 for b in keys] for a in keys], device=logits.device)
        return -F.logsigmoid(match * logits).sum() / len(keys)

    @torch.no_grad()
    def recall(self, samples: list[Sample]) -> float:
        """How often the best caption of all is the picture's own (R@1), 0 to 1."""
        image, text = self.vectors(samples)
        best = (image @ text.T).argmax(dim=1).tolist()
        return sum(samples[i].key == samples[j].key for i, j in enumerate(best)) / len(samples)
