"""A very small model of each version with lively weights, its processor, and pictures. For tests."""

import json
from contextlib import contextmanager
from unittest import mock

import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from minicpmv_ref import LLMConfig, MiniCPMV, MiniCPMVConfig, Processor, ResamplerConfig, SliceConfig, VisionConfig
from minicpmv_ref.inputs.published import BUNDLED
from minicpmv_ref.processor import read_tokenizer

VERSIONS = ("2.0", "2.5", "2.6")
LLMS = {
    "2.0": dict(family="granite", num_key_value_heads=4, scale_emb=12, scale_depth=1.4, dim_model_base=16),
    "2.5": dict(family="llama", num_key_value_heads=2, rope_theta=500000.0),
    "2.6": dict(family="qwen2", num_key_value_heads=2, rope_theta=1000000.0),
}
VISIONS = {
    "2.0": dict(table_side=5, position="interpolate", act="gelu"),
    "2.5": dict(table_side=10, position="released_2_5"),
    "2.6": dict(table_side=10),
}


def tiny_config(version: str, positions: int = 1024) -> MiniCPMVConfig:
    return MiniCPMVConfig(
        version,
        VisionConfig(width=32, layers=2, heads=2, mlp_width=48, **VISIONS[version]),
        ResamplerConfig(num_queries=4, width=64, kv_width=32, heads=2, version=version),
        LLMConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            vocab_size=1024,
            max_position_embeddings=positions,
            **LLMS[version],
        ),
        SliceConfig(scale_resolution=56),
    )


def tiny_model(version: str, seed: int = 0, positions: int = 1024) -> MiniCPMV:
    return lively(MiniCPMV.seeded(tiny_config(version, positions)), seed)


def lively(model: MiniCPMV, seed: int = 0) -> MiniCPMV:
    """With the usual initialization everything is near zero and mistakes hide, so weights are of unit gain here."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "embed_tokens" in name:
                p.copy_(noise / model.config.llm.embedding_multiplier)
            elif p.ndim == 1:
                p.add_(0.2 * noise)  # gains start at 1, biases at 0
            elif name in ("resampler.query", "vpm.embeddings.position_embedding.weight"):
                p.copy_(noise)
            elif name != "resampler.pos_embed":
                p.copy_(noise * 1.4 / p[0].numel() ** 0.5)
    return model


def tiny_processor(version: str, positions: int = 1024) -> Processor:
    return Processor(read_tokenizer(BUNDLED / "nano"), tiny_config(version, positions))


def phone_config(family="llama", hidden=256, ff=512, layers=2, tied=True, version="2.6", **llm) -> MiniCPMVConfig:
    """A small model that llama.cpp can run: resampler heads of 128, a 70 x 70 table, an MLP wider than the ViT."""
    if family == "granite":
        llm |= dict(scale_emb=12, scale_depth=1.4, dim_model_base=128)
    return MiniCPMVConfig(
        version,
        VisionConfig(width=32, layers=2, heads=2, mlp_width=48),
        ResamplerConfig(num_queries=4, width=hidden, kv_width=32, version=version),
        LLMConfig(
            family=family,
            hidden_size=hidden,
            intermediate_size=ff,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=1030,  # six more than the tokenizer has
            tie_word_embeddings=tied,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            **llm,
        ),
        SliceConfig(scale_resolution=56),
    )


def phone_model(*args, seed=0, **kwargs) -> tuple[MiniCPMV, Processor]:
    config = phone_config(*args, **kwargs)
    return lively(MiniCPMV.seeded(config), seed), Processor(read_tokenizer(BUNDLED / "nano"), config)


def with_tokenizer(change, config=None) -> Processor:
    """The nano tokenizer with its JSON changed."""
    data = json.loads((BUNDLED / "nano" / "tokenizer.json").read_text("utf-8"))
    change(data)
    special = dict(eos_token="<|im_end|>", unk_token="<unk>", pad_token="<|endoftext|>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), **special)
    return Processor(tokenizer, config or phone_config())


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def ask(*content) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


def several() -> list[list[dict]]:
    """Four conversations: a sliced picture, no picture, two pictures, a small one; all of different lengths."""
    return [
        ask(picture(130, 90, 1), "What is this?"),
        ask("Hello"),
        ask(picture(50, 60, 2), "and", picture(170, 60, 3), "Which one is larger, the first or the second?"),
        ask(picture(56, 42, 4), "Describe it."),
    ]


def talk(*texts: str) -> list[dict]:
    """A conversation in which the user begins."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of its parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_weights(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@contextmanager
def short_answers(most: int = 4):
    """Models write at most so many tokens: for tests of a whole run, whatever its answers say."""
    whole = MiniCPMV.generate

    def generate(self, batch, max_new_tokens=most, **sampling):
        return whole(self, batch, min(max_new_tokens, most), **sampling)

    with mock.patch.object(MiniCPMV, "generate", generate):
        yield
