"""A folder's tokenizer, read as data: no code of its author runs; its chat template is rendered in a sandbox.

The `tokenizers` library trusts its file: some fields end the process, others let a text grow without end. So what a
tokenizer.json may hold is listed here, as the published folders of 2.0, 2.5 and 2.6, nano's, and those that
transformers 5 saves have it; anything else is refused by name before the library sees it.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from ..config import MiniCPMVConfig
from .checks import LIMITS, WrongType, check_choice, check_int, check_list, check_type, printable, shown
from .files import plain_file, read_json, replacing
from .messages import MARKERS, SLOT

TOKENIZER, SETTINGS, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
TEMPLATE = "chat_template.jinja"  # where newer versions of transformers write it
TALKS = [
    [{"role": role, "content": "Hi"} for role in roles.split()] for roles in ("user assistant user", "system user")
]

# What the published tokenizer_config.json of each version says; it holds where a folder does not say otherwise.
SPECIAL = {
    "2.0": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "2.5": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "unk_token": "<unk>"},
    "2.6": {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "<|endoftext|>",
    },
}
NEEDED = {"2.0": ("bos_token", "eos_token"), "2.5": ("bos_token", "eos_token"), "2.6": ("eos_token",)}

# Of every part its kinds, and of every kind its fields with the values that they may have.
_EITHER = (True, False)
SPLIT = (  # how text is cut into words before BPE, with how many digits go together
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = {"add_prefix_space": _EITHER, "trim_offsets": _EITHER, "use_regex": _EITHER}
_METASPACE = {
    "replacement": ("▁",),
    "prepend_scheme": ("always", "first", "never"),
    "split": _EITHER,
    "add_prefix_space": _EITHER,
}
_PARTS = {
    "normalizer": {
        "NFC": {},
        "Prepend": {"prepend": ("▁",)},
        "Replace": {"pattern": ({"String": " "},), "content": ("▁",)},
    },
    "pre_tokenizer": {
        "ByteLevel": _BYTE_LEVEL,
        "Metaspace": _METASPACE,
        "Split": {
            "pattern": ({"Regex": SPLIT % ""}, {"Regex": SPLIT % "{1,3}"}),  # Qwen2's and nano's; Llama 3's
            "behavior": ("Isolated",),
            "invert": (False,),
        },
    },
    "post_processor": {"ByteLevel": _BYTE_LEVEL, "TemplateProcessing": None},  # see _check_template
    "decoder": {
        "ByteLevel": _BYTE_LEVEL,
        "Metaspace": _METASPACE,
        "Replace": {"pattern": ({"String": "▁"},), "content": (" ",)},
        "ByteFallback": {},
        "Fuse": {},
        "Strip": {"content": (" ",), "start": (0, 1), "stop": (0,)},  # stop = 1 panics on empty text
    },
}
_SEQUENCES = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
_MODEL = {
    "type": ("BPE",),
    "dropout": (None, 0, 0.0),
    "continuing_subword_prefix": (None, ""),  # another one makes the library end the process
    "end_of_word_suffix": (None, ""),
    "fuse_unk": _EITHER,
    "byte_fallback": _EITHER,
    "ignore_merges": _EITHER,
}
_ADDED = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), _EITHER)


def read_tokenizer(folder: Path, version: str | None = None):
    """Load a folder's tokenizer.json as a fast `transformers` tokenizer.

    The published folders name a class of their own in tokenizer_config.json; that would run their code, so only the
    data is read: the tokenizer itself and the names of its special tokens. Those that the folder does not name are
    the version's; special_tokens_map.json and generation_config.json are not needed.

    Args:
        folder: with tokenizer.json and, unless the version's special tokens are in it, tokenizer_config.json.
        version: "2.0", "2.5" or "2.6"; None takes no special token but those that tokenizer_config.json names.

    Raises:
        OSError: no tokenizer.json.
        ValueError: a damaged one, one of a kind that no MiniCPM-V uses, or special tokens that it does not hold.
    """
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    file = folder / TOKENIZER
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer.json in {folder}")
    data = read_json(file)
    try:
        check_tokenizer_json(data)
        letters = ByteLevel.alphabet() if "ByteLevel" in json.dumps(data.get("pre_tokenizer")) else []
        if lost := set(letters) - set(data["model"]["vocab"]):
            raise ValueError(f"{len(lost)} of the 256 bytes have no token, so text with them would be lost")
        # Limits of length and padding are set with each call.
        backend = Tokenizer.from_str(json.dumps(data | {"truncation": None, "padding": None}))
        for token in data.get("added_tokens", []):
            if backend.token_to_id(token["content"]) != token["id"]:
                raise ValueError(f"the added token {shown(token['content'])} cannot have the id {token['id']}")
    except BaseException as error:  # the library raises bare Exception, and a panic of its Rust code is not even that
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"{file} is not a tokenizer of MiniCPM-V: {printable(str(error))}") from error
        raise
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **_special_tokens(folder, version, backend))
    _check_listed(folder, tokenizer)
    return tokenizer


def _check_listed(folder: Path, tokenizer) -> None:
    """Compare the tokens that other files of a folder list with tokenizer.json: `transformers` would add those to it.

    They differ where somebody has added tokens, and tokenizer.json was not written again.
    """
    held = {token.content: (str(number), token) for number, token in tokenizer.added_tokens_decoder.items()}
    for file, listed, number in _listed(folder):
        about = listed if isinstance(listed, dict) else {"content": listed}
        content = check_type(f"{file}: an added token", about.get("content"), str)
        here, own = held.get(content, (None, None))
        if own is None:
            what = "does not hold as one"
        elif number is not None and str(number) != here:
            what = f"gives the id {here}, not {shown(number)}"
        elif any(about.get(name, getattr(own, name)) != getattr(own, name) for name in ("lstrip", "rstrip")):
            what = "lets take other spaces around it"
        else:
            continue
        raise ValueError(
            f"{file} lists the added token {shown(content)}, which {TOKENIZER} {what}: text with it would be read "
            "otherwise. Save the tokenizer again, as a fast one"
        )


def _listed(folder: Path) -> Iterator[tuple[Path, object, object]]:
    """The added tokens that tokenizer_config.json and added_tokens.json list: (file, token, id or None)."""
    for name in (SETTINGS, ADDED):
        if not (file := folder / name).is_file():
            continue
        data = read_json(file)
        if name == ADDED:
            yield from ((file, token, number) for token, number in data.items())
            continue
        for key in ("extra_special_tokens", "additional_special_tokens"):  # transformers 5; 4
            tokens = data.get(key) or []
            tokens = list(tokens.values()) if isinstance(tokens, dict) else tokens
            yield from ((file, token, None) for token in check_list(f"{file}: {key}", tokens, str, dict))
        decoder = check_type(f"{file}: added_tokens_decoder", data.get("added_tokens_decoder") or {}, dict)
        yield from ((file, token, number) for number, token in decoder.items())


def check_template(folder: Path, tokenizer, version: str, render: Callable) -> None:
    """Compare a folder's own chat template, which the released `chat` of 2.5 and 2.6 follows, with `render_chat`.

    It is rendered as there, by `transformers` in a sandbox. A folder without one has nothing to compare, nor has 2.0,
    whose `chat` follows none.

    Raises:
        ValueError: it writes another prompt for one of two short conversations, or fails.
    """
    file, template = folder / SETTINGS, None
    if file.is_file():
        template = read_json(file).get("chat_template")
    if isinstance(template, list):  # several, by name
        several = check_list(f"{file}: chat_template", template, dict)
        template = next((one.get("template") for one in several if one.get("name") == "default"), None)
    if (folder / TEMPLATE).is_file():
        file = plain_file(folder / TEMPLATE, LIMITS["template_bytes"])
        template = file.read_text("utf-8", errors="replace")
    if template is None or version == "2.0":
        return
    check_type(f"{file}: chat_template", template, str)
    for messages in TALKS:
        ours, _ = render(messages, version, tokenizer.bos_token or "")
        try:
            said = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # of Jinja, or raised by the template
            said = f"{type(error).__name__}: {error}"
        if said != ours:
            raise ValueError(
                f"{file}: the chat template writes {shown(said, 300)} where our prompt is {shown(ours, 300)}, so this "
                "model has learned from others. If it has not, remove the template"
            )


def _special_tokens(folder: Path, version: str | None, backend) -> dict[str, str]:
    file = folder / SETTINGS
    settings = read_json(file) if file.is_file() else {}
    special = {}
    for name in SPECIAL["2.6"]:
        token = settings.get(name)
        if token is not None:
            token = token.get("content") if isinstance(token, dict) else token
            check_type(f"{file}: {name}", token, str, what="text")
            if backend.token_to_id(token) is None:
                raise ValueError(f"{file}: {name} = {shown(token)} is not in tokenizer.json")
            special[name] = token
    for name, token in SPECIAL.get(version, {}).items():
        if name in settings or (settings and name not in NEEDED[version]):
            continue
        if backend.token_to_id(token) is not None:
            special[name] = token
        elif name in NEEDED[version]:
            raise ValueError(
                f"the {name} is unknown: {file} does not name one, and tokenizer.json does not hold {version}'s, "
                f"which is {token}"
            )
    return special


def check_tokenizer_json(data: dict) -> None:
    """Refuse what no tokenizer.json of MiniCPM-V has.

    Args:
        data: the parsed JSON.

    Raises:
        ValueError: a kind or a value that is not listed above, by name; ids that are no ids; merges of unknown tokens.

    Example:
        >>> check_tokenizer_json({"model": {"type": "WordPiece"}})
        Traceback (most recent call last):
        ValueError: model.type must be one of BPE, got 'WordPiece'
    """
    known = {"version", "truncation", "padding", "added_tokens", "model", *_PARTS}
    if set(data) - known:
        raise ValueError(f"unknown fields {shown(sorted(set(data) - known))}")
    for place, kinds in _PARTS.items():
        part = data.get(place)
        if part is None:
            continue
        check_type(place, part, dict, what="an object")
        several = part.get("type") == "Sequence"
        if several:
            _check_fields(place, part, {"type": ("Sequence",)}, {_SEQUENCES[place]})
            parts = check_list(f"{place}.{_SEQUENCES[place]}", part.get(_SEQUENCES[place]), dict)
            check_int(f"the number of {_SEQUENCES[place]}", len(parts), least=0, most=8)
        for one in parts if several else [part]:
            kind = check_choice(f"{place}.type", one.get("type"), kinds)
            if kind == "TemplateProcessing":
                _check_template(one)
            else:
                _check_fields(f"{place} {kind}", one, {"type": (kind,), **kinds[kind]})
    _check_model(data.get("model"))
    for number, token in enumerate(check_list("added_tokens", data.get("added_tokens", []), dict)):
        place = f"added_tokens[{number}]"
        _check_fields(place, token, _ADDED, {"id", "content"})
        check_int(f"{place}.id", token.get("id"), least=0, most=LIMITS["config_integer"])
        if not check_type(f"{place}.content", token.get("content"), str):
            raise ValueError(f"{place}.content must not be empty")


def _check_fields(place: str, given: dict, allowed: dict, free: set = frozenset()) -> None:
    for name, value in given.items():
        if name not in free and name not in allowed:
            raise ValueError(f"{place}: {printable(name)} is an unknown field")
        if name not in free and not any(type(value) is type(one) and value == one for one in allowed[name]):
            known = " or ".join(map(shown, allowed[name]))
            raise ValueError(f"{place}: {name} must be {known}, got {shown(value)}")


def _check_template(part: dict) -> None:
    _check_fields(
        "post_processor TemplateProcessing",
        part,
        {"type": ("TemplateProcessing",)},
        {"single", "pair", "special_tokens"},
    )
    tokens = check_type("special_tokens", part.get("special_tokens"), dict)
    for name, token in tokens.items():
        check_type("special_tokens", token, dict)
        _check_fields("special_tokens", token, {"id": (name,)}, {"ids", "tokens"})
        check_list("special_tokens.tokens", token.get("tokens"), str)
        for number in check_list("special_tokens.ids", token.get("ids")):
            check_int("special_tokens.ids", number, least=0, most=LIMITS["config_integer"])
    for place in ("single", "pair"):
        for piece in check_list(place, part.get(place), dict):
            ids = {"SpecialToken": tuple(tokens), "Sequence": ("A", "B")}
            _check_fields(place, piece, {}, set(ids))
            for kind, given in piece.items():
                _check_fields(place, check_type(place, given, dict), {"id": ids[kind], "type_id": (0, 1)})


def _check_model(model: dict) -> None:
    check_type("model", model, dict, what="an object")
    check_choice("model.type", model.get("type"), _MODEL["type"])
    _check_fields("model", model, _MODEL, {"vocab", "merges", "unk_token"})
    vocab = check_type("model.vocab", model.get("vocab"), dict, what="an object of tokens and ids")
    for token, number in vocab.items():
        if type(number) is not int or not 0 <= number <= LIMITS["config_integer"]:
            check_int(f"the id of {shown(token)}", number, least=0, most=LIMITS["config_integer"])
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("model.vocab gives one id to two tokens")
    if model.get("unk_token") is not None and check_type("model.unk_token", model["unk_token"], str) not in vocab:
        raise ValueError(f"model.unk_token {shown(model['unk_token'])} is not in the vocabulary")
    for number, merge in enumerate(check_list("model.merges", model.get("merges"))):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            raise ValueError(f"model.merges[{number}] must be two tokens, got {shown(merge)}")
        if not (pair[0] in vocab and pair[1] in vocab and pair[0] + pair[1] in vocab):
            raise ValueError(f"model.merges[{number}] = {shown(merge)}: a token is not in the vocabulary")


def save_tokenizer(tokenizer, path: str | os.PathLike) -> None:
    """Write tokenizer.json and tokenizer_config.json, whole or not at all; the folder is made if it is missing.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder = Path(check_type("path", path, str, os.PathLike))
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as draft:
        tokenizer.save_pretrained(draft)
        settings = Path(draft, SETTINGS)
        # null says that there is none; a token that is not named is the version's.
        settings.write_text(json.dumps(dict.fromkeys(SPECIAL["2.6"]) | read_json(settings), indent=2), encoding="utf-8")
        files = [file for file in Path(draft).iterdir() if file.is_file()]
        with replacing(*(folder / file.name for file in files)) as drafts:
            for file, target in zip(files, drafts):
                target.write_bytes(file.read_bytes())


