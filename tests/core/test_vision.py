"""The eye against transformers' towers with equal weights, against vectors of the released code, and against itself.

Oracles run with attn_implementation="eager", so not even the attention kernel is shared with ours.
"""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from places import ROOT
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionConfig, Idefics2VisionTransformer
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import (
    MiniCPMV4_6VisionConfig,
    MiniCPMV4_6VisionModel,
)
from transformers.models.siglip.modeling_siglip import SiglipVisionConfig, SiglipVisionModel

from minicpmv_ref import vision
from minicpmv_ref.config import VisionConfig, nano, v2_0, v2_5, v2_6
from minicpmv_ref.linear import Linear, is_plain, is_quicker, linear
from minicpmv_ref.positions import bucket_position_ids
from minicpmv_ref.vision import VisionTransformer

GOLDEN = ROOT / "tests/golden/modules.npz"
BUCKET = VisionConfig(width=48, layers=2, heads=4, mlp_width=80)
INTERPOLATE = replace(BUCKET, table_side=9, position="interpolate", act="gelu")
RELEASED_2_5 = replace(BUCKET, position="released_2_5")
ALL = {"bucket": BUCKET, "interpolate": INTERPOLATE, "released_2_5": RELEASED_2_5}

# Four grids of 12 patches (they share an attention call), and others. No side is one where bucket formulas differ.
GRIDS = [(3, 4), (5, 2), (4, 3), (1, 1), (8, 9), (12, 1), (3, 4), (1, 7)]
CLOSE = dict(rtol=0, atol=1e-5)


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that hide nothing: no zero bias, no gain of one, activations on both sides of the GELU's bend."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name or "ln_" in name:
                p.copy_(0.3 * noise + (1 if name.endswith("weight") else 0))
            else:
                p.copy_(noise if "position" in name else 0.2 * noise)
    return module


def tower(cfg: VisionConfig, seed: int = 0) -> VisionTransformer:
    return randomize(VisionTransformer(cfg), seed).eval()


def pictures(grids, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, 14 * r, 14 * c, generator=generator) * 2 - 1 for r, c in grids]


