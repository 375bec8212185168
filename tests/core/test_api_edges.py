"""Edges where a user is easily misled: each must be one clear error at once, never a silent answer."""

import copy
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ask, picture, tiny_model, tiny_processor

from minicpmv_ref import MiniCPMV, Processor, SliceConfig, image_bounds, image_layout, load_image, plan_slices
from minicpmv_ref.config import MiniCPMVConfig
from minicpmv_ref.deploy import kquant
from minicpmv_ref.inputs.messages import reserved_tokens
from minicpmv_ref.inputs.published import config_from_published, find_folder
from minicpmv_ref.inputs.tokenizer import merged_answers
from minicpmv_ref.learn import dpo, packing, rlaif
from minicpmv_ref.model import decode_stream
from minicpmv_ref.processor import check_slots, normalize_views, sample_frames
from minicpmv_ref.prompt import answer_labels, render_chat
from minicpmv_ref.vision import VisionTransformer


@pytest.fixture(scope="module")
def nano_pair():
    return MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")


def test_swapped_rows_and_columns_are_noticed(nano_pair):
    """Lessons 01 to 03 hunt this bug; the model must not walk into it."""
    model, processor = nano_pair
    with pytest.raises(ValueError, match=r"view 0: 3 rows x 2 columns of patches need 42 x 28"):
        model.encode_images([torch.zeros(3, 28, 42)], [(3, 2)])
    batch = processor(ask(Image.new("RGB", (300, 100)), "What?"))
    batch.patch_grids = [[(cols, rows) for rows, cols in grids] for grids in batch.patch_grids]
    with pytest.raises(ValueError, match="view 0"):
        model.generate(batch, 1)


def test_visual_tokens_of_another_shape(nano_pair):
    model, processor = nano_pair
    batch = processor(ask(Image.new("RGB", (50, 50)), "What?"))
    for shape in [(1, 15, 256), (1, 16, 255)]:
        with pytest.raises(ValueError, match=r"visual tokens must be \(views, 16, 256\)"):
            model.embed(batch, torch.zeros(shape))
    with pytest.raises(ValueError, match="slots for 1 views, but visual tokens of 2"):
        model.embed(batch, torch.zeros(2, 16, 256))


def test_nothing_to_answer(nano_pair):
    model, processor = nano_pair
    finished = [*ask("Hi"), {"role": "assistant", "content": "Hello."}]
    with pytest.raises(ValueError, match="ends with the assistant"):
        model.chat(finished, processor)


def test_a_stream_complains_before_its_first_piece(nano_pair):
    model, processor = nano_pair
    with pytest.raises(ValueError, match="temperature"):
        model.chat(ask("Hi"), processor, True, temperature=-1)
    with pytest.raises(TypeError, match="num_beams"):
        model.chat(ask("Hi"), processor, True, num_beams=3)


def test_a_processor_is_saved_or_says_why_not(nano_pair, tmp_path):
    _, processor = nano_pair
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError):
        processor.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    processor.save_pretrained(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "tokenizer.json").is_file()


def test_the_name_of_a_repository_is_no_path():
    with pytest.raises(OSError, match="download its files first"):
        find_folder("openbmb/MiniCPM-V-2_6")


def test_one_tensor_is_no_list():
    vit = VisionTransformer(MiniCPMV.from_pretrained("nano").config.vision)
    with pytest.raises(ValueError, match="must be a list"):
        vit(torch.zeros(2, 3, 28, 28))


def test_absurd_numbers():
    with pytest.raises(ValueError, match=r"at most 2\^31"):
        plan_slices((10**400, 1))
    with pytest.raises(ValueError, match="num_queries"):
        image_layout(plan_slices((10, 10)), 0)


# No public function changes what it is given.

