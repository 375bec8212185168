"""Nano with the peers' connectors and cutting rules: it learns, is saved, loaded and answers, as nano does."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from tiny import ask, picture, tiny_model

from minicpmv_ref import MiniCPMV, Processor, nano
from minicpmv_ref.__main__ import main
from minicpmv_ref.counts import Workload, flops, parameters
from minicpmv_ref.deploy.gguf import export
from minicpmv_ref.deploy.memory import estimate
from minicpmv_ref.deploy.runtime import Runtime
from minicpmv_ref.deploy.sequence import measure
from minicpmv_ref.learn.objectives import objective_for
from minicpmv_ref.learn.packing import pack_batch, packed_loss
from minicpmv_ref.learn.stages import stage_named
from minicpmv_ref.learn.train import draw_samples, train
from minicpmv_ref.peers import cogvlm, load
from minicpmv_ref.peers.connectors import CONNECTORS
from minicpmv_ref.peers.expert import expert_optimizer
from minicpmv_ref.peers.nano import CUTTINGS, cut, swap, token_types
from minicpmv_ref.peers.sizes import tile_grid
from minicpmv_ref.scale.steps import flops_of

PAIRS = [(connector, "tiles") for connector in CONNECTORS] + [("mlp", "padded"), ("mean", "square")]
PAIRS += [("resampler", cutting) for cutting in CUTTINGS]
EXTRAS = {"one position": ("one_position",), "expert": ("expert", "one_position")}
PAIRS += [("shuffle", "tiles", name) for name in EXTRAS]
TOKENS = {"resampler": 16, "mlp": 64, "shuffle": 16, "mean": 16, "sva": 16, "qllama": 16}


@pytest.fixture(scope="module")
def trained():
    return MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def peer(request, trained):
    connector, cutting, *extras = request.param
    return swap(*trained, connector, cutting, seed=1, **{name: True for key in extras for name in EXTRAS[key]})


@torch.no_grad()
def test_slots_and_tokens(peer):
    model, processor = peer
    batch = processor(ask(picture(250, 100), "What is this?"))
    visual = model.encode_images(batch.images[0], batch.patch_grids[0])
    queries = TOKENS[model.peer["connector"]]
    assert visual.shape == (len(batch.images[0]), queries, 256)
    for (start, end), tokens in zip(batch.image_bounds[0].tolist(), visual):
        assert torch.equal(model.embed(batch)[0, start:end, :256], tokens)
    views = {"minicpm-v": 4, "square": 1, "padded": 1, "tiles": 4}[model.peer["cutting"]]
    assert len(visual) == views


@torch.no_grad()
def test_a_view_does_not_depend_on_the_others(peer):
    model, processor = peer
    batch = processor([ask(picture(250, 100), "What?"), ask(picture(90, 240), "What?")])
    both = model.encode_images([*batch.images[0], *batch.images[1]], [*batch.patch_grids[0], *batch.patch_grids[1]])
    alone = [model.encode_images(images, grids) for images, grids in zip(batch.images, batch.patch_grids)]
    torch.testing.assert_close(both, torch.cat(alone), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_cached_equals_uncached(peer):
    model, processor = peer
    batch = processor(ask(picture(60, 50), "What is this?"))
    answer = model.generate(batch, max_new_tokens=4)[0].tolist()
    ids, positions = batch.input_ids, batch.position_ids
    for token in answer:
        longer = replace(batch, input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.full_like(ids, -100))
        longer.position_ids = positions
        assert model(longer).logits[0, -1].argmax().item() == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)


def test_it_learns_is_saved_and_loaded(peer, tmp_path):
    model, processor = peer
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stage = replace(stage_named("stage-1"), steps=2, batch=2, half=False)
    assert len(list(train(model, processor, stage))) == 2
    moved = {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"resampler"}
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    again, its_processor = load(tmp_path)
    assert again.peer == model.peer
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    messages = ask(picture(250, 100), "What is this?")
    model.eval()
    assert again.chat(messages, its_processor, max_new_tokens=4) == model.chat(messages, processor, max_new_tokens=4)
    for read in (MiniCPMV.from_pretrained, Processor.from_pretrained):
        with pytest.raises(ValueError, match=r"minicpmv_ref\.peers\.load"):
            read(tmp_path)


def test_what_numbers_do_not_tell_is_not_counted(peer, trained, tmp_path):
    """Neither bytes nor operations; a new rule to cut pictures changes neither."""
    model, processor = peer
    for part in peer:
        part.save_pretrained(tmp_path)
    stage = stage_named("stage-1")
    objective = objective_for(model, processor, stage)
    micro_batch = objective.prepare([draw_samples(stage, 0, "train", objective.view)(0)], 1)
    counted = model.peer["connector"] == "resampler" and "expert" not in model.peer
    assert (flops_of(model, stage, micro_batch) > 0) == counted
    for config in (model.config, processor.config, load(tmp_path)[0].config):
        assert config.to_dict() == model.config.to_dict()
        if counted:
            assert sum(parameters(config).values()) == sum(p.numel() for p in model.parameters())
            assert estimate(config).total == estimate(trained[0].config).total
            continue
        for count in (
            parameters,
            estimate,
            partial(estimate, mixture="F16"),
            partial(flops, workload=Workload(1, 1, 1)),
        ):
            with pytest.raises(ValueError, match="config is of a peer, whose connector or expert is not counted"):
                count(config)
    again, _ = swap(*peer, "resampler") if "expert" not in model.peer else swap(*trained)  # counts again
    assert sum(parameters(again.config).values()) == sum(p.numel() for p in again.parameters())


def test_the_model_that_gave_its_parts_is_not_changed(trained):
    before = {name: tensor.clone() for name, tensor in trained[0].state_dict().items()}
    peer, _ = swap(*trained, "shuffle", "tiles")
    for parameter in peer.parameters():
        parameter.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained[0].state_dict().items())


def test_cuts():
    cfg = Processor.from_pretrained("nano").config.slicing
    for size in [(300, 100), (112, 112), (640, 480), (33, 500)]:
        assert cut(size, cfg, "square").patch_grids == cut(size, cfg, "padded").patch_grids == [(8, 8)]
        tiles = cut(size, cfg, "tiles")
        assert (tiles.grid or (1, 1)) == tile_grid((4 * size[0], 4 * size[1]), cfg.max_slice_nums)
        assert set(tiles.patch_grids) == {(8, 8)}


def test_padding_keeps_the_shape_of_things(trained):
    _, processor = swap(*trained, "mlp", "padded")
    circle = Image.new("RGB", (120, 60), "white")
    view = processor(ask(circle, "What?")).images[0][0]
    assert view[:, 0].std() < view.std()  # a bar of one color above
    assert (view[:, 40:70] > 0.9).all()


def test_what_does_not_fit_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="square views"):
        swap(*trained, "mlp", "minicpm-v")
    for wrong in (("resampl", "tiles"), ("mlp", "tile")):
        with pytest.raises(ValueError, match="must be one of"):
            swap(*trained, *wrong)
    expert, _ = swap(*trained, expert=True)
    with pytest.raises(ValueError, match="already"):
        swap(expert, trained[1])
    with pytest.raises(ValueError, match="stands in a Llama"):
        swap(tiny_model("2.6"), trained[1], expert=True)
    with pytest.raises(ValueError, match="must have a visual expert"):
        expert_optimizer(trained[0], 1e-3, 1e-3)
    model, processor = swap(*trained, "mlp", "tiles")
    for not_for_llama_cpp in (model, expert):
        with pytest.raises(ValueError, match="no other connector, cutting rule or expert"):
            export(not_for_llama_cpp, processor, tmp_path)
        with pytest.raises(ValueError, match="a part of this model would be lost"):
            measure(not_for_llama_cpp, processor, picture(60, 50), "What?")
    with pytest.raises(ValueError, match=r"a tensor that its config does not, .*\.vision\.weight, which would be left"):
        Runtime(expert)
    with pytest.raises(ValueError, match="takes 8 x 8"):
        model.encode_images([torch.zeros(3, 84, 140)], [(6, 10)])


def test_chat_takes_the_processor_of_its_model(trained):
    """Another one may give as many tokens, of other views or at other positions: the answer was wrong, silently."""
    conversation = ask(picture(250, 100), "What?")
    models = [swap(*trained, "resampler", *how, one_position=one) for how in ((), ("tiles",)) for one in (False, True)]
    for model, own in models:
        assert isinstance(model.chat(conversation, own, max_new_tokens=1), str)
        others = [each for _, each in models if each is not own] + [trained[1]] * (model is not models[0][0])
        for other in others:
            with pytest.raises(ValueError, match=f'by "{own.cutting}" with one_position={own.one_position}'):
                model.chat(conversation, other, max_new_tokens=1)
    assert isinstance(models[0][0].chat(conversation, trained[1], max_new_tokens=1), str)  # the same rule
    with pytest.raises(TypeError, match="processor must be Processor"):
        models[0][0].chat(conversation, None)


@pytest.mark.parametrize("name", CONNECTORS)
def test_a_connector_takes_no_features_that_its_grids_do_not_name(name):
    """A view more, or of other patches, once became tokens of a picture that nobody gave."""
    connector, width = CONNECTORS[name](nano), nano.vision.width
    view, grid = torch.zeros(64, width), (8, 8)
    assert connector([view], [grid]).shape == (1, connector.num_queries, nano.llm.hidden_size)
    for features, grids, words in (
        ([view, view], [grid], "2 slices of features but 1 patch grids"),
        ([view[:16]], [grid], r"slice 0: .*got \(16, "),
        ([view, view[:16]], [grid, grid], r"slice 1: .*got \(16, "),
        ([view[:, 1:]], [grid], rf"rows \* cols, {width}\)"),
        ([view], [8], r"patch_grids\[0\] must be a list"),
    ):
        with pytest.raises(ValueError, match=words):
            connector(features, grids)


def test_ask_takes_a_peer(trained, tmp_path, capsys):
    for part in swap(*trained, "shuffle", "tiles"):
        part.save_pretrained(tmp_path / "peer")
    picture(250, 100).save(tmp_path / "picture.png")
    words = ["ask", str(tmp_path / "picture.png"), "What?", "--model", str(tmp_path / "peer"), "--max-new-tokens", "2"]
    assert main(words) == 0
    assert "answer:" in capsys.readouterr().out


def test_a_damaged_peer_is_refused(trained, tmp_path):
    swap(*trained, "mean", "square")[0].save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    for wrong, message in (
        ('"connector": "men"', "connector"),
        ('"connector": 3', "connector"),
        ('"kind": 1', "peer"),
        ('"connector": "mean", "expert": 1', "expert must be"),
        ('"connector": "mean", "expert": true', "vision.weight"),  # says so, but has no such tensors
    ):
        config.write_text(text.replace('"connector": "mean"', wrong))
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


# ---- the visual expert


@pytest.fixture(scope="module")
def expert(trained):
    """Nano with a visual expert that has moved away from its copy, and one position for all tokens of an image."""
    model, processor = swap(*trained, "shuffle", "square", seed=1, expert=True, one_position=True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".vision." in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model, processor


TALK = [{"role": "user", "content": "red circle top left. What color is the circle?"}]


@torch.no_grad()
def test_text_is_exactly_as_before(trained, expert):
    before, after = (model(processor([TALK, TALK])).logits for model, processor in (trained, expert))
    assert torch.equal(before, after)
    said = [model.generate(processor(TALK), max_new_tokens=12) for model, processor in (trained, expert)]
    assert torch.equal(*said)
    shown = expert[1](ask(picture(60, 50), "What?"))
    language = swap(*trained, "shuffle", "square", seed=1)[0]  # with a picture it does differ
    assert (expert[0](shown).logits - language(shown).logits).abs().max() > 1e-3


@torch.no_grad()
def test_it_begins_as_the_model_without(trained):
    """A copy computes what the original does; its tokens are only multiplied in other groups."""
    one, other = (swap(*trained, "shuffle", "square", seed=1, expert=yes) for yes in (False, True))
    batch = one[1](ask(picture(60, 50), "What is this?"))
    torch.testing.assert_close(one[0](batch).logits, other[0](batch).logits, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_a_layer_is_that_of_cogvlm(expert):
    model, processor = expert
    cfg, layer = model.config.llm, model.llm.model.layers[0]
    theirs = cogvlm.VisualExpertLayer(
        cfg.hidden_size,
        cfg.intermediate_size,
        cfg.num_attention_heads,
        cfg.num_key_value_heads,
        cfg.rms_norm_eps,
        cfg.rope_theta,
    )
    attn, weights = layer.self_attn, {}
    for kind, of in (("language", lambda linear: linear), ("vision", lambda linear: linear.vision)):
        fused = torch.cat([of(part).weight for part in (attn.q_proj, attn.k_proj, attn.v_proj)])
        weights[f"self_attn.{kind}_expert_query_key_value.weight"] = fused
        weights[f"self_attn.{kind}_expert_dense.weight"] = of(attn.o_proj).weight
        for name in ("gate_proj", "up_proj", "down_proj"):
            weights[f"mlp.{kind}_mlp.{name}.weight"] = of(getattr(layer.mlp, name)).weight
    weights["self_attn.vision_expert_query_key_value.bias"] = torch.zeros(len(fused))  # ours has none
    for name in ("input_layernorm", "post_attention_layernorm"):
        weights[f"{name}.weight"] = getattr(layer, name).weight
    theirs.load_state_dict(weights)

    batch = processor(ask(picture(60, 50), "What is this?"))
    types, seen = token_types(batch), []
    hook = layer.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    model(batch)
    hook.remove()
    (given, ours), mask = seen[0], cogvlm.expert_mask(types)
    assert mask.sum() == 17 and torch.equal(batch.position_ids, cogvlm.expert_position_ids(types))
    assert batch.position_ids.max() == batch.input_ids.shape[1] - 1 - 15  # 16 visual tokens, one position
    torch.testing.assert_close(theirs(given, mask, batch.position_ids)[0], ours, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_a_row_does_not_depend_on_the_others(expert):
    """Padded to a longer row, or packed behind another one, a sample computes what it does alone."""
    model, processor = expert
    answer = {"role": "assistant", "content": "A red circle."}
    chats = [[*TALK, answer], [*ask(picture(60, 50), "What?"), answer], [*ask(picture(90, 40), "What is it?"), answer]]
    batch, alone = processor(chats), [processor(chat) for chat in chats]
    logits = model(batch).logits
    for row, one in enumerate(alone):
        length = one.input_ids.shape[1]
        assert torch.equal(batch.position_ids[row, -length:], one.position_ids[0])
        torch.testing.assert_close(logits[row, -length:], model(one).logits[0], atol=5e-5, rtol=1e-4)
    packed = pack_batch(batch, [[1, 0, 2]])
    torch.testing.assert_close(packed_loss(model, packed), model(batch).loss, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="where positions repeat"):
        model(packed.as_batch())


def test_the_expert_alone_learns(trained):
    model, processor = swap(*trained, "shuffle", "square", expert=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stage = replace(stage_named("stage-1"), steps=2, batch=2, half=False)
    list(train(model, processor, stage, optimizer=expert_optimizer(model, 1e-3, 3e-3)))
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert all(".vision." in name or name.startswith("resampler.") for name in moved)
    assert sum(".vision." in name for name in moved) == 4 * 7  # four layers: q, k, v, o, gate, up, down
