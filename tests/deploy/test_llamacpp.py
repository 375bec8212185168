"""Real llama.cpp on exported files: byte-identical quantization, and the same numbers and answers as PyTorch.

Everything of llama.cpp runs in a process of its own, because its failed assertions end the process.
"""

import importlib.util
import io
import subprocess
import sys
from dataclasses import replace
from itertools import takewhile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ask, phone_model, picture, with_tokenizer

from minicpmv_ref import MiniCPMV, Processor
from minicpmv_ref.deploy import llamacpp
from minicpmv_ref.deploy.gguf import MIXTURES, export, llm_tensors
from minicpmv_ref.deploy.gguf_reader import read_gguf
from minicpmv_ref.deploy.llamacpp import MARKER, prompt_text
from minicpmv_ref.inputs.pictures import load_image
from minicpmv_ref.inputs.published import BUNDLED
from minicpmv_ref.toy.data import draw, draw_more

pytestmark = pytest.mark.llamacpp


@pytest.fixture(autouse=True)
def _needs_the_extra():
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("needs the extra: pip install minicpmv-ref[llamacpp]")


def distance(ours, theirs) -> float:
    """Relative root mean square."""
    return float(np.linalg.norm(np.asarray(ours) - np.asarray(theirs)) / np.linalg.norm(np.asarray(ours)))


# Its quantizer -------------------------------------------------------------------------------------------------------

QUANTIZER = """
import sys, llama_cpp
log = llama_cpp.llama_log_callback(lambda level, text, _: sys.stderr.write(text.decode()) if level == 4 else None)
llama_cpp.llama_log_set(log, None)
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype, settings.nthread = int(sys.argv[3]), 1
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), settings))
"""


def llama_quantize(source, target, mixture):
    command = [sys.executable, "-c", QUANTIZER, str(source), str(target), str(int(MIXTURES[mixture]))]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("mixture", ["Q4_K_M", "Q8_0"])
@pytest.mark.parametrize(
    "shape",
    [
        dict(layers=3),
        dict(layers=9, tied=False),
        dict(family="qwen2", layers=5, tied=False),
        dict(family="granite", tied=False),
        dict(hidden=128, ff=224),  # every row falls back
        dict(ff=100),  # to F16
        dict(hidden=384, ff=544, layers=17, tied=False),
    ],
    ids=lambda shape: " ".join(map(str, shape.values())),
)
def test_a_file_is_what_the_quantizer_makes_of_ours_in_f32(shape, mixture, tmp_path):
    """Every byte of it: header, keys, their order, padding, weights."""
    model, processor = phone_model(**shape)
    source, _ = export(model, processor, tmp_path / "source", "F32")
    ours, _ = export(model, processor, tmp_path / "ours", mixture)
    llama_quantize(source, tmp_path / "theirs.gguf", mixture)
    assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_f16_is_what_the_quantizer_makes_of_f32(tmp_path):
    model, processor = phone_model("qwen2")
    source, _ = export(model, processor, tmp_path / "source", "F32")
    ours, _ = export(model, processor, tmp_path / "ours", "F16")
    llama_quantize(source, tmp_path / "theirs.gguf", "F16")  # it adds a key, general.quantization_version
    ours, theirs = read_gguf(ours).tensors, read_gguf(tmp_path / "theirs.gguf").tensors
    assert list(ours) == list(theirs)
    assert all(ours[n].kind == theirs[n].kind and (ours[n].data == theirs[n].data).all() for n in ours)


# Its numbers ---------------------------------------------------------------------------------------------------------


def pytorch(model, processor, image, question, tokens=0):
    """(visual tokens, logits of the first new token, new tokens) of our own model; a list is several pictures."""
    images = image if isinstance(image, list) else [image] if image else []
    batch = processor(ask(*images, question), use_image_id=False)
    with torch.no_grad():
        visual = model.encode_images(batch.images[0], batch.patch_grids[0]) if images else []
        logits = model(batch).logits[0, -1]
        new = model.generate(batch, tokens)[0].tolist() if tokens else []
    return visual, logits, [t for t in new if t not in batch.stop_ids]


def photo(*size) -> Image.Image:
    with Image.open(BUNDLED.parent / "images" / "cat.jpg") as image:
        return image.convert("RGB").resize(size)