MODEL, P = tiny_model("2.6").eval(), tiny_processor("2.6")
TALK = [
    {"role": "user", "content": [[picture(130, 90), picture(50, 60)], picture(60, 50), "What is this?"]},
    {"role": "assistant", "content": " a star "},
    {"role": "user", "content": "And (<image>./</image>)this?"},
]
PUBLISHED = dict(
    version=2.6, query_num=64, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4, vocab_size=151666, rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=32768,
    tie_word_embeddings=False, drop_vision_last_layer=False,
)  # fmt: skip
SCORED = dict(logits=torch.randn(2, 4, 9), labels=torch.tensor([[-100, 1, 2, -100], [-100, -100, 5, 6]]))
PAIRS = [dpo.Pair(ask(picture(50, 60), "What?"), "a star", "two"), dpo.Pair(ask("Why?"), "so", "a red circle")]


def batch():
    answered = [*ask(picture(60, 50), "Hi"), {"role": "assistant", "content": "yes"}]
    return P([TALK, ask("Hello"), answered], [[ONE], [], None])


ONE, MATRIX = picture(40, 50), np.ones((2, 256), np.float32)
MARKERS = {"<image>": 1, "</image>": 2, "<slice>": 3, "</slice>": 4}
CHANGES = {
    "Processor": lambda: (P, [TALK, ask("a")], [[ONE], None]),
    "Processor, a sample": lambda: (P, TALK, [ONE]),
    "collate": lambda: (P.collate, [as_sample(P(ask(ONE, "a"))), as_sample(P(ask("a long question")))]),
    "chat": lambda: (lambda m, i: MODEL.chat(m, P, images=i, max_new_tokens=2), TALK, [ONE]),
    "forward": lambda: (MODEL, batch()),
    "generate": lambda: (lambda b: MODEL.generate(b, 2), batch()),
    "stream": lambda: (lambda b, v: list(MODEL.stream(b, 2, visual=v)), P(ask(ONE, "a")), torch.randn(1, 4, 64)),
    "embed": lambda: (MODEL.embed, batch()),
    "encode_images": lambda: (MODEL.encode_images, [torch.randn(3, 28, 42)], [(2, 3)]),
    "vision": lambda: (MODEL.vpm, [torch.randn(3, 28, 42), torch.randn(3, 14, 14)]),
    "resampler": lambda: (MODEL.resampler, [torch.randn(6, 32), torch.randn(1, 32)], [(2, 3), (1, 1)]),
    "attend": lambda: (MODEL.resampler.attend, [torch.randn(6, 32), torch.randn(1, 32)], [(2, 3), (1, 1)]),
    "decode_stream": lambda: (lambda t, s: list(decode_stream(t, P.tokenizer, s)), [300, 301, 302], [5, 302]),
    "plan_slices": lambda: (plan_slices, [640, 480]),
    "normalize_views": lambda: (normalize_views, picture(130, 90), plan_slices((130, 90), SliceConfig(56))),
    "load_image": lambda: (load_image, sideways()),
    "sample_frames": lambda: (sample_frames, list(range(100)), 9),
    "check_slots": lambda: (check_slots, torch.tensor([[2, 6]]), [plan_slices((40, 40), SliceConfig(56))], 4),
    "image_bounds": lambda: (image_bounds, [9, 1, 0, 2, 3, 0, 4], MARKERS),
    "image_bounds, a tensor": lambda: (image_bounds, torch.tensor([9, 1, 0, 2]), P.token_ids),
    "render_chat": lambda: (lambda m: [render_chat(m, v, "<s>", "</s>") for v in ("2.0", "2.5", "2.6")], TALK[1:]),
    "answer_labels": lambda: (answer_labels, [7, 8, 9], [(0, 3), (3, 5), (5, 6)], [(3, 6)]),
    "merged_answers": lambda: (
        lambda spans, ids: merged_answers("ab", spans, ids, P.tokenizer),
        [(1, 2)],
        {"input_ids": [66, 67], "offset_mapping": [(0, 1), (1, 2)]},
    ),
    "reserved_tokens": lambda: (reserved_tokens, P.tokenizer),
    "config_from_published": lambda: (config_from_published, PUBLISHED | {"slice_config": {"max_slice_nums": 4}}),
    "from_dict": lambda: (MiniCPMVConfig.from_dict, P.config.to_dict()),
    "pack": lambda: (packing.pack, [3, 5, 2, 7], 8),
    "first_fit": lambda: (packing.first_fit, [3, 5, 2, 7], 8),
    "pack_truncate": lambda: (packing.pack_truncate, [3, 5, 2, 7], 8, [1, 1, 1, 1]),
    "pack_batch": lambda: (packing.pack_batch, batch(), [[0, 2], [1]]),
    "packed_loss": lambda: (lambda p: packing.packed_loss(MODEL, p), packing.pack_batch(batch(), [[0, 2], [1]])),
    "sequence_logps": lambda: (dpo.sequence_logps, SCORED["logits"], SCORED["labels"]),
    "dpo_loss": lambda: (dpo.dpo_loss, *torch.randn(4, 3)),
    "prepare": lambda: (lambda pairs: dpo.prepare(MODEL, P, pairs), PAIRS),
    "pair_batch": lambda: (dpo.pair_batch, dpo.prepare(MODEL, P, PAIRS)),
    "reference_logps": lambda: (lambda pairs: dpo.reference_logps(MODEL, pairs), dpo.prepare(MODEL, P, PAIRS)),
    "build_pairs": lambda: (rlaif.build_pairs, [-1, 0, -1, -3]),
    "score_response": lambda: (rlaif.score_response, [True, False]),
    "balance_lengths": lambda: (rlaif.balance_lengths, PAIRS),
    "sample_answers": lambda: (lambda a: rlaif.sample_answers(MODEL, P, a, 2, max_new_tokens=2), [ask(ONE, "a")]),
    "quantize": lambda: (lambda a, i: kquant.quantize(a, "Q4_K", i), MATRIX, MATRIX[0]),
    "dequantize": lambda: (lambda b: kquant.dequantize(b, "Q8_0", 256), kquant.quantize(MATRIX, "Q8_0")),
}  # fmt: skip


