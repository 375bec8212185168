"""The named values of the two GGUF files, as llama.cpp reads them: sizes of the model, tokenizer, chat template.

Left out: tokenizers that are not byte-level BPE. A value is (type, key, value).
"""

from __future__ import annotations

import json

from gguf import TokenType

from ..config import MiniCPMVConfig
from ..inputs.tokenizer import SPLIT
from ..prompt import DEFAULT_SYSTEM, TEMPLATES
from .gguf_plan import MIXTURES

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "granite": "minicpm"}  # ours -> llama.cpp's
Value = tuple[str, str, object]


def llm_keys(config: MiniCPMVConfig) -> list[Value]:
    llm, arch = config.llm, ARCHITECTURES[config.llm.family]
    keys = [
        ("string", "general.type", "model"),
        ("string", "general.name", f"MiniCPM-V {config.version}"),
        ("uint32", f"{arch}.context_length", llm.max_position_embeddings),
        ("uint32", f"{arch}.embedding_length", llm.hidden_size),
        ("uint32", f"{arch}.block_count", llm.num_hidden_layers),
        ("uint32", f"{arch}.feed_forward_length", llm.intermediate_size),
        ("uint32", f"{arch}.attention.head_count", llm.num_attention_heads),
        ("uint32", f"{arch}.attention.head_count_kv", llm.num_key_value_heads),
        ("float32", f"{arch}.attention.layer_norm_rms_epsilon", llm.rms_norm_eps),
        ("float32", f"{arch}.rope.freq_base", llm.rope_theta),
        ("uint32", f"{arch}.rope.dimension_count", llm.head_width),
        ("uint32", f"{arch}.vocab_size", llm.vocab_size),
    ]
    if llm.family == "granite":
        keys += [
            ("float32", f"{arch}.embedding_scale", llm.embedding_multiplier),
            ("float32", f"{arch}.residual_scale", llm.residual_multiplier),
            ("float32", f"{arch}.logit_scale", llm.logits_divisor),
        ]
    return keys


def vision_keys(config: MiniCPMVConfig, kind: str) -> list[Value]:
    vision = config.vision
    return [
        ("string", "general.type", "mmproj"),
        ("string", "general.name", f"MiniCPM-V {config.version}"),
        ("bool", "clip.has_text_encoder", False),
        ("bool", "clip.has_vision_encoder", True),
        ("bool", "clip.has_minicpmv_projector", True),
        ("string", "clip.projector_type", "resampler"),
        ("int32", "clip.minicpmv_version", {"2.5": 2, "2.6": 3}[config.version]),  # chooses the markers
        ("uint32", "clip.minicpmv_query_num", config.resampler.num_queries),
        ("uint32", "clip.vision.image_size", config.slicing.scale_resolution),
        ("uint32", "clip.vision.patch_size", vision.patch_size),
        ("uint32", "clip.vision.embedding_length", vision.width),
        ("uint32", "clip.vision.feed_forward_length", vision.mlp_width),
        ("uint32", "clip.vision.projection_dim", 0),
        ("uint32", "clip.vision.attention.head_count", vision.heads),
        ("float32", "clip.vision.attention.layer_norm_epsilon", vision.eps),
        ("uint32", "clip.vision.block_count", vision.layers),
        ("array", "clip.vision.image_mean", [0.5, 0.5, 0.5]),
        ("array", "clip.vision.image_std", [0.5, 0.5, 0.5]),
        ("bool", "clip.use_gelu", True),
        ("uint32", "general.file_type", int(MIXTURES[kind])),
    ]


# The tokenizer -------------------------------------------------------------------------------------------------------

# How text is cut into words before BPE: llama.cpp knows it by name, a tokenizer.json by its regular expression.
PRE_TOKENIZERS = {SPLIT % "": "qwen2", SPLIT % "{1,3}": "llama-bpe"}  # 2.6 and nano, each digit by itself; 2.5
ADDED = ("lstrip", "rstrip", "single_word")  # what an added token may ask for