@pytest.fixture(scope="module")
def pictures():
    """Of sizes that llama.cpp resizes as we do; see the docstring of `export` for the others."""
    side = phone_model()[0].config.slicing.scale_resolution
    return [photo(side, side), picture(side, side, 3), photo(2 * side, side), photo(2 * side, 2 * side), photo(28, 28)]


FAMILIES = [dict(family="llama"), dict(family="qwen2", tied=False), dict(family="granite", tied=False)]


@pytest.mark.parametrize("shape", FAMILIES, ids=lambda shape: shape["family"])
def test_f32_equals_pytorch(shape, pictures, tmp_path):
    model, processor = phone_model(layers=3, **shape)
    prompts = [*((prompt_text("What is this?", processor), image) for image in pictures)]
    prompts += [(prompt_text("What is this?", processor, images=3), pictures[:3])]
    prompts += [(prompt_text("Hello", processor, images=0), None)]
    answers = llamacpp.run(*export(model, processor, tmp_path, "F32"), prompts, max_new_tokens=1)
    for (_, image), answer in zip(prompts, answers, strict=True):
        question = "What is this?" if image else "Hello"
        visual, logits, _ = pytorch(model, processor, image, question)
        each = image if isinstance(image, list) else [image] if image else []
        assert len(visual) == len(answer.visual) == sum(sum(views(processor, one)) for one in each)
        for ours, theirs in zip(visual, answer.visual):
            theirs = theirs * model.config.llm.embedding_multiplier
            assert distance(ours, theirs) < 1e-3  # its GELU is a table in float16
        assert distance(logits, answer.logits) < (1e-3 if image else 1e-5)


