"""Memory: exact parts against real tensors, totals against the peak that torch's profiler sees."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from profiled import profiled_peak
from tiny import VERSIONS, ask, picture, tiny_config

from minicpmv_ref.config import PRESETS, nano, v2_0, v2_5, v2_6
from minicpmv_ref.deploy import memory
from minicpmv_ref.deploy.memory import DEVICES, DTYPES, Estimate, estimate, fits, parameters
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.processor import Processor

pytestmark = pytest.mark.usefixtures("one_thread")
PARTS = ("weights", "gradients", "optimizer", "activations", "kv_cache", "vision")


def nbytes(tensors) -> int:
    return sum(t.nbytes for t in tensors)


# ---- exact parts


@pytest.mark.parametrize("name", PRESETS)
def test_weights_and_gradients_are_those_of_the_real_model(name):
    config = PRESETS[name]
    with torch.device("meta"):
        model = MiniCPMV(config)
    assert memory._largest_tensor(config) == max(p.numel() for p in model.parameters())
    for dtype in DTYPES:
        model.to(getattr(torch, dtype))
        need = estimate(config, training=True, dtype=dtype)
        assert need.weights == estimate(config, dtype=dtype).weights == nbytes(model.parameters())
        assert need.gradients == nbytes(p for p in model.parameters() if p.requires_grad)
        assert need.optimizer == 2 * need.gradients


@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_and_optimizer_are_those_of_a_real_step(models, processors, version):
    model, config = models[version], tiny_config(version)
    try:
        model(
            processors[version]([[*ask(picture(40, 40), "What?"), {"role": "assistant", "content": "A."}]])
        ).loss.backward()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0)
        optimizer.step()
        need = estimate(config, training=True, dtype=torch.float32)
        assert need.gradients == nbytes(p.grad for p in model.parameters() if p.grad is not None)
        states = optimizer.state.values()
        assert need.optimizer == nbytes(state[name] for state in states for name in ("exp_avg", "exp_avg_sq"))
    finally:
        model.zero_grad(set_to_none=True)


def test_a_mixture_weighs_what_its_two_files_hold():
    # sizes that llama.cpp's own quantizer gives: LLM in Q4_K_M
    for config, llm in ((v2_5, 4_912_898_048), (v2_6, 4_675_147_520), (v2_0, 1_958_649_760)):
        need = estimate(config, mixture="Q4_K_M")
        counts = parameters(config)
        eyes = counts["vpm"] + counts["resampler"]
        assert 2 * eyes <= need.weights - llm <= 2.01 * eyes
        half = estimate(config, mixture="F16")
        assert half.weights == pytest.approx(2 * sum(counts.values()), rel=2e-3)
        assert need.kv_cache == half.kv_cache == estimate(config).kv_cache


# ---- the whole against the profiler


SMALL = {  # nano, and one LLM of every family in its place
    "nano": nano,
    "untied": replace(nano, llm=replace(nano.llm, tie_word_embeddings=False, vocab_size=4096, intermediate_size=896)),
    "qwen2": replace(nano, llm=replace(nano.llm, family="qwen2", num_hidden_layers=2, intermediate_size=1280)),
    "granite": replace(
        nano,
        version="2.0",
        vision=replace(nano.vision, position="interpolate", table_side=27),
        resampler=replace(nano.resampler, version="2.0", num_queries=16),
        llm=replace(nano.llm, family="granite", scale_emb=12, scale_depth=1.4, dim_model_base=64),
    ),
}
SIDES = {0: 1, 2: (2, 1), 4: 2, 9: 3}  # slices: the picture's side (or width and height) in slices
LOADS = [(1, 1, 0), (4, 1, 0), (1, 1, 2), (2, 2, 4), (1, 1, 9), (3, 1, 9)]  # batch, images, slices
CASES = [("nano", "float32", *load) for load in LOADS]
CASES += [("nano", "bfloat16", *load) for load in LOADS[2::2]]
CASES += [(name, "float32", *load) for name in ("untied", "qwen2", "granite") for load in LOADS[1::3]]


@pytest.fixture(scope="module")
def built():
    models = {}

    def build(name, dtype):
        if (name, dtype) not in models:
            models[name, dtype] = MiniCPMV.seeded(SMALL[name]).to(getattr(torch, dtype))
        return models[name, dtype]

    return build


def prompts(config, batch, images, slices):
    side = config.slicing.scale_resolution
    cols, rows = (SIDES[slices], SIDES[slices]) if isinstance(SIDES[slices], int) else SIDES[slices]
    question = ask(*[picture(side * cols, side * rows)] * images, "What is this?")
    made = Processor(Processor.from_pretrained("nano").tokenizer, config)([question] * batch)
    assert len(made.images[0]) == images * (1 + slices)
    return made


@pytest.mark.parametrize(("name", "dtype", "batch", "images", "slices"), CASES)
def test_inference_takes_what_the_profiler_sees(built, name, dtype, batch, images, slices):
    model, given = built(name, dtype), prompts(SMALL[name], batch, images, slices)
    tokens = given.input_ids.shape[1] + 4
    need = estimate(SMALL[name], False, dtype, batch, images, slices, tokens)
    peak = need.weights + profiled_peak(lambda: model.generate(given, max_new_tokens=4))
    assert need.total == pytest.approx(peak, rel=0.08)
    with torch.no_grad():  # the two halves apart, without the weights that hide them
        seen = profiled_peak(lambda: model._encode(given))
        visual = model._encode(given)
    read = profiled_peak(lambda: model.generate(given, max_new_tokens=4, visual=visual))
    assert need.vision == pytest.approx(seen, rel=0.2)
    assert need.activations + need.kv_cache == pytest.approx(read, rel=0.2)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "dtype", "batch", "images", "slices"), CASES)
def test_training_takes_what_the_profiler_sees(built, name, dtype, batch, images, slices, checkpointing):
    model, given = built(name, dtype), prompts(SMALL[name], batch, images, slices)
    given.labels = given.input_ids
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0)

    def step():
        model(given).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    (model.llm.activation_checkpointing_enable if checkpointing else model.llm.activation_checkpointing_disable)()
    try:
        step()  # the optimizer makes its state here
        need = estimate(
            SMALL[name], True, dtype, batch, images, slices, given.input_ids.shape[1], checkpointing=checkpointing
        )
        work = profiled_peak(step)
    finally:
        model.llm.activation_checkpointing_disable()
        model.eval()
    assert need.total == pytest.approx(need.weights + need.optimizer + work, rel=0.05)
    assert need.total - need.weights - need.optimizer == pytest.approx(work, rel=0.15)


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float32") for name in SMALL), ("nano", "bfloat16")])
def test_what_is_kept_for_the_backward_pass(built, name, dtype):
    """The two parts apart, at 2 %: a single tensor of a layer too many or too few shows."""
    model, given = built(name, dtype), prompts(SMALL[name], 3, 1, 9)
    given.labels = given.input_ids
    need = estimate(SMALL[name], True, dtype, 3, 1, 9, given.input_ids.shape[1])
    model.train()
    alive = []
    seen = profiled_peak(lambda: alive.append(model._encode(given)))
    visual, model._encode = alive[0].detach(), lambda _: visual
    try:
        read = profiled_peak(lambda: alive.append(model(given).loss))
    finally:
        del model._encode
        model.eval()
    assert need.vision == pytest.approx(seen, rel=0.02)
    assert need.activations == pytest.approx(read, rel=0.02)


# ---- moments, devices, bad input


def test_moments_hold_the_parts():
    need = estimate(v2_6, dtype="bfloat16", batch=2, tokens=1000)
    assert list(need.moments) == ["see", "read", "write"]
    assert need.moments["see"] == {"weights": need.weights, "vision": need.vision}
    assert need.moments["read"] == {n: getattr(need, n) for n in ("weights", "activations", "kv_cache")}
    assert need.moments["write"] == {n: getattr(need, n) for n in ("weights", "kv_cache")}
    assert need.total == need.weights + max(need.vision, need.activations + need.kv_cache)
    assert (need.gradients, need.optimizer) == (0, 0)
    train = estimate(v2_6, training=True)
    assert list(train.moments) == ["forward", "backward", "update"]
    assert train.moments["forward"] == {n: getattr(train, n) for n in ("weights", "optimizer", "vision", "activations")}
    assert train.moments["backward"]["gradients"] == 2 * parameters(v2_6)["llm"]
    assert train.moments["update"]["gradients"] == train.gradients
    assert train.kv_cache == 0
    assert train.fullest in train.moments and train.total == sum(train.moments[train.fullest].values())


def test_what_grows_with_what():
    one = estimate(v2_5, tokens=1000, slices=4)
    for more in (dict(batch=3), dict(images=3, tokens=3000)):
        three = estimate(v2_5, **{"tokens": 1000, "slices": 4, **more})
        assert [three.kv_cache, three.vision, three.activations] == [
            3 * one.kv_cache,
            3 * one.vision,
            3 * one.activations,
        ]
        assert three.weights == one.weights
    assert estimate(v2_5, tokens=1000, slices=9).vision == 2 * one.vision
    assert estimate(v2_5, tokens=1000, slices=9).kv_cache == one.kv_cache
    assert estimate(v2_5).kv_cache == estimate(v2_5, tokens=960 + 256).kv_cache
    assert estimate(v2_5, images=0).vision == 0
    slow, fast = (estimate(v2_6, training=True, checkpointing=c) for c in (True, False))
    assert slow.activations < 0.3 * fast.activations and slow.vision == fast.vision


def test_devices():
    assert not fits(estimate(v2_5), "16 GB phone")
    assert fits(estimate(v2_5, mixture="Q4_K_M"), "12 GB phone")
    assert not fits(estimate(v2_5, mixture="Q4_K_M"), "8 GB phone")
    assert fits(estimate(v2_0), "8 GB GPU") and not fits(estimate(v2_0), "12 GB phone")
    for name, (size, share) in DEVICES.items():
        assert fits(int(size * share), name) and not fits(int(size * share) + 1, name)
        assert int(name.split()[0]) * 2**30 == size
    with pytest.raises(ValueError, match=r"device must be one of 8 GB phone, .*80 GB GPU, got 'toaster'"):
        fits(1, "toaster")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dtype": "int4"}, "dtype must be one of float32, bfloat16, float16, got 'int4'"),
        ({"dtype": torch.int8}, "dtype must be one of"),
        ({"batch": 0}, "batch must be an integer of at least 1, got 0"),
        ({"batch": 1.5}, "batch must be an integer"),
        ({"images": -1}, "images must be an integer of at least 0"),
        ({"slices": True}, "slices must be an integer"),
        ({"slices": 10}, "at most 9 slices, got 10"),
        ({"tokens": 639}, "tokens must be an integer of at least 640"),
        ({"tokens": "many"}, "tokens must be an integer"),
        ({"tokens": 32_769}, "32768 positions, got tokens = 32769"),
        ({"images": 0, "tokens": 0}, "at least 1 "),
        ({"mixture": "Q4_K_M", "training": True}, "quantized weights cannot be trained"),
        ({"mixture": "Q3"}, "mixture must be one of"),
        ({"checkpointing": True}, "without training"),
    ],
)
def test_bad_input_is_one_clear_error(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        estimate(v2_6, **options)


def test_estimates_need_no_torch():
    code = (
        "import sys; from minicpmv_ref.deploy.memory import estimate; from minicpmv_ref.config import v2_0; "
        "estimate(v2_0, training=True); print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_published_needs():
    """The README of the releases says: 2.0 fits 8 GB; 2.5 takes 19 GB, its GGUF 6; 2.6 takes 17 GB, its GGUF 6."""
    found = {
        name: [estimate(PRESETS[name], **kind).total / 1e9 for kind in ({}, {"mixture": "Q4_K_M"})]
        for name in ("v2_0", "v2_5", "v2_6")
    }
    assert found["v2_0"][0] < 8
    assert found["v2_5"] == [pytest.approx(19, rel=0.1), pytest.approx(6, rel=0.1)]
    assert found["v2_6"] == [pytest.approx(17, rel=0.1), pytest.approx(6, rel=0.1)]
    assert isinstance(estimate(nano), Estimate)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate({}), "config must be MiniCPMVConfig, got dict"),
        (lambda: estimate(v2_6, training="no"), "training must be True or False, got str"),
        (lambda: estimate(v2_6, checkpointing=1), "checkpointing must be True or False"),
        (lambda: estimate(v2_6, dtype=None), "dtype must be one of"),
        (lambda: estimate(v2_6, dtype=[[]]), "dtype must be one of"),
        (lambda: estimate(v2_6, tokens=1e3), "tokens must be an integer"),
        (lambda: fits(float("nan"), "8 GB phone"), "need must be an integer"),
        (lambda: fits("1", "8 GB phone"), "need must be an integer"),
        (lambda: fits(None, "8 GB phone"), "need must be an integer"),
    ],
)
def test_a_wrong_type_is_a_type_error(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_bytes_and_devices_that_are_none():
    with pytest.raises(ValueError, match="need must be an integer of at least 0, got -1"):
        fits(-1, "8 GB phone")
    for device in (["8 GB phone"], None, 8):
        with pytest.raises(ValueError, match="device must be one of"):
            fits(1, device)
