"""Trains the tokenizer of the nano model: `python tools/train_tokenizer.py [folder]`.

Byte-level BPE with the pre-tokenizer of Qwen2, because MiniCPM-V 2.6 speaks Qwen2 and llama.cpp knows it
by name (`tokenizer.ggml.pre = qwen2`). 1024 tokens in all: 18 special, 256 bytes, 750 merges.
Left out: an unknown token for text (bytes cover everything) and a BOS token (2.6 adds none).
Run it once. New ids break every existing checkpoint without an error.
"""

import json
import sys
from pathlib import Path

from tokenizer_corpus import corpus
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

sys.path.insert(0, str(Path(__file__).parents[1]))
from minicpmv_ref.deploy.gguf_keys import chat_template
from minicpmv_ref.inputs.tokenizer import SPLIT

VOCAB_SIZE = 1024
FOLDER = Path(__file__).parents[1] / "data_samples" / "checkpoints" / "nano"

# The names of MiniCPM-V 2.6. They come first, so padding has id 0: the official processor masks `ids != 0`.
SPECIAL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <unk> <image> </image> <ref> </ref> <box> </box> <quad> </quad> "
    "<point> </point> <slice> </slice> <image_id> </image_id>"
).split()

# Qwen2's split: contractions, a word with one leading mark or space, ONE digit, marks, line ends, spaces.
QWEN2_SPLIT = SPLIT % ""

NAMED = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
CONFIG = {
    # The plain class takes tokenizer.json as it is; Qwen2Tokenizer would rebuild it.
    "tokenizer_class": "PreTrainedTokenizerFast",
    **NAMED,
    "additional_special_tokens": [t for t in SPECIAL_TOKENS if t not in NAMED.values()],
    "model_max_length": 2048,
    "padding_side": "left",
    # Off, or decoding would turn " ." into "." and the round trip would not be exact.
    "clean_up_tokenization_spaces": False,
    "chat_template": chat_template("2.6"),
}


def train():
    """Returns a trained `tokenizers.Tokenizer`; the same one every time."""
    # No unk_token in the model: a slot for an image must never appear because of a strange character.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = {"add_prefix_space": False, "use_regex": False}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), pre_tokenizers.ByteLevel(**byte_level)]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False, **byte_level)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        # All 256 bytes, also those that the corpus does not contain.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def write(folder):
    """Writes tokenizer.json and tokenizer_config.json into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    train().save(str(folder / "tokenizer.json"))
    text = json.dumps(CONFIG, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(sys.argv[1] if len(sys.argv) > 1 else FOLDER)