@pytest.mark.parametrize(
    ("size", "ours", "theirs"),
    [
        ((42, 56), (42, 70), (56, 56)),  # a picture that is not cut is stretched to a square
        ((100, 127), (56, 56), (56, 70)),  # a height of 63 pixels is 4.5 patches: Python rounds to 4, C to 5
    ],
)
def test_where_llama_cpp_resizes_otherwise(size, ours, theirs, files):
    model, processor, paths = files
    image = photo(*size)
    assert processor(ask(image, "?")).plans[0][0].overview_size == ours
    answer = llamacpp.run(*paths, [(prompt_text("?", processor), image)], max_new_tokens=1)[0]
    for other, right in ((theirs, True), (ours, False)):
        pixels = np.array(image.resize(other, Image.Resampling.BICUBIC), np.float32)
        view = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)
        with torch.no_grad():
            tokens = model.encode_images([view], [(other[1] // 14, other[0] // 14)])[0]
        assert (distance(tokens, answer.visual[0]) < 0.03) == right


def views(processor, image):
    return [1 + plan.num_slices for plan in processor(ask(image, "?")).plans[0]]


def test_2_5_differs_only_where_the_docstring_says(pictures, tmp_path):
    """Its markers are those of 2.5: with 2.6's positions on our side too, the numbers are equal."""
    model, _ = phone_model(version="2.5")
    assert model.config.vision.position == "bucket"
    markers = "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>".split()

    def add(data):
        plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        data["added_tokens"] += [{"id": 1024 + i, "content": m, **plain} for i, m in enumerate(markers)]

    tokenizer = with_tokenizer(add).tokenizer
    tokenizer.bos_token = markers[0]
    processor = Processor(tokenizer, model.config)
    image = pictures[2]
    prompt = [(prompt_text("What?", processor), image)]
    files = export(model, processor, tmp_path, "F32")
    answer = llamacpp.run(*files, prompt, max_new_tokens=1)[0]
    visual, logits, _ = pytorch(model, processor, image, "What?")
    assert all(distance(ours, theirs) < 1e-3 for ours, theirs in zip(visual, answer.visual, strict=True))
    assert distance(logits, answer.logits) < 1e-3

    released = replace(model.config, vision=replace(model.config.vision, position="released_2_5"))
    model.config, model.vpm.cfg = released, released.vision
    assert export(model, processor, tmp_path, "F32", force=True) == files
    assert distance(pytorch(model, processor, image, "What?")[1], answer.logits) > 1e-2


@pytest.mark.parametrize("shape", FAMILIES, ids=lambda shape: shape["family"])
def test_q4_k_m_equals_pytorch_that_rounds_its_activations(shape, tmp_path):
    """llama.cpp multiplies 4-bit weights by 8-bit activations; with both roundings done here, nothing is left.

    Texts are short and many: an activation that lies between two levels may fall to the other side, and then the
    logits of that text differ by a percent.
    """
    model, processor = phone_model(layers=2, **shape)
    llm, _ = export(model, processor, tmp_path)
    texts = "red circle|blue square|What is this?|top left|Yes|a green star|12 + 3|Où est le carré".split("|")
    theirs = [answer.logits for answer in llamacpp.run(llm, None, [(text, None) for text in texts], max_new_tokens=1)]

    def median_distance() -> float:
        ids = [torch.tensor([processor.tokenizer(text).input_ids]) for text in texts]
        with torch.no_grad():
            ours = [model.llm(one).logits[0, -1] for one in ids]
        return float(np.median([distance(*pair) for pair in zip(ours, theirs, strict=True)]))

    exact = median_distance()
    load(model, read_gguf(llm))
    rounded_weights = median_distance()
    for layer in model.llm.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(lambda _, inputs: (eight_bits(inputs[0]),))
    assert median_distance() < 1e-5 < 1e-3 < rounded_weights < exact


def load(model, file) -> None:
    """Put the weights of a GGUF file into a model, rounded as they are."""
    cfg, state = model.config.llm, model.state_dict()
    for name, source in llm_tensors(cfg).items():
        weight = torch.from_numpy(file.tensors[name].numpy())
        if cfg.family != "qwen2" and ("attn_q" in name or "attn_k" in name):
            heads = len(weight) // cfg.head_width
            weight = weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        state[source.key].copy_(weight)  # a state dict shares its memory with the model


def eight_bits(x: torch.Tensor) -> torch.Tensor:
    """Q8_K: 256 activations share a scale, chosen so that the largest becomes -127."""
    blocks = x.numpy().reshape(-1, 256)
    largest = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)][:, None]
    inverse = np.float32(-127) / largest
    levels = np.minimum(np.rint(inverse * blocks), 127)
    return torch.from_numpy((levels * (1 / inverse)).astype(np.float32).reshape(x.shape))


# The runner ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    model, processor = phone_model()
    return model, processor, export(model, processor, tmp_path_factory.mktemp("gguf"), "F32")


def test_answers_do_not_depend_on_each_other(files, pictures):
    model, processor, (llm, mmproj) = files
    prompts = [(prompt_text(q, processor), image) for q, image in zip(("What?", "Where is it?"), pictures)]
    prompts.append((prompt_text("Hello", processor, images=0), None))
    together = llamacpp.run(llm, mmproj, prompts, max_new_tokens=5)
    alone = [llamacpp.run(llm, mmproj, [prompt], max_new_tokens=5, threads=2)[0] for prompt in prompts[::-1]][::-1]
    for a, b in zip(together, alone, strict=True):
        assert a.tokens == b.tokens and a.prompt_tokens == b.prompt_tokens and (a.logits == b.logits).all()
        assert len(a.tokens) <= 5 and a.prompt_seconds > 0
    for (q, image), answer in zip((("What?", pictures[0]), ("Where is it?", pictures[1]), ("Hello", None)), together):
        batch = processor(ask(*filter(None, [image, q])), use_image_id=False)
        assert answer.prompt_tokens == batch.input_ids.shape[1]
        assert answer.tokens[0] == int(pytorch(model, processor, image, q)[1].argmax())
    assert llamacpp.run(llm, None, prompts[2:], max_new_tokens=5)[0].tokens == together[2].tokens


def test_the_end_token_ends_an_answer(tmp_path):
    model, processor = phone_model(tied=False)
    prompt = [(prompt_text("Hello", processor, images=0), None)]
    said = llamacpp.run(*export(model, processor, tmp_path, "F32"), prompt, max_new_tokens=9)[0].tokens
    third = said[2]
    assert len(said) == 9 and third not in said[:2]
    swapped = model.llm.lm_head.weight.data
    swapped[[third, processor.tokenizer.eos_token_id]] = swapped[[processor.tokenizer.eos_token_id, third]]
    files = export(model, processor, tmp_path, "F32", force=True)
    assert llamacpp.run(*files, prompt, max_new_tokens=9)[0].tokens == said[:2]


def test_a_full_context_ends_an_answer(tmp_path):
    model, processor = phone_model(max_position_embeddings=64)
    prompts = [(prompt_text("Hello", processor, images=0), None)]
    paths = export(model, processor, tmp_path)
    answer = llamacpp.run(*paths, prompts, max_new_tokens=1000)[0]
    assert answer.prompt_tokens + len(answer.tokens) <= 65
    for prompt in (
        (prompt_text("why " * 100, processor, images=0), None),
        (
            prompt_text("why " * 20, processor),
            picture(112, 112),
        ),
    ):
        with pytest.raises(ValueError, match=r"the prompt has \d+ tokens, but the model takes 64"):
            llamacpp.run(*paths, [prompt])


def test_what_llama_cpp_refuses_is_one_clear_error(files, tmp_path):
    _, processor, (llm, _) = files
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(100))
    text = prompt_text("Hello", processor, images=0)
    with pytest.raises(ValueError, match=r"llama.cpp cannot load .*noise\.gguf"):
        llamacpp.run(tmp_path / "noise.gguf", None, [(text, None)])
    with pytest.raises(ValueError, match=r"llama.cpp cannot load .*noise\.gguf"):
        llamacpp.run(llm, tmp_path / "noise.gguf", [(text, None)])


