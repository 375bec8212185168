"""Tokenizer files from strangers: special tokens by version, ids that fit the model, and kinds that are refused."""

import json
import random
import shutil
from contextlib import suppress
from dataclasses import replace

import jinja2
import pytest
import tokenizers
from tiny import ask, tiny_config
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from minicpmv_ref import Processor
from minicpmv_ref.config import VERSIONS, nano
from minicpmv_ref.deploy.gguf_keys import chat_template
from minicpmv_ref.inputs.published import BUNDLED
from minicpmv_ref.inputs.tokenizer import SPECIAL, check_tokenizer_json, read_tokenizer, save_tokenizer, stop_ids
from minicpmv_ref.prompt import render_chat

MARKERS = ["<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>"]
SPLIT = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)


def parts(kind: str, **fields) -> dict:
    return {"type": kind, **fields}


def template(bos: str, number: int) -> dict:
    begin = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    token = {"id": bos, "ids": [number], "tokens": [bos]}
    pair = [*begin, {"Sequence": {"id": "B", "type_id": 1}}]
    return parts("TemplateProcessing", single=begin, pair=pair, special_tokens={bos: token})


def bpe(vocab: dict, merges: list, **fields) -> dict:
    fixed = dict(dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False)
    return parts("BPE", **fixed | dict(byte_fallback=False, ignore_merges=False) | fields, vocab=vocab, merges=merges)


def published(version: str) -> dict:
    """A small tokenizer.json of the kind that the version's published folder has."""
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    special = [*dict.fromkeys(SPECIAL[version].values()), *MARKERS, *(["<|eot_id|>"] if version == "2.5" else [])]
    byte_level = parts("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
    if version == "2.0":
        vocab = dict.fromkeys(["<unk>", "<s>", "</s>"]) | {f"<0x{byte:02X}>": 0 for byte in range(256)}
        vocab = {token: number for number, token in enumerate([*vocab, *"▁helo<AI>用户\n", "he", "▁he"])}
        strip = parts("Strip", content=" ", start=1, stop=0)
        swap = parts("Replace", pattern={"String": "▁"}, content=" ")
        data = dict(
            normalizer=parts(
                "Sequence",
                normalizers=[
                    parts("Prepend", prepend="▁"),
                    parts("Replace", pattern={"String": " "}, content="▁"),
                ],
            ),
            pre_tokenizer=None,
            post_processor=template("<s>", 1),
            decoder=parts("Sequence", decoders=[swap, parts("ByteFallback"), parts("Fuse"), strip]),
            model=bpe(vocab, ["h e", "▁ he"], unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        )
    else:
        alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġhe"]
        vocab = {token: number for number, token in enumerate(alphabet)}
        regex = SPLIT if version == "2.5" else SPLIT.replace("{1,3}", "")
        split = parts("Split", pattern={"Regex": regex}, behavior="Isolated", invert=False)
        last = parts("Sequence", processors=[byte_level, template("<|begin_of_text|>", len(vocab))])
        data = dict(
            normalizer=None if version == "2.5" else parts("NFC"),
            pre_tokenizer=parts("Sequence", pretokenizers=[split, byte_level]),
            post_processor=last if version == "2.5" else byte_level,
            decoder=byte_level,
            model=bpe(vocab, [["h", "e"], ["Ġ", "he"]], continuing_subword_prefix="" if version == "2.6" else None),
        )
    ids = vocab | {token: len(vocab) + i for i, token in enumerate(t for t in special if t not in vocab)}
    added = [dict(id=ids[token], content=token, **flags) for token in sorted(special, key=ids.get)]
    return dict(version="1.0", truncation=None, padding=None, added_tokens=added) | data


def write(folder, version: str, tokenizer=None, **settings):
    """A folder of a small model: its config, a tokenizer.json and, if any settings are given, tokenizer_config.json."""
    (folder / "config.json").write_text(json.dumps(tiny_config(version).to_dict()))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer or published(version)))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


