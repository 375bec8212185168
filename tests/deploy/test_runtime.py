"""The decoder of our own against transformers; quantized weights against kquant; int8 activations against llama.cpp."""

import importlib.util
import subprocess
import sys
import tracemalloc
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from places import ROOT
from tiny import VERSIONS, ask, picture, several, tiny_config, tiny_model
from transformers import GenerationConfig

from minicpmv_ref.config import nano
from minicpmv_ref.deploy import runtime
from minicpmv_ref.deploy.gguf import MIXTURES, llm_tensors, plan_mixture
from minicpmv_ref.deploy.kquant import FORMATS, dequantize, quantize
from minicpmv_ref.deploy.runtime import Decoder, Matrix, Norm, Runtime, round_activations
from minicpmv_ref.inputs.checkpoint import write_checkpoint
from minicpmv_ref.model import MiniCPMV
from minicpmv_ref.peers.cogvlm import _rotate
from minicpmv_ref.peers.video import scaled_frequencies
from minicpmv_ref.processor import Processor

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def quick(models):
    return {version: Runtime(model) for version, model in models.items()}


@pytest.fixture(scope="module")
def wide():
    """Rows of 256 and more, so that K-quants apply; lively weights."""
    model = MiniCPMV.seeded(nano)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.llm.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * 1.4 / p.shape[-1] ** 0.5 if p.ndim == 2 else 1 + 0.2 * noise)
    return model, Processor.from_pretrained("nano")


# ---- float: equal to transformers


@pytest.mark.parametrize("version", VERSIONS)
def test_logits_are_those_of_transformers(models, processors, quick, version):
    batch = processors[version](several())  # four prompts of different lengths, so there is padding
    with torch.no_grad():
        right, ours = models[version](batch).logits, quick[version](batch).logits
    there = batch.attention_mask.bool()
    assert (right - ours)[there].abs().max() < 1e-5
    assert right[there].std() > 0.1
    assert quick[version].llm.nbytes == sum(p.nbytes for p in models[version].llm.parameters())


@pytest.mark.parametrize("version", VERSIONS)
def test_generated_tokens_are_those_of_transformers(models, processors, quick, version):
    llm = models[version].llm
    ids = torch.randint(5, 1000, (3, 20), generator=torch.Generator().manual_seed(2))
    greedy = GenerationConfig(max_new_tokens=40, min_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    theirs = llm.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
    step, tokens = quick[version].llm(ids), []
    for _ in range(40):
        tokens.append(step.logits[:, -1].argmax(dim=-1))
        step = quick[version].llm(tokens[-1][:, None], past_key_values=step.past_key_values)
    assert torch.equal(theirs[:, 20:], torch.stack(tokens, dim=1))
    assert len(theirs.unique()) > 20


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_are_those_of_the_model(models, processors, quick, version):
    batch = processors[version](several())
    # Sampled answers part ways wherever rounding moves a sum of probabilities across a random number. With one token to
    # choose from, the way through the sampler is the same and its end is certain.
    for options in ({}, dict(temperature=1.0, top_k=1, top_p=0.9, seed=3), dict(repetition_penalty=1.3)):
        assert torch.equal(
            models[version].generate(batch, 24, **options), quick[version].generate(batch, 24, **options)
        )
    question = ask(picture(60, 50), "What is this?")
    answer = models[version].chat(question, processors[version], max_new_tokens=12)
    assert quick[version].chat(question, processors[version], max_new_tokens=12) == answer
    pieces = quick[version].chat(question, processors[version], stream=True, max_new_tokens=12)
    assert "".join(pieces) == answer


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cuts", [[1] * 12, [5, 7], [6, 1, 5], [11, 1]])
def test_pieces_give_what_the_whole_gives(quick, version, cuts):
    decoder = quick[version].llm
    ids = torch.randint(5, 1000, (2, 12), generator=torch.Generator().manual_seed(3))
    whole, cache, parts = decoder(ids).logits, None, []
    for piece in ids.split(cuts, dim=1):
        step = decoder(piece, past_key_values=cache)
        cache = step.past_key_values
        parts.append(step.logits)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    assert cache.length == 12


def test_padding_in_pieces(models, quick):
    """Left padding, a prompt in two pieces: equal to the sample alone."""
    decoder = quick["2.6"].llm
    ids = torch.randint(5, 1000, (1, 9), generator=torch.Generator().manual_seed(4))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 9])
    positions = torch.tensor([[0] * 3 + list(range(9))])
    first = decoder(padded[:, :7], attention_mask=mask[:, :7], position_ids=positions[:, :7])
    second = decoder(padded[:, 7:], None, mask, positions[:, 7:], first.past_key_values)
    assert torch.allclose(second.logits, decoder(ids).logits[:, 4:], atol=1e-5)


