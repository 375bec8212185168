"""The language model: a causal LM of `transformers`, built from the numbers of an LLMConfig.

MiniCPM-2.4B of 2.0 is a Granite by another name: both multiply embeddings, residuals and logits by constants.
"""

from __future__ import annotations

from torch import nn

from .config import LLMConfig


def build_llm(cfg: LLMConfig) -> nn.Module:
    """Build a LlamaForCausalLM, Qwen2ForCausalLM or GraniteForCausalLM with random weights."""
    import transformers  # here, because it takes long

    name = {"granite": "Granite", "llama": "Llama", "qwen2": "Qwen2"}[cfg.family]
    config_class, model_class = getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}ForCausalLM")
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size "
        "max_position_embeddings tie_word_embeddings"
    ).split()
    numbers = {name: getattr(cfg, name) for name in names}
    # JSON may say 1 where transformers insists on 1.0.
    numbers |= {name: float(getattr(cfg, name)) for name in ("rms_norm_eps", "initializer_range")}
    if cfg.family == "granite":
        numbers |= dict(
            embedding_multiplier=cfg.embedding_multiplier,
            residual_multiplier=cfg.residual_multiplier,
            logits_scaling=cfg.logits_divisor,
            attention_multiplier=cfg.head_width**-0.5,
        )
    rope = {"rope_type": "default", "rope_theta": cfg.rope_theta}
    return model_class(config_class(**numbers, rope_parameters=rope, pad_token_id=None, attn_implementation="sdpa"))