# --- special tokens ---


@pytest.mark.parametrize("version", VERSIONS)
def test_a_folder_without_settings_has_the_tokens_of_its_version(tmp_path, version):
    bare = Processor.from_pretrained(write(tmp_path, version))
    for name, token in SPECIAL[version].items():
        assert getattr(bare.tokenizer, name) == token
    assert len(bare.tokenizer) == 1 + max(bare.tokenizer.get_vocab().values()), "a token was added"
    messages = [*ask("hello"), {"role": "assistant", "content": "he"}]
    ids = bare(messages).input_ids[0].tolist()
    words = bare.tokenizer.convert_ids_to_tokens([ids[0], ids[-1]])
    assert words[0] == {"2.0": "<s>", "2.5": "<|begin_of_text|>", "2.6": "<|im_start|>"}[version]
    stops = {"2.0": ["</s>"], "2.5": ["<|end_of_text|>", "<|eot_id|>"], "2.6": ["<|im_end|>", "<|endoftext|>"]}[version]
    assert sorted(bare.tokenizer.convert_ids_to_tokens(bare.stop_ids)) == sorted(stops)
    if version == "2.0":
        assert words[1] == "</s>" and bare(messages).labels[0, -1] == ids[-1]  # the end is learned
    for file in ("special_tokens_map.json", "added_tokens.json", "generation_config.json"):
        (tmp_path / file).write_text("{}")
    whole = Processor.from_pretrained(write(tmp_path, version, **SPECIAL[version]))
    assert whole(messages).input_ids.equal(bare(messages).input_ids)
    assert (whole.stop_ids, whole.pad_id) == (bare.stop_ids, bare.pad_id)


@pytest.mark.parametrize("version", VERSIONS)
def test_settings_that_name_only_some_tokens(tmp_path, version):
    processor = Processor.from_pretrained(write(tmp_path, version, unk_token="<unk>", model_max_length=2048))
    assert processor.tokenizer.bos_token == (SPECIAL[version]["bos_token"] if version != "2.6" else None)  # not needed
    assert processor.tokenizer.eos_token == SPECIAL[version]["eos_token"]


@pytest.mark.parametrize("version", ["2.0", "2.5"])
def test_another_tokenizer_needs_its_settings(tmp_path, version):
    write(tmp_path, version, json.loads((BUNDLED / "nano/tokenizer.json").read_text("utf-8")))
    for settings in ({}, {"eos_token": "<|im_end|>"}, {"bos_token": "<|endoftext|>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match=r"(bos|eos)_token is unknown: .*tokenizer_config\.json"):
            Processor.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"bos_token is unknown: .*tokenizer_config\.json"):
        Processor.from_pretrained(tmp_path)
    for bos in ("<|endoftext|>", None):  # null says that there is none
        settings = {"bos_token": bos, "eos_token": "<|im_end|>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        processor = Processor.from_pretrained(tmp_path)
        assert processor.tokenizer.bos_token == bos
        assert 2 in processor.stop_ids


NEW = dict(content="<new>", lstrip=False, rstrip=False, normalized=False, single_word=False, special=True)


@pytest.mark.parametrize(
    ("file", "entry", "words"),
    [
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"1024": NEW}},
            "'<new>', which tokenizer.json does not hold",
        ),
        ("tokenizer_config.json", {"extra_special_tokens": ["<new>"]}, "'<new>', which tokenizer.json does not hold"),
        ("tokenizer_config.json", {"additional_special_tokens": ["<new>"]}, "'<new>', which"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"4": NEW | dict(content="<image>", lstrip=True)}},
            "spaces",
        ),
        ("added_tokens.json", {"<new>": 1024}, "'<new>', which tokenizer.json does not hold"),
    ],
)
def test_tokens_that_were_added_beside_an_old_tokenizer_json(tmp_path, file, entry, words):
    """`transformers` adds them while it reads, so a text with them has other ids there."""
    folder = write(tmp_path, "2.6", json.loads((BUNDLED / "nano/tokenizer.json").read_text("utf-8")))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    text, ours = "a <new> b <image>", read_tokenizer(folder, "2.6")
    (folder / file).write_text(
        json.dumps(({"tokenizer_class": "PreTrainedTokenizerFast"} if "config" in file else {}) | entry)
    )
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids != ours(text).input_ids
    with pytest.raises(ValueError, match=rf"{file} lists the added token .*{words}"):
        read_tokenizer(folder, "2.6")


