"""A very small model of each version with lively weights, its processor, and pictures. For tests."""

import torch
from PIL import Image

from minicpmv_ref import LLMConfig, MiniCPMV, MiniCPMVConfig, Processor, ResamplerConfig, SliceConfig, VisionConfig
from minicpmv_ref.config import BUNDLED
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
    """With the usual initialization everything is near zero and mistakes hide, so weights are of unit gain here."""
    model = MiniCPMV.seeded(tiny_config(version, positions))
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