def test_the_cache_grows(models, quick, monkeypatch):
    decoder = quick["2.5"].llm
    ids = torch.randint(5, 1000, (1, 600), generator=torch.Generator().manual_seed(5))
    step = decoder(ids[:, :20])
    rooms = [step.past_key_values.store.shape[3]]
    for token in ids[:, 20:].split(1, dim=1):
        step = decoder(token, past_key_values=step.past_key_values)
        rooms.append(step.past_key_values.store.shape[3])
    assert sorted(set(rooms)) == [276, 552, 1024]
    with torch.no_grad():
        assert torch.allclose(step.logits[:, -1], models["2.5"].llm(ids).logits[:, -1], atol=1e-5)
    jump = decoder(ids[:, 20:], past_key_values=decoder(ids[:, :20]).past_key_values)  # more than twice the room
    assert torch.allclose(jump.logits[:, -1], step.logits[:, -1], atol=1e-5)


def test_the_cache_is_there_before_the_tokens(quick):
    step = quick["2.6"].llm(torch.tensor([[5, 6, 7]]))
    store = step.past_key_values.store
    for _ in range(50):
        step = quick["2.6"].llm(torch.tensor([[8]]), past_key_values=step.past_key_values)
    assert step.past_key_values.store is store
    cfg = tiny_config("2.6").llm
    assert store.shape == (cfg.num_hidden_layers, 1, 2 * cfg.num_key_value_heads, 3 + 256, cfg.head_width)