OWN = {version: chat_template(version) for version in ("2.5", "2.6")}
ALWAYS = OWN["2.5"].replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")  # as released


@pytest.mark.parametrize(
    ("version", "settings", "alone"),
    [
        ("2.6", OWN["2.6"], None),
        ("2.5", OWN["2.5"], None),
        ("2.5", ALWAYS, None),
        ("2.6", [dict(name="tool_use", template="tools"), dict(name="default", template=OWN["2.6"])], None),
        ("2.6", None, OWN["2.6"]),
        ("2.6", "the file beside it counts", OWN["2.6"]),
        ("2.6", OWN["2.6"].replace("a helpful", "Qwen, a helpful"), None),
        ("2.6", OWN["2.6"].replace("assistant\n", "assistant\n<think>\n"), None),
        ("2.6", OWN["2.6"].replace("loop.first", "loop.last"), None),
        ("2.6", OWN["2.5"], None),
        ("2.6", [dict(name="default", template="{{ messages[0].content }}")], None),
        ("2.6", OWN["2.6"], "{{ messages[0].content }}"),
        (
            "2.6",
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + OWN["2.6"],
            None,
        ),
        ("2.6", "{% for", None),
        ("2.5", OWN["2.5"].replace("<|begin_of_text|>", ""), None),
    ],
)
def test_a_chat_template_that_writes_other_prompts_is_refused(tmp_path, version, settings, alone):
    """`transformers` says what the folder's template writes, and which one counts."""
    write(tmp_path, version, **SPECIAL[version], tokenizer_class="TokenizersBackend", chat_template=settings)
    if alone is not None:
        (tmp_path / "chat_template.jinja").write_text(alone)
    authority = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    same = []
    for roles in (["user"], ["user", "assistant", "user"], ["system", "user"]):
        messages = [{"role": role, "content": f"say {number}"} for number, role in enumerate(roles)]
        with suppress(jinja2.TemplateError):
            said = authority.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            same.append(said == render_chat(messages, version, bos=SPECIAL[version]["bos_token"])[0])
    if same == [True, True, True]:
        Processor.from_pretrained(tmp_path)
        return
    with pytest.raises(ValueError, match=r"the chat template writes .* where our prompt is .* remove the template"):
        Processor.from_pretrained(tmp_path)


def test_what_is_no_chat_template_and_where_none_is_followed(tmp_path):
    """The released `chat` of 2.0 writes its prompt itself."""
    Processor.from_pretrained(write(tmp_path, "2.0", **SPECIAL["2.0"], chat_template="another"))
    for wrong in (3, [3], [dict(name="default", template=3)], {}):
        with pytest.raises(ValueError, match=r"tokenizer_config.json: chat_template(\[0\])? must be"):
            Processor.from_pretrained(write(tmp_path, "2.6", **SPECIAL["2.6"], chat_template=wrong))
    for none in ([], [dict(name=[], template="{% for")], None):
        Processor.from_pretrained(write(tmp_path, "2.6", **SPECIAL["2.6"], chat_template=none))


def test_an_added_token_with_another_id(tmp_path):
    folder = write(tmp_path, "2.6")
    (folder / "added_tokens.json").write_text('{"<image>": 5}')
    with pytest.raises(ValueError, match=r"'<image>', which tokenizer\.json gives the id \d+, not 5"):
        read_tokenizer(folder, "2.6")


