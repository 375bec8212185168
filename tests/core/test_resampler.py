"""The bottleneck against vectors of the released code, against torch.nn.MultiheadAttention, and fold against both."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import rearrange, repeat
from places import ROOT
from torch.nn.utils.parametrize import register_parametrization

from minicpmv_ref.config import ResamplerConfig, v2_0, v2_5, v2_6
from minicpmv_ref.deploy.fold import fold
from minicpmv_ref.positions import sincos_2d
from minicpmv_ref.resampler import Resampler, equal_lengths

GOLDEN = ROOT / "tests/golden/modules.npz"
V2_6 = ResamplerConfig(num_queries=6, width=64, kv_width=40, heads=4)
V2_0 = ResamplerConfig(num_queries=9, width=64, kv_width=40, heads=2, version="2.0")
WIDE_EYE = ResamplerConfig(num_queries=5, width=32, kv_width=48, heads=2, eps=0.1)  # kv_width > width
EQUAL = ResamplerConfig(num_queries=5, width=48, kv_width=48, heads=3, version="2.5")
ALL = {"2.6": V2_6, "2.0": V2_0, "kv_width > width": WIDE_EYE, "kv_width = width": EQUAL}
every_kind = pytest.mark.parametrize("cfg", ALL.values(), ids=ALL)

# Four of 15 patches, two of one shape. Grouping them by length gives an order that is not its own inverse.
GRIDS = [(3, 5), (1, 1), (5, 3), (7, 4), (1, 9), (15, 1), (3, 5)]
CLOSE = dict(rtol=0, atol=1e-5)


def made(cfg: ResamplerConfig, seed: int = 0) -> Resampler:
    """A resampler whose weights hide nothing: gains, shifts and biases are all random, attention is not flat."""
    resampler = Resampler(cfg).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in resampler.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.startswith("ln_"):
                p.copy_(0.3 * noise + (1 if name.endswith("weight") else 0))
            elif name != "pos_embed":
                p.copy_(noise * (1 if p.ndim == 1 or name == "query" else 1.5 / math.sqrt(p.shape[-1])))
    return resampler


def patches(cfg: ResamplerConfig, grids, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(r * c, cfg.kv_width, generator=generator) for r, c in grids]


def sines(width: int, rows: int, cols: int) -> torch.Tensor:
    """Positions once more, number by number: column first, then row; sines first, then cosines."""

    def along(p):
        angles = [p / 10000 ** (4 * i / width) for i in range(width // 4)]
        return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]

    return torch.tensor([along(c) + along(r) for r in range(rows) for c in range(cols)])


def official(ours: Resampler, features, grids) -> tuple[torch.Tensor, torch.Tensor]:
    """The released computation: batches padded (here with garbage), torch.nn.MultiheadAttention, a padding mask."""
    cfg, longest = ours.cfg, max(map(len, features))
    x = torch.full((len(features), longest, cfg.kv_width), 50.0)
    positions, padding = (
        torch.zeros(len(features), longest, cfg.width),
        torch.ones(len(features), longest).bool(),
    )
    for i, (feature, grid) in enumerate(zip(features, grids)):
        x[i, : len(feature)], positions[i, : len(feature)] = feature, sines(cfg.width, *grid)
        padding[i, : len(feature)] = False
    attention = torch.nn.MultiheadAttention(cfg.width, cfg.heads, batch_first=True)
    attention.load_state_dict(ours.attn.state_dict(), strict=True)
    x, q = ours.ln_kv(ours.kv_proj(x)), ours.ln_q(ours.query)
    if cfg.version == "2.0":
        side = math.isqrt(cfg.num_queries)
        q = q + sines(cfg.width, side, side)
    q = repeat(q, "q e -> b q e", b=len(x))
    out, weights = attention(q, x + positions, x, key_padding_mask=padding, average_attn_weights=False)
    return ours.ln_post(out) @ ours.proj, weights


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, measured in the rms of b."""
    return ((a.float() - b.float()).abs().max() / b.float().square().mean().sqrt()).item()


# ---- equal to the released code and to torch ----


