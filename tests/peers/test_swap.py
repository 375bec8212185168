"""Nano with the peers' connectors and cutting rules: it learns, is saved, loaded and answers, as nano does."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import ask, picture

from minicpmv_ref import MiniCPMV, Processor
from minicpmv_ref.__main__ import main
from minicpmv_ref.deploy.gguf import export
from minicpmv_ref.learn.stages import stage_named
from minicpmv_ref.learn.train import train
from minicpmv_ref.peers import load
from minicpmv_ref.peers.connectors import CONNECTORS
from minicpmv_ref.peers.nano import CUTTINGS, cut, swap
from minicpmv_ref.peers.sizes import tile_grid

PAIRS = [(connector, "tiles") for connector in CONNECTORS] + [("mlp", "padded"), ("mean", "square")]
PAIRS += [("resampler", cutting) for cutting in CUTTINGS]
TOKENS = {"resampler": 16, "mlp": 64, "shuffle": 16, "mean": 16, "sva": 16, "qllama": 16}


@pytest.fixture(scope="module")
def trained():
    return MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def peer(request, trained):
    return swap(*trained, *request.param, seed=1)


@torch.no_grad()
def test_slots_and_tokens(peer):
    model, processor = peer
    batch = processor(ask(picture(250, 100), "What is this?"))
    visual = model.encode_images(batch.images[0], batch.patch_grids[0])
    queries = TOKENS[model.peer["connector"]]
    assert visual.shape == (len(batch.images[0]), queries, 256)
    for (start, end), tokens in zip(batch.image_bounds[0].tolist(), visual):
        assert torch.equal(model.embed(batch)[0, start:end], tokens)
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
    ids = batch.input_ids
    for token in answer:
        longer = replace(batch, input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.full_like(ids, -100))
        longer.position_ids = torch.arange(ids.shape[1])[None]
        assert model(longer).logits[0, -1].argmax().item() == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


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
    model, processor = swap(*trained, "mlp", "tiles")
    with pytest.raises(ValueError, match="no other connector"):
        export(model, processor, tmp_path)
    with pytest.raises(ValueError, match="takes 8 x 8"):
        model.encode_images([torch.zeros(3, 84, 140)], [(6, 10)])


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
    for wrong, message in (('"connector": "men"', "connector"), ('"connector": 3', "connector"), ('"kind": 1', "peer")):
        config.write_text(text.replace('"connector": "mean"', wrong))
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