def test_nano_without_its_settings_is_the_same(tmp_path):
    write(tmp_path, "2.6", json.loads((BUNDLED / "nano/tokenizer.json").read_text("utf-8")))
    bare, nano_s = Processor.from_pretrained(tmp_path), Processor.from_pretrained("nano")
    assert (bare.stop_ids, bare.pad_id) == (nano_s.stop_ids, nano_s.pad_id)
    assert bare(ask("Hi")).input_ids.equal(nano_s(ask("Hi")).input_ids)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["bos_token", "eos_token", "unk_token", "pad_token"])
@pytest.mark.parametrize("token", ["[PAD]", "nothing like it", {"content": "<pad>"}])
def test_a_special_token_that_the_tokenizer_does_not_hold(tmp_path, version, name, token):
    write(tmp_path, version, **SPECIAL[version] | {name: token})
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json: {name} = .* is not in tokenizer\.json"):
        Processor.from_pretrained(tmp_path)


def test_an_answer_always_ends(tmp_path):
    for version in ("2.0", "2.5"):
        data = published(version)
        data["added_tokens"] = [
            t for t in data["added_tokens"] if t["content"] not in ("<|eot_id|>", "<|end_of_text|>")
        ]
        for number, token in enumerate(data["added_tokens"], len(data["model"]["vocab"])):
            token["id"] = data["model"]["vocab"].get(token["content"], number - (3 if version == "2.0" else 0))
        write(tmp_path, version, data, bos_token=SPECIAL[version]["bos_token"], eos_token=None)
        with pytest.raises(ValueError, match=r"no eos_token, so a 2\.\d model would never stop"):
            Processor.from_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(BUNDLED / "nano/tokenizer.json"), unk_token="<unk>")
    with pytest.raises(ValueError, match="would never stop"):
        stop_ids(tokenizer, "2.0")
    with pytest.raises(ValueError, match="would never stop"):
        Processor(tokenizer, tiny_config("2.0"))


@pytest.mark.parametrize("version", ["2.0", "2.5"])
def test_a_tokenizer_that_forgot_its_bos(tmp_path, version):
    write(tmp_path, version)
    forgot = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token=SPECIAL[version]["eos_token"], unk_token="<unk>"
    )
    with pytest.raises(ValueError, match=f"no bos_token, but {version} begins every prompt with one"):
        Processor(forgot, tiny_config(version))


# --- ids that fit the model ---


def test_ids_beyond_the_vocabulary(tmp_path):
    small = replace(nano, llm=replace(nano.llm, vocab_size=1023))
    with pytest.raises(ValueError, match=r"ids up to 1023 \(.*\), but the model's vocabulary \(vocab_size\) has 1023"):
        Processor(read_tokenizer(BUNDLED / "nano"), small)
    grown = read_tokenizer(BUNDLED / "nano")
    grown.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(ValueError, match=r"ids up to 1024 \('\[PAD\]'\)"):
        Processor(grown, nano)
    config = write(tmp_path, "2.6") / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 1024', '"vocab_size": 200'))
    with pytest.raises(ValueError, match=r"ids up to 2\d\d .* has 200"):
        Processor.from_pretrained(tmp_path)
    assert Processor(grown, replace(nano, llm=replace(nano.llm, vocab_size=1025))).pad_id == 1024
    assert (
        Processor(read_tokenizer(BUNDLED / "nano"), replace(nano, llm=replace(nano.llm, vocab_size=2000))).pad_id == 0
    )


@pytest.mark.parametrize("wrong", [None, 3, "nano", nano])
def test_a_processor_of_something_else(wrong):
    with pytest.raises(TypeError, match="needs a fast tokenizer"):
        Processor(wrong, nano)
    with pytest.raises(TypeError, match="config must be MiniCPMVConfig"):
        Processor(read_tokenizer(BUNDLED / "nano"), wrong if wrong is not nano else nano.to_dict())