@pytest.mark.parametrize("version, heads", [("2.6", 2), ("2.0", 2)])
def test_golden_vectors_of_the_released_code(version, heads):
    golden, key = np.load(GOLDEN), "r" + version.replace(".", "")
    names = [k.removeprefix(f"{key}.w.") for k in golden if k.startswith(f"{key}.w.")]
    weights = {name: torch.from_numpy(golden[f"{key}.w.{name}"]) for name in names}
    cfg = ResamplerConfig(len(weights["query"]), width=32, kv_width=24, heads=heads, version=version)
    resampler = Resampler(cfg)
    if version == "2.0":  # computed at birth, not only loaded
        np.testing.assert_allclose(resampler.pos_embed.detach(), golden["r20.w.pos_embed"], atol=1e-6)
    resampler.load_state_dict(weights, strict=True)
    sizes = golden["r20.tgt" if version == "2.0" else "r26.tgt_sizes"].reshape(-1, 2)
    grids = [tuple(size) for size in sizes.tolist()]
    features = [torch.from_numpy(x[: r * c]) for x, (r, c) in zip(golden[f"{key}.x"], grids)]
    expected = torch.from_numpy(golden[f"{key}.y"])
    with torch.no_grad():
        torch.testing.assert_close(resampler(features, grids), expected, **CLOSE)
        torch.testing.assert_close(resampler.attend(features, grids)[0], expected, **CLOSE)
        torch.testing.assert_close(fold(resampler)(features, grids), expected, **CLOSE)


@every_kind
def test_equals_multihead_attention_on_a_padded_batch(cfg):
    resampler, features = made(cfg), patches(cfg, GRIDS)
    with torch.no_grad():
        expected, expected_weights = official(resampler, features, GRIDS)
        assert error(resampler(features, GRIDS), expected) < 1e-5
        tokens, weights = resampler.attend(features, GRIDS)
        assert error(tokens, expected) < 1e-5
        for w, theirs, (r, c) in zip(weights, expected_weights, GRIDS):
            assert w.shape == (cfg.heads, cfg.num_queries, r * c)
            torch.testing.assert_close(w, theirs[..., : r * c], rtol=0, atol=1e-5)
            torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:2]))
        assert expected_weights[0].max() > 0.5  # attention that is not flat, or this would prove little


@every_kind
def test_grids_larger_than_the_released_cache_of_70(cfg):
    resampler, grids = made(cfg), [(1, 714), (101, 10), (71, 2)]
    features = patches(cfg, grids)
    with torch.no_grad():
        expected, _ = official(resampler, features, grids)
        assert error(resampler(features, grids), expected) < 2e-5  # float32 sines of up to 714 radians
        assert error(fold(resampler)(features, grids), expected) < 2e-5


@every_kind
def test_gradients_equal_those_of_multihead_attention(cfg):
    resampler, features = made(cfg), patches(cfg, GRIDS)
    probe = torch.randn(len(GRIDS), cfg.num_queries, cfg.width, generator=torch.Generator().manual_seed(2))
    looking, twin = made(cfg), made(cfg)
    (resampler(features, GRIDS) * probe).sum().backward()
    (looking.attend(features, GRIDS)[0] * probe).sum().backward()

    attention = torch.nn.MultiheadAttention(cfg.width, cfg.heads, batch_first=True)
    attention.load_state_dict(twin.attn.state_dict())
    for feature, grid, p in zip(features, GRIDS, probe):
        q = twin.ln_q(twin.query) + (twin.pos_embed if cfg.version == "2.0" else 0)
        x = twin.ln_kv(twin.kv_proj(feature))[None]
        out = attention(q[None], x + sines(cfg.width, *grid), x)[0]
        ((twin.ln_post(out) @ twin.proj) * p).sum().backward()

    for name, p in twin.named_parameters():
        own = attention.get_parameter(name.removeprefix("attn.")) if name.startswith("attn.") else p
        for other in (resampler, looking):
            grad = other.get_parameter(name).grad
            if name == "pos_embed":  # frozen, as released
                assert grad is None and not other.pos_embed.requires_grad
                continue
            assert error(grad, own.grad) < 1e-4, name
            if name == "attn.in_proj_bias":  # a key bias adds one number to all scores of a query
                q_, k_, v_ = grad.chunk(3)
                assert k_.abs().max() < 1e-3 * min(q_.abs().max(), v_.abs().max())
            else:
                assert (grad != 0).any(), name


# ---- ragged in ----


