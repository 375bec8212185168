"""Edges where a user is easily misled: each must be one clear error at once, never a silent answer."""

import pytest
import torch
from PIL import Image

from minicpmv_ref import MiniCPMV, Processor, image_layout, plan_slices
from minicpmv_ref.config import find_folder
from minicpmv_ref.vision import VisionTransformer


@pytest.fixture(scope="module")
def nano_pair():
    return MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")


def ask(*content):
    return [{"role": "user", "content": list(content)}]


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
