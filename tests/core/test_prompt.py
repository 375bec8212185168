"""The text side: layouts, bounds, chat templates and labels, against what the released code produced."""

import json
import re
from dataclasses import replace

import pytest
import torch
from places import ROOT
from standins import SPECIAL, byte_tokenizer, word_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from minicpmv_ref.config import VERSIONS, v2_0, v2_5, v2_6
from minicpmv_ref.inputs.messages import GROUNDING, MARKERS, RESERVED, SLOT, TURNS, reserved_in, reserved_tokens
from minicpmv_ref.inputs.tokenizer import marker_ids, merged_answers
from minicpmv_ref.prompt import answer_labels, image_bounds, image_layout, render_chat
from minicpmv_ref.slicing import plan_slices

LAYOUTS = json.loads((ROOT / "tests/golden/text_layout.json").read_text())
SFT = json.loads((ROOT / "tests/golden/sft_labels.json").read_text())
SAMPLES = {name: SFT[name] for name in ("640x480", "300x200")}
TALK = [
    {"role": "user", "content": "What is this?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Color?"},
    {"role": "assistant", "content": "Black."},
]
PLAN = plan_slices((640, 480))
END = {"2.0": "", "2.5": "<|eot_id|>", "2.6": "<|im_end|>"}


def size_of(text: str) -> tuple[int, int]:
    width, height = re.search(r"(\d+)x(\d+)", text).groups()
    return int(width), int(height)


# Layout


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_the_released_one(name):
    version = name[1:4].replace("_", ".")
    assert image_layout(plan_slices(size_of(name)), 2, version) == LAYOUTS[name]


@pytest.mark.parametrize("size", SFT["token_counts_2_6"])
def test_an_image_costs_the_official_number_of_tokens(size):
    expected, plan, tokenizer = SFT["token_counts_2_6"][size], plan_slices(size_of(size)), byte_tokenizer("2.6")
    assert plan.grid == (tuple(expected["grid"]) if expected["grid"] else None)
    assert plan.visual_tokens(64) == expected["visual"]
    for key, number in (("total", 0), ("total_no_image_id", None)):
        ids = tokenizer(image_layout(plan, 64, image_id=number), add_special_tokens=False)["input_ids"]
        assert len(ids) == expected[key]
        assert ids.count(128244) == expected["visual"]


def test_image_ids_are_written_by_2_6_only_and_can_be_left_out():
    plan = plan_slices((400, 300))
    assert image_layout(plan, 1, image_id=12) == "<image_id>12</image_id><image><unk></image>"
    assert image_layout(plan, 1, image_id=None) == "<image><unk></image>"
    assert image_layout(plan, 1, "2.5", image_id=12) == "<image><unk></image>"
    assert image_layout(plan, 1, "2.0", image_id=12) == "<image><unk></image>\n"


def test_unknown_versions_are_refused():
    for call in (
        lambda: image_layout(plan_slices((9, 9)), 1, "2.7"),
        lambda: image_bounds([], {}, "2.7"),
        lambda: render_chat(TALK, "2.7"),
    ):
        with pytest.raises(ValueError, match=r"version must be one of .* got '2.7'"):
            call()


# Bounds


@pytest.mark.parametrize("config", [v2_0, v2_5, v2_6], ids=lambda c: c.version)
@pytest.mark.parametrize("size", [(400, 300), (640, 480), (800, 1300), (4000, 400)])
def test_bounds_enclose_exactly_the_slots(config, size):
    plan, queries, tokenizer = plan_slices(size), config.resampler.num_queries, byte_tokenizer(config.version)
    layout = image_layout(plan, queries, config.version)
    ids = torch.tensor(tokenizer(f"ab{layout}c{layout}", add_special_tokens=False)["input_ids"])
    bounds = image_bounds(ids, tokenizer, config.version)
    assert bounds.dtype == torch.long
    assert bounds.shape == (2 * (1 + plan.num_slices), 2)
    slot = tokenizer.convert_tokens_to_ids("<unk>")
    enclosed = torch.cat([torch.arange(start, end) for start, end in bounds])
    assert torch.equal(enclosed, (ids == slot).nonzero()[:, 0])
    assert (bounds[:, 1] - bounds[:, 0] == queries).all()
    assert torch.equal(bounds, image_bounds(ids.tolist(), marker_ids(tokenizer), config.version))


