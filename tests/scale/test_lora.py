"""LoRA: adapters, their files and the merged model all give the same logits; peft reads ours, and we read peft's."""

import json
import os
import re
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import VERSIONS, ask, lively, picture, several, tiny_config, tiny_model, tiny_processor

from minicpmv_ref import MiniCPMV, Processor
from minicpmv_ref.inputs.published import BUNDLED
from minicpmv_ref.learn.packing import pack_batch, packed_loss
from minicpmv_ref.learn.stages import Stage, freeze, stage_named, start
from minicpmv_ref.scale.finetune import in_order
from minicpmv_ref.scale.lora import (
    ADAPTED,
    MODULES_TO_SAVE,
    SETTINGS,
    WEIGHTS,
    add_lora,
    has_lora,
    learning,
    load_lora,
    lora_optimizer,
    merge_lora,
    restore_lora,
    save_lora,
    table,
    training_bytes,
)
from minicpmv_ref.scale.records import read_records
from minicpmv_ref.scale.steps import train_steps as train
from minicpmv_ref.toy.data import draw
from minicpmv_ref.toy.spelled import spelled_tokens

RECORDS = BUNDLED.parent / "records" / "train.json"
CHAT = [*ask(picture(130, 90, 1), "What is this?"), {"role": "assistant", "content": "A cat."}]
STAGE = Stage("mine", "answer", {"llm": 1.0}, {}, steps=4, batch=2)  # its rate is not read


def stir(model, seed=1):
    """Change all that learns, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@torch.no_grad()
def logits(model, version):
    return model(tiny_processor(version)(several())).logits


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A saved adapter of the tiny 2.6, and the logits of the model that it was saved from."""
    model = stir(add_lora(tiny_model("2.6"), rank=3, alpha=5))
    folder = tmp_path_factory.mktemp("adapter")
    save_lora(model, folder)
    return folder, logits(model, "2.6")


@pytest.fixture
def copy(adapter, tmp_path):
    return shutil.copytree(adapter[0], tmp_path / "copy")


def edit(folder, **fields):
    """Change the settings as peft's own writing would have it: without our metadata, which would notice."""
    settings = json.loads((folder / SETTINGS).read_text()) | fields
    (folder / SETTINGS).write_text(json.dumps(settings))
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)


def signature(model):
    """Names and kinds of all modules, and all numbers: what an error must leave as it was."""
    kinds = [(name, type(module).__name__, module.training) for name, module in model.named_modules()]
    return kinds, [(name, p.requires_grad, p.double().sum().item()) for name, p in model.named_parameters()]


# ---- the same logits everywhere


@pytest.mark.parametrize("modules", [MODULES_TO_SAVE, ()], ids=["official", "lora alone"])
@pytest.mark.parametrize("version", ["2.0", "2.5", "2.6"])
def test_adapted_saved_loaded_merged_and_reloaded_are_one_model(version, modules, tmp_path):
    base = logits(tiny_model(version), version)
    model = add_lora(tiny_model(version), rank=3, alpha=5, modules_to_save=modules)
    assert torch.equal(logits(model, version), base)  # B is zero
    wanted = logits(stir(model), version)
    assert (wanted - base).abs().max() > 0.1
    save_lora(model, tmp_path / "adapter")

    loaded = load_lora(tiny_model(version), tmp_path / "adapter")
    assert torch.equal(logits(loaded, version), wanted)
    merged = merge_lora(loaded)
    assert (logits(merged, version) - wanted).abs().max() < 2e-5
    assert [name for name, _ in merged.named_parameters()] == [
        name for name, _ in tiny_model(version).named_parameters()
    ]

    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(MiniCPMV.from_pretrained(tmp_path / "merged"), version), logits(merged, version))


