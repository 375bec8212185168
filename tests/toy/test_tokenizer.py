"""The nano tokenizer: frozen ids, an exact round trip, Qwen2's split, and the same ids in llama.cpp."""

import hashlib
import json
import random
import socket
import subprocess
import sys
import unicodedata

import pytest
from places import ROOT
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from minicpmv_ref.prompt import render_chat

FOLDER = ROOT / "data_samples" / "checkpoints" / "nano"
FILE = FOLDER / "tokenizer.json"

# Never update these two to make a test pass: other ids silently break every trained checkpoint.
SHA256 = "21fef21714a7b6f8606aa75e57d382e4a945d6c4f520ba9d3ec3b3b3d0c72f9a"
SPECIAL_IDS = {
    "<|endoftext|>": 0,
    "<|im_start|>": 1,
    "<|im_end|>": 2,
    "<unk>": 3,
    "<image>": 4,
    "</image>": 5,
    "<ref>": 6,
    "</ref>": 7,
    "<box>": 8,
    "</box>": 9,
    "<quad>": 10,
    "</quad>": 11,
    "<point>": 12,
    "</point>": 13,
    "<slice>": 14,
    "</slice>": 15,
    "<image_id>": 16,
    "</image_id>": 17,
}

# One token each, with a space before it and without.
BOTH_FORMS = """
red green blue yellow orange purple black white gray yes no total top bottom left right center
circle square triangle star diamond cross ring heart
rouge vert bleu jaune violet noir blanc gris
cercle carré étoile losange croix anneau cœur
""".split()
AFTER_A_SPACE = """
middle above below north south east west northwest northeast southwest southeast
zero one two three four five six seven eight nine ten shape shapes picture number row price date
there is are the a at in of how many what color image text first second last
haut bas gauche droite centre milieu à en au de la le un une et il y a couleur forme formes
deux trois quatre cinq sept huit neuf dix verte bleue blanche rouges
""".split()
AT_THE_START = """
Yes No What How Which Where Is There Describe Read Answer Oui Non Combien Quelle Il system user assistant
""".split()
CHINESE = """
红色 绿色 蓝色 黄色 橙色 紫色 黑色 白色 灰色 圆形 方形 正方形 三角形 星形 菱形 十字 圆环 心形
左上 右上 左下 右下 左边 右边 上方 下方 中间 一 二 三 四 五 六 七 八 九 十 两 个 有 没有 是 的
多少 什么 颜色 形状 ， 。 ？
""".split()

HAND_MADE = [
    "",
    " ",
    "  two  spaces   three    four ",
    "\n",
    "\n\n\n",
    "a\n\tb \r\n\r\n  c\u00a0d\u3000e",
    "1234567890 3.14159 v2.6 100% $12.50 ½²٣",
    "don't DON'T I'LL we've they're he'd ''s 'sm",
    "Où est l'étoile ? À gauche d'un cœur. Qu'y a-t-il ?",
    "左上角的方形是什么颜色？红色圆形左上，蓝色三角形右下。",
    "日本語 한국어 русский العربية हिन्दी",
    "😀 👨‍👩‍👧‍👦 🇫🇷",
    "<|im_start|>user\n<image_id>0</image_id><image><unk><unk></image><slice><unk></slice>\n<slice><unk></slice>\nHi",
    "a<unk>b <unk> c <<image>> <imag> < unk> (<image>./</image>)",
    "!!!???...,,,\n\n--- *** a_b-c.d@e.f/g?h=i&j",
    "\x00\x01\x7f",
    "x" * 300 + " " * 300,
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def random_strings(count=400, seed=0):
    """Random characters, spaces and markers. The normal form of these blocks is the same in every Unicode."""
    blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x391, 0x3A2), (0x410, 0x450), (0x4E00, 0x9FA5), (0xAC00, 0xD7A4)]
    blocks += [(0x1F600, 0x1F640), (0x20000, 0x2A000)]
    pieces = [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "42", "，", " red", "红色", " étoile", *SPECIAL_IDS]
    rng = random.Random(seed)

    def piece():
        return rng.choice(pieces) if rng.random() < 0.4 else chr(rng.randrange(*rng.choice(blocks)))

    return ["".join(piece() for _ in range(rng.randrange(1, 40))) for _ in range(count)]