def sideways():
    image = picture(40, 30)
    image.getexif()[0x112] = 6
    return image


def as_sample(made) -> dict:
    names = dict(ids="input_ids", labels="labels", images="images", patch_grids="patch_grids", bounds="image_bounds")
    sample = {name: getattr(made, field)[0] for name, field in names.items()}
    return sample | dict(ids=sample["ids"].tolist(), labels=sample["labels"].tolist(), plans=made.plans[0])


def frozen(value):
    """Everything that can be seen in a value, as something that does not change with it."""
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [frozen(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.detach().clone().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, Image.Image):
        return value.mode, value.size, value.tobytes(), dict(value.getexif())
    if is_dataclass(value):
        return type(value), {field.name: frozen(getattr(value, field.name)) for field in fields(value)}
    return copy.copy(value) if isinstance(value, set) else value


@pytest.mark.parametrize("name", CHANGES)
def test_no_function_changes_its_arguments(name):
    function, *arguments = CHANGES[name]()
    before = frozen(arguments)
    with torch.no_grad():
        function(*arguments)
        assert frozen(arguments) == before
        function(*arguments)  # a second epoch
    assert frozen(arguments) == before


def test_a_change_would_be_noticed():
    for change in (
        lambda a: a[0].update(b=1),
        lambda a: a[1].append(1),
        lambda a: a[2].add_(1),
        lambda a: a[3].putpixel((0, 0), (1, 2, 3)),
        lambda a: a[4].input_ids.zero_(),
        lambda a: a[4].images[0].clear(),
    ):
        arguments = [{}, [], torch.zeros(2), picture(4, 4), batch()]
        before = frozen(arguments)
        change(arguments)
        assert frozen(arguments) != before
