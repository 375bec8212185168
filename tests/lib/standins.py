"""Small tokenizers with the official ids of the special tokens. The real ones are too large to keep here."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

# Text pieces of one training sample with the ids of Qwen2's tokenizer.
QWEN_WORDS = {
    "system": 8948,
    "\n": 198,
    "You": 2610,
    " are": 525,
    " a": 264,
    " helpful": 10950,
    " assistant": 17847,
    ".": 13,
    "user": 872,
    "0": 15,
    "What": 3838,
    " is": 374,
    " this": 419,
    "?": 30,
    "assistant": 77091,
    "A": 32,
    " cat": 8251,
    "Color": 1636,
    "Black": 14417,
}
SPECIAL = {
    "2.0": {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 101, "</image>": 102, "<slice>": 111, "</slice>": 112},
    "2.5": {
        "<|begin_of_text|>": 128000,
        "<|end_of_text|>": 128001,
        "<unk>": 128002,
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eot_id|>": 128009,
        "<image>": 128010,
        "</image>": 128011,
        "<slice>": 128020,
        "</slice>": 128021,
    },
    "2.6": {
        "<unk>": 128244,
        "<|endoftext|>": 151643,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<image>": 151646,
        "</image>": 151647,
        "<slice>": 151656,
        "</slice>": 151657,
        "<image_id>": 151658,
        "</image_id>": 151659,
    },
}
NAMES = {
    "2.0": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "2.5": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "unk_token": "<unk>"},
    "2.6": {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "<|endoftext|>",
    },
}


def byte_tokenizer(version: str) -> PreTrainedTokenizerFast:
    """Every byte is a token, so any text can be written and read back."""
    alphabet = {char: 1000 + i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet | SPECIAL[version], merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer, version)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of one sample under Qwen2's ids, split as Qwen2 splits."""
    tokenizer = Tokenizer(models.WordLevel(vocab=QWEN_WORDS | SPECIAL["2.6"], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _fast(tokenizer, "2.6")


def _fast(tokenizer: Tokenizer, version: str) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(list(SPECIAL[version]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES[version])
    assert {token: fast.convert_tokens_to_ids(token) for token in SPECIAL[version]} == SPECIAL[version]
    return fast