def test_a_layer_merges_exactly():
    """In float64, against the formula. (Whole models cannot show it: transformers' norms compute in float32.)"""
    model = stir(add_lora(tiny_model("2.6").double(), rank=3, alpha=5, modules_to_save=()))
    layer = model.llm.model.layers[1].self_attn.v_proj
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    weight, bias = layer.base_layer.weight.detach().clone(), layer.base_layer.bias.detach()
    x = torch.randn(7, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = x @ weight.T + bias + (5 / 3) * x @ a.T @ b.T
    assert (layer(x) - wanted).abs().max() < 1e-12
    plain = merge_lora(model).llm.model.layers[1].self_attn.v_proj
    assert type(plain) is torch.nn.Linear
    assert (plain.weight - (weight + (5 / 3) * b @ a)).abs().max() < 1e-12
    assert (plain(x) - wanted).abs().max() < 1e-12


def test_tied_embeddings_stay_one(tmp_path):
    """Untied, the merged model would be saved without its LM head, and answer differently after loading."""
    processor = Processor.from_pretrained("nano")
    batch = processor([CHAT])
    model = stir(add_lora(lively(start()), rank=4))
    assert model.config.llm.tie_word_embeddings
    assert model.llm.lm_head.weight is model.llm.get_input_embeddings().weight
    with torch.no_grad():
        wanted = model(batch).logits
        save_lora(model, tmp_path / "adapter")
        loaded = load_lora(lively(start()), tmp_path / "adapter")
        assert torch.equal(loaded(batch).logits, wanted)
        merge_lora(loaded).save_pretrained(tmp_path / "merged")
        again = MiniCPMV.from_pretrained(tmp_path / "merged")
        assert loaded.llm.lm_head.weight is loaded.llm.model.embed_tokens.weight
        assert (again(batch).logits - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_peft_reads_our_files(adapter):
    folder, wanted = adapter
    theirs = PeftModel.from_pretrained(tiny_model("2.6"), folder)
    assert torch.equal(logits(theirs.base_model.model, "2.6"), wanted)
    merged = theirs.merge_and_unload()
    assert torch.equal(logits(merged, "2.6"), logits(merge_lora(load_lora(tiny_model("2.6"), folder)), "2.6"))


def test_we_read_the_files_of_peft(tmp_path):
    """Made as the official script makes them."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=ADAPTED,
        lora_dropout=0.05,
        bias="none",
        layers_to_transform=None,
        modules_to_save=["embed_tokens", "resampler"],
    )
    theirs = get_peft_model(tiny_model("2.6"), config)
    model = stir(theirs.base_model.model).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_lora(tiny_model("2.6"), tmp_path)
    assert torch.equal(logits(ours, "2.6"), logits(model, "2.6"))  # dropout is off: the base was not in training mode
    assert learning(ours)["vpm"] == (0, 37120)


def test_what_learns_is_what_the_official_script_trains():
    theirs = get_peft_model(
        tiny_model("2.6"), LoraConfig(r=3, target_modules=ADAPTED, modules_to_save=["embed_tokens", "resampler", "vpm"])
    ).base_model.model
    ours = add_lora(tiny_model("2.6"), rank=3)
    for model in (ours, theirs):
        assert sum(p.requires_grad for p in model.parameters()) > 0
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == {
        n for n, p in theirs.named_parameters() if p.requires_grad
    }


def test_the_old_name_of_modules_to_save():
    old, new = (add_lora(tiny_model("2.6"), rank=3, **{name: ("vpm",)}) for name in ("whole", "modules_to_save"))
    assert learning(old) == learning(new) != learning(add_lora(tiny_model("2.6"), rank=3))


def test_the_adapters_are_the_same_every_time():
    models = [tiny_model("2.6") for _ in range(3)]
    one = add_lora(models[0], rank=3).state_dict()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    two, other = (add_lora(model, rank=3, seed=seed).state_dict() for model, seed in zip(models[1:], (0, 1)))
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "llm.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name])


# ---- whatever layer is wrapped, the wrapper computes


def layers(version):
    """The names of all layers with a matrix; of those that repeat themselves, the first."""
    kinds = torch.nn.Linear | torch.nn.Conv2d | torch.nn.Embedding
    with torch.device("meta"):
        modules = MiniCPMV(tiny_config(version)).named_modules()
    return [name for name, module in modules if isinstance(module, kinds) and not re.search(r"layers\.[1-9]", name)]


# The LLM is transformers' in all versions: what is inside of it is tried once.
EVERY_LAYER = [("2.6", name) for name in layers("2.6")]
EVERY_LAYER += [(v, name) for v in ("2.0", "2.5") for name in layers(v) if not name.startswith("llm.model.layers")]


def wide_batch(version):
    """Enough patches in one call for the faster ways of inference."""
    batch = tiny_processor(version)([ask(picture(168, 168, 5), "What is this?")])
    assert sum(rows * cols for rows, cols in batch.patch_grids[0]) >= 128
    return batch


def wrapped(version, name, **settings):
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=[name], **settings), tiny_model(version))
    generator = torch.Generator().manual_seed(3)
    learning = {key: p for key, p in model.named_parameters() if "lora_" in key}
    with torch.no_grad():
        for parameter in learning.values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model, learning


def same_with_and_without_gradients(model, batch):
    logits = model(batch).logits
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert (model(batch).logits - logits).abs().max() < 1e-4 * logits.abs().max()
    return logits


@pytest.mark.parametrize(("version", "name"), EVERY_LAYER, ids=map(" ".join, EVERY_LAYER))
def test_an_adapter_on_any_layer_is_what_is_merged(version, name, tmp_path):
    batch = wide_batch(version)
    model, learning = wrapped(version, name)
    logits = same_with_and_without_gradients(model, batch)
    (logits * torch.linspace(-1, 1, logits.shape[-1])).sum().backward()
    assert len(learning) == 2 and all((p.grad != 0).any() for p in learning.values())
    change = (logits - tiny_model(version)(batch).logits).abs().max()
    save_lora(model, tmp_path)
    assert torch.equal(load_lora(tiny_model(version), tmp_path)(batch).logits, logits)
    assert (merge_lora(model)(batch).logits - logits).abs().max() < 1e-3 * change


@pytest.mark.parametrize("name", [name for name in layers("2.6") if "embed" not in name])
def test_dora_on_any_linear_layer_is_what_is_merged(name):
    batch = wide_batch("2.6")
    model, learning = wrapped("2.6", name, use_dora=True)
    logits = same_with_and_without_gradients(model, batch)
    logits.square().sum().backward()
    assert len(learning) == 3 and all((p.grad != 0).any() for p in learning.values())
    change = (logits - tiny_model("2.6")(batch).logits).abs().max()
    assert (merge_lora(model)(batch).logits - logits).abs().max() < 1e-3 * change


def test_pictures_spelled_in_words_pass_through_an_adapter():
    model, _ = wrapped("2.6", "llm.model.embed_tokens")
    samples = [draw(i, "caption") for i in range(2)]
    spelled = spelled_tokens(model, Processor.from_pretrained("nano"), samples)
    plain = spelled_tokens(tiny_model("2.6"), Processor.from_pretrained("nano"), samples)
    merged = spelled_tokens(merge_lora(model), Processor.from_pretrained("nano"), samples)
    assert (spelled - merged).abs().max() < 1e-3 * (spelled - plain).abs().max()


@pytest.mark.parametrize("version", VERSIONS)
def test_hooks_on_every_layer_fire(version):
    batch, model, seen = wide_batch(version), tiny_model(version), set()
    for name in layers(version):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.add(name))
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        seen.clear()
        with mode():
            model(batch)
        assert seen == set(layers(version))


# ---- a MiniCPMV stays one


def test_it_chats_generates_and_scores_as_before():
    model, processor = stir(add_lora(tiny_model("2.6"), rank=3)), tiny_processor("2.6")
    assert type(model) is MiniCPMV and not model.training
    batch = processor([CHAT, CHAT[:1] + [{"role": "assistant", "content": "No."}]])
    with torch.no_grad():
        assert abs(packed_loss(model, pack_batch(batch, [[1, 0]])) - model(batch).loss) < 1e-5
    prompt = processor(CHAT[:1])
    ids = model.generate(prompt, 6)
    said = model.chat(CHAT[:1], processor, max_new_tokens=6)
    merge_lora(model)
    assert torch.equal(model.generate(prompt, 6), ids)
    assert model.chat(CHAT[:1], processor, max_new_tokens=6) == said


def test_training_changes_what_learns_and_nothing_else():
    records, _ = read_records(RECORDS)
    model, processor = add_lora(start(), rank=4, modules_to_save=("resampler",)), Processor.from_pretrained("nano")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = lora_optimizer(model, 1e-2, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    learning = {name: rates.pop(id(p)) for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name: 1e-2 if "lora_" in name else 1e-3 for name in learning} and not rates
    steps = list(train(model, processor, STAGE, samples=in_order(records), optimizer=optimizer))
    assert not any(step.flops for step in steps)  # not counted with adapters
    assert len(steps) == 4
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("resampler.modules_to_save") for name in changed)
    assert sum("lora_" in name for name in changed) == 2 * 4 * model.config.llm.num_hidden_layers
    # The estimate is what AdamW holds, but for a step count of four bytes for each tensor.
    held = [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.ndim]
    assert sum(tensor.nbytes for tensor in held) == training_bytes(model)["optimizer"]
    assert sum(p.grad.nbytes for p in model.parameters() if p.grad is not None) == training_bytes(model)["gradients"]


def test_a_resumed_training_is_the_same(tmp_path):
    records, _ = read_records(RECORDS)
    processor = Processor.from_pretrained("nano")

    def go(model, optimizer, until, done=0):
        samples = train(
            model,
            processor,
            STAGE,
            samples=in_order(records),
            optimizer=optimizer,
            done=done,
        )
        for step in samples:
            if step.step == until:
                return

    straight = add_lora(start(), rank=4, modules_to_save=())
    go(straight, lora_optimizer(straight, 1e-2), 4)
    first = add_lora(start(), rank=4, modules_to_save=())
    optimizer = lora_optimizer(first, 1e-2)
    go(first, optimizer, 2)
    save_lora(first, tmp_path)
    second = load_lora(start(), tmp_path)
    resumed = lora_optimizer(second, 1e-2)
    resumed.load_state_dict(optimizer.state_dict())
    go(second, resumed, 4, done=2)
    ours, theirs = second.state_dict(), straight.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_merged_parameters_learn_again_but_for_the_constant_one():
    model = add_lora(tiny_model("2.0"), rank=3)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "pos_embed" in name)
    merge_lora(model)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"resampler.pos_embed"}


def test_a_model_in_training_stays_in_training():
    model = tiny_model("2.6").train()
    assert all(module.training for module in add_lora(model, rank=2).modules())
    with pytest.raises(ValueError, match="lora_optimizer knows what learns"):
        freeze(model, stage_named("sft-1"))  # it would let the base learn
    assert all(module.training for module in merge_lora(model).modules())


# ---- counting


def test_parameters_by_part():
    model = tiny_model("2.6")
    alone = {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in ("vpm", "resampler", "llm")}
    words = model.llm.model.embed_tokens.weight.numel()
    counts = learning(add_lora(model, rank=3))
    width, narrow, layers = 64, 32, 3  # two of four heads have keys and values
    adapters = layers * 3 * (4 * width + 2 * width + 2 * narrow)  # A: q, k, v, o read 64; B: q, o and k, v
    assert counts == {
        "vpm": (alone["vpm"],) * 2,
        "resampler": (alone["resampler"],) * 2,
        "embed_tokens": (words,) * 2,
        "llm": (0, alone["llm"] - words),
        "adapters": (adapters,) * 2,
        "frozen copies": (0, alone["vpm"] + alone["resampler"] + words),
    }
    text = table(model).splitlines()
    assert text[0].split() == ["part", "learn", "all"]
    together = sum(some for some, _ in counts.values())
    assert text[7].split() == ["together", f"{together:,}", f"{sum(total for _, total in counts.values()):,}"]
    assert text[10].split() == ["optimizer", f"{8 * together / 1e6:.2f}", "MB"]
    assert "frozen copies" not in table(add_lora(tiny_model("2.6"), rank=3, modules_to_save=()))


# ---- what is refused


@pytest.mark.parametrize(
    "options",
    [
        dict(rank=0),
        dict(rank=0, alpha=1),
        dict(rank=-1),
        dict(rank=2.0),
        dict(rank=True),
        dict(rank=2, alpha=0),
        dict(rank=2, alpha=float("nan")),
        dict(rank=2, alpha=float("inf")),
        dict(rank=2, alpha=10**400),
        dict(rank=3_000_000),
        dict(rank=10**30),
        dict(rank=2, modules_to_save="vpm"),
        dict(rank=2, modules_to_save=("llm",)),
    ],
    ids=str,
)
def test_impossible_settings(options):
    model = tiny_model("2.6")
    with pytest.raises(ValueError, match=r"rank|modules_to_save"):
        add_lora(model, **options)
    assert not has_lora(model)


def test_adapters_go_on_once_and_off_once(adapter, tmp_path):
    model = tiny_model("2.6")
    for wrong in (merge_lora, lambda m: save_lora(m, tmp_path / "x"), lambda m: lora_optimizer(m, 1e-3)):
        with pytest.raises(ValueError, match="no adapters"):
            wrong(model)
    add_lora(model, rank=2)
    for wrong in (lambda m: add_lora(m, rank=2), lambda m: load_lora(m, adapter[0])):
        with pytest.raises(ValueError, match="adapters already"):
            wrong(model)
    merge_lora(model)
    with pytest.raises(ValueError, match="merged before"):
        merge_lora(model)
    add_lora(model, rank=2)  # a new round is fine


def test_an_adapter_is_not_merged_into_its_own_result(adapter):
    merged = merge_lora(load_lora(tiny_model("2.6"), adapter[0]))
    with pytest.raises(ValueError, match="merged into this model before"):
        load_lora(merged, adapter[0])
    assert not has_lora(merged)


def test_another_base(adapter):
    for model, words in (
        (tiny_model("2.5"), "another config"),
        (tiny_model("2.6", positions=512), "another config"),
        (tiny_model("2.6", seed=1), "other weights"),
    ):
        with pytest.raises(ValueError, match=words):
            load_lora(model, adapter[0])
        assert not has_lora(model)


def test_the_same_base_in_another_precision_is_the_same_base(tmp_path):
    save_lora(stir(add_lora(tiny_model("2.6").bfloat16(), rank=2)), tmp_path)
    load_lora(tiny_model("2.6"), tmp_path)  # trained in bfloat16, to be merged in float32


def test_an_adapter_of_peft_on_another_base(copy):
    """Without our metadata, names and shapes must do."""
    edit(copy)
    model = tiny_model("2.0")  # its LLM has more heads for keys and values
    with pytest.raises(ValueError, match=r"does not fit this model: \d+ tensors are wrong; .*should be"):
        load_lora(model, copy)
    assert not has_lora(model)
    assert torch.equal(logits(model, "2.0"), logits(tiny_model("2.0"), "2.0"))
    assert all(p.requires_grad for name, p in model.named_parameters() if "pos_embed" not in name)
    load_lora(tiny_model("2.6"), copy)


def test_a_missing_file(copy):
    (copy / WEIGHTS).rename(copy / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no adapter_model.safetensors in .*pickle file, which is not read"):
        load_lora(tiny_model("2.6"), copy)
    (copy / SETTINGS).unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
        load_lora(tiny_model("2.6"), copy)


@pytest.mark.parametrize("name", [SETTINGS, WEIGHTS])
def test_half_a_file(copy, name):
    content = (copy / name).read_bytes()
    for half in (b"", content[: len(content) // 2], content[:-1]):
        (copy / name).write_bytes(half)
        with pytest.raises(ValueError, match=f"{name} is (damaged|not JSON)"):
            load_lora(tiny_model("2.6"), copy)


def test_halves_of_two_adapters(copy, tmp_path):
    save_lora(add_lora(tiny_model("2.6"), rank=3, alpha=7), tmp_path / "other")  # all shapes are the same
    shutil.copy(tmp_path / "other" / SETTINGS, copy)
    model = tiny_model("2.6")
    with pytest.raises(ValueError, match="not of the same adapter"):
        load_lora(model, copy)
    assert not has_lora(model)


def test_a_tensor_too_few_too_many_or_not_finite(copy):
    edit(copy)
    tensors = load_file(copy / WEIGHTS)
    name = "base_model.model.llm.model.layers.0.self_attn.q_proj.lora_A.weight"
    for wrong in ({n: t for n, t in tensors.items() if n != name}, tensors | {"x": torch.ones(1)}):
        save_file(wrong, copy / WEIGHTS)
        with pytest.raises(ValueError, match="1 tensors are wrong"):
            load_lora(tiny_model("2.6"), copy)
    for odd in (float("nan"), float("inf")):
        save_file(tensors | {name: tensors[name] * odd}, copy / WEIGHTS)
        with pytest.raises(ValueError, match=r"q_proj.lora_A.weight holds a NaN or an infinity"):
            load_lora(tiny_model("2.6"), copy)
    save_file(tensors | {name: tensors[name].double() * 1e300}, copy / WEIGHTS)
    with pytest.raises(ValueError, match=r"q_proj.lora_A.weight is not finite as torch.float32"):
        load_lora(tiny_model("2.6"), copy)
    save_file(tensors | {name: tensors[name].int()}, copy / WEIGHTS)
    with pytest.raises(ValueError, match=r"the dtype of .*q_proj.lora_A.weight must be one of F64.*got 'I32'"):
        load_lora(tiny_model("2.6"), copy)
    save_file(tensors | {name.removeprefix("base_model.model."): tensors[name].clone()}, copy / WEIGHTS)
    with pytest.raises(ValueError, match="has a tensor twice"):
        load_lora(tiny_model("2.6"), copy)


def test_names_from_a_file_do_not_reach_the_terminal(copy):
    edit(copy)
    save_file(load_file(copy / WEIGHTS) | {"\x1b[2J": torch.ones(1)}, copy / WEIGHTS)
    with pytest.raises(ValueError, match="1 tensors are wrong") as caught:
        load_lora(tiny_model("2.6"), copy)
    assert "\x1b" not in str(caught.value)
    for folder in ("no\x1b[2J", "no\0", "no" * 5000):
        with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json in no") as caught:
            load_lora(tiny_model("2.6"), folder)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    edit(copy, **{"a\x1b[2Jb": "\x1b[2J"})
    with pytest.raises(ValueError, match="is not supported") as caught:
        load_lora(tiny_model("2.6"), copy)
    assert "\x1b" not in str(caught.value)


def test_adapters_that_are_not_finite_are_not_merged():
    model = stir(add_lora(tiny_model("2.6"), rank=2, modules_to_save=()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer = model.llm.model.layers[2].self_attn.v_proj
    for value, words in ((float("nan"), r"lora_A.default.weight is not finite"), (3e38, "v_proj: weights and adapter")):
        with torch.no_grad():
            layer.lora_A["default"].weight[0, 0] = value
            layer.lora_B["default"].weight[0, 0] = 10
        with pytest.raises(ValueError, match=words):
            merge_lora(model)
    assert has_lora(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if ".2.self_attn.v_proj.lora_" not in name)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(peft_type="IA3"), "is not of a LoRA adapter"),
        (dict(r=0), "positive"),
        (dict(r="3"), "adapter_config.json: "),
        (dict(target_modules="nothing"), "No modules were targeted"),
        (dict(use_dora=True), "use_dora = True is not supported"),
        (dict(bias="all"), "bias = 'all' is not supported"),
        (dict(init_lora_weights="pissa"), "init_lora_weights = 'pissa' is not supported"),
        (dict(megatron_config={"a": 1}, megatron_core="antigravity"), "megatron_co.* is not supported"),
        (dict(surprise=1), "surprise = 1 is not supported"),
        (dict(r=3_000_000), "r .* at most 4,096, got 3000000"),
        (dict(r=True), "r .* must be an integer"),
        (dict(r=None), "r .* must be an integer"),
        (dict(r=-4), "r .* of at least 1"),
        (dict(lora_alpha=0), "lora_alpha .* above 0"),
        (dict(lora_alpha=-1.5), "lora_alpha .* above 0"),
        (dict(lora_alpha="8"), "lora_alpha .* must be a number"),
        (dict(lora_alpha=1e300), "lora_alpha .* at most 65,504"),
        (dict(lora_alpha=None), "lora_alpha .* must be a number"),
        (dict(lora_dropout=1.0), "lora_dropout must be .* at most 0.99"),
        (dict(lora_dropout=-0.1), "lora_dropout must be"),
        (dict(lora_dropout="x"), "lora_dropout must be a number"),
        (dict(use_rslora=1), "use_rslora must be bool, got int"),
        (dict(use_rslora="yes"), "use_rslora must be bool"),
        (dict(modules_to_save="vpm"), "modules_to_save must be a list, got str"),
        (dict(modules_to_save=["proj"]), "each of modules_to_save must be one of embed_tokens.*'proj'"),
        (dict(modules_to_save=["(.*.*.*)*x"]), "each of modules_to_save must be one of"),
        (dict(modules_to_save=[["vpm"]]), r"modules_to_save\[0\] must be str"),
        (dict(target_modules=None), "target_modules must be a list, got NoneType"),
        (dict(target_modules=[]), "target_modules must hold at least one item"),
        (dict(target_modules=["q_proj", 3]), r"target_modules\[1\] must be str"),
        (dict(target_modules=["q_proj|v_proj"]), "target_modules must be names of modules"),
        (dict(target_modules=["q_proj"] * 1001), "at most 1,000 names, got 1,001"),
        (dict(target_modules=""), "target_modules must be a list of names, all-linear, or a simple"),
        (dict(target_modules="("), "target_modules must be a list of names, all-linear, or a simple"),
        (dict(target_modules="([a-z_0-9.]+)*!"), "target_modules must be a list of names, all-linear, or a simple"),
        (dict(target_modules="(a|a)*b"), "simple expression such as llm"),
        (dict(target_modules=".*.*.*.*q_proj"), "simple expression such as llm"),
        (dict(target_modules="layernorm"), "target_modules|No modules|not supported"),
        (dict(target_modules=["input_layernorm"]), "Target module Qwen2RMSNorm"),
        (dict(target_modules="llm.*"), r"does not fit this model: Target module Qwen2ForCausalLM.{,200}$"),
        (dict(target_modules=["layers"]), r"does not fit this model: Target module ModuleList.{,200}$"),
        (dict(target_modules="all-linear"), r"does not fit this model: \d+ tensors are wrong"),
        (dict(rank_pattern={"q_proj": 3_000_000}), "rank_pattern = .* is not supported"),
        (dict(alpha_pattern={"(a+)+$": 4}), "alpha_pattern = .* is not supported"),
        (dict(layers_to_transform=[0]), "layers_to_transform = .* is not supported"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_settings_that_do_not_fit(copy, fields, words):
    edit(copy, **fields)
    model = tiny_model("2.6")
    before = signature(model)
    with pytest.raises(ValueError, match=words):
        load_lora(model, copy)
    assert not has_lora(model)
    assert signature(model) == before


@pytest.mark.parametrize("key", ["r", "lora_alpha", "target_modules"])
def test_settings_that_are_missing(copy, key):
    edit(copy)
    settings = json.loads((copy / SETTINGS).read_text())
    del settings[key]
    (copy / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"does not say {key}$"):
        load_lora(tiny_model("2.6"), copy)


@pytest.mark.parametrize(
    "text",
    ['{"peft_type": "LORA", "lora_alpha": NaN}', '{"r": 1, "r": 2}', "[1]", "[" * 10_000, '{"r": 1' + "0" * 5000 + "}"],
    ids=["NaN", "twice", "list", "deep", "digits"],
)
def test_settings_that_are_not_json(copy, text):
    (copy / SETTINGS).write_text(text)
    with pytest.raises(ValueError, match=r"adapter_config\.json (is not JSON|must hold a JSON object)"):
        load_lora(tiny_model("2.6"), copy)


def test_expressions_that_are_simple_name_the_same_layers(adapter, copy):
    """As the official script, ms-swift and people write them; the rest of the file stays as it is."""
    names = "(q_proj|k_proj|v_proj|o_proj)"
    listed = [f"llm.model.layers.{i}.self_attn.{name}_proj" for i in range(3) for name in "qkvo"]
    for targets in (
        rf"^(llm.*\.{names})$",
        rf"^(llm(?=\.).*\.{names})$",
        rf"llm\.model\.layers\.\d+\.(?:self_attn|cross_attn)\.{names}",
        rf"llm.*{names}",
        listed,
        ["o_proj", *listed],
    ):
        edit(copy, target_modules=targets)
        assert torch.equal(logits(load_lora(tiny_model("2.6"), copy), "2.6"), adapter[1])


def test_a_pipe_for_a_file(copy):
    for name in (WEIGHTS, SETTINGS):
        (copy / name).unlink()
        os.mkfifo(copy / name)
        with pytest.raises(OSError, match="is a pipe or a device"):
            load_lora(tiny_model("2.6"), copy)


def test_an_adapter_is_restored_into_its_own_kind(adapter, copy):
    model = add_lora(tiny_model("2.6"), rank=3, alpha=5)
    restore_lora(model, copy)
    assert torch.equal(logits(model, "2.6"), adapter[1])
    for other, words in (
        (add_lora(tiny_model("2.6"), rank=3, alpha=6), "lora_alpha is 5, that of the model's adapters 6"),
        (add_lora(tiny_model("2.6"), rank=2, alpha=5), "r is 3, that of the model's adapters 2"),
        (add_lora(tiny_model("2.6"), rank=3, alpha=5, modules_to_save=()), "tensors are wrong"),
    ):
        before = logits(other, "2.6")
        with pytest.raises(ValueError, match=words):
            restore_lora(other, copy)
        assert torch.equal(logits(other, "2.6"), before)
    other = tiny_model("2.6")
    other.llm.model.norm.weight.data[0] += 1  # the base was trained again meanwhile
    with pytest.raises(ValueError, match="was trained on other weights"):
        restore_lora(add_lora(other, rank=3, alpha=5), copy)
    edit(copy)
    tensors = load_file(copy / WEIGHTS)
    save_file({name: tensor * float("inf") for name, tensor in tensors.items()}, copy / WEIGHTS)
    with pytest.raises(ValueError, match="holds a NaN or an infinity"):
        restore_lora(model, copy)
    assert torch.equal(logits(model, "2.6"), adapter[1])


# ---- embeddings that are the LM head, too


def made_by_peft(**settings):
    model = inject_adapter_in_model(LoraConfig(r=2, **settings), lively(MiniCPMV.from_pretrained("nano")))
    return stir(model, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(target_modules=["lm_head"]), "no adapter on lm_head"),
        (dict(target_modules="all-linear"), "no adapter on lm_head"),
        (dict(target_modules=["embed_tokens"]), "no adapter on embed_tokens"),
        (dict(target_modules=["q_proj"], modules_to_save=["lm_head"]), "no adapter on lm_head"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_adapter_on_half_of_a_tied_pair(settings, words, tmp_path):
    made, base = made_by_peft(**settings), MiniCPMV.from_pretrained("nano")
    save_lora(made, tmp_path)  # peft itself could read it
    for with_metadata in (True, False):
        if not with_metadata:
            edit(tmp_path)
        before = signature(base)
        with pytest.raises(ValueError, match="other weights" if with_metadata else words):
            load_lora(base, tmp_path)
        assert not has_lora(base) and signature(base) == before
    with pytest.raises(ValueError, match=words):
        merge_lora(made)
    assert has_lora(made)


def test_word_embeddings_that_learned_alone(tmp_path):
    """peft trains a copy of the input side, and does not know that the LM head is the same tensor."""
    made = made_by_peft(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    for wrong in (merge_lora, lambda model: save_lora(model, tmp_path)):
        with pytest.raises(ValueError, match="embed_tokens learned without the LM head"):
            wrong(made)
    save_lora(stir(add_lora(MiniCPMV.from_pretrained("nano"), rank=2, modules_to_save=("embed_tokens",))), tmp_path)
    assert has_lora(load_lora(MiniCPMV.from_pretrained("nano"), tmp_path))
    edit(tmp_path)  # as peft writes it
    base = MiniCPMV.from_pretrained("nano")
    with pytest.raises(ValueError, match="embed_tokens learned without the LM head"):
        load_lora(base, tmp_path)
    assert not has_lora(base)


# ---- wrong types


def test_wrong_types(adapter, tmp_path):
    model = add_lora(tiny_model("2.6"), rank=2)
    for wrong in (
        lambda: add_lora(None),
        lambda: add_lora(tiny_model("2.6"), "3"),
        lambda: add_lora(tiny_model("2.6"), 3, alpha="5"),
        lambda: add_lora(tiny_model("2.6"), 3, modules_to_save=None),
        lambda: add_lora(tiny_model("2.6"), 3, modules_to_save=({},)),
        lambda: add_lora(tiny_model("2.6"), 3, seed=0.5),
        lambda: load_lora(None, adapter[0]),
        lambda: load_lora(tiny_model("2.6"), None),
        lambda: load_lora(tiny_model("2.6"), 3),
        lambda: restore_lora(model, b"x"),
        lambda: save_lora(model, None),
        lambda: save_lora("model", tmp_path),
        lambda: merge_lora(None),
        lambda: has_lora(None),
        lambda: learning("model"),
        lambda: training_bytes(None),
        lambda: table(3),
        lambda: lora_optimizer(model, "fast"),
        lambda: lora_optimizer(model, 1e-3, [1]),
    ):
        with pytest.raises(
            TypeError,
            match=r"^(model|r|lora_alpha|modules_to_save|modules_to_save\[0\]|seed|folder|(full_)?rate) .*must",
        ):
            wrong()
    for wrong in (float("nan"), -1, float("inf")):
        with pytest.raises(ValueError, match="rate must be"):
            lora_optimizer(model, wrong)


def test_a_failed_writing_leaves_the_old_adapter(adapter, copy, monkeypatch):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("minicpmv_ref.scale.lora.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_lora(add_lora(tiny_model("2.6"), rank=2), copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_the_file_holds_the_adapter_only(adapter):
    with safe_open(adapter[0] / WEIGHTS, framework="pt") as file:
        names = set(file.keys())
    assert sorted(path.name for path in adapter[0].iterdir()) == [SETTINGS, WEIGHTS]
    assert all(name.startswith("base_model.model.") for name in names)
    assert not any("base_layer" in name or "original_module" in name or "lm_head" in name for name in names)
    assert sum(".lora_" in name for name in names) == 3 * 4 * 2