@pytest.mark.parametrize("version", VERSIONS)
def test_long_prompts_with_padding(models, quick, version):
    """Hundreds of tokens in two pieces, then single ones; the second sample is padded."""
    llm, decoder = models[version].llm, quick[version].llm
    ids = torch.randint(5, 1000, (2, 203), generator=torch.Generator().manual_seed(6))
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        right = llm(ids, attention_mask=mask, position_ids=positions).logits
    parts, cache, end = [], None, 0
    for count in (150, 50, 1, 1, 1):
        start, end = end, end + count
        step = decoder(ids[:, start:end], None, mask[:, :end], positions[:, start:end], cache)
        parts.append(step.logits)
        cache = step.past_key_values
    error = (torch.cat(parts, dim=1) - right)[mask.bool()].abs().max()
    assert error < 5e-5  # transformers' own distance from float64 is up to 1.2e-5 here


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kept", [1, 2])
def test_the_last_logits_only(quick, version, kept):
    """In a first and a second piece, with padding; the cache must be as complete as if all had been asked."""
    decoder = quick[version].llm
    ids = torch.randint(5, 1000, (2, 12), generator=torch.Generator().manual_seed(7))
    for padding in (0, 3):
        mask = torch.ones_like(ids)
        mask[1, :padding] = 0
        whole = decoder(ids, attention_mask=mask).logits
        cache = None
        for start, end in ((0, 7), (7, 11), (11, 12)):
            step = decoder(ids[:, start:end], None, mask[:, :end], None, cache, logits_to_keep=kept)
            cache = step.past_key_values
            there = min(kept, end - start)
            assert step.logits.shape == (2, there, 1024)
            assert torch.allclose(step.logits, whole[:, end - there : end], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_a_matrix_multiplies_as_precisely_as_torch(monkeypatch, dtype, biased, columns):
    """One token, a few and many: ways of their own."""
    monkeypatch.setattr(runtime, "_columns_are_quicker", lambda *size: columns)
    generator = torch.Generator().manual_seed(8)
    weight = torch.randn(300, 77, generator=generator).to(dtype)
    bias = torch.randn(300, generator=generator).to(dtype) if biased else None
    matrix = Matrix(weight, bias)
    for shape in ((1, 1, 77), (3, 1, 77), (1, 5, 77), (2, 100, 77)):
        x = torch.randn(shape, generator=generator).to(dtype)
        right = F.linear(x.double(), weight.double(), bias.double() if biased else None)
        ours = matrix(x)
        assert ours.dtype == dtype and ours.shape == right.shape
        assert (ours - right).norm() < 2 * torch.finfo(dtype).eps * right.norm()
    ids = torch.tensor([[5, 0], [299, 5]])
    assert torch.equal(matrix.look_up(ids), weight[ids])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_norm_is_as_precise_as_torch(dtype):
    """A row of zeros, one as small as eps, an ordinary one, and one whose sum of squares float16 cannot hold."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(4, 77, generator=generator).mul(torch.tensor([[0], [1e-3], [1], [1e3]])).to(dtype)
    gain = torch.randn(77, generator=generator).to(dtype)
    right, ours = F.rms_norm(x.double(), (77,), gain.double(), 1e-6), Norm(gain, 1e-6)(x)
    assert ours.dtype == dtype
    assert ((ours - right).norm(dim=-1) <= 2 * torch.finfo(dtype).eps * right.norm(dim=-1)).all()


def test_half_precision(wide):
    model, processor = wide
    half = MiniCPMV.seeded(nano).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    batch = processor(ask(picture(100, 100), "What is this?"))
    with torch.no_grad():
        right, theirs, ours = (m(batch).logits.float() for m in (model, half, Runtime(half)))
    error = (theirs - right).norm() / right.norm()
    assert 1e-3 < error < 0.1
    assert (ours - right).norm() / right.norm() < 1.3 * error
    assert Runtime(half).llm.dtype == torch.bfloat16
    ids = torch.tensor([[5, 6, 7]])
    quantized, same = (Runtime(model, "Q8_0").llm(ids).logits for model in (half, deepcopy(half).float()))
    assert quantized.dtype == torch.float32 and torch.equal(quantized, same)


@pytest.mark.parametrize(("table", "rest"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_embeddings_of_another_dtype(processors, table, rest):
    """As merging what the official LoRA script has trained leaves them."""
    model, batch = tiny_model("2.6"), processors["2.6"](several())
    model.llm.to(rest).model.embed_tokens.to(table)
    with torch.no_grad():
        right, ours = model(batch).logits, Runtime(model)(batch).logits
    there = batch.attention_mask.bool()
    error = (ours - right)[there].float().norm() / right[there].float().norm()
    assert ours.dtype == rest and error < (0.05 if rest == torch.bfloat16 else 1e-5)


@pytest.fixture
def sixteen_bits():
    torch.set_default_dtype(torch.bfloat16)  # as people do before they build a model
    yield
    torch.set_default_dtype(torch.float32)


def test_positions_do_not_depend_on_the_default_dtype(sixteen_bits, models, processors, quick):
    """In bfloat16 every second position above 256 would be its neighbor."""
    batch = processors["2.6"](several())
    there = batch.attention_mask.bool()
    assert torch.equal(Runtime(models["2.6"])(batch).logits[there], quick["2.6"](batch).logits[there])
    exact = 1 / 5e5 ** (torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    assert torch.allclose(scaled_frequencies(128, 5e5).double(), exact, rtol=1e-6)
    x, places = torch.ones(1, 1, 2, 128, dtype=torch.float32), torch.tensor([[0, 1001]])
    angles = (1001 * 1 / 1e4 ** (torch.arange(0, 128, 2, dtype=torch.float64) / 128)).float()
    assert torch.allclose(_rotate(x, places, 1e4)[0, 0, 1, :64], angles.cos() - angles.sin(), atol=1e-3)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_folder(models, processors, quick, version, tmp_path):
    models[version].save_pretrained(tmp_path)
    before = torch.get_rng_state()
    read, batch = Runtime(tmp_path), processors[version](several())
    assert torch.equal(read(batch).logits, quick[version](batch).logits)
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("llm.model.layers.0.mlp.up_proj.weight", "vpm.post_layernorm.bias"):
        tensors = models[version].own_tensors()
        del tensors[name]
        write_checkpoint(tmp_path, models[version].config, tensors)
        with pytest.raises(ValueError, match=f"1 missing: {name}"):
            Runtime(tmp_path)


def test_a_folder_is_read_without_the_classes_of_transformers():
    heavy = "{'torch._dynamo', 'transformers.models.llama.modeling_llama'}"
    code = f"import sys\nfrom {runtime.__name__} import Runtime\nRuntime('nano')\nprint({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_the_runtime_keeps_its_own_weights(models, processors):
    model = MiniCPMV.seeded(tiny_config("2.6"))
    quick, batch = Runtime(model), processors["2.6"](ask("Hello"))
    before = quick(batch).logits
    with torch.no_grad():
        for p in model.llm.parameters():
            p.zero_()
    assert torch.equal(quick(batch).logits, before)


# ---- quantized weights


def rounded(model, mixture):
    """A copy of the model with the LLM's weights rounded, matrix by matrix, with kquant."""
    copy = MiniCPMV.seeded(model.config)
    copy.load_state_dict(model.state_dict())
    state, kinds = copy.state_dict(), plan_mixture(model.config, mixture).kinds
    for name, source in llm_tensors(model.config.llm).items():
        weight = state[source.key]
        if kinds[name] in FORMATS:
            packed = quantize(weight.numpy(), kinds[name])
            weight.copy_(torch.from_numpy(dequantize(packed, kinds[name], weight.shape[1])))
        elif kinds[name] == "F16":
            weight.copy_(weight.half())
    return copy


@pytest.mark.parametrize("mixture", MIXTURES)
def test_quantized_weights_give_the_logits_of_rounded_ones(wide, mixture):
    model, processor = wide
    batch = processor(ask(picture(100, 100), "What is this?"))
    quantized = Runtime(model, mixture)
    with torch.no_grad():
        exact, right, ours = model(batch).logits, rounded(model, mixture)(batch).logits, quantized(batch).logits
    assert (right - ours).abs().max() < 2e-5
    if mixture != "F32":
        assert (right - exact).abs().max() > 1e-4
    plan = plan_mixture(nano, mixture)
    assert quantized.llm.nbytes == sum(plan.bytes_of(name) for name in plan.kinds)
    assert torch.equal(quantized.generate(batch, 6), rounded(model, mixture).generate(batch, 6))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mixture", ["Q4_K_M", "Q8_0"])
def test_every_family_quantized(models, processors, version, mixture):
    """Untied, with biases or multipliers; rows of 64 and 96 fall back to blocks of 32."""
    batch = processors[version](several())
    there = batch.attention_mask.bool()
    with torch.no_grad():
        quantized, plan = Runtime(models[version], mixture), plan_mixture(models[version].config, mixture)
        right, ours = rounded(models[version], mixture)(batch).logits, quantized(batch).logits
    assert (right - ours)[there].abs().max() < 2e-5
    assert quantized.llm.nbytes == sum(plan.bytes_of(name) for name in plan.kinds)


def test_unpacked_weights_are_forgotten(wide, monkeypatch):
    model, _ = wide
    decoder = Runtime(model, "Q4_K_M").llm
    whole = sum(p.numel() for p in model.llm.parameters()) * 4

    def peak(bite):
        monkeypatch.setattr(runtime, "CHUNK", bite)
        step = decoder(torch.tensor([[5, 6, 7]]), logits_to_keep=1)
        tracemalloc.start()
        decoder(torch.tensor([[8]]), past_key_values=step.past_key_values)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    small, large = peak(1 << 14), peak(1 << 18)
    assert small < 0.06 * whole  # numpy's working memory included
    assert small < 0.6 * large < 0.6 * whole


def test_the_size_of_a_bite_changes_nothing(wide, monkeypatch):
    decoder = Runtime(wide[0], "Q4_K_M").llm
    ids = torch.tensor([[5, 6, 7]])
    right = decoder(ids).logits
    for bite in (1, 1000, 1 << 14):
        monkeypatch.setattr(runtime, "CHUNK", bite)
        assert torch.allclose(decoder(ids).logits, right, atol=1e-5)


# ---- int8 activations


def q8_k_by_hand(row):
    """One block of 256, number by number, as ggml's quantize_row_q8_K_ref has it."""
    most = max(row, key=abs)
    if most == 0:
        return [np.float32(0)] * 256
    inverse = np.float32(-127) / most
    return [np.float32(min(127, int(np.rint(inverse * x)))) * (np.float32(1) / inverse) for x in row]


def test_q8_k_is_that_of_ggml():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((8, 512)).astype(np.float32) * np.float32(10) ** rng.integers(-6, 6, (8, 1))
    rows = rows.astype(np.float32)
    rows[3, :256] = 0
    rows[4, 7] = -1e6
    want = np.array([[*q8_k_by_hand(row[:256]), *q8_k_by_hand(row[256:])] for row in rows], np.float32)
    got = round_activations(torch.from_numpy(rows), "Q8_K").numpy()
    assert np.array_equal(got, want)


def test_q8_0_is_the_format_of_the_weights():
    x = torch.randn(50, 96, generator=torch.Generator().manual_seed(0))
    x[3, 32:64] = 0
    stored = dequantize(quantize(x.numpy(), "Q8_0"), "Q8_0", 96)
    assert np.array_equal(round_activations(x, "Q8_0").numpy(), stored)


def test_rounding_errors_are_half_a_unit():
    x = torch.randn(4, 3, 512, generator=torch.Generator().manual_seed(1))
    for way, block in (("Q8_K", 256), ("Q8_0", 32)):
        blocks = x.unflatten(-1, (-1, block))
        error = (round_activations(x, way) - x).unflatten(-1, (-1, block)).abs().amax(dim=-1)
        unit = blocks.abs().amax(dim=-1) / 127
        assert (error <= 0.51 * unit + blocks.abs().amax(dim=-1) * 2**-11 * (way == "Q8_0")).all()
        assert (error > 0.4 * unit).all()
    assert torch.equal(round_activations(x, "F16"), x.half().float())
    assert round_activations(x, "float") is x


# vec_dot_type of ggml's table of types: what a row of this kind is multiplied with
PARTNERS = {"Q4_K": "Q8_K", "Q5_K": "Q8_K", "Q6_K": "Q8_K", "Q8_0": "Q8_0", "Q5_0": "Q8_0", "F16": "F16"}


@pytest.mark.parametrize("mixture", ["Q4_K_M", "Q8_0", "F16"])
def test_int8_is_what_hooks_on_transformers_give(wide, mixture):
    assert runtime.ROUNDING == PARTNERS
    model, _ = wide
    copy, kinds = rounded(model, mixture), plan_mixture(nano, mixture).kinds
    for name, source in llm_tensors(nano.llm).items():
        if source.key.endswith("proj.weight"):
            layer = copy.get_submodule(source.key.removesuffix(".weight"))
            way = PARTNERS[kinds[name]]
            layer.register_forward_pre_hook(lambda _, inputs, way=way: (round_activations(inputs[0], way),))
    head = PARTNERS[kinds["token_embd.weight"]]
    copy.llm.lm_head.register_forward_pre_hook(lambda _, inputs: (round_activations(inputs[0], head),))
    decoder = Runtime(model, mixture, "int8").llm
    ids = torch.tensor([[5], [77], [300], [900], [12]])  # short: a value between two levels may fall to either side
    with torch.no_grad():
        right, ours, plain = copy.llm(ids).logits, decoder(ids).logits, Runtime(model, mixture).llm(ids).logits
    errors = (right - ours).norm(dim=-1) / right.norm(dim=-1)
    assert errors.median() < 1e-5
    assert ((right - plain).norm(dim=-1) / right.norm(dim=-1)).median() > 10 * errors.median()


def test_what_meets_a_float32_matrix_is_not_rounded(wide):
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(*(Runtime(wide[0], "F32", kind).llm(ids).logits for kind in ("int8", "float")))


@pytest.mark.llamacpp
@pytest.mark.parametrize("shape", [dict(family="llama"), dict(family="qwen2", tied=False)], ids=lambda s: s["family"])
def test_int8_is_what_llama_cpp_computes(shape, tmp_path):
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("needs the extra: pip install minicpmv-ref[llamacpp]")
    from tiny import phone_model

    from minicpmv_ref.deploy import llamacpp
    from minicpmv_ref.deploy.gguf import export

    model, processor = phone_model(layers=2, **shape)
    texts = "red circle|blue square|What is this?|top left|Yes|a green star|12 + 3|where".split("|")
    for mixture in ("Q4_K_M", "Q8_0"):
        file, _ = export(model, processor, tmp_path / mixture, mixture)
        theirs = [a.logits for a in llamacpp.run(file, None, [(text, None) for text in texts], max_new_tokens=1)]
        errors = {}
        for activations in ("int8", "float"):
            decoder = Runtime(model, mixture, activations).llm
            ours = [decoder(torch.tensor([processor.tokenizer(text).input_ids])).logits[0, -1] for text in texts]
            errors[activations] = np.median(
                [np.linalg.norm(a.numpy() - b) / np.linalg.norm(b) for a, b in zip(ours, theirs, strict=True)]
            )
        assert errors["int8"] < 1e-5 < 1e-3 < errors["float"]


# ---- bad input


def test_bad_input_is_one_clear_error(models, tmp_path):
    model = models["2.6"]
    with pytest.raises(ValueError, match="mixture must be one of"):
        Runtime(model, "Q3_K")
    with pytest.raises(ValueError, match="activations must be"):
        Runtime(model, "Q4_K_M", "int4")
    with pytest.raises(ValueError, match="needs a mixture"):
        Runtime(model, activations="int8")
    with pytest.raises(OSError, match="no checkpoint folder"):
        Runtime(tmp_path / "nothing")
    with pytest.raises(TypeError, match="cannot be saved"):
        Runtime(model).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="way must be one of"):
        round_activations(torch.zeros(256), "Q4_K")
    with pytest.raises(ValueError, match="blocks of 256, got 128"):
        round_activations(torch.zeros(2, 128), "Q8_K")
    spoiled = MiniCPMV.seeded(replace(nano, llm=replace(nano.llm, num_hidden_layers=1)))
    with torch.no_grad():
        spoiled.llm.model.layers[0].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        Runtime(spoiled, "Q4_K_M")
    with pytest.raises(ValueError, match="positions"):
        Decoder(model.llm, model.config)(torch.zeros(1, 1025, dtype=torch.long))
    full = Decoder(model.llm, model.config)(torch.zeros(1, 1024, dtype=torch.long))
    assert full.past_key_values.store.shape[3] == 1024  # no room for tokens that cannot come
    with pytest.raises(ValueError, match="1024 positions, but 1025"):
        Decoder(model.llm, model.config)(torch.tensor([[5]]), past_key_values=full.past_key_values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_answer_of_a_damaged_model_is_an_error(processors, value):
    model = tiny_model("2.6")
    with torch.no_grad():
        model.llm.model.layers[1].mlp.down_proj.weight[0, 0] = value
    batch = processors["2.6"](several())
    for options in ({}, dict(temperature=0.7)):
        with pytest.raises(ValueError, match="not finite"):
            Runtime(model).generate(batch, 4, **options)


@pytest.mark.parametrize(
    ("x", "way"), [(torch.ones(()), "Q8_K"), (torch.ones(32).long(), "Q8_0"), (torch.ones(3), "Q8_0")]
)
def test_activations_that_do_not_fill_blocks(x, way):
    with pytest.raises(ValueError, match=f"x: {way} takes floats, columns in blocks"):
        round_activations(x, way)