def tokenizer_keys(tokenizer, config: MiniCPMVConfig) -> list[Value]:
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    words = _words(data)
    tokens = {number: (token, TokenType.NORMAL) for token, number in data["model"]["vocab"].items()}
    for added in data["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]] = (added["content"], kind)
    size = config.llm.vocab_size
    if max(tokens) >= size:
        raise ValueError(f"the tokenizer has ids up to {max(tokens)}, but the model's vocab_size is {size}")
    rows = [tokens.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(size)]  # embeddings of nothing
    merges = [" ".join(pair) for pair in data["model"]["merges"]]
    keys = [
        ("string", "tokenizer.ggml.model", "gpt2"),
        ("string", "tokenizer.ggml.pre", PRE_TOKENIZERS[words]),
        ("array", "tokenizer.ggml.tokens", [token for token, _ in rows]),
        ("array", "tokenizer.ggml.token_type", [int(kind) for _, kind in rows]),
        ("array", "tokenizer.ggml.merges", merges),
    ]
    # A text of 2.6 begins with <|im_start|>. Without this key llama.cpp would take token 11 for a beginning.
    first = tokenizer.bos_token_id
    first = tokenizer.convert_tokens_to_ids("<|im_start|>") if first is None and config.version == "2.6" else first
    special = {
        "bos": first,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    keys += [("uint32", f"tokenizer.ggml.{name}_token_id", i) for name, i in special.items() if i is not None]
    # False also in 2.5: the chat template begins with the token, and twice would be once too often.
    keys += [("bool", "tokenizer.ggml.add_bos_token", False)]
    return [*keys, ("string", "tokenizer.chat_template", chat_template(config.version))]


def _words(data: dict) -> str:
    """How a tokenizer.json cuts text into words. Everything else in it must be as llama.cpp has it for that cut."""
    parts = (data["pre_tokenizer"] or {}).get("pretokenizers") or [{}]
    words, split = parts[0].get("pattern", {}).get("Regex"), {"behavior": "Isolated", "invert": False}
    if data["model"]["type"] != "BPE" or words not in PRE_TOKENIZERS:
        raise ValueError(
            f"only byte-level BPE tokenizers that cut text as Qwen2 or Llama 3 do can be exported, got "
            f"{data['model']['type']} with the cut {words!r}"
        )
    llama = PRE_TOKENIZERS[words] == "llama-bpe"
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    asked = {
        f"{name} of its added token {token['content']!r}": token[name]
        for token in data["added_tokens"]
        for name in ADDED
    }
    problems = {
        "its pre_tokenizer does more than to split and to spell bytes": len(parts) != 2
        or not (parts[0].items() >= split.items() and parts[1].items() >= bytes_alone.items()),
        "its normalizer is not NFC": (data["normalizer"] or {}).get("type") not in (None, "NFC"),
        f"model.ignore_merges is {not llama}": bool(data["model"].get("ignore_merges")) is not llama,
    }
    for text, is_so in (problems | asked).items():
        if is_so:
            raise ValueError(f"llama.cpp would read text otherwise than this tokenizer: {text}")
    return words


def chat_template(version: str) -> str:
    """What `render_chat` writes for 2.5 or 2.6, as the Jinja template of their tokenizer_config.json."""
    turn = TEMPLATES[version]
    parts = [f"'{turn.before}'", "message['role']", f"'{turn.after}'", "message['content']", f"'{turn.end}'"]
    system = ""
    if version == "2.5":
        parts = ["('<|begin_of_text|>' if loop.first else '')", *parts[:3], f"{parts[3]} | trim", parts[4]]
    else:
        parts.append(f"'{turn.gap}'")
        text = turn.head("system") + DEFAULT_SYSTEM + turn.end + turn.gap
        system = "{% if loop.first and message['role'] != 'system' %}{{ '" + text + "' }}{% endif %}"
    turns = "{% for message in messages %}" + system + "{{ " + " + ".join(parts) + " }}{% endfor %}"
    return turns + "{% if add_generation_prompt %}{{ '" + turn.head("assistant") + "' }}{% endif %}"