def oracle(kind, config_kind, ours: VisionTransformer, **more):
    """A tower of transformers with our weights; every tensor of ours must have a place there."""
    cfg = ours.cfg
    config = config_kind(
        hidden_size=cfg.width,
        intermediate_size=cfg.mlp_width,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        image_size=cfg.table_side * 14,
        patch_size=14,
        hidden_act={"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[cfg.act],
        layer_norm_eps=cfg.eps,
        attn_implementation="eager",
        **more,
    )
    model = kind(config).eval()
    result = model.load_state_dict(ours.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all("vit_merger" in key for key in result.missing_keys)  # 4.6's own invention, never called here
    return model


def siglip(ours):
    return oracle(SiglipVisionModel, SiglipVisionConfig, ours, vision_use_head=False)


def idefics2(ours):
    return oracle(Idefics2VisionTransformer, Idefics2VisionConfig, ours)


def strip(image: torch.Tensor) -> torch.Tensor:
    """Patches side by side, 14 pixels high: how 2.5, 2.6 and 4.6 hand slices to their towers."""
    return rearrange(image, "c (r p) (w q) -> c p (r w q)", p=14, q=14)


def packed_4_6(ours, images) -> list[torch.Tensor]:
    grids = [(x.shape[1] // 14, x.shape[2] // 14) for x in images]
    model = oracle(MiniCPMV4_6VisionModel, MiniCPMV4_6VisionConfig, ours)
    pixels = torch.cat([strip(x) for x in images], dim=-1)[None]
    out = model(pixels, torch.tensor(grids, dtype=torch.int32), use_vit_merger=False).last_hidden_state[0]
    return list(out.split([r * c for r, c in grids]))


def padded_idefics2(ours, images) -> list[torch.Tensor]:
    grids = [(x.shape[1] // 14, x.shape[2] // 14) for x in images]
    rows, cols = (max(sides) for sides in zip(*grids))
    pixels = torch.full((len(images), 3, 14 * rows, 14 * cols), 7.0)  # padding that would be noticed
    mask = torch.zeros(len(images), rows, cols, dtype=torch.bool)
    for i, (image, (r, c)) in enumerate(zip(images, grids)):
        pixels[i, :, : 14 * r, : 14 * c] = image
        mask[i, :r, :c] = True
    out = idefics2(ours)(pixels, patch_attention_mask=mask).last_hidden_state
    return [features[real] for features, real in zip(out, mask.flatten(1))]


def assert_all_close(ours, theirs, **tolerance):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, **(tolerance or CLOSE))


@pytest.fixture
def exact_ids(monkeypatch):
    """Buckets as transformers' 4.6 computes them: floor(side * i / n)."""
    monkeypatch.setattr(vision, "bucket_position_ids", lambda *grid: bucket_position_ids(*grid, exact=True))


# ---- equal to the released code and to transformers ----


def test_golden_vectors_of_the_released_2_6_code():
    golden = np.load(GOLDEN)
    names = [k.removeprefix("vit.w.") for k in golden if k.startswith("vit.w.")]
    weights = {name: torch.from_numpy(golden[f"vit.w.{name}"]) for name in names}
    vit = VisionTransformer(VisionConfig(width=24, layers=2, heads=3, mlp_width=40, table_side=5))
    vit.load_state_dict(weights, strict=True)
    features = vit([torch.from_numpy(golden["vit.img0"]), torch.from_numpy(golden["vit.img1"])])
    expected = torch.from_numpy(golden["vit.last_hidden_state"])
    assert_all_close(features, [expected[0], expected[1, :10]])


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("position", ["bucket", "interpolate"])
def test_square_grids_at_table_size_equal_siglip(position, act):
    vit = tower(replace(BUCKET, table_side=6, position=position, act=act))
    images = pictures([(6, 6), (6, 6)])
    with torch.no_grad():
        assert_all_close(vit(images), list(siglip(vit)(torch.stack(images)).last_hidden_state))


def test_the_two_gelus_are_two_functions():
    images = pictures(GRIDS)
    with torch.no_grad():
        exact, tanh = (torch.cat(tower(replace(BUCKET, act=act))(images)) for act in ("gelu", "gelu_tanh"))
    assert (exact - tanh).abs().max() > 1e-4  # ten times what the comparisons with transformers allow


def test_a_mixed_batch_equals_padded_idefics2():
    vit, images = tower(BUCKET), pictures(GRIDS)
    with torch.no_grad():
        assert_all_close(vit(images), padded_idefics2(vit, images))


def test_a_mixed_batch_equals_packed_minicpmv_4_6():
    vit, images = tower(BUCKET), pictures([*GRIDS, (30, 40)])
    with torch.no_grad():
        assert_all_close(vit(images), packed_4_6(vit, images))


def test_grids_larger_than_the_table(exact_ids):
    vit, images = tower(BUCKET), pictures([(1, 714), (101, 10), (71, 2)])
    with torch.no_grad():
        assert_all_close(vit(images), packed_4_6(vit, images))


def test_a_side_of_50_differs_from_transformers_in_position_ids_only(exact_ids, monkeypatch):
    vit, images = tower(BUCKET), pictures([(2, 50), (3, 4)])
    with torch.no_grad():
        theirs = packed_4_6(vit, images)
        assert_all_close(vit(images), theirs)
        monkeypatch.undo()  # the released float32 arithmetic: six of fifty columns are one cell to the left
        wide, small = vit(images)
        assert (wide - theirs[0]).abs().max() > 0.01
        torch.testing.assert_close(small, theirs[1], **CLOSE)
        # A table with equal rows makes ids irrelevant, and with them the difference to all formulas.
        vit.embeddings.position_embedding.weight.copy_(torch.randn(48))
        assert_all_close(vit(images), packed_4_6(vit, images))
        assert_all_close(vit(images), padded_idefics2(vit, images))


def test_interpolate_equals_siglip_with_a_table_resized_by_pillow():
    vit = tower(INTERPOLATE)
    table = vit.embeddings.position_embedding.weight.detach().numpy()
    model = siglip(vit)
    for rows, cols in [(5, 14), (3, 4), (12, 2), (1, 20)]:
        channels = [Image.fromarray(plane) for plane in rearrange(table, "(r c) d -> d r c", r=9).copy()]
        planes = [np.asarray(x.resize((cols, rows), Image.Resampling.BICUBIC)) for x in channels]
        resized = torch.from_numpy(rearrange(np.stack(planes), "d r c -> 1 (r c) d"))
        model.embeddings.interpolate_pos_encoding = lambda *_, resized=resized: resized
        images = pictures([(rows, cols)])
        with torch.no_grad():
            theirs = model(images[0][None], interpolate_pos_encoding=True).last_hidden_state
            assert_all_close(vit(images), list(theirs))


def test_gradients_equal_those_of_minicpmv_4_6():
    vit, images = tower(BUCKET), pictures(GRIDS)
    theirs = oracle(MiniCPMV4_6VisionModel, MiniCPMV4_6VisionConfig, vit)
    probe = torch.randn(sum(r * c for r, c in GRIDS), 48, generator=torch.Generator().manual_seed(2))
    (torch.cat(vit(images)) * probe).sum().backward()
    pixels = torch.cat([strip(x) for x in images], dim=-1)[None]
    out = theirs(pixels, torch.tensor(GRIDS, dtype=torch.int32), use_vit_merger=False).last_hidden_state[0]
    (out * probe).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, p in vit.named_parameters():
        assert (p.grad - expected[name].grad).abs().max() < 1e-4 * p.grad.abs().max() + 1e-3, name


# ---- 2.5 as released ----


def released_2_5_call(ours, images) -> list[torch.Tensor]:
    """Idefics2 as the released 2.5 code calls it: strips padded with zeros, and a mask that is True everywhere."""
    strips = [strip(x) for x in images]
    longest = max(x.shape[-1] for x in strips)
    pixels = torch.stack([torch.nn.functional.pad(x, (0, longest - x.shape[-1])) for x in strips])
    mask = torch.ones(len(images), 1, longest // 14, dtype=torch.bool)
    out = idefics2(ours)(pixels, patch_attention_mask=mask).last_hidden_state
    return [features[: x.shape[-1] // 14] for features, x in zip(out, strips)]


@pytest.mark.parametrize("grids", [[(3, 4), (5, 2), (1, 1)], [(2, 6), (8, 9), (4, 4), (3, 24)], [(5, 4)]])
def test_released_2_5_equals_idefics2_called_the_released_way(grids):
    vit, images = tower(RELEASED_2_5), pictures(grids)
    with torch.no_grad():
        assert_all_close(vit(images), released_2_5_call(vit, images))


def test_released_2_5_depends_on_its_batch_and_on_no_second_dimension():
    vit = tower(RELEASED_2_5)
    small, large = pictures([(3, 4), (8, 9)])
    with torch.no_grad():
        alone, together = vit([small])[0], vit([small, large])[0]
        # The longest slice moves everybody's ids and pads everybody.
        assert (alone - together).abs().max() > 0.01
        torch.testing.assert_close(vit([small, small])[1], alone, **CLOSE)  # equal lengths: no influence
        # 3 x 4 and 4 x 3 patches are one and the same strip, so 2.5 cannot tell them apart; 2.6 can.
        turned = rearrange(
            rearrange(small, "c (r p) (w q) -> (r w) c p q", p=14, q=14), "(r w) c p q -> c (r p) (w q)", r=4
        )
        torch.testing.assert_close(vit([turned])[0], alone, **CLOSE)
        assert (tower(BUCKET)([turned])[0] - tower(BUCKET)([small])[0]).abs().max() > 0.01


# ---- ragged in, ragged out ----


@pytest.mark.parametrize("cfg", [BUCKET, INTERPOLATE], ids=["bucket", "interpolate"])
def test_a_slice_does_not_feel_its_neighbors(cfg):
    vit, images = tower(cfg), pictures(GRIDS)
    with torch.no_grad():
        together = vit(images)
        assert [tuple(f.shape) for f in together] == [(r * c, 48) for r, c in GRIDS]
        assert_all_close([vit([x])[0] for x in images], together)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3)).tolist()
        assert_all_close(vit([images[i] for i in order]), [together[i] for i in order])
        assert_all_close(vit(images[::-1]), together[::-1])


def test_more_patches_than_one_bite_of_the_mlp():
    vit, images = tower(BUCKET), pictures([(30, 40), (20, 40), (2, 3)])  # 2,006 patches; a bite is 1,024
    with torch.no_grad():
        assert_all_close(vit(images), [vit([x])[0] for x in images])


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
def test_inference_and_training_give_the_same_features(act, monkeypatch):
    """Without gradients the MLP takes another way through torch, where torch has it."""
    torch.manual_seed(0)
    vit = VisionTransformer(VisionConfig(width=32, layers=2, heads=2, mlp_width=48, table_side=5, act=act))
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = [torch.randn(3, 42, 28), torch.randn(3, 14, 70)]
    trained = vit(images)
    with torch.no_grad():
        inferred = vit(images)
        monkeypatch.setattr(vision, "_ONE_PASS", None)  # a torch without it
        plain = vit(images)
    for a, b, c in zip(trained, inferred, plain):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a, c, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
def test_one_pass_in_bfloat16_is_at_least_as_near_to_float32(act, monkeypatch):
    torch.manual_seed(0)
    mlp = vision._MLP(VisionConfig(width=32, layers=1, heads=2, mlp_width=48, act=act))
    x = torch.randn(300, 32)
    with torch.no_grad():
        wanted, used = mlp(x), []
        mlp, x = mlp.bfloat16(), x.bfloat16()
        if real := vision._ONE_PASS:
            monkeypatch.setattr(vision, "_ONE_PASS", lambda *words: used.append(1) or real(*words))
        one = mlp(x)
        monkeypatch.setattr(vision, "_ONE_PASS", None)
        plain = mlp(x)
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    assert bool(used) == bool(real and supported and supported()) and one.dtype == torch.bfloat16
    assert (one - wanted).abs().mean() <= 1.05 * (plain - wanted).abs().mean() < 0.01


@pytest.mark.parametrize("cfg", [BUCKET, INTERPOLATE], ids=["bucket", "interpolate"])
def test_a_cpu_reads_a_few_slices_at_a_time_and_a_training_all(cfg, monkeypatch):
    """A row has about 4,096 patches, or one slice; gradients are wanted of one row."""
    vit, rows = tower(cfg), []
    real = vit._encode
    monkeypatch.setattr(vit, "_encode", lambda p, x, lengths: rows.append(lengths) or real(p, x, lengths))
    images = pictures([(40, 60), (1, 2), (30, 70), (65, 64), (2, 1), (10, 10)])
    wanted = vit(images)
    assert rows == [[2, 2, 100, 2100, 2400, 4160]]
    rows.clear()
    with torch.no_grad():
        found = vit(images)
    assert rows == [[2, 2, 100, 2100], [2400], [4160]]
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_patches_are_read_row_by_row():
    """Without positions and attention, a patch keeps its features wherever it lies."""
    vit = tower(replace(BUCKET, layers=1))
    with torch.no_grad():
        vit.embeddings.position_embedding.weight.zero_()
        vit.encoder["layers"][0].self_attn.out_proj.weight.zero_()
        image = pictures([(2, 3)])[0]
        whole = vit([image])[0]
        for k, (r, c) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
            patch = image[:, 14 * r : 14 * r + 14, 14 * c : 14 * c + 14]
            torch.testing.assert_close(vit([patch])[0][0], whole[k], **CLOSE)


@pytest.mark.parametrize("cfg", ALL.values(), ids=ALL)
def test_views_are_fine_and_inputs_stay_as_they_are(cfg):
    vit = tower(cfg)
    big = pictures([(6, 8)])[0]
    view = big[:, 14:56, 7:63]
    channels_last = rearrange(rearrange(big, "c h w -> h w c").contiguous(), "h w c -> c h w")
    assert not view.is_contiguous() and not channels_last.is_contiguous()
    before = big.clone()
    with torch.no_grad():
        assert_all_close(vit([view, channels_last]), vit([view.contiguous(), big]))
    assert torch.equal(big, before)


@pytest.mark.parametrize("cfg", ALL.values(), ids=ALL)
def test_bfloat16_stays_near_float32(cfg):
    vit, images = tower(cfg), pictures(GRIDS)
    with torch.no_grad():
        full = torch.cat(vit(images))
        half = vit.bfloat16()([x.bfloat16() for x in images])
    assert {f.dtype for f in half} == {torch.bfloat16}
    error = (torch.cat(half).float() - full).square().mean().sqrt() / full.square().mean().sqrt()
    assert error < 0.03  # bfloat16 keeps 8 bits: 0.4 % for one rounding, and there are dozens


# ---- training ----


@pytest.mark.parametrize("cfg", ALL.values(), ids=ALL)
def test_gradients_reach_every_parameter(cfg):
    vit, images = tower(cfg).train(), pictures(GRIDS)
    torch.cat(vit(images)).square().mul(torch.linspace(0, 1, 48)).sum().backward()
    for name, p in vit.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if name.endswith("k_proj.bias"):  # adds one number to all scores of a query: softmax is blind to it
            queries = vit.get_parameter(name.replace("k_proj", "q_proj"))
            assert p.grad.abs().max() < 1e-2 * queries.grad.abs().max()
        elif "position" not in name:
            assert (p.grad != 0).any(), name
    reached = vit.embeddings.position_embedding.weight.grad.abs().sum(1).nonzero().flatten()
    if cfg.position == "bucket":
        used = torch.cat([bucket_position_ids(*grid) for grid in GRIDS])
    elif cfg.position == "released_2_5":
        used = bucket_position_ids(1, max(r * c for r, c in GRIDS))
    else:
        used = torch.arange(81)
    assert torch.equal(reached, used.unique())


@pytest.mark.parametrize("cfg", ALL.values(), ids=ALL)
def test_gradients_reach_the_pixels(cfg):
    images = [x.requires_grad_() for x in pictures([(2, 3), (1, 1)])]
    torch.cat(tower(cfg)(images)).square().mul(torch.linspace(0, 1, 48)).sum().backward()
    assert all((x.grad != 0).all() for x in images)


def test_training_mode_changes_nothing():
    vit, images = tower(BUCKET), pictures(GRIDS)
    with torch.no_grad():
        assert_all_close(vit.train()(images), vit.eval()(images))


# ---- wrapped layers ----


class Doubled(torch.nn.Module):
    """Wraps a layer, has no weights of its own to read, and gives twice what the layer gives."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


WRAPPED = ["embeddings.patch_embedding", "embeddings.position_embedding"]
WRAPPED += [f"encoder.layers.1.{name}" for name in ("mlp.fc1", "mlp.fc2", "self_attn.q_proj", "self_attn.out_proj")]


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("cfg", ALL.values(), ids=ALL)
def test_a_wrapped_layer_is_called(cfg, name):
    vit, other, images = tower(cfg), tower(cfg), pictures([(8, 9), (7, 9), (3, 4)])
    vit.set_submodule(name, Doubled(vit.get_submodule(name)))
    with torch.no_grad():
        for parameter in other.get_submodule(name).parameters():
            parameter.mul_(2)
        wanted = other(images)
        assert_all_close(vit(images), wanted, rtol=0, atol=1e-4)
    assert_all_close(vit(images), wanted, rtol=0, atol=1e-4)


def test_plain_means_that_nothing_else_runs():
    def hooked(put):
        layer = torch.nn.Linear(2, 2)
        put(layer)
        return layer

    plain = torch.nn.Linear(2, 2)
    assert is_plain(plain, torch.nn.Linear) and is_plain(Linear(2, 2), Linear)
    wrapped = [
        Linear(2, 2),  # another kind
        Doubled(plain),
        torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2)),
        hooked(lambda layer: layer.register_forward_hook(print)),
        hooked(lambda layer: layer.register_forward_pre_hook(print)),
        hooked(lambda layer: layer.register_full_backward_hook(print)),
        hooked(lambda layer: layer.register_full_backward_pre_hook(print)),
        hooked(lambda layer: setattr(layer, "forward", lambda x: x)),
    ]
    assert not any(is_plain(layer, torch.nn.Linear) for layer in wrapped)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not is_plain(plain, torch.nn.Linear)
    finally:
        handle.remove()
    assert is_plain(plain, torch.nn.Linear)


def test_a_tensor_that_multiplies_in_its_own_way(monkeypatch):
    class Quantized(torch.Tensor):
        """Stands for a quantized weight inside an ordinary layer."""

    weight, way = Quantized(torch.ones(5, 8)), []
    monkeypatch.setattr("minicpmv_ref.linear._onednn_is_quicker", lambda: True)
    monkeypatch.setattr(torch.Tensor, "to_mkldnn", lambda x, real=torch.Tensor.to_mkldnn: way.append(1) or real(x))
    with torch.no_grad():
        assert (linear(torch.ones(200, 8), weight) == 8).all()
    assert not way


# ---- edges ----


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (None, "images must be a list, got NoneType"),
        ("abc", "images must be a list, got str"),
        (torch.zeros(1, 3, 14, 14), "images must be a list, got Tensor"),
        ([None], r"images\[0\] must be a slice, which is a tensor"),
        ([torch.zeros(3, 14, 14), np.zeros((3, 14, 14))], r"images\[1\] must be a slice"),
        ([torch.zeros(3, 14, 14, dtype=torch.uint8)], "a slice must hold normalized pixels.*uint8"),
    ],
)
def test_what_is_no_list_of_slices(images, words):
    with pytest.raises((TypeError, ValueError), match=words):
        VisionTransformer(BUCKET)(images)
    with pytest.raises(TypeError, match="cfg must be VisionConfig, got dict"):
        VisionTransformer({})


@pytest.mark.parametrize("cfg", ALL.values(), ids=ALL)
def test_an_empty_list(cfg):
    assert VisionTransformer(cfg)([]) == []


@pytest.mark.parametrize(
    "shape", [(1, 14, 14), (3, 14, 15), (3, 13, 14), (14, 14), (1, 3, 14, 14), (3, 0, 14), (4, 28, 28)]
)
@pytest.mark.parametrize("cfg", ALL.values(), ids=ALL)
def test_a_bad_slice_is_named_by_its_shape(cfg, shape):
    with pytest.raises(ValueError) as error:
        VisionTransformer(cfg)([torch.zeros(3, 14, 14), torch.zeros(shape)])
    assert str(shape) in str(error.value) and "14 * rows" in str(error.value)


def test_published_sizes():
    with torch.device("meta"):
        towers = [VisionTransformer(preset.vision) for preset in (v2_0, v2_5, v2_6)]
    assert [sum(p.numel() for p in t.parameters()) for t in towers] == [397_747_744, 417_792_240, 417_792_240]


def test_state_dict_names_are_the_published_ones():
    ours = VisionTransformer(BUCKET)
    assert list(ours.state_dict()) and set(ours.state_dict()) == set(idefics2(ours).state_dict())


def test_a_fresh_tower_is_calm_and_seeded():
    torch.manual_seed(0)
    first = VisionTransformer(nano.vision)
    torch.manual_seed(0)
    second = VisionTransformer(nano.vision)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert all(p.abs().max() == 0 for name, p in first.named_parameters() if name.endswith("bias"))
    features = first(pictures([(8, 8)]))[0]
    assert features.std().item() == pytest.approx(1, abs=0.05)  # post_layernorm with gain 1
    spread = {name: p.std().item() for name, p in first.named_parameters() if p.ndim > 1}
    assert spread == {name: pytest.approx(0.02, rel=0.05) for name in spread}


# ---- matrix products


@pytest.mark.parametrize("shape", [(128, 24), (3, 70, 24), (127, 24), (1, 24), (0, 24), (2, 0, 24)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("by_column", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
def test_linear_is_torchs_own(monkeypatch, shape, with_bias, by_column, onednn):
    """Whichever library multiplies: the same numbers, up to float32's rounding."""
    monkeypatch.setattr("minicpmv_ref.linear._onednn_is_quicker", lambda: onednn)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(40, 24), torch.randn(40) if with_bias else None
    weight = weight.T.contiguous().T if by_column else weight
    wanted = F.linear(x, weight, bias)
    with torch.no_grad():
        found = linear(x, weight, bias)
        assert found.layout == torch.strided and found.dtype == torch.float32
        assert torch.allclose(found, wanted, atol=1e-5) and found.shape == wanted.shape
        assert torch.allclose(linear(x.transpose(0, -1).contiguous().transpose(0, -1), weight, bias), wanted, atol=1e-5)
        assert torch.equal(linear(x.double(), weight.double()), F.linear(x.double(), weight.double()))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_linear_has_gradients():
    x, weight = torch.randn(200, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    linear(x, weight).sum().backward()
    assert torch.allclose(x.grad, weight.detach().sum(0).expand_as(x), atol=1e-5)
    assert torch.allclose(weight.grad, x.detach().sum(0).expand_as(weight), atol=1e-4)


@pytest.mark.parametrize("quicker", [True, False])
def test_float32_inference_goes_through_the_quicker_library(monkeypatch, quicker):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    x, way = torch.randn(200, 8), []
    monkeypatch.setattr(torch.Tensor, "to_mkldnn", lambda x, real=torch.Tensor.to_mkldnn: way.append(1) or real(x))
    monkeypatch.setattr("minicpmv_ref.linear._onednn_is_quicker", lambda: quicker)
    linear(x, torch.randn(5, 8))  # gradients are wanted
    assert not way
    with torch.no_grad():
        linear(x, torch.randn(5, 8))
    assert bool(way) == quicker


def test_the_quicker_of_two_is_found():
    def slow():
        time.sleep(0.002)

    def quick():
        pass

    assert is_quicker(quick, slow) and not is_quicker(slow, quick) and not is_quicker(slow, slow)
