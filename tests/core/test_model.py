"""Theorems about the whole model, each against a formulation of its own: slots, independence, loss, multipliers."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import VERSIONS, ask, picture, several, tiny_config

from minicpmv_ref import MiniCPMV, Processor, nano, v2_6

pytestmark = pytest.mark.usefixtures("one_thread")


def answered(*messages):
    """Conversations that end with an answer, so that something is supervised."""
    words = ["A red circle.", "Hello to you!", "The second one, I think.", "No."]
    return [[*m, {"role": "assistant", "content": word}] for m, word in zip(messages, words)]


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- Where visual tokens land --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_visual_tokens_land_exactly_in_their_slots(models, processors, version):
    model, batch = models[version], processors[version](several())
    with torch.no_grad():
        embedded = model.embed(batch)
        table = model.llm.model.embed_tokens.weight
        for row in range(len(batch.input_ids)):
            expected = table[batch.input_ids[row]].clone()
            if batch.images[row]:
                views = model.encode_images(batch.images[row], batch.patch_grids[row])
                # <unk> stands for nothing but a slot, so the slots can be found without image_bounds.
                is_slot = batch.input_ids[row] == processors[version].tokenizer.unk_token_id
                assert is_slot.sum() == views.shape[0] * views.shape[1]
                expected[is_slot] = views.flatten(0, 1) / (12 if version == "2.0" else 1)
            close(embedded[row], expected)


def test_given_visual_tokens_are_used_as_they_are(models, processors):
    model, batch = models["2.6"], processors["2.6"](several())
    views = sum(map(len, batch.images))
    visual = torch.arange(views * 4 * 64).reshape(views, 4, 64).float()
    embedded = model.embed(batch, visual)
    slots = batch.input_ids == processors["2.6"].tokenizer.unk_token_id
    assert torch.equal(embedded[slots], visual.flatten(0, 1))


def test_2_0_feeds_unscaled_visual_tokens_to_its_first_layer(models, processors):
    model, batch = models["2.0"], processors["2.0"](several())
    seen = []
    hook = model.llm.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(batch)
    hook.remove()
    slots = batch.input_ids == processors["2.0"].tokenizer.unk_token_id
    with torch.no_grad():
        views = [model.encode_images(i, g) for i, g in zip(batch.images, batch.patch_grids) if i]
    close(seen[0][slots], torch.cat(views).flatten(0, 1))
    close(seen[0][~slots], 12 * model.llm.model.embed_tokens.weight[batch.input_ids[~slots]])


# --- Slots that do not match ---------------------------------------------------------------------------------------


def test_a_lost_slot_names_the_image_and_both_counts(models, processors):
    batch = processors["2.6"](several())
    bounds = [b.clone() for b in batch.image_bounds]
    bounds[2][1, 1] -= 1  # the first view of the second image; the first image is not sliced
    with pytest.raises(ValueError, match="image 1, overview: 3 slots in the text but 4 embeddings"):
        models["2.6"](replace(batch, image_bounds=bounds))
    bounds = [b.clone() for b in batch.image_bounds]
    bounds[0][2, 0] += 2
    with pytest.raises(ValueError, match="image 0, slice 2 of 4: 2 slots in the text but 4 embeddings"):
        models["2.6"](replace(batch, image_bounds=bounds))


def test_a_lost_view_names_the_image_and_both_counts(models, processors):
    batch = processors["2.6"](several())
    bounds = [*batch.image_bounds[:2], batch.image_bounds[2][:-1], batch.image_bounds[3]]
    views = len(batch.images[2])
    words = (
        f"image 1: .*slots for {views - 1} views but the images have {views}: {4 * views - 4} slots, {4 * views} emb"
    )
    for call in (models["2.6"].forward, models["2.6"].embed, models["2.6"].generate):
        with pytest.raises(ValueError, match=words):
            call(replace(batch, image_bounds=bounds))


def test_visual_tokens_of_another_batch_are_refused(models, processors):
    batch = processors["2.6"](several())
    views = sum(map(len, batch.images))
    with pytest.raises(ValueError, match=f"slots for {views} views.* {views - 1}( |$)"):
        models["2.6"].embed(batch, torch.zeros(views - 1, 4, 64))


def wrong_batches(batch):
    """(a field's name, a batch with something wrong in it)"""
    ids = batch.input_ids
    yield "input_ids", replace(batch, input_ids=ids.tolist())
    yield "input_ids", replace(batch, input_ids=ids[0])
    yield "input_ids", replace(batch, input_ids=ids[:, :0])
    yield "input_ids", replace(batch, input_ids=ids.float())
    yield "input_ids", replace(batch, input_ids=ids.int())
    yield "input_ids", replace(batch, input_ids=ids + 1024)
    yield "input_ids", replace(batch, input_ids=ids - 10**6)
    yield "image_bounds", replace(batch, image_bounds=batch.image_bounds[:-1])
    yield "image_bounds", replace(batch, image_bounds=[None] * 4)
    yield "image_bounds", replace(batch, image_bounds=torch.cat(batch.image_bounds))
    yield "image_bounds", replace(batch, image_bounds=[b - 10**6 for b in batch.image_bounds])
    yield "image_bounds", replace(batch, image_bounds=[b + 10**6 for b in batch.image_bounds])
    yield "image_bounds", replace(batch, image_bounds=[b.flip(0) for b in batch.image_bounds])
    yield "image_bounds", replace(batch, image_bounds=[b[:1].repeat(len(b), 1) for b in batch.image_bounds])
    yield "image_bounds", replace(batch, image_bounds=[b[:, 0] for b in batch.image_bounds])
    yield "plans", replace(batch, plans=batch.plans * 2)
    yield "plans", replace(batch, plans=[[None]] * 4)
    yield "plans", replace(batch, plans=None)
    yield "images", replace(batch, images=batch.images[:-1])
    yield "images", replace(batch, images=[[None, *views[1:]] for views in batch.images])
    yield "images", replace(batch, images=[views[1:] for views in batch.images])
    yield "images", replace(batch, images=[[view.byte() for view in views] for views in batch.images])
    yield "patch_grids", replace(batch, patch_grids=None)
    yield "patch_grids", replace(batch, patch_grids=[grids + grids for grids in batch.patch_grids])
    yield "patch_grids", replace(batch, patch_grids=[[(1.5, 2)] * len(grids) for grids in batch.patch_grids])
    yield "patch_grids", replace(batch, patch_grids=[[3] * len(grids) for grids in batch.patch_grids])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_batch_with_something_wrong_in_it_names_the_field(models, processors, version):
    model = models[version]
    for field, batch in wrong_batches(processors[version](several())):
        for call in (model.embed, model.forward, model.generate):
            with pytest.raises((TypeError, ValueError), match=field) as caught:
                call(batch)
            assert len(str(caught.value)) < 500
    for wrong in (None, "batch", {"input_ids": [1]}, processors[version](several()).input_ids, 3):
        for call in (model.embed, model.forward, model.generate, model.stream):
            with pytest.raises(TypeError, match="batch must be a Batch"):
                call(wrong)


def test_the_other_tensors_are_as_large_as_the_ids(models, processors):
    model, batch = models["2.6"], processors["2.6"](several())
    for field in ("attention_mask", "position_ids", "labels"):
        for wrong in (None, [1], getattr(batch, field)[:, 1:], getattr(batch, field)[:1], batch.labels.float()):
            for call in (model.forward, model.generate):
                if wrong is None and field == "attention_mask" and call == model.forward:
                    continue  # a packed batch has none
                with pytest.raises((TypeError, ValueError), match=field):
                    call(replace(batch, **{field: wrong}))
    for label in (-1, -101, 1024, 2**40):
        with pytest.raises(ValueError, match="labels must be -100 or from 0 to 1023"):
            model(replace(batch, labels=torch.full_like(batch.labels, label)))
    for field, wrong in (("pad_id", 1024), ("pad_id", None), ("stop_ids", 3), ("stop_ids", ["x"])):
        with pytest.raises((TypeError, ValueError), match=field):
            model.generate(replace(batch, **{field: wrong}))


def test_views_and_grids_that_are_none(models):
    view = torch.zeros(3, 28, 42)
    for images, grids, error, words in (
        (view, [(2, 3)], TypeError, "images"),
        (None, [(2, 3)], TypeError, "images"),
        ([view, "x"], [(2, 3)] * 2, TypeError, r"images\[1\]"),
        ([view], (2, 3), TypeError, r"patch_grids\[0\]"),
        ([view], None, TypeError, "patch_grids"),
        ([view], [(2, 3, 1)], ValueError, r"patch_grids\[0\]"),
        ([view], [("2", 3)], TypeError, r"patch_grids\[0\]"),
        ([view], [(2, 0)], ValueError, r"patch_grids\[0\]"),
        ([view], [(2, 3), (2, 3)], ValueError, "images and patch_grids must be equally long, got 1 and 2"),
        ([view, view], [(2, 3)], ValueError, "images and patch_grids must be equally long, got 2 and 1"),
        ([view], [(3, 2)], ValueError, "view 0: 3 rows x 2 columns"),
        ([view.byte()], [(2, 3)], ValueError, r"images\[0\] must hold normalized pixels"),
        ([view.long(), view], [(2, 3)] * 2, ValueError, r"images\[0\] must hold normalized pixels"),
    ):
        with pytest.raises(error, match=words):
            models["2.6"].encode_images(images, grids)
    assert models["2.6"].encode_images([], []).shape == (0, 4, 64)


def test_visual_tokens_that_are_none(models, processors):
    batch = processors["2.6"](several())
    views = sum(map(len, batch.images))
    for wrong in (3, "x", [torch.zeros(4, 64)] * views):
        with pytest.raises(TypeError, match="visual must be a tensor"):
            models["2.6"].embed(batch, wrong)
    good = torch.zeros(views, 4, 64)
    for wrong in (good.long(), good.bool(), good[..., :63], good[:, :3], good[None], torch.tensor(0.0)):
        with pytest.raises(ValueError, match="visual tokens must be"):
            models["2.6"].embed(batch, wrong)
    assert models["2.6"].embed(batch, good.half()).dtype == torch.float32


def test_a_model_is_made_from_a_config():
    for wrong in (None, "nano", {"version": "2.6"}):
        for make in (MiniCPMV, MiniCPMV.seeded):
            with pytest.raises(TypeError, match="config must be MiniCPMVConfig"):
                make(wrong)
    for wrong, error in ((2**64, ValueError), ("0", TypeError), (None, TypeError), (0.5, TypeError)):
        with pytest.raises(error, match="seed"):
            MiniCPMV.seeded(tiny_config("2.6"), wrong)


# --- Independence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_text_only_input_equals_the_bare_llm(models, processors, version):
    model, batch = models[version], processors[version](ask("How many shapes are there?"))
    with torch.no_grad():
        close(model(batch).logits, model.llm(input_ids=batch.input_ids).logits, 1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_results_do_not_depend_on_padding_or_batch_mates(models, processors, version):
    """In 2.5, too: there a picture's views share one fate, but prompts do not."""
    model, processor = models[version], processors[version]
    together = processor(several())
    with torch.no_grad():
        for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
            logits = model(processor([several()[i] for i in order])).logits
            assert logits.isfinite().all()
            for row, i in enumerate(order):
                alone = processor(several()[i])
                close(logits[row, -alone.input_ids.shape[1] :], model(alone).logits[0])
    assert together.attention_mask.sum(1).unique().numel() == 4, "lengths should differ, or nothing is padded"


def test_prompts_change_nothing_but_views_do_in_2_5(models, processors):
    for version in VERSIONS:
        model, batch = models[version], processors[version](ask(picture(130, 90, 1), picture(50, 60, 2), "x"))
        images, grids = batch.images[0], batch.patch_grids[0]
        with torch.no_grad():
            together = model.encode_images(images, grids)
            alone = torch.cat([model.encode_images([image], [grid]) for image, grid in zip(images, grids)])
        difference = (together - alone).abs().max()
        assert difference > 0.01 if version == "2.5" else difference < 1e-5, version


def test_the_order_of_views_is_kept_in_a_batch(models, processors):
    """Swapping two pictures of equal size swaps their tokens and nothing else."""
    model, processor = models["2.6"], processors["2.6"]
    a, b = picture(130, 90, 1), picture(130, 90, 2)
    with torch.no_grad():
        ab, ba = (model.embed(processor([ask(x, "?"), ask(y, "?")])) for x, y in ((a, b), (b, a)))
    close(ab, ba.flip(0), 1e-6)
    assert (ab[0] - ab[1]).abs().max() > 0.1


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_depend_on_the_picture(models, processors, version):
    model, processor = models[version], processors[version]
    with torch.no_grad():
        a, b = (model(processor(ask(picture(130, 90, seed), "What?"))).logits[0, -1] for seed in (1, 2))
    assert (a - b).abs().max() > 1e-3


# --- The loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_loss_equals_the_llm_s_own_and_a_mean_by_hand(models, processors, version):
    model, batch = models[version], processors[version](answered(*several()))
    with torch.no_grad():
        out = model(batch)
        theirs = model.llm(
            inputs_embeds=model.embed(batch),
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            labels=batch.labels,
        )
    close(out.logits, theirs.logits, 1e-6)
    close(out.loss, theirs.loss, 1e-6)
    surprises = [
        -out.logits[s, t].double().log_softmax(-1)[batch.labels[s, t + 1]]
        for s in range(batch.labels.shape[0])
        for t in range(batch.labels.shape[1] - 1)
        if batch.labels[s, t + 1] != -100
    ]
    assert len(surprises) == (batch.labels != -100).sum() > 20
    assert float(out.loss) == pytest.approx(float(sum(surprises) / len(surprises)), rel=1e-5)


def test_no_labels_no_loss(models, processors):
    batch = processors["2.6"](several())
    assert models["2.6"](batch).loss is None
    only_first = torch.full_like(batch.labels, -100)
    only_first[:, 0] = 5  # nothing predicts the first token
    assert models["2.6"](replace(batch, labels=only_first)).loss is None


@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_reach_every_parameter(models, processors, version):
    model = copy.deepcopy(models[version]).train()
    model(processors[version](answered(*several()))).loss.backward()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            assert name == "resampler.pos_embed" and p.grad is None
            continue
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name


def test_a_text_only_batch_can_be_trained_on(models, processors):
    model = copy.deepcopy(models["2.6"]).train()
    model(processors["2.6"](answered(ask("Hello")))).loss.backward()
    assert model.llm.lm_head.weight.grad.abs().max() > 0 and model.resampler.proj.grad is None


# --- MiniCPM-2.4B by hand ------------------------------------------------------------------------------------------


def minicpm_by_hand(model, x: torch.Tensor) -> torch.Tensor:
    """MiniCPM's forward in float64 from its paper's formulas. x (T, D): text embeddings times 12, visual ones bare."""
    w = {name: p.detach().double() for name, p in model.llm.named_parameters()}
    cfg = model.config.llm
    length, heads = len(x), cfg.num_attention_heads
    width = cfg.hidden_size // heads
    residual = 1.4 / math.sqrt(cfg.num_hidden_layers)

    def norm(x, name):
        return w[name] * x / x.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()

    # Channels i and i + width / 2 are a complex number, turned by position * theta^(-2 i / width).
    turn = torch.arange(length).double()[:, None] * 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    turn = torch.polar(torch.ones_like(turn), turn)[:, None]

    def rotate(x):
        z = torch.complex(x[..., : width // 2], x[..., width // 2 :]) * turn
        return torch.cat([z.real, z.imag], -1)

    past = torch.ones(length, length).tril().bool()
    x = x.double()
    for layer in range(cfg.num_hidden_layers):
        p = f"model.layers.{layer}"
        h = norm(x, f"{p}.input_layernorm.weight")
        q, k, v = ((h @ w[f"{p}.self_attn.{n}_proj.weight"].T).reshape(length, heads, width) for n in ("q", "k", "v"))
        scores = torch.einsum("qhd,khd->hqk", rotate(q), rotate(k)) / math.sqrt(width)
        weights = scores.masked_fill(~past, -torch.inf).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, v).reshape(length, -1)
        x = x + residual * (mixed @ w[f"{p}.self_attn.o_proj.weight"].T)
        h = norm(x, f"{p}.post_attention_layernorm.weight")
        h = F.silu(h @ w[f"{p}.mlp.gate_proj.weight"].T) * (h @ w[f"{p}.mlp.up_proj.weight"].T)
        x = x + residual * (h @ w[f"{p}.mlp.down_proj.weight"].T)
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T / (cfg.hidden_size / cfg.dim_model_base)


def test_2_0_equals_minicpm_by_hand_at_prefill_and_every_step(models, processors):
    model, processor = models["2.0"], processors["2.0"]
    batch = processor(ask(picture(130, 90, 1), "What is this?"))
    table = model.llm.model.embed_tokens.weight.detach()
    x = 12 * table[batch.input_ids[0]]
    with torch.no_grad():
        visual = model.encode_images(batch.images[0], batch.patch_grids[0])
        x[batch.input_ids[0] == processor.tokenizer.unk_token_id] = visual.flatten(0, 1)
        close(model(batch).logits[0].double(), minicpm_by_hand(model, x), 1e-4)

    seen = []
    hook = model.llm.register_forward_hook(lambda _, args, out: seen.append(out.logits[0, -1]))
    tokens = model.generate(replace(batch, stop_ids=()), max_new_tokens=6)[0]
    hook.remove()
    assert len(tokens) == 6
    for step, token in enumerate(tokens):
        expected = minicpm_by_hand(model, x)[-1]
        close(seen[step].double(), expected, 1e-4)
        assert token == expected.argmax()
        x = torch.cat([x, 12 * table[token][None]])


# --- dtypes, devices, seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_bfloat16_model_casts_its_pictures(models, processors, version):
    model, batch = copy.deepcopy(models[version]).bfloat16(), processors[version](answered(*several()))
    assert batch.images[0][0].dtype == torch.float32
    with torch.no_grad():
        half, full = model(batch), models[version](batch)
    assert half.logits.dtype == torch.bfloat16 and half.loss.dtype == torch.float32
    real = batch.attention_mask.bool()
    cosine = F.cosine_similarity(half.logits[real].float(), full.logits[real], dim=-1)
    assert cosine.mean() > 0.99
    assert model.generate(batch, max_new_tokens=3).shape[0] == 4
    assert model.encode_images(batch.images[0], batch.patch_grids[0]).dtype == torch.bfloat16


def test_a_model_on_the_meta_device_takes_no_memory():
    with torch.device("meta"):
        model = MiniCPMV(v2_6)
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"meta"}
    with torch.no_grad():
        tokens = model.encode_images([torch.zeros(3, 448, 448), torch.zeros(3, 392, 518)], [(32, 32), (28, 37)])
    assert tokens.shape == (2, 64, 3584) and tokens.is_meta


def test_seeded_is_reproducible_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a = MiniCPMV.seeded(tiny_config("2.6"), 1)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(77)
    b, c = MiniCPMV.seeded(tiny_config("2.6"), 1), MiniCPMV.seeded(tiny_config("2.6"), 2)
    a, b, c = (m.state_dict() for m in (a, b, c))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["resampler.proj"], c["resampler.proj"])
    assert not torch.equal(a["llm.lm_head.weight"], c["llm.lm_head.weight"])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_batch_is_not_changed(models, processors, version):
    model, batch = models[version], processors[version](answered(*several()))
    before = copy.deepcopy(batch)
    weights = {name: p.clone() for name, p in model.state_dict().items()}
    model(batch)
    model.generate(batch, max_new_tokens=3, temperature=1.0, repetition_penalty=1.5)
    for name in ("input_ids", "attention_mask", "position_ids", "labels"):
        assert torch.equal(getattr(batch, name), getattr(before, name)), name
    for name in ("images", "image_bounds"):
        for a, b in zip(getattr(batch, name), getattr(before, name), strict=True):
            assert len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), name
    assert (batch.patch_grids, batch.plans, batch.stop_ids) == (before.patch_grids, before.plans, before.stop_ids)
    assert all(torch.equal(weights[name], p) for name, p in model.state_dict().items())