def test_loads_without_network_or_remote_code(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the tokenizer tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=False)
    assert encode(tokenizer, "red circle") == Tokenizer.from_file(str(FILE)).encode("red circle").ids


@pytest.mark.parametrize("model_type", ["minicpmv", "llama", "qwen2"])
def test_loads_beside_the_config_of_a_model(tokenizer, tmp_path, model_type):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    text = HAND_MADE[12]
    assert encode(AutoTokenizer.from_pretrained(tmp_path), text) == encode(tokenizer, text)


def test_ids_are_frozen(tokenizer):
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == SHA256
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_IDS} == SPECIAL_IDS


def test_size_and_roles(tokenizer):
    # Equal on purpose: code that takes `vocab_size` and code that takes `len` build the same embedding.
    assert len(tokenizer) == tokenizer.vocab_size == 1024
    assert sorted(tokenizer.get_vocab().values()) == list(range(1024))
    roles = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
    assert roles == ("<|endoftext|>", "<|im_end|>", "<unk>", None)
    assert set(tokenizer.all_special_ids) == set(SPECIAL_IDS.values())
    assert tokenizer("red").input_ids == encode(tokenizer, "red"), "no BOS, no EOS"


def test_special_tokens_are_atomic(tokenizer):
    for token, number in SPECIAL_IDS.items():
        assert encode(tokenizer, token) == [number]
        left, right = encode(tokenizer, "red "), encode(tokenizer, " circle")
        assert encode(tokenizer, f"red {token} circle") == [*left, number, *right]
    everything = "".join(SPECIAL_IDS)
    assert tokenizer.decode(encode(tokenizer, everything), skip_special_tokens=True) == ""


def test_text_of_a_user_can_be_kept_from_becoming_a_marker(tokenizer):
    ids = tokenizer("a <unk> <image>", split_special_tokens=True).input_ids
    assert not set(ids) & set(SPECIAL_IDS.values())
    assert tokenizer.decode(ids) == "a <unk> <image>"


def test_round_trip(tokenizer):
    for text in HAND_MADE + random_strings():
        assert tokenizer.decode(encode(tokenizer, text)) == unicodedata.normalize("NFC", text)


def test_no_text_becomes_the_placeholder(tokenizer):
    for text in random_strings(seed=1):
        for token in SPECIAL_IDS:
            text = text.replace(token, "")
        assert not set(encode(tokenizer, text)) & set(SPECIAL_IDS.values())


def test_nfc(tokenizer):
    assert encode(tokenizer, "carre\u0301 e\u0301toile") == encode(tokenizer, "carré étoile")
    assert encode(tokenizer, "\u212b") == encode(tokenizer, "Å")
    # NFC, not NFKC: a ligature stays what it is.
    assert tokenizer.decode(encode(tokenizer, "ﬁ ①")) == "ﬁ ①"


def test_each_digit_is_one_token(tokenizer):
    assert all(len(encode(tokenizer, digit)) == 1 for digit in "0123456789")
    pieces = [tokenizer.decode([i]) for i in encode(tokenizer, "total 1024.50")]
    assert pieces == ["total", " ", *"1024.50"]
    assert not any(len(token) > 1 and set(token) & set("0123456789") for token in tokenizer.get_vocab())


def test_a_line_end_is_its_own_token(tokenizer):
    # llama.cpp looks this piece up when it lays out slices.
    assert tokenizer.tokenize("\n") == ["Ċ"]
    assert tokenizer.tokenize("</slice>\n<slice>") == ["</slice>", "Ċ", "<slice>"]