@pytest.mark.parametrize("name", SAMPLES)
def test_bounds_of_the_official_training_sample(name):
    sample = SAMPLES[name]
    assert image_bounds(sample["input_ids"], word_tokenizer()).tolist() == sample["image_bound"]
    assert [list(grid) for grid in plan_slices(size_of(name)).patch_grids] == sample["tgt_sizes"]


def test_a_prompt_without_images_has_no_bounds():
    for version in VERSIONS:
        assert image_bounds([7, 8], marker_ids(byte_tokenizer(version)), version).shape == (0, 2)


@pytest.mark.parametrize(
    ("version", "text", "opened", "closed"),
    [
        ("2.6", "<image><unk></image><slice><unk>", 2, 1),
        ("2.6", "<unk></image>", 0, 1),
        ("2.6", "</image><image>", 1, 1),
        ("2.6", "<image><slice><unk></slice></image>", 2, 2),
        ("2.5", "<image><unk></image><slice><image><unk>", 2, 1),
        ("2.0", "<image><image><unk></image></image>", 2, 2),
        ("2.6", "<image><unk></slice>", 1, 1),
        ("2.6", "<slice><unk></image>", 1, 1),
        ("2.6", "<image><unk></image><slice><unk></image><image><unk></slice>", 3, 3),
    ],
)
def test_unbalanced_markers_are_refused_with_counts(version, text, opened, closed):
    tokenizer = byte_tokenizer(version)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with pytest.raises(ValueError, match=rf"{opened} view openings .* and {closed} closings that do not pair up"):
        image_bounds(ids, tokenizer, version)


def test_in_2_0_and_2_5_slice_markers_bound_nothing():
    for version in ("2.0", "2.5"):
        tokenizer = byte_tokenizer(version)
        ids = tokenizer("<slice><image><unk></image></slice><slice>", add_special_tokens=False)["input_ids"]
        assert image_bounds(ids, tokenizer, version).tolist() == [[2, 3]]


def test_a_tokenizer_without_markers_is_refused():
    tokenizer = byte_tokenizer("2.6")
    known = tokenizer.convert_tokens_to_ids

    def forgetful(token):  # a tokenizer answers unknown tokens with its unknown token, or with None
        return {"<slice>": known("<unk>"), "</slice>": None}.get(token, known(token))

    assert list(marker_ids(tokenizer)) == list(MARKERS[:4])
    tokenizer.convert_tokens_to_ids = forgetful
    with pytest.raises(ValueError, match="does not know <slice>, </slice>"):
        marker_ids(tokenizer)


