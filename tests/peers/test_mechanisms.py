"""The mechanisms of the peers, against golden vectors of their published code and against transformers."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from minicpmv_ref.peers import cambrian, cogvlm, internvl, llava, qllama, video, vila

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


def below(vectors: dict, start: str) -> dict:
    return {key.removeprefix(start): value for key, value in vectors.items() if key.startswith(start)}


def close(a, b, atol=2e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


# ---- LLaVA


@pytest.mark.parametrize("name", ["1x3", "2x2", "3x1"])
def test_merge(name):
    v = golden(f"llava_next_merge_{name}")
    grid = {"1x3": (1, 3), "2x2": (2, 2), "3x1": (3, 1)}[name]
    merged = llava.merge(v["base"], v["tiles"], grid, tuple(v["image_size_wh"].tolist()), v["newline"])
    assert torch.equal(merged, v["out"])


def packed_by_transformers(which: str, tiles: torch.Tensor, size, newline, pinpoints):
    """pack_image_features of LLaVA-NeXT or LLaVA-OneVision on one picture: tiles (1 + n, side * side, D)."""
    side = int(tiles.shape[1] ** 0.5)
    vision = SimpleNamespace(image_size=14 * side, patch_size=14)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))
    width, height = size
    if which == "next":
        from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

        return LlavaNextModel.pack_image_features(model, [tiles], torch.tensor([[height, width]]), "default", newline)[
            0
        ][0]
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    sizes = torch.tensor([[height, width]])
    return LlavaOnevisionModel.pack_image_features(model, [tiles], sizes, newline, "anyres_max_9")[0][0]


@pytest.mark.parametrize("which", ["next", "onevision"])
def test_merge_is_transformers(which):
    from transformers.image_processing_utils import select_best_resolution

    rng, side = np.random.default_rng(0), 5
    one = 14 * side
    grids = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]  # (rows, cols), as transformers lists them
    grids = grids if which == "next" else [(r, c) for r in range(1, 7) for c in range(1, 7)]
    pinpoints, shrunk = [[r * one, c * one] for r, c in grids], 0
    for _ in range(300):
        size = tuple(int(2 ** rng.uniform(4, 11)) for _ in range(2))
        height, width = select_best_resolution(size[::-1], pinpoints)
        grid = (width // one, height // one)
        features = torch.from_numpy(rng.normal(size=(1 + grid[0] * grid[1], side * side, 3))).float()
        newline = torch.full((3,), 7.0)
        ours = llava.merge(features[0], features[1:], grid, size, newline, 9 if which == "onevision" else None)
        theirs = packed_by_transformers(which, features, size, newline, pinpoints)
        assert ours.shape == theirs.shape, size
        close(ours, theirs)
        shrunk += which == "onevision" and len(ours) < grid[0] * grid[1] * side * side * 0.7
    assert which == "next" or shrunk > 10


WIDE = [(640, 480), (200, 1000), (1000, 200), (123, 456), (700, 701), (37, 30), (480, 640)]


@pytest.mark.parametrize(("side", "sizes"), [(336, WIDE), (48, [(48, 49), (60, 61), (90, 130), (30, 99)])])
def test_views_are_transformers(side, sizes):
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    rng = np.random.default_rng(1)
    one = {"height": side, "width": side}
    grids = [[rows * side, cols * side] for rows, cols in [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]]
    theirs = LlavaNextImageProcessorPil(
        do_normalize=False, do_rescale=False, size=one, crop_size=one, image_grid_pinpoints=grids
    )
    for size in sizes:
        picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        pixels = np.asarray(theirs(picture, return_tensors="np")["pixel_values"][0])
        views = llava.anyres_views(picture, side, ties="transformers")
        ours = np.stack([np.asarray(view).transpose(2, 0, 1) for view in views])
        assert pixels.shape == ours.shape, size
        assert np.abs(pixels.astype(int) - ours.astype(int)).max() == 0, size


def test_mlp_is_transformers():
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    config = SimpleNamespace(
        vision_feature_layer=-2,
        vision_config=SimpleNamespace(hidden_size=6),
        text_config=SimpleNamespace(hidden_size=8),
        multimodal_projector_bias=True,
        projector_hidden_act="gelu",
    )
    theirs, ours, x = LlavaMultiModalProjector(config), llava.MLP(6, 8), torch.randn(5, 6)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours(x), theirs(x))


def test_pad_to_square_is_transformers():
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    rng = np.random.default_rng(2)
    for size in [(40, 10), (11, 40), (7, 7), (31, 32)]:
        picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        ours = np.asarray(llava.pad_to_square(picture)).transpose(2, 0, 1)
        color = tuple(int(255 * mean) for mean in llava.CLIP_MEAN)
        theirs = LlavaImageProcessorPil().pad_to_square(np.asarray(picture).transpose(2, 0, 1), color)
        assert np.array_equal(ours, theirs)
    for size in [(16_385, 1), (1, 65_536)]:  # the square of the second would take 13 GB
        with pytest.raises(ValueError, match=r"the longer side of image must be .* at most 16,384"):
            llava.pad_to_square(Image.new("RGB", size))


# ---- video


def test_pooled_frames_are_transformers():
    from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoPooler

    vision = SimpleNamespace(image_size=24 * 14, patch_size=14, hidden_size=3)
    config = SimpleNamespace(spatial_pool_mode="average", spatial_pool_stride=2, vision_config=vision)
    x = torch.randn(4, 576, 3)
    assert torch.equal(video.pool_frames(x), LlavaNextVideoPooler(config)(x))


@pytest.mark.parametrize("factor", [1.0, 2.0, 3.0])
def test_scaled_frequencies_are_transformers(factor):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "linear", "rope_theta": 500000.0, "factor": factor}
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=rope)
    theirs, _ = ROPE_INIT_FUNCTIONS["linear"](config, "cpu")
    close(video.scaled_frequencies(16, 500000.0, factor), theirs, atol=0)
    positions = torch.arange(9.0)
    close(positions[:, None] * theirs, positions[:, None] / factor * video.scaled_frequencies(16, 500000.0))


# ---- InternVL


def test_qllama_cross_attention():
    v = golden("internvl10_qllama_cross_attn")
    layer = qllama.QLLaMACrossAttention(width=32, kv_width=48, heads=4)
    layer.load_state_dict(below(v, "w."), strict=True)
    close(layer(v["hidden"], v["vision"]), v["out"])


def test_stage2():
    v = golden("internvl10_stage2")
    for task in qllama.TASKS:
        for text in (v[f"masks/text_attention_{task}"], v[f"masks/text_attention_{task}"].bool()):
            assert torch.equal(qllama.stage2_mask(task, 3, text), v[f"masks/{task}"]), task
    losses = below(v, "losses/")
    itm, itc, itg = losses["outputs"].chunk(3)
    pool = qllama.AttentionPooling(8, 5, heads=2)
    pool.load_state_dict(below(losses, "pool/"), strict=True)
    images = pool(itc[:, :3])
    close(images, losses["pooled_itc_image"])
    head, words = nn.Linear(8, 2), nn.Linear(8, 11, bias=False)
    head.load_state_dict(below(losses, "itm_head."))
    words.load_state_dict(below(losses, "lm_head."))
    last = v["masks/text_attention_itc"].sum(dim=1).long() - 1
    texts = itc[:, 3:][torch.arange(4), last] @ losses["text_projection"]
    scale, smoothing = losses["logit_scale_exp"].item(), losses["label_smoothing"].item()
    found = [
        qllama.matching_loss(itm[:, :3], torch.tensor([0, 0, 1, 1]), head),
        qllama.contrast_loss(images, texts, scale, smoothing),
        qllama.caption_loss(itg[:, 3:], losses["labels"].long(), words),
    ]
    close(torch.stack([*found, sum(found)]).double(), losses["itm_itc_itg_total"])


def test_pixel_shuffle():
    from transformers.models.internvl.modeling_internvl import InternVLModel

    v = golden("internvl15_tiling")
    for version in ("v1", "v2"):
        assert torch.equal(internvl.pixel_shuffle(v["pixel_shuffle/x"], version), v[f"pixel_shuffle/{version}"])
    x = torch.randn(2, 8, 6, 3)
    assert torch.equal(internvl.pixel_shuffle(x), InternVLModel.pixel_shuffle(None, x, 0.5))


def test_tiles():
    v = golden("internvl15_tiling")
    tiles = internvl.tile(Image.fromarray(v["tiny/pixels"].numpy()), max_num=6, side=4)
    assert np.array_equal(np.stack([np.asarray(tile) for tile in tiles]), v["tiny/tiles"].numpy())
    assert len(internvl.tile(Image.new("RGB", (400, 400)), side=224)) == 5  # 2 x 2 and the thumbnail


# ---- VILA


@pytest.mark.parametrize("side", [4, 5, 6, 27])
def test_downsample(side):
    v = below(golden("vila_downsample"), f"side{side}/")
    assert torch.equal(vila.downsample(v["x"], "columns"), v["vila15"])
    assert torch.equal(vila.downsample(v["x"]), v["main_2024_12"])
    assert torch.equal(vila.downsample(v["x"], factor=3), v["main_3x3"])


def test_projector():
    v = golden("vila_downsample")
    projector = vila.Projector(kv_width=3, width=5)
    projector.load_state_dict(below(v, "projector/weights/"), strict=True)
    for order, name in (("columns", "vila15"), ("rows", "main")):
        close(projector(vila.downsample(v["side5/x"], order)), v[f"projector/out_{name}_side5"])


def test_vila_rows_are_internvl_v2():
    x = torch.randn(2, 64, 3)
    shuffled = internvl.pixel_shuffle(x.reshape(2, 8, 8, 3))
    assert torch.equal(vila.downsample(x), shuffled.flatten(1, 2))


def test_interleaved_keeps_six_pictures():
    parts = vila.interleaved_sample(["a", "b"], [(i, 1) for i in range(8)] + [(9, 0)])
    assert parts == [(9, False), ("a", True), *((i, False) for i in range(5)), ("b", True)]


# ---- CogVLM2


COGVLM = golden("cogvlm2_visual_expert")
SEQUENCES = sorted({key.split("/")[1] for key in COGVLM if key.startswith("ids/")})


@pytest.mark.parametrize("name", SEQUENCES)
def test_expert_mask_and_positions(name):
    v = below(COGVLM, f"ids/{name}/")
    types = v["type"].reshape(-1, v["type"].shape[-1]).long()
    if "attention" in v:
        types = types.where(v["attention"] == 1, -1)
    assert torch.equal(cogvlm.expert_mask(types), v["vision_mask"].reshape(types.shape))
    assert torch.equal(cogvlm.expert_position_ids(types), v["position"].reshape(types.shape).long())


def expert_layers() -> list[cogvlm.VisualExpertLayer]:
    layers = [cogvlm.VisualExpertLayer(16, 24, heads=4, kv_heads=2) for _ in range(2)]
    for number, layer in enumerate(layers, start=1):
        layer.load_state_dict(below(COGVLM, f"weights/layer{number}/"), strict=True)
    return layers


@torch.no_grad()
def test_visual_expert():
    v, (first, second) = below(COGVLM, "layer/"), expert_layers()
    types, x, positions = v["type"].long(), v["x"], v["position"].long()
    assert torch.equal(positions, cogvlm.expert_position_ids(types))
    mask = cogvlm.expert_mask(types)
    seen, _ = first.self_attn(first.input_layernorm(x), mask, positions, None)
    close(seen, v["attention_of_layer1"], 2e-4)
    close(first.experts(first.post_attention_layernorm(x), mask), v["mlp_of_layer1_on_normed_x"], 2e-4)
    out1, past1 = first(x, mask, positions)
    out2, past2 = second(out1, mask, positions)
    close(out1, v["out1"], 2e-4)
    close(out2, v["out2"], 2e-4)
    close(F.rms_norm(out2, (16,), COGVLM["weights/norm.weight"], 1e-5), v["final_normed"], 2e-4)
    language = torch.zeros_like(mask)
    close(first(x, language, torch.arange(10)[None])[0], v["out1_if_all_language"], 2e-4)
    one, _ = first(v["decode_x"], language[:, :1], v["decode_position"].long(), past1)
    two, _ = second(one, language[:, :1], v["decode_position"].long(), past2)
    close(F.rms_norm(two, (16,), COGVLM["weights/norm.weight"], 1e-5), v["decode_normed"], 2e-4)


@torch.no_grad()
def test_text_does_not_feel_the_vision_expert():
    (layer, _), x = expert_layers(), torch.randn(1, 6, 16)
    types = torch.zeros(1, 6, dtype=torch.long)
    mask, positions = cogvlm.expert_mask(types), cogvlm.expert_position_ids(types)
    before = layer(x, mask, positions)[0]
    for name, parameter in layer.named_parameters():
        if "vision" in name:
            parameter.normal_()
    assert torch.equal(layer(x, mask, positions)[0], before)


@torch.no_grad()
def test_padding_changes_nothing():
    """A prompt with an image, alone and to the right of three tokens of padding; then one more token from the cache."""
    layer, x = expert_layers()[0], torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
    types = torch.tensor([[-1, -1, -1, 0, 1, 1, 1, 0]])
    there, mask, positions = types >= 0, cogvlm.expert_mask(types), cogvlm.expert_position_ids(types)
    padded, cache = layer(x, mask, positions, there=there)
    alone, own = layer(x[:, 3:], mask[:, 3:], positions[:, 3:])
    assert padded.isfinite().all()
    close(padded[:, 3:], alone)
    language, there = torch.zeros(1, 1, dtype=torch.bool), F.pad(there, (0, 1), value=True)
    close(
        layer(x[:, :1], language, positions[:, -1:] + 1, cache, there)[0],
        layer(x[:, :1], language, positions[:, -1:] + 1, own)[0],
    )


@torch.no_grad()
def test_adapter():
    adapter = cogvlm.Adapter(kv_width=8, width=16, mlp_width=24)
    weights = below(COGVLM, "weights/vision/")
    adapter.load_state_dict({k: w for k, w in weights.items() if not k.startswith(("patch_emb", "trans"))}, strict=True)
    v = below(COGVLM, "vision/")
    patches = v["transformer_out"][:, 1:]  # without CLS
    close(adapter.gated(v["after_conv"]), v["after_glu"], 2e-4)
    close(adapter(patches), v["out_with_boi_eoi"], 2e-4)


# ---- Cambrian-1


@torch.no_grad()
@pytest.mark.parametrize("form", ["joint", "sep"])
def test_sva(form):
    v = golden(f"cambrian_sva_{form}")
    weights = below(v, "w.")
    layers = 1 + max(int(name.split(".")[1]) for name in weights)
    sva = cambrian.SVA(width=32, blocks=[1, 2], layers=layers, separate=form == "sep")
    sva.load_state_dict(weights, strict=True)
    features = [v["feat0"], v["feat1"]]
    if form == "joint":
        for feature, name in zip(features, ("kv0", "kv1")):
            assert torch.equal(cambrian.regions(feature, 4), v[name])
        sizes = [tuple(size) for size in v["image_sizes_wh"].tolist()]
        for number, side in enumerate((4, 8)):
            assert torch.equal(cambrian.seen_regions(sizes, side, 4), v[f"mask{number}"] != 0), side
    masks = [v["mask0"] != 0, v["mask1"] != 0]
    close(sva(v["query"], features, masks), v["out"])


@torch.no_grad()
def test_a_query_reads_its_region_and_the_context_only():
    torch.manual_seed(0)
    sva = cambrian.SVA(width=32, blocks=[1, 2], layers=2)
    query, coarse, fine = torch.randn(32), torch.randn(1, 16, 32), torch.randn(1, 64, 32)
    before = sva(query, [coarse, fine])
    fine[0, 0] += 1  # the first patch of the first region
    changed = (sva(query, [coarse, fine]) != before).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [0]


@torch.no_grad()
@pytest.mark.parametrize("separate", [False, True])
def test_a_query_does_not_read_what_only_pads_the_picture(separate):
    """Here the first of the four patches of each region; in the golden vectors all of them are seen."""
    torch.manual_seed(0)
    sva = cambrian.SVA(width=32, blocks=[1, 2], layers=2, separate=separate)
    query, coarse, fine = torch.randn(32), torch.randn(1, 16, 32), torch.randn(1, 64, 32)
    masks = [torch.ones(16, 1, dtype=torch.bool), torch.tensor([False, True, True, True]).expand(16, 4)]
    other = fine.reshape(8, 8, 32).clone()
    other[::2, ::2] += 1
    other = other.reshape(1, 64, 32)
    assert torch.equal(sva(query, [coarse, fine], masks), sva(query, [coarse, other], masks))
    assert (sva(query, [coarse, fine]) - sva(query, [coarse, other])).abs().amin(dim=1).max() > 0


def test_a_picture_of_one_tile_has_no_thumbnail():
    assert [view.size for view in internvl.tile(Image.new("RGB", (300, 300)))] == [(448, 448)]


X, SQUARE = torch.zeros(1, 4, 4, 8), torch.zeros(1, 16, 8)
EXPERT, TYPES = cogvlm.VisualExpertLayer(8, 12, heads=2, kv_heads=1), torch.ones(1, 16, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: internvl.pixel_shuffle(X[:, :3]), "even rows and cols"),
        (lambda: internvl.pixel_shuffle(X[:, :, :3]), "even rows and cols"),
        (lambda: internvl.pixel_shuffle(X, "v3"), "version must be one of"),
        (lambda: vila.downsample(SQUARE, order="diagonal"), "order must be one of"),
        (lambda: vila.downsample(SQUARE, factor=65), "factor must be an integer of at least 1 and at most 64"),
        (lambda: vila.downsample(SQUARE[:, :15]), "x must"),
        (lambda: video.pool_frames(SQUARE, 5), "stride must be an integer of at least 1 and at most 4"),
        (lambda: video.scaled_frequencies(5), "head_width must be even"),
        (lambda: video.scaled_frequencies(4, base=1), "base must be a finite number above 1"),
        (lambda: video.scaled_frequencies(4, factor=0.5), "factor must be a finite number of at least 1"),
        (lambda: cambrian.regions(SQUARE, 3), "no multiple of queries = 3"),
        (lambda: cambrian.regions(SQUARE[:, :15], 1), "features must"),
        (lambda: cambrian.SVA(width=30, blocks=[1], heads=4), "must be a multiple of heads = 4"),
        (lambda: cambrian.SVA(width=32, blocks=[1, 2])(SQUARE[0, 0], [SQUARE]), "features must be 2 maps"),
        (lambda: cambrian.SVA(width=8, blocks=[3], heads=2)(SQUARE[0, 0], [SQUARE]), "features must be 1 maps"),
        (lambda: cambrian.SVA(width=8, blocks=[1, 2], heads=2)(X[0, 0, 0], [SQUARE, X[:, :, :2]]), "features must"),
        (lambda: cambrian.SVA(8, [1, 2], heads=2)(X[0, 0, 0], [SQUARE[:, :4], SQUARE.expand(2, -1, -1)]), "of one B"),
        (lambda: cogvlm.Adapter(8, 16, 24)(SQUARE[:, :15]), "L a square number"),
        (lambda: cogvlm.Adapter(8, 16, 24)(SQUARE[:, :9]), "even side, got"),
        (lambda: cogvlm.Adapter(7, 16, 24)(SQUARE), "side, 7"),
        (lambda: EXPERT(SQUARE, TYPES, TYPES), "mask must be True and False for each of .* got .* of torch.int64"),
        (lambda: EXPERT(SQUARE, TYPES[:, 1:] > 0, TYPES), "mask must be True and False for each of"),
        (lambda: EXPERT(SQUARE.reshape(2, 8, 8), TYPES > 0, TYPES.reshape(2, 8)), "mask must be True and False"),
        (lambda: qllama.QLLaMACrossAttention(width=30, kv_width=8, heads=4), "heads"),
        (lambda: qllama.stage2_mask("itx", 1, torch.ones(1, 2)), "task must be one of"),
    ],
)
def test_what_no_mechanism_can_compute(call, words):
    with pytest.raises(ValueError, match=words):
        call()