def check_fits(tokenizer, config: MiniCPMVConfig) -> None:
    """Compare a tokenizer with the model whose prompts it writes.

    Raises:
        ValueError: ids beyond the model's vocabulary, or no BOS where the version begins every prompt with one.
    """
    vocab = tokenizer.get_vocab()
    token = max(vocab, key=vocab.get)
    if vocab[token] >= config.llm.vocab_size:
        raise ValueError(
            f"the tokenizer has ids up to {vocab[token]} ({shown(token)}), but the model's vocabulary (vocab_size) has "
            f"{config.llm.vocab_size}: they do not belong together, or tokens were added without rows in embed_tokens"
        )
    begin = SPECIAL[config.version]["bos_token"]
    if "bos_token" in NEEDED[config.version] and tokenizer.bos_token is None and begin in vocab:
        raise ValueError(
            f"the tokenizer has no bos_token, but {config.version} begins every prompt with one: set it to {begin} "
            f"(in a folder: in {SETTINGS})"
        )


def stop_ids(tokenizer, version: str) -> tuple[int, ...]:
    """The ids of the tokens that end an answer; never empty.

    Raises:
        ValueError: the tokenizer has none of them.
    """
    names = {"2.0": (), "2.5": ("<|eot_id|>", "<|end_of_text|>"), "2.6": ("<|im_end|>", "<|endoftext|>")}[version]
    ids = {tokenizer.convert_tokens_to_ids(name) for name in names} | {tokenizer.eos_token_id}
    ids -= {None, tokenizer.unk_token_id}
    if not ids:
        raise ValueError(
            f"the tokenizer has no eos_token, so a {version} model would never stop: set it "
            f"(in a folder: in {SETTINGS}; {version}'s is {SPECIAL[version]['eos_token']})"
        )
    return tuple(sorted(ids))