@pytest.mark.parametrize(
    "use", [lambda r: r, lambda r: lambda *a: r.attend(*a)[0], fold], ids=["forward", "attend", "fold"]
)
@every_kind
def test_a_slice_does_not_feel_its_neighbors(cfg, use):
    call, features = use(made(cfg)), patches(cfg, GRIDS)
    with torch.no_grad():
        together = call(features, GRIDS)
        assert together.shape == (len(GRIDS), cfg.num_queries, cfg.width)
        for i in range(len(GRIDS)):
            torch.testing.assert_close(call([features[i]], [GRIDS[i]])[0], together[i], rtol=0, atol=2e-5)
        order = [4, 0, 6, 3, 1, 5, 2]
        permuted = call([features[i] for i in order], [GRIDS[i] for i in order])
        torch.testing.assert_close(permuted, together[order], rtol=0, atol=2e-5)


@every_kind
def test_long_slices_one_by_one_give_what_all_together_give(cfg):
    """Without gradients, a CPU takes about 1,024 patches at a time."""
    torch.manual_seed(0)
    resampler, grids = Resampler(cfg).eval(), [(20, 20), (3, 5), (20, 20), (40, 30), (10, 40), (15, 1), (40, 30)]
    features = [torch.randn(rows * cols, cfg.kv_width) for rows, cols in grids]
    assert equal_lengths(features) == [[0, 2, 4], [1, 5], [3, 6]]
    wanted = resampler(features, grids)
    with torch.no_grad():
        assert equal_lengths(features) == [[0, 2], [4], [1, 5], [3], [6]]
        assert torch.allclose(resampler(features, grids), wanted, atol=1e-5)
    assert torch.allclose(fold(resampler)(features, grids), wanted, atol=1e-4)


@every_kind
def test_views_are_fine_and_inputs_stay_as_they_are(cfg):
    resampler, grids = made(cfg), [(3, 5), (5, 3)]
    rows = torch.randn(30, 2 * cfg.kv_width, generator=torch.Generator().manual_seed(4))
    before = rows.clone()
    views = [rows[::2, : cfg.kv_width], rows[1::2, ::2]]
    copies = [v.contiguous() for v in views]
    with torch.no_grad():
        for call in (resampler, fold(resampler)):
            torch.testing.assert_close(call(views, grids), call(copies, grids), **CLOSE)
    assert torch.equal(rows, before)


# ---- what positions do ----


@every_kind
def test_positions_steer_but_are_not_read(cfg):
    """If all patches say the same, it does not matter where the queries look, so the grid must not matter."""
    resampler, one = made(cfg), patches(cfg, [(1, 1)])[0]
    grids = [(3, 5), (5, 3), (1, 1), (80, 2)]
    features = [repeat(one, "1 c -> l c", l=r * c) for r, c in grids]
    with torch.no_grad():
        for call in (resampler, fold(resampler), lambda *a: resampler.attend(*a)[0]):
            tokens = call(features, grids)
            for other in tokens[1:]:
                assert error(other, tokens[0]) < 1e-5


@every_kind
def test_place_matters_through_the_keys_only(cfg):
    resampler, (x,) = made(cfg), patches(cfg, [(3, 5)])
    shuffled = x[torch.randperm(15, generator=torch.Generator().manual_seed(3))]
    with torch.no_grad():
        straight = resampler([x], [(3, 5)])
        assert error(resampler([shuffled], [(3, 5)]), straight) > 0.1
        assert error(resampler([x], [(5, 3)]), straight) > 0.1
        resampler.attn.part("k")[0].zero_()  # keys that see nothing: every query reads the plain mean
        straight, weights = resampler.attend([x], [(3, 5)])
        torch.testing.assert_close(weights[0], torch.full_like(weights[0], 1 / 15))
        for features, grid in [(shuffled, (3, 5)), (x, (5, 3))]:
            assert error(resampler([features], [grid]), straight) < 1e-5
            assert error(fold(resampler)([features], [grid]), straight) < 1e-5


@pytest.mark.parametrize("half, same, other", [("column", (6, 1), (1, 6)), ("row", (1, 6), (6, 1))])
def test_the_first_half_of_a_position_is_the_column(half, same, other):
    """Keys that are blind to one half of the position do not see movement along that side."""
    resampler, (x,) = made(V2_6), patches(V2_6, [(1, 6)])
    reverse = x.flip(0)
    keep = slice(0, 32) if half == "column" else slice(32, 64)
    key_weight = resampler.attn.part("k")[0]
    with torch.no_grad():
        blind = torch.zeros_like(key_weight)
        blind[:, keep] = key_weight[:, keep]
        key_weight.copy_(blind)
        assert error(resampler([reverse], [same]), resampler([x], [same])) < 1e-5
        assert error(resampler([reverse], [other]), resampler([x], [other])) > 0.05