# --- what a tokenizer.json may hold ---


@pytest.mark.parametrize("version", VERSIONS)
def test_the_published_kinds_are_read(tmp_path, version):
    tokenizer = read_tokenizer(write(tmp_path, version), version)
    text = "hello he <image><unk></image>\nhe 用户 123"
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids).replace("</image> ", "</image>") == text  # 2.0 begins again after each marker
    for field in ("truncation", "padding"):  # what a training left in the file
        data = published(version)
        data["truncation"] = dict(direction="Right", max_length=3, strategy="LongestFirst", stride=0)
        data["padding"] = dict(
            strategy={"Fixed": 99}, direction="Left", pad_to_multiple_of=None, pad_id=0, pad_type_id=0, pad_token="x"
        )
        write(tmp_path, version, data | {field: None})
        again = read_tokenizer(tmp_path, version)
        assert again(text, add_special_tokens=False).input_ids == ids
        assert again.pad_token == tokenizer.pad_token


def test_what_transformers_5_saves_is_read(tmp_path):
    vocab = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", "▁", "h", "e", "he"])}
    letters = {letter: number for number, letter in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "he"])}
    for version, tokenizer in (
        ("2.0", LlamaTokenizer(vocab, [("h", "e")])),
        ("2.6", Qwen2Tokenizer(letters, [("h", "e")], bos_token="<|im_start|>", eos_token="<|im_end|>")),
    ):
        tokenizer.add_tokens([*MARKERS, "<unk>"], special_tokens=True)
        write(tmp_path, version)
        tokenizer.save_pretrained(tmp_path)
        processor = Processor.from_pretrained(tmp_path)
        text = "hehe <image>"
        assert processor.tokenizer(text, add_special_tokens=False).input_ids == (
            tokenizer(text, add_special_tokens=False).input_ids
        )
        assert processor.tokenizer.eos_token == SPECIAL[version]["eos_token"]


def change(place: str, value):
    """Put a value at a place such as "model.dropout"; a place that is not there is made."""

    def damage(data):
        *path, last = [int(name) if name.isdecimal() else name for name in place.split(".")]
        for name in path:
            data = data[name]
        if isinstance(data, list) and last == len(data):
            data.append(value)
        else:
            data[last] = value

    return damage