def test_the_llm_is_the_one_the_version_was_released_with(models):
    names = {version: type(model.llm).__name__ for version, model in models.items()}
    assert names == {"2.0": "GraniteForCausalLM", "2.5": "LlamaForCausalLM", "2.6": "Qwen2ForCausalLM"}
    granite = models["2.0"].llm.config
    assert granite.embedding_multiplier == 12 and granite.logits_scaling == 64 / 16
    assert granite.residual_multiplier == 1.4 / math.sqrt(3) and granite.attention_multiplier == 1 / 4
    assert [m.llm.config.rope_parameters["rope_theta"] for m in models.values()] == [1e4, 5e5, 1e6]
    assert {m.llm.config.rms_norm_eps for m in models.values()} == {1e-6}


# --- nano, with a long video ---------------------------------------------------------------------------------------


def test_nano_watches_sixty_four_frames():
    model, processor = MiniCPMV.seeded(nano), Processor.from_pretrained("nano")
    frames = [picture(112, 84, seed) for seed in range(80)]  # thinned out to 64
    batch = processor(ask(frames, "What happens?"))
    assert len(batch.images[0]) == 64 and len(batch.plans[0]) == 64
    assert "<image_id>" not in processor.tokenizer.decode(batch.input_ids[0])
    out = model.generate(batch, max_new_tokens=2)
    assert out.shape == (1, 2)
    with torch.no_grad():
        embedded = model.embed(batch)
        last = model.encode_images(batch.images[0][-1:], batch.patch_grids[0][-1:])
    start, end = batch.image_bounds[0][-1].tolist()
    close(embedded[0, start:end], last[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_without_memory_has_real_rotary_frequencies(version):
    """They are in no checkpoint: left on the meta device, a loaded model could not compute."""
    config = tiny_config(version)
    empty, real = MiniCPMV.without_memory(config), MiniCPMV.seeded(config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert torch.equal(empty.llm.model.rotary_emb.inv_freq, real.llm.model.rotary_emb.inv_freq)