def test_a_key_bias_changes_nothing():
    resampler, features = made(V2_6), patches(V2_6, GRIDS)
    with torch.no_grad():
        before = resampler(features, GRIDS)
        resampler.attn.part("k")[1].add_(torch.linspace(-3, 3, 64))
        assert error(resampler(features, GRIDS), before) < 1e-5


def test_a_fresh_resampler_spreads_as_released():
    """Resampler._init_weights of 2.0: 0.02, no bias, and a projection that keeps the size of what it gets."""
    fresh = Resampler(ResamplerConfig(num_queries=64, width=128, kv_width=96, version="2.0"))
    spread = {"query": 0.02, "kv_proj.weight": 0.02, "proj": 128**-0.5}
    assert {name: fresh.get_parameter(name).std().item() for name in spread} == pytest.approx(spread, rel=0.05)
    assert not any(p.any() for name, p in fresh.named_parameters() if name.endswith("bias"))


def test_2_0_gives_its_queries_a_square_of_positions():
    resampler, features = made(V2_0), patches(V2_0, GRIDS)
    assert torch.equal(resampler.pos_embed, rearrange(sincos_2d(64, 3, 3), "r c e -> (r c) e"))
    with torch.no_grad():
        before = resampler(features, GRIDS)
        resampler.pos_embed.zero_()
        assert error(resampler(features, GRIDS), before) > 0.1
        assert error(fold(resampler)(features, GRIDS), resampler(features, GRIDS)) < 1e-5
    assert "pos_embed" not in dict(made(V2_6).named_parameters())


# ---- fold ----


@every_kind
def test_fold_equals_forward(cfg):
    resampler, features = made(cfg), patches(cfg, GRIDS)
    with torch.no_grad():
        assert error(fold(resampler)(features, GRIDS), resampler(features, GRIDS)) < 1e-5


@pytest.mark.parametrize("scale, offset", [(0, 0), (1e-4, 0), (1e-2, 0), (100, 0), (1e-3, 1), (1, 10)])
@every_kind
def test_fold_survives_faint_loud_and_nearly_constant_features(cfg, scale, offset):
    """ln_kv divides by the standard deviation, and eps decides where that is small. Judge: float64."""
    resampler, grids = made(cfg), [(3, 5), (4, 4)]
    features = [offset + scale * x for x in patches(cfg, grids)]
    with torch.no_grad():
        own, folded = resampler(features, grids), fold(resampler)(features, grids)
        exact = resampler.double()([x.double() for x in features], grids)
        assert error(folded, exact) < max(2e-5, 3 * error(own, exact))