REFUSED = [
    ("model.continuing_subword_prefix", "a", "continuing_subword_prefix"),  # ended the process
    ("model.continuing_subword_prefix", "##", "continuing_subword_prefix"),  # a panic
    ("model.continuing_subword_prefix", "é", "continuing_subword_prefix"),
    ("model.end_of_word_suffix", "</w>", "end_of_word_suffix"),
    ("model.dropout", 0.5, "dropout"),
    ("model.type", "Unigram", "model.type"),
    ("model.type", "WordPiece", "model.type"),
    ("model.type", None, "model.type"),
    ("model.cache_capacity", 2**62, "cache_capacity"),
    ("model.unk_token", "nothing", "unk_token"),
    ("model.vocab", [], "model.vocab"),
    ("model.vocab.x", -1, "the id of 'x'"),
    ("model.vocab.x", 2**32, "the id of 'x'"),
    ("model.vocab.x", 1.5, "the id of 'x'"),
    ("model.vocab.x", True, "the id of 'x'"),
    ("model.vocab.x", 0, "one id to two tokens"),
    ("model.merges", None, "model.merges"),
    ("model.merges.2", ["h", "x"], r"model.merges\[2\]"),
    ("model.merges.2", ["h"], r"model.merges\[2\]"),
    ("model.merges.2", "h e e", r"model.merges\[2\]"),
    ("model.merges.2", 7, r"model.merges\[2\]"),
    ("model", None, "model must be"),
    ("normalizer", parts("Prepend", prepend="x" * 100000), "normalizer Prepend: prepend"),
    ("normalizer", parts("Replace", pattern={"String": ""}, content="aaaa"), "normalizer Replace: pattern"),
    ("normalizer", parts("Replace", pattern={"Regex": "(a*)*b"}, content="▁"), "normalizer Replace: pattern"),
    ("normalizer", parts("Sequence", normalizers=[parts("Prepend", prepend="▁")] * 1000), "number of normalizers"),
    ("normalizer", parts("Sequence", normalizers=[parts("Sequence", normalizers=[])]), "normalizer.type"),
    ("normalizer", parts("Precompiled", precompiled_charsmap="AAAA"), "normalizer.type"),
    ("normalizer", parts("NFKC"), "normalizer.type"),
    ("normalizer", parts("Lowercase"), "normalizer.type"),
    ("normalizer", "NFC", "normalizer must be"),
    ("pre_tokenizer", parts("Whitespace"), "pre_tokenizer.type"),
    ("pre_tokenizer", parts("Split", pattern={"Regex": "(a+)+$"}, behavior="Isolated", invert=False), "Split: pattern"),
    ("pre_tokenizer", parts("Split", pattern={"Regex": SPLIT}, behavior="Removed", invert=False), "Split: behavior"),
    ("pre_tokenizer", parts("Metaspace", replacement="x", prepend_scheme="always"), "Metaspace: replacement"),
    ("post_processor", parts("BertProcessing", sep=["a", 1], cls=["b", 2]), "post_processor.type"),
    ("post_processor", parts("TemplateProcessing", single=[], pair=[], special_tokens=[]), "special_tokens must be"),
    (
        "post_processor",
        parts("TemplateProcessing", single=[{"SpecialToken": {"id": "?", "type_id": 0}}], pair=[], special_tokens={}),
        "single: id",
    ),
    ("decoder", parts("CTC"), "decoder.type"),
    ("decoder", parts("Strip", content=" ", start=2**62, stop=0), "Strip: start"),
    ("decoder", parts("Strip", content=" ", start=0, stop=1), "Strip: stop"),  # a panic when an answer is decoded
    ("added_tokens.0.id", 2**40, r"added_tokens\[0\].id"),
    ("added_tokens.0.id", "0", r"added_tokens\[0\].id"),
    ("added_tokens.0.content", "", "must not be empty"),
    ("added_tokens.0.special", "yes", r"added_tokens\[0\]: special"),
    ("added_tokens.0.regex", "(a*)*", "regex"),
    ("added_tokens.0.id", 999, "cannot have the id 999"),
    ("added_tokens", {}, "added_tokens must be"),
    ("more", 1, "unknown fields"),
]


@pytest.mark.parametrize("version", ["2.5", "2.6"])
@pytest.mark.parametrize(("place", "value", "words"), REFUSED)
def test_other_kinds_are_refused_by_name(tmp_path, version, place, value, words):
    data = published(version)
    change(place, value)(data)
    write(tmp_path, version, data)
    with pytest.raises(ValueError, match=rf"tokenizer\.json is not a tokenizer of MiniCPM-V: .*{words}"):
        Processor.from_pretrained(tmp_path)


def test_a_byte_without_a_token_would_be_lost(tmp_path):
    data = published("2.6")
    del data["model"]["vocab"]["z"]
    with pytest.raises(ValueError, match="1 of the 256 bytes have no token"):
        read_tokenizer(write(tmp_path, "2.6", data))


def test_keys_that_stand_twice_and_control_characters(tmp_path):
    write(tmp_path, "2.6")
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"version"', '"normalizer": null, "version"', 1))
    with pytest.raises(ValueError, match="the key 'normalizer' stands twice"):
        read_tokenizer(tmp_path)
    evil = "\x1b[2J\u202e"
    for place in ("normalizer", "model.type", evil, "model.vocab." + evil, "added_tokens.0." + evil):
        data = published("2.6")
        change(place, parts(evil) if place == "normalizer" else evil)(data)
        with pytest.raises(ValueError) as error:
            read_tokenizer(write(tmp_path, "2.6", data))
        assert str(error.value).isprintable()
    with pytest.raises(ValueError) as error:
        read_tokenizer(write(tmp_path, "2.6", bos_token=evil))
    assert str(error.value).isprintable()