def test_pictures_are_read_as_everywhere_else(files):
    """Turned upright, 16 bits scaled and not clipped: the same visual tokens as of what `load_image` gives."""
    _, processor, paths = files
    turned, deep = Image.Exif(), Image.fromarray(np.linspace(0, 65535, 56 * 112).astype(np.uint16).reshape(56, 112))
    turned[0x112] = 6
    file, text = io.BytesIO(), prompt_text("What?", processor)
    photo(112, 56).save(file, "PNG", exif=turned)
    for image in (Image.open(file), deep, photo(56, 112).convert("RGBA")):
        ours, theirs = llamacpp.run(*paths, [(text, load_image(image)), (text, image)], max_new_tokens=1)
        for a, b in zip(ours.visual, theirs.visual, strict=True):
            assert (a == b).all()
    plain = llamacpp.run(*paths, [(text, photo(112, 56))], max_new_tokens=1)[0]
    lying = llamacpp.run(*paths, [(text, Image.open(file))], max_new_tokens=1)[0]
    assert plain.visual[0].shape == lying.visual[0].shape and (plain.visual[0] != lying.visual[0]).any()


@pytest.mark.parametrize("token", [MARKER, "<image>", "<|im_end|>", "<|im_start|>", "<unk>", "<|endoftext|>"])
def test_a_question_forges_no_turn(token):
    processor = phone_model()[1]
    with pytest.raises(ValueError, match="is reserved for image layout and chat template, it cannot be in a question"):
        prompt_text(f"Hi{token}", processor)
    for bad in (None, b"Hi", ["Hi"]):
        with pytest.raises(TypeError, match="question must be str, got"):
            prompt_text(bad, processor)
    assert "<box>1 2 3 4</box>" in prompt_text("What is at <box>1 2 3 4</box>?", processor)


IMAGE = Image.new("RGB", (56, 56))
NO_PROMPTS = [
    ("Hi", "prompts must be a list, got str"),
    (["Hi"], r"prompts\[0\] must be a \(text, image\) pair, got str"),
    ([("Hi", None), ("Hi",)], r"prompts\[1\] must be a \(text, image\) pair, got 1 parts"),
    ([(None, None)], r"prompts\[0\]\[0\], the text, must be str, got NoneType"),
    ([("", None)], r"prompts\[0\]\[0\], the text, must have letters"),
    ([("Hi\0 you", None)], r"prompts\[0\]\[0\], the text, must have .* no zero byte"),
    ([("\0", None)], r"prompts\[0\]\[0\], the text, must have .* no zero byte"),
    ([("Hi", None), ("\ud800", None)], r"prompts\[1\]\[0\], the text, must have .* no half of a character"),
    ([("Hi", "cat.jpg")], r"prompts\[0\]\[1\], the image, must be a PIL image, a list of them or None, got str"),
    ([("Hi", [IMAGE, "cat.jpg"])], r"prompts\[0\]\[1\], the image, must be a PIL image, a list of them or None, got"),
    ([(MARKER, [IMAGE, IMAGE])], rf"prompts\[0\] must hold {MARKER} once for each of its 2 images"),
    ([("Hi", IMAGE)], rf"prompts\[0\] must hold {MARKER} once for each of its 1 images"),
    ([(MARKER, IMAGE)], r"prompts\[0\] has an image, but mmproj, the file with the ViT, is None"),
]


