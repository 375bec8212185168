"""A folder's tokenizer, read as data: no code of its author runs."""

from __future__ import annotations

from pathlib import Path

from .files import read_json

TOKENIZER = "tokenizer.json"


def read_tokenizer(folder: Path):
    """Load a folder's tokenizer.json as a fast `transformers` tokenizer.

    The published folders name a class of their own in tokenizer_config.json; that would run their code, so only the
    data is read: the tokenizer itself and the names of its special tokens.

    Raises:
        OSError: no tokenizer.json.
        ValueError: a damaged one.
    """
    from transformers import PreTrainedTokenizerFast

    file = folder / TOKENIZER
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer.json in {folder}")
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = settings.get(name)
        if token is not None:
            special[name] = token.get("content") if isinstance(token, dict) else token
            if not isinstance(special[name], str):
                raise ValueError(f"{folder / 'tokenizer_config.json'}: {name} must be text, got {token!r}")
    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(file), **special)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError(f"{file} is not a tokenizer: {error}") from error


def stop_ids(tokenizer, version: str) -> tuple[int, ...]:
    """The ids of the tokens that end an answer."""
    names = {"2.0": (), "2.5": ("<|eot_id|>", "<|end_of_text|>"), "2.6": ("<|im_end|>", "<|endoftext|>")}[version]
    ids = {tokenizer.convert_tokens_to_ids(name) for name in names} | {tokenizer.eos_token_id}
    return tuple(sorted(ids - {None, tokenizer.unk_token_id}))