def test_a_panic_of_the_library_is_an_ordinary_error(monkeypatch):
    panic = type("PanicException", (BaseException,), {})  # pyo3's has this name and is no Exception

    def fail(error):
        def from_str(text):
            raise error

        monkeypatch.setattr(tokenizers.Tokenizer, "from_str", from_str)

    fail(panic("index out of bounds\x1b"))
    with pytest.raises(ValueError, match="index out of bounds"):
        read_tokenizer(BUNDLED / "nano")
    fail(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        read_tokenizer(BUNDLED / "nano")


def test_random_changes_are_read_or_refused(tmp_path):
    """An abort of the library would end this run; a panic is no Exception and would fail it."""
    values = [
        None,
        True,
        0,
        -1,
        2**32,
        0.5,
        "",
        "a",
        "##",
        "é",
        "▁",
        [],
        {},
        [[]],
        parts("Fuse"),
        parts("NFC"),
        ["h", "e"],
    ]

    def places(data, path=()):
        if path:
            yield path
        items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
        for name, value in items:
            if path != ("model", "vocab") or rng.random() < 0.02:
                yield from places(value, (*path, name))

    read = 0
    for seed in range(150):
        rng = random.Random(seed)
        version = rng.choice(VERSIONS)
        data = published(version)
        *path, last = rng.choice(list(places(data)))
        inner = data
        for name in path:
            inner = inner[name]
        if rng.random() < 0.8:
            inner[last] = rng.choice(values)
        else:
            del inner[last]
        write(tmp_path, version, data)
        try:
            tokenizer = read_tokenizer(tmp_path, version)
        except ValueError:
            continue
        ids = tokenizer("hello <image>\n é", add_special_tokens=False, return_offsets_mapping=True).input_ids
        tokenizer.decode(ids)
        read += 1
    assert 5 < read < 145


# --- saving ---


@pytest.mark.parametrize("version", VERSIONS)
def test_saved_and_read_again(tmp_path, version):
    write(tmp_path, version)
    processor = Processor.from_pretrained(tmp_path)
    processor.save_pretrained(tmp_path / "new")
    shutil.copy(tmp_path / "config.json", tmp_path / "new")
    again = Processor.from_pretrained(tmp_path / "new")
    messages = [*ask("hello"), {"role": "assistant", "content": "he"}]
    assert again(messages).input_ids.equal(processor(messages).input_ids)
    assert (again.stop_ids, again.pad_id) == (processor.stop_ids, processor.pad_id)
    names = sorted(file.name for file in (tmp_path / "new").iterdir())
    assert names == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert theirs.eos_token == processor.tokenizer.eos_token
    assert theirs("hello", add_special_tokens=False) == processor.tokenizer("hello", add_special_tokens=False)


def test_a_token_that_is_not_there_is_saved_as_null(tmp_path):
    toy = Processor(read_tokenizer(BUNDLED / "nano"), tiny_config("2.0"))  # without BOS, on purpose
    toy.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(toy.config.to_dict()))
    again = Processor.from_pretrained(tmp_path)
    assert again.tokenizer.bos_token is None
    assert again(ask("Hi")).input_ids.equal(toy(ask("Hi")).input_ids)


def test_a_failed_save_leaves_the_old_files(tmp_path, monkeypatch):
    tokenizer = read_tokenizer(BUNDLED / "nano")
    save_tokenizer(tokenizer, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_tokenizer(tokenizer, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(TypeError, match="path must be"):
        save_tokenizer(tokenizer, 3)


def test_the_check_alone():
    for version in VERSIONS:
        check_tokenizer_json(published(version))
    with pytest.raises(ValueError, match="unknown fields"):
        check_tokenizer_json({"models": {}})