@pytest.mark.parametrize(("prompts", "words"), NO_PROMPTS, ids=[str(n) for n in range(len(NO_PROMPTS))])
def test_bad_prompts_start_no_process(prompts, words, monkeypatch):
    monkeypatch.setattr(llamacpp.subprocess, "run", None)
    with pytest.raises(ValueError, match=words):
        llamacpp.run("no.gguf", None, prompts)


def test_bad_files_and_numbers_start_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(llamacpp.subprocess, "run", None)
    for bad in (None, 3, b"a.gguf"):
        with pytest.raises(TypeError, match="llm must be a path"):
            llamacpp.run(bad, None, [("Hi", None)])
    with pytest.raises(OSError, match=r"there is no file .*none\.gguf"):
        llamacpp.run(tmp_path / "none.gguf", None, [("Hi", None)])
    with pytest.raises(OSError, match="is a folder"):
        llamacpp.run(tmp_path, None, [("Hi", None)])
    for name, bad in (("max_new_tokens", 0), ("max_new_tokens", 1.5), ("threads", 0), ("threads", 513)):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1"):
            llamacpp.run("no.gguf", None, [("Hi", None)], **{name: bad})


def test_a_crash_of_llama_cpp_does_not_end_python(files, tmp_path):
    """A ViT of 32 channels in 3 heads fails an assertion. `export` cannot write that, a stranger can."""
    _, processor, (llm, mmproj) = files
    raw = mmproj.read_bytes()
    name = b"clip.vision.attention.head_count" + (4).to_bytes(4, "little")
    assert name in raw
    (tmp_path / "heads.gguf").write_bytes(raw.replace(name + b"\2\0\0\0", name + b"\3\0\0\0"))  # 32 / 3
    with pytest.raises(OSError, match=r"llama.cpp died with exit code -6: .*GGML_ASSERT"):
        llamacpp.run(llm, tmp_path / "heads.gguf", [(prompt_text("?", processor), picture(56, 56))])


# The model of the course ---------------------------------------------------------------------------------------------


def questions():
    """Scenes of one view, which both sides resize alike."""
    return [draw(f"phone {i}", "question", "test", view=112) for i in range(60)]


def clips():
    return [draw_more(f"phone {i}", "clip", "test", count=4, topic="direction", view=112) for i in range(30)]


@pytest.mark.parametrize(("name", "held_out"), [("nano", questions), ("nano-many", clips)])
def test_the_models_of_the_course_answer_as_in_pytorch(name, held_out, tmp_path):
    model, processor = MiniCPMV.from_pretrained(name), Processor.from_pretrained(name)
    samples = held_out()
    truth = [sample.answer for sample in samples]
    asked = [(sample.messages[0]["content"][-1], sample.images) for sample in samples]
    prompts = [(prompt_text(question, processor, len(images)), images) for question, images in asked]
    answers = {}
    for mixture in ("F16", "Q8_0", "Q4_K_M"):
        files = export(model, processor, tmp_path / mixture, mixture)
        answers[mixture] = [a.tokens for a in llamacpp.run(*files, prompts, max_new_tokens=16)]
    answers["float32"] = answer(model.float(), processor, samples)
    answers["bfloat16"] = answer(model.bfloat16(), processor, samples)
    right = {name: accuracy(tokens, truth, processor) for name, tokens in answers.items()}
    equal = np.mean([a == b for a, b in zip(answers["F16"], answers["float32"], strict=True)])
    print(f"right: {right}, F16 in llama.cpp equals float32 in PyTorch: {equal}")
    baseline = min(right["float32"], right["bfloat16"])  # bfloat16 alone moves a few answers, either way
    assert baseline > 0.5, "a model that has learned"
    assert equal >= 0.95
    assert right["Q8_0"] >= baseline - 0.005
    assert right["Q4_K_M"] >= baseline - 0.02


def answer(model, processor, samples) -> list[list[int]]:
    new = []
    for start in range(0, len(samples), 50):
        batch = processor([sample.prompt for sample in samples[start : start + 50]], use_image_id=False)
        rows = model.generate(batch, 16).tolist()
        new += [list(takewhile(lambda token: token not in processor.stop_ids, row)) for row in rows]
    return new


def accuracy(answers, truth, processor) -> float:
    said = [processor.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in answers]
    return float(np.mean([a == b for a, b in zip(said, truth, strict=True)]))