def marker_ids(tokenizer) -> dict[str, int]:
    """Look up the ids of `<image>`, `</image>`, `<slice>` and `</slice>`.

    Raises:
        TypeError: not a tokenizer.
        ValueError: the tokenizer does not know one of them.
    """
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise WrongType(f"tokens must be a tokenizer or a mapping, got {type(tokenizer).__name__}: {shown(tokenizer)}")
    ids = {marker: tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS[:4]}
    unknown = [m for m, i in ids.items() if i is None or i == tokenizer.convert_tokens_to_ids(SLOT)]
    if unknown:
        raise ValueError(f"this tokenizer does not know {', '.join(unknown)}: it is not one of a MiniCPM-V model")
    return ids


def merged_answers(text: str, answers: list[tuple[int, int]], encoded, tokenizer) -> list[int]:
    """Find answers whose beginning changes the tokens of the header before them.

    Qwen2's tokenizer reads a newline at the end of the header and one that begins the answer as one token. A model
    that learns from such a sample never sees the header that `chat` will end its prompt with.

    Args:
        text, answers: from `render_chat`.
        encoded: `tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)`.
        tokenizer: a fast tokenizer.

    Returns:
        The numbers of these answers, counted from 0.

    Example:
        >>> from minicpmv_ref import Processor
        >>> tokenizer = Processor.from_pretrained("nano").tokenizer
        >>> text, answers = "<|im_start|>assistant\\nred", [(22, 25)]
        >>> encoded = tokenizer(text, return_offsets_mapping=True)
        >>> merged_answers(text, answers, encoded, tokenizer)
        []
        >>> merged_answers(text, [(15, 25)], encoded, tokenizer)  # "ass" alone is another token than "assistant"
        [0]
    """
    ids, offsets, merged = encoded["input_ids"], encoded["offset_mapping"], []
    special = tokenizer.added_tokens_decoder
    for number, (start, _) in enumerate(answers):
        end = bisect_left(offsets, start, key=lambda offset: offset[0])
        # A tokenizer cuts a text at its special tokens first, so nothing before the last one can change.
        begin = next((i for i in range(end - 1, -1, -1) if ids[i] in special), 0)
        cut = offsets[begin][0] if begin < end and ids[begin] in special else 0
        if tokenizer(text[cut:start], add_special_tokens=False)["input_ids"] != ids[begin:end]:
            merged.append(number)
    return merged