@pytest.mark.parametrize("dtype, scale", [(torch.bfloat16, 1), (torch.float16, 300)])
@every_kind
def test_fold_in_16_bits_is_as_near_to_float32_as_forward_is(cfg, dtype, scale):
    """Loud features: float16 does not hold their squares."""
    resampler, features = made(cfg).to(dtype), patches(cfg, GRIDS)
    halves = [(scale * x).to(dtype) for x in features]
    with torch.no_grad():
        half, folded = resampler(halves, GRIDS), fold(resampler)(halves, GRIDS)
        exact = resampler.float()([x.float() for x in halves], GRIDS)
    assert half.dtype == folded.dtype == dtype
    rms = [(x.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt() for x in (half, folded)]
    assert rms[0] < 0.05 and rms[1] < max(0.03, 1.5 * rms[0])


def test_fold_at_the_released_width():
    with torch.device("meta"):  # skips the slow default initialization; a narrow eye keeps folding short
        resampler = Resampler(replace(v2_6.resampler, kv_width=192))
    resampler, generator = resampler.to_empty(device="cpu"), torch.Generator().manual_seed(0)
    grids = [(4, 6), (2, 3)]
    with torch.no_grad():
        for name, p in resampler.named_parameters():
            p.uniform_(-1, 1, generator=generator)
            p.mul_(1 if p.ndim == 1 or name == "query" else 2 / p.shape[-1] ** 0.5)
        features = patches(resampler.cfg, grids)
        assert error(fold(resampler)(features, grids), resampler(features, grids)) < 1e-5


@every_kind
def test_fold_is_a_snapshot(cfg):
    resampler, features = made(cfg), patches(cfg, GRIDS)
    folded = fold(resampler)
    before, state = folded(features, GRIDS), {k: v.clone() for k, v in resampler.state_dict().items()}
    with torch.no_grad():
        for p in resampler.parameters():
            p.add_(0.5)
    assert torch.equal(folded(features, GRIDS), before)  # later changes of the weights do not reach it
    resampler.load_state_dict(state)
    folded.bfloat16()  # nor does it reach the resampler
    assert resampler.proj.dtype == torch.float32
    assert all(torch.equal(value, state[key]) for key, value in resampler.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fold_shares_no_memory_with_the_resampler(dtype):
    resampler = made(V2_0).to(dtype)
    pointers = {p.data_ptr() for p in resampler.parameters()}
    assert all(b.dtype == dtype and b.data_ptr() not in pointers for b in fold(resampler).buffers())


def test_fold_has_nothing_to_train():
    folded, features = fold(made(V2_6)), [x.requires_grad_() for x in patches(V2_6, GRIDS)]
    assert list(folded.parameters()) == [] and not folded(features, GRIDS).requires_grad


# ---- training and edges ----


@every_kind
def test_inference_mode_first_and_training_after(cfg):
    """Positions are cached. A tensor cached in inference mode must not spoil a later backward pass."""
    resampler, grids = made(cfg), [(2, 11), (11, 2)]
    features = patches(cfg, grids)
    with torch.inference_mode():
        before = resampler(features, grids).clone()
    tokens = resampler.train()(features, grids)
    tokens.sum().backward()
    torch.testing.assert_close(tokens.detach(), before, **CLOSE)
    inputs = [x.clone().requires_grad_() for x in features]
    resampler(inputs, grids).square().mul(torch.linspace(0, 1, cfg.width)).sum().backward()
    assert all((x.grad != 0).all() for x in inputs)


@every_kind
def test_bfloat16_attention_sums_to_one(cfg):
    resampler, features = made(cfg).bfloat16(), [x.bfloat16() for x in patches(cfg, GRIDS)]
    with torch.no_grad():
        tokens, weights = resampler.attend(features, GRIDS)
        assert tokens.dtype == torch.bfloat16
        assert all((w.float().sum(-1) - 1).abs().max() < 0.02 for w in weights)


@every_kind
def test_empty_lists(cfg):
    resampler, nothing = made(cfg), (0, cfg.num_queries, cfg.width)
    assert resampler([], []).shape == fold(resampler)([], []).shape == nothing
    tokens, weights = resampler.attend([], [])
    assert tokens.shape == nothing and weights == []


@pytest.mark.parametrize(
    "bad, grid",
    [
        (torch.zeros(15, 40), (3, 4)),
        (torch.zeros(15, 39), (3, 5)),
        (torch.zeros(1, 15, 40), (3, 5)),
        (torch.zeros(15, 40), (-3, -5)),
        (torch.zeros(0, 40), (0, 5)),
        (torch.zeros(40), (1, 1)),
    ],
)
def test_a_bad_slice_is_named(bad, grid):
    resampler, good = made(V2_6), torch.zeros(6, 40)
    for call in (resampler, resampler.attend, fold(resampler)):
        with pytest.raises(ValueError, match="slice 1: ") as caught:
            call([good, bad], [(2, 3), grid])
        assert str(tuple(bad.shape)) in str(caught.value)
        with pytest.raises(ValueError, match="1 slices of features but 2 patch grids"):
            call([good], [(2, 3), (2, 3)])


@pytest.mark.parametrize(
    ("features", "grids", "words"),
    [
        (None, [], "features must be a list, got NoneType"),
        (torch.zeros(1, 6, 40), [(2, 3)], "features must be a list, got Tensor"),
        ([torch.zeros(6, 40)], None, "patch_grids must be a list, got NoneType"),
        ([[1.0]], [(2, 3)], r"features\[0\] must be Tensor, got list"),
        ([torch.zeros(6, 40)], [6], r"patch_grids\[0\] must be a list, got int"),
        ([torch.zeros(6, 40)], [(2, 3.0)], r"patch_grids\[0\]\[1\] must be int, got float"),
        ([torch.zeros(6, 40)], [(2, 3, 1)], r"slice 0: .*\(2, 3, 1\)"),
        ([torch.zeros(6, 40)], [(10**5000, 1)], "slice 0: "),
        ([torch.zeros(6, 40, dtype=torch.int64)], [(2, 3)], r"slice 0: features must be floating-point.*int64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_list_of_features(features, grids, words):
    resampler = made(V2_6)
    for call in (resampler, resampler.attend, fold(resampler)):
        with pytest.raises((TypeError, ValueError), match=words):
            call(features, grids)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("resampler.kv_proj", lambda r: setattr(r, "kv_proj", torch.nn.Sequential(r.kv_proj))),
        ("resampler.kv_proj", lambda r: r.kv_proj.register_forward_hook(lambda *_: None)),
        ("resampler.attn.out_proj", lambda r: torch.nn.utils.parametrizations.weight_norm(r.attn.out_proj)),
        ("resampler.attn", lambda r: register_parametrization(r.attn, "in_proj_weight", torch.nn.Tanh())),
        ("resampler", lambda r: register_parametrization(r, "query", torch.nn.Tanh())),
        ("resampler.ln_kv", lambda r: setattr(r, "ln_kv", torch.nn.RMSNorm(64))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrapped_resampler_is_called_as_it_is_and_not_folded(name, change):
    resampler, features = made(V2_6), patches(V2_6, GRIDS)
    change(resampler)
    with pytest.raises(ValueError, match=f"^{name} is wrapped"):
        fold(resampler)
    with torch.no_grad():
        quiet = resampler(features, GRIDS)
    assert error(resampler(features, GRIDS), quiet) < 1e-5


@pytest.mark.parametrize("name", ["kv_proj", "ln_q", "ln_kv", "attn.out_proj", "ln_post"])
def test_wrapped_parts_of_the_resampler_have_an_effect(name):
    features, ramp = patches(V2_6, GRIDS), torch.linspace(1, 2, 64)
    resampler, other = made(V2_6), made(V2_6)
    resampler.get_submodule(name).register_forward_hook(lambda layer, x, y: ramp * y)
    with torch.no_grad():
        for parameter in other.get_submodule(name).parameters():
            parameter.mul_(ramp if parameter.ndim == 1 else ramp[:, None])
        assert error(resampler(features, GRIDS), other(features, GRIDS)) < 1e-5
        assert error(resampler(features, GRIDS), made(V2_6)(features, GRIDS)) > 1e-2


def test_parametrized_weights_have_an_effect():
    features, resampler = patches(V2_6, GRIDS), made(V2_6)
    register_parametrization(resampler.attn, "in_proj_weight", torch.nn.Tanh())
    assert error(resampler(features, GRIDS), made(V2_6)(features, GRIDS)) > 1e-2


def test_what_is_no_resampler():
    for wrong in (None, torch.nn.Linear(2, 2), torch.nn.Sequential(made(V2_6))):
        with pytest.raises(TypeError, match="resampler must be Resampler, got"):
            fold(wrong)
    with pytest.raises(TypeError, match="cfg must be ResamplerConfig, got NoneType"):
        Resampler(None)


def test_configs_that_cannot_be():
    with pytest.raises(ValueError, match="num_queries = 6"):
        replace(V2_0, num_queries=6)
    with pytest.raises(ValueError, match="multiple of heads"):
        replace(V2_6, heads=5)


def test_published_sizes():
    with torch.device("meta"):
        resamplers = [Resampler(preset.resampler) for preset in (v2_0, v2_5, v2_6)]
    assert [sum(p.numel() for p in r.parameters()) for r in resamplers] == [
        29_514_240,
        89_038_848,
        68_619_264,
    ]
    assert [r.cfg.heads for r in resamplers] == [18, 32, 28]


def test_state_dict_names_are_the_published_ones():
    names = {"query", "proj", "kv_proj.weight", "attn.in_proj_weight", "attn.in_proj_bias"}
    names |= {"attn.out_proj.weight", "attn.out_proj.bias"}
    names |= {f"ln_{x}.{y}" for x in ("q", "kv", "post") for y in ("weight", "bias")}
    assert set(Resampler(V2_6).state_dict()) == names
    assert set(Resampler(V2_0).state_dict()) == names | {"pos_embed"}