def test_words_of_the_world_are_single_tokens(tokenizer):
    forms = [" " + word for word in BOTH_FORMS + AFTER_A_SPACE] + BOTH_FORMS + AT_THE_START + CHINESE
    assert [form for form in forms if len(encode(tokenizer, form)) != 1] == []


def test_chinese_words_stay_whole_inside_a_sentence(tokenizer):
    ids = encode(tokenizer, "红色圆形左上，蓝色三角形右下。")
    assert [tokenizer.decode([i]) for i in ids] == "红色 圆形 左上 ， 蓝色 三角形 右下 。".split()


def test_plain_english_stays_affordable(tokenizer):
    text = "A photograph taken from a window shows a crowded market where two women are selling vegetables."
    assert len(encode(tokenizer, text)) <= 0.55 * len(text)


def test_merges_are_a_clean_ladder():
    """What a GGUF needs: no space inside a piece, and merge number k makes the token number 274 + k."""
    model = json.loads(FILE.read_text("utf-8"))["model"]
    assert len(model["merges"]) == 1024 - 256 - len(SPECIAL_IDS)
    for rank, (left, right) in enumerate(model["merges"]):
        assert model["vocab"][left + right] == 256 + len(SPECIAL_IDS) + rank
        assert max(model["vocab"][left], model["vocab"][right]) < model["vocab"][left + right]
    assert not any(" " in token for token in model["vocab"])


def test_split_is_the_one_of_qwen2(tokenizer):
    data = json.loads(FILE.read_text("utf-8"))
    assert data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] == PRETOKENIZE_REGEX
    merges = [tuple(pair) for pair in data["model"]["merges"]]
    authority = Qwen2Tokenizer(data["model"]["vocab"], merges, extra_special_tokens=list(SPECIAL_IDS))
    ours, theirs = tokenizer.backend_tokenizer, authority.backend_tokenizer
    for text in HAND_MADE + random_strings(seed=2):
        assert ours.pre_tokenizer.pre_tokenize_str(text) == theirs.pre_tokenizer.pre_tokenize_str(text)
        assert encode(tokenizer, text) == encode(authority, text)


def test_chat_template_is_what_the_model_has_learned(tokenizer):
    """Other runtimes take it from tokenizer_config.json."""
    asked, said, told = ({"role": role, "content": "Hi."} for role in ("user", "assistant", "system"))
    for messages in ([asked], [asked, said], [told, asked], [told, asked, said, asked]):
        options = {"tokenize": False, "add_generation_prompt": messages[-1] is asked}
        assert tokenizer.apply_chat_template(messages, **options) == render_chat(messages)[0]


def test_training_again_gives_the_same_bytes(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools" / "train_tokenizer.py", tmp_path], check=True)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name


@pytest.mark.llamacpp
def test_llama_cpp_gives_the_same_ids(tokenizer, tmp_path):
    gguf, llama_cpp = pytest.importorskip("gguf"), pytest.importorskip("llama_cpp")
    data = json.loads(FILE.read_text("utf-8"))
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "llama")
    # Numbers that the loader demands; a file with only a vocabulary never uses them.
    for add in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{add}")(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(sorted(data["model"]["vocab"], key=data["model"]["vocab"].get))
    writer.add_token_types([control if i in SPECIAL_IDS.values() else normal for i in range(1024)])
    writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    options = llama_cpp.llama_model_default_params()
    options.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(tmp_path / "vocab.gguf").encode(), options)
    vocab = llama_cpp.llama_model_get_vocab(model)
    for text in HAND_MADE + random_strings(seed=3):
        # llama.cpp does not normalize, neither here nor for the real Qwen2: NFC is the caller's duty.
        raw = unicodedata.normalize("NFC", text).encode()
        ids = (llama_cpp.llama_token * (len(raw) + 1))()
        count = llama_cpp.llama_tokenize(vocab, raw, len(raw), ids, len(ids), True, True)
        assert list(ids[:count]) == encode(tokenizer, text), text
    llama_cpp.llama_model_free(model)