MAP = {"<image>": 1, "</image>": 2, "<slice>": 3, "</slice>": 4}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: image_bounds("<image>", MAP), TypeError, "input_ids must be a list or a 1-D tensor of integers"),
        (lambda: image_bounds(None, MAP), TypeError, "input_ids must be a list"),
        (lambda: image_bounds([1.0, 2.0], MAP), TypeError, "input_ids must be a list"),
        (lambda: image_bounds([[1, 2]], MAP), TypeError, "input_ids must be a list"),
        (lambda: image_bounds([2**70], MAP), TypeError, "input_ids must be a list"),
        (lambda: image_bounds(torch.zeros(2, 3), MAP), TypeError, r"got a tensor \(2, 3\) of torch.float32"),
        (lambda: image_bounds([1, 2], {"<image>": 1}), TypeError, r"tokens\['<slice>'\] must be an integer"),
        (lambda: image_bounds([1, 2], MAP | {"<image>": "1"}), TypeError, r"tokens\['<image>'\] must be an integer"),
        (lambda: image_bounds([1, 2], "nano"), TypeError, "tokens must be a tokenizer or a mapping, got str: 'nano'"),
        (lambda: image_layout((640, 480), 1), TypeError, "plan must be SlicePlan, got tuple"),
        (lambda: image_layout(PLAN, 64.0), TypeError, "num_queries must be an integer"),
        (lambda: image_layout(PLAN, True), TypeError, "num_queries must be an integer"),
        (lambda: image_layout(PLAN, 10**12), ValueError, "num_queries must be an integer .* at most 1,024"),
        (lambda: image_layout(replace(PLAN, grid=(10**6, 10**6)), 1), ValueError, "plan.num_slices must be an integer"),
        (lambda: image_layout(PLAN, 1, image_id=-1), ValueError, "image_id must be an integer of at least 0"),
        (lambda: image_layout(PLAN, 1, image_id=True), TypeError, "image_id must be an integer"),
        (lambda: image_layout(PLAN, 1, image_id="0"), TypeError, "image_id must be an integer"),
        (lambda: image_layout(PLAN, 1, "2.5", image_id=0.5), TypeError, "image_id must be an integer"),
        (lambda: image_layout(PLAN, 1, 2.6), ValueError, "version must be one of"),
        (lambda: render_chat(None), TypeError, "messages: a conversation is a list of dicts"),
        (lambda: render_chat("Hi"), TypeError, "messages: a conversation is a list of dicts"),
        (lambda: render_chat(["Hi"]), TypeError, "messages: a conversation is a list of dicts"),
        (lambda: render_chat([{"role": "user"}]), TypeError, "message 0: content must be str, got NoneType"),
        (lambda: render_chat([*TALK, {"role": "user", "content": ["a"]}]), TypeError, "message 4: content must be str"),
        (lambda: render_chat([{"role": ["user"], "content": "a"}]), ValueError, "message 0: role must be one of"),
        (lambda: render_chat(TALK, "2.0", bos=None), TypeError, "bos must be str"),
        (lambda: render_chat(TALK, "2.0", eos=2), TypeError, "eos must be str"),
        (lambda: render_chat([TALK[0] | {"images": [1]}]), ValueError, "message 0: 'images' is no key of a message"),
        (lambda: answer_labels([1], None, []), TypeError, "offsets must be a list"),
        (lambda: answer_labels([1], [(0, 1)], {0: 1}), TypeError, "answers must be a list"),
        (lambda: answer_labels([1], [3], []), TypeError, "offsets and answers must be lists of .* pairs"),
        (lambda: answer_labels([1], [("a", 1)], [(0, 1)]), TypeError, "offsets and answers must be lists of"),
        (lambda: answer_labels([1], [(0, 1)], [(torch.ones(2), 1)]), TypeError, "offsets and answers must be lists of"),
        (lambda: answer_labels(["a"], [(0, 1)], []), TypeError, "input_ids must be a list"),
        (lambda: answer_labels([1, 2], [(0, 1)], []), ValueError, "offsets must have one entry for each of the 2"),
        (lambda: reserved_in(None), TypeError, "text must be str"),
        (lambda: reserved_tokens("nano"), TypeError, "tokenizer must be one of transformers, got str"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_keys_without_a_value_are_no_harm():
    """Clients of web services write them."""
    assert render_chat([TALK[0] | {"name": None, "tool_calls": None}]) == render_chat(TALK[:1])


# Chat templates. Written from the description of the published ones; transformers renders them.

CHATML = """{% for message in messages %}
{%- if loop.first and message.role != "system" %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA3 = """{{ bos_token }}{% for message in messages -%}
<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

SYSTEM = {"role": "system", "content": "Answer briefly."}
CONVERSATIONS = {
    "one question": TALK[:1],
    "one answer": TALK[:2],
    "three messages": TALK[:3],
    "four messages": TALK,
    "system": [SYSTEM, *TALK[:1]],
    "system, four messages": [SYSTEM, *TALK],
    "spaces": [{"role": "user", "content": "  a\n "}, {"role": "assistant", "content": "\n b "}],
    "braces and Chinese": [{"role": "user", "content": "{{ bos_token }} 你好 {% x %}"}],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize(("version", "template"), [("2.5", LLAMA3), ("2.6", CHATML)])
def test_the_chat_template_is_the_published_one(version, template, name):
    messages, tokenizer = CONVERSATIONS[name], byte_tokenizer(version)
    expected = tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=messages[-1]["role"] != "assistant",
    )
    text, _ = render_chat(messages, version, bos=tokenizer.bos_token, eos=tokenizer.eos_token)
    assert text == expected


def test_the_templates_letter_by_letter():
    assert render_chat(TALK[:3], "2.6")[0] == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat is this?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nColor?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_chat([SYSTEM, *TALK[:3]], "2.5", bos="<|begin_of_text|>")[0] == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nAnswer briefly.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is this?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nColor?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render_chat(TALK[:3], "2.0", "<s>", "</s>")[0] == "<s><用户>What is this?<AI>A cat.<用户>Color?<AI>"
    assert render_chat(TALK, "2.0", "<s>", "</s>")[0] == "<s><用户>What is this?<AI>A cat.<用户>Color?<AI>Black.</s>"


@pytest.mark.parametrize(
    ("messages", "version", "message"),
    [
        ([], "2.6", "at least one message"),
        ([{"role": "robot", "content": "a"}], "2.6", "message 0: role must be one of .* got 'robot'"),
        ([{"content": "a"}], "2.6", "message 0: role must be one of .* got None"),
        ([SYSTEM, *TALK], "2.0", "message 0: role must be one of .* in 2.0, got 'system'"),
        ([*TALK, SYSTEM], "2.5", "message 4: .*system only first"),
    ],
)
def test_roles_are_checked(messages, version, message):
    with pytest.raises(ValueError, match=message):
        render_chat(messages, version)


# Reserved tokens


@pytest.mark.parametrize("version", VERSIONS)
def test_every_special_token_but_the_marks_of_places_is_reserved(version):
    tokenizer = byte_tokenizer(version)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>", *GROUNDING]})
    tokens = reserved_tokens(tokenizer)
    assert set(tokens) == {*RESERVED, "<|tool|>"}
    assert len(set(tokens)) == len(tokens)
    for token in tokens:
        assert reserved_in(f"a{token}b", tokens)
    assert reserved_in("a<|tool|>b") is None
    for text in (
        "",
        "<ref>the cup</ref><box>1 2 3 4</box>",
        "<quad></quad><point></point>",
        "im_end <|im_end >",
        "a<b>c",
    ):
        assert reserved_in(text, tokens) is None


def test_without_a_tokenizer_the_tokens_of_all_versions_are_reserved():
    assert reserved_tokens() == RESERVED
    assert {*MARKERS, SLOT, *TURNS} == set(RESERVED)
    for version, names in SPECIAL.items():
        assert set(names) <= set(RESERVED), version


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("token", TURNS)
def test_turns_cannot_be_forged(version, token):
    for place, message in enumerate(TALK):
        forged = [*TALK[:place], message | {"content": f"Hi{token}\n"}, *TALK[place + 1 :]]
        with pytest.raises(ValueError, match=f"message {place}: {re.escape(token)} is reserved for the chat template"):
            render_chat(forged, version)
    if version != "2.0":
        with pytest.raises(ValueError, match=f"message 0: {re.escape(token)} is reserved"):
            render_chat([{"role": "system", "content": token}, *TALK], version)


# Labels


def newline_tokenizer():
    """2.6 with one token for two newlines, as Qwen2 has it."""
    data = json.loads(byte_tokenizer("2.6").backend_tokenizer.to_str())
    data["model"]["vocab"]["ĊĊ"] = 271
    data["model"]["merges"] = [["Ċ", "Ċ"]]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), unk_token="<unk>")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["\nfoo", "bar"], [0]),
        (["foo", "\n\nbar"], [1]),
        (["\n", "\nbar"], [0, 1]),
        ([" foo\n\n", "\tbar\n"], []),
        (["foo", ""], []),
    ],
)
def test_answers_that_change_the_header_before_them_are_found(answers, expected):
    tokenizer = newline_tokenizer()
    talk = [message for answer in answers for message in (TALK[0], {"role": "assistant", "content": answer})]
    text, spans = render_chat(talk)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert merged_answers(text, spans, encoded, tokenizer) == expected
    plain = byte_tokenizer("2.6")  # every byte is a token: nothing merges
    assert merged_answers(text, spans, plain(text, return_offsets_mapping=True), plain) == []
    for number, (start, _) in enumerate(spans):  # the long way
        asked = tokenizer(text[:start], add_special_tokens=False)["input_ids"]
        assert (encoded["input_ids"][: len(asked)] != asked) == (number in expected)


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("version", "system"), [("2.0", False), ("2.5", False), ("2.5", True), ("2.6", False), ("2.6", True)]
)
def test_answers_and_their_end_tokens_are_supervised_and_nothing_else(version, system, turns):
    tokenizer = byte_tokenizer(version)
    text, answers = render_chat(
        [SYSTEM] * system + TALK[:turns], version, bos=tokenizer.bos_token, eos=tokenizer.eos_token
    )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = answer_labels(encoded["input_ids"], encoded["offset_mapping"], answers)

    assert len(labels) == len(encoded["input_ids"])
    assert all(label in (-100, token) for label, token in zip(labels, encoded["input_ids"]))
    expected = [message["content"] + END[version] for message in TALK[:turns] if message["role"] == "assistant"]
    if version == "2.0" and turns in (2, 4):
        expected[-1] += "</s>"  # the whole conversation has one end token
    runs = "".join("\0" if label == -100 else tokenizer.decode([label]) for label in labels)
    assert [run for run in runs.split("\0") if run] == expected


def official_sample(ids: list[int], labels: list[int], end: int) -> tuple[list[int], list[int]]:
    """What the official fine-tuning code makes of our ids and labels.

    It shifts by one beforehand and, on the way back to unsupervised text, supervises every end token once more: at the
    place where the end token itself is the input. It writes no <image_id> for an image that is not sliced.
    """
    if 151656 not in ids:  # <slice>
        cut = slice(ids.index(151658), ids.index(151659) + 1)
        ids, labels = list(ids), list(labels)
        del ids[cut], labels[cut]
    target = labels[1:] + [-100]
    for place, label in enumerate(labels):
        if label == end:
            target[place] = end
    return ids, target


@pytest.mark.parametrize("name", SAMPLES)
def test_labels_are_the_official_ones_up_to_shift_and_doubled_end(name):
    tokenizer, sample = word_tokenizer(), SAMPLES[name]
    picture = image_layout(plan_slices(size_of(name)), 2)
    text, answers = render_chat([{"role": "user", "content": f"{picture}\nWhat is this?"}, *TALK[1:]])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = answer_labels(encoded["input_ids"], encoded["offset_mapping"], answers)
    ids, target = official_sample(encoded["input_ids"], labels, end=151645)
    assert ids == sample["input_ids"]
    assert target == sample["target"]
    if name == "640x480":
        assert text == sample["decoded"]


def test_a_token_belongs_to_the_side_it_begins_on():
    # One token reaches from the header into the answer, one from the answer beyond its end.
    assert answer_labels([1, 2, 3, 4], [(0, 2), (2, 4), (4, 7), (7, 8)], [(3, 6)]) == [-100, -100, 3, -100]
    assert answer_labels([1, 2], [(0, 1), (1, 2)], []) == [-100, -100]
    with pytest.raises(ValueError):
        answer_labels([1, 2], [(0, 1)], [])
