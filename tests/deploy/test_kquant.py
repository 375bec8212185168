"""K-quants: ggml's bytes by hash, live and by torch, gguf's dequantizer, what holds for every block, every refusal."""

import ctypes
import doctest
import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from places import ROOT

from minicpmv_ref.deploy import kquant, kquant_search
from minicpmv_ref.deploy.kquant import FORMATS, dequantize, quantize

F32 = np.float32
GOLDEN = json.loads((ROOT / "tests/golden/kquant_sha256.json").read_text())
BITS = {"Q4_K": 4, "Q5_K": 5, "Q6_K": 6, "Q8_0": 8, "Q5_0": 5}
WITH_IMPORTANCE = [kind for kind in FORMATS if kind != "Q8_0"]


# ggml's bytes --------------------------------------------------------------------------------------------------------


def uniform(seed: int, n: int = 64 * 1024) -> np.ndarray:
    """splitmix64 as float32 in [0, 1): the same numbers on every machine."""
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return ((z ^ z >> np.uint64(31)) >> np.uint64(40)).astype(F32) / F32(2**24)


@pytest.fixture(scope="module")
def golden_inputs() -> dict[str, np.ndarray]:
    u1, u2, u3, u4 = (uniform(seed) for seed in (1, 2, 3, 4))
    g = ((u1 + u2) + u3) + u4 - F32(2)
    inputs = {
        "bell": g / F32(16),
        "heavy": (((g * g) * g) * g) * g,
        "sparse": np.where(u4 < F32(0.05), g, F32(0)),
        "shifted": g + F32(4),
        "tiny": g * F32(2**-40),
        "big": g * F32(2**14),
    }
    return {name: values.reshape(64, 1024) for name, values in inputs.items()}


def test_the_golden_file_is_complete():
    assert len(GOLDEN) == 42


@pytest.mark.parametrize("case", GOLDEN)
def test_bytes_equal_ggml(case, golden_inputs):
    name, kind = case.split("/")
    importance = uniform(9, 1024) if kind.endswith("+imat") else None
    packed = quantize(golden_inputs[name], kind.removesuffix("+imat"), importance)
    assert hashlib.sha256(packed.tobytes()).hexdigest() == GOLDEN[case]


def ggml_quantize(array, kind, importance=None):
    ggml = ctypes.CDLL(
        str(next((Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib").glob("*ggml-base.*")))
    )
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    rows, cols = array.shape
    out = np.empty((rows, cols // FORMATS[kind].weights * FORMATS[kind].bytes), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    number = gguf.GGMLQuantizationType[kind].value
    ggml.ggml_quantize_chunk(number, array.ctypes.data, out.ctypes.data, 0, rows, cols, weights)
    return out


def hard_inputs(rng, rows=24, cols=512) -> dict[str, np.ndarray]:
    """Families of weights, ordinary and not, float32 (rows, cols)."""
    shape = (rows, cols)
    g = rng.standard_normal(shape)
    families = {
        "normal": g,
        "student": rng.standard_t(2, shape),
        "cauchy": np.clip(rng.standard_cauchy(shape), -1e30, 1e30),
        "positive": abs(g),
        "negative": -abs(g),
        "shifted up": g + 10,
        "shifted down": g - 10,
        "ternary": rng.integers(-1, 2, shape),
        "ties": np.round(g * 8) / 8,
        "zeros of both signs": rng.choice([0.0, -0.0], shape),
        "constant": np.full(shape, 0.3),
        "constant below zero": np.full(shape, -0.3),
        "constant groups": np.repeat(rng.standard_normal((rows, cols // 32)), 32, axis=1),
        "sparse": np.where(rng.random(shape) < 0.03, g, -0.0),
        "one": np.eye(rows, cols),
        "outliers": np.where(rng.random(shape) < 0.01, g * 1000, g),
        "mixed scales": np.clip(g * np.exp(rng.uniform(-40, 40, shape)), -1e38, 1e38),
        "ramp": np.linspace(-1, 1, cols) * rng.standard_normal((rows, 1)),
        "float16": g.astype(np.float16),
        "subnormal": g * 1e-40,
        "hardly there": g * 1e-44,
        "beyond float16": g * 1e6,
        "huge": np.clip(g * 1e38, -3.4e38, 3.4e38),
    }
    return {name: np.asarray(values, F32) for name, values in families.items()}


def importances(rng, cols=512) -> dict[str, np.ndarray]:
    u = rng.random(cols)
    families = {
        "uniform": u,
        "half zero": np.where(rng.random(cols) < 0.5, u, 0),
        "zero": np.zeros(cols),
        "one": np.ones(cols),
        "wild": np.exp(rng.uniform(-20, 20, cols)),
        "few and wild": np.where(rng.random(cols) < 0.03, np.exp(rng.uniform(-40, 40, cols)), 0),
        "huge": u * 1e37,
    }
    return {name: np.asarray(values, F32) for name, values in families.items()}


@pytest.fixture
def as_ggml(monkeypatch):
    """ggml stores infinite scales without a word; `quantize` refuses them. The bytes are the same until then."""
    monkeypatch.setattr(kquant, "_check_stored", lambda blocks, x, kind: None)


@pytest.mark.llamacpp
@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_equal_live_ggml(kind, golden_inputs, as_ggml):
    pytest.importorskip("llama_cpp", reason="needs the extra: pip install minicpmv-ref[llamacpp]", exc_type=ImportError)
    assert extreme_digests(ggml_quantize, kind, golden_inputs) == EXTREMES[kind]
    rng = np.random.default_rng(0)
    for name, x in hard_inputs(rng).items():
        assert (quantize(x, kind) == ggml_quantize(x, kind)).all(), name
        for weighting, importance in importances(rng).items():
            ours = quantize(x, kind, importance)
            assert (ours == ggml_quantize(x, kind, importance)).all(), f"{name}, importance {weighting}"


# Bytes of ggml for inputs where one trap decides, so that they are checked without the extra too.


def test_a_zero_block_of_q5_0_has_a_negative_zero():
    assert quantize(np.zeros((1, 32), F32), "Q5_0").tobytes().hex() == "0080" + "ffffffff" + "00" * 16


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_a_zero_block_of_a_k_quant_is_all_zero(kind):
    assert not quantize(np.zeros((2, 256), F32), kind).any()
    assert not quantize(np.zeros((2, 256), F32), kind, np.ones(256, F32)).any()


def test_q8_0_rounds_half_away_from_zero():
    x = np.zeros((1, 32), F32)
    x[0, :5] = 127, 0.5, -0.5, 2.5, np.nextafter(F32(0.5), F32(0))
    assert quantize(x, "Q8_0")[0, 2:7].view(np.int8).tolist() == [127, 1, -1, 3, 0]


def test_of_equal_sizes_the_first_gets_the_longer_side():
    x = np.zeros((2, 32), F32)
    x[0, [3, 5]], x[1, [3, 5]] = (1, -1), (-1, 1)
    assert (quantize(x, "Q5_0")[:, :2].copy().view(np.float16)[:, 0] == [-1 / 16, 1 / 16]).all()


def test_sums_run_in_index_order():
    rng = np.random.default_rng(1)
    for groups in (1, 2, 3, 7, 8, 9, 16, 33, 1000):
        t = (rng.standard_normal((32, groups)) * np.exp(rng.uniform(-9, 9, (32, groups)))).astype(F32)
        expected = t[0].copy()
        for row in t[1:]:
            expected = expected + row
        assert (kquant_search.column_sum(t) == expected).all(), groups


def test_nearest_is_half_to_even_and_wraps():
    v = np.array([0.5, 1.5, -0.5, -2.5, 2**22 - 1, 2**22, np.inf, -np.inf, np.nan], F32)
    expected = [0, 2, 0, -2, 2**22 - 1, -(2**22), -(2**22), -(2**22), 0]
    assert kquant_search.nearest(v).tolist() == expected


def wild_importance(seed: int) -> np.ndarray:
    """Few columns count, and those between 2^-40 and 2^39: this moves `low` far, and scales out of their range."""
    exponents = (uniform(seed, 1024) * F32(80)).astype(np.int32) - 40
    return np.where(uniform(seed + 1, 1024) < F32(0.03), np.ldexp(F32(1), exponents), F32(0))


def extreme_sizes(golden_inputs) -> np.ndarray:
    """The same weights from subnormal to almost too large for float32, and some far below zero."""
    exponents = np.array([-146, -130, -64, -50, -46, -20, 24, 40, 64, 80, 110, 130])
    sizes = np.ldexp(golden_inputs["bell"][:6], exponents[:, None, None]).reshape(-1, 1024)
    far_below = golden_inputs["bell"][:6] * F32(1024) - F32(2**23)  # an ordinary scale, an infinite float16 low
    return np.concatenate([sizes, far_below])


# sha256 of ggml's bytes, first 16 digits: wild importance, extreme sizes, extreme sizes with importance.
EXTREMES = {
    "Q4_K": ["91ef9a1a3e3b9487", "5691cc18473045e0", "903516d53a60cbe0"],
    "Q5_K": ["1e96783269365372", "20726f99104381a0", "8fa9a2d0c1b1352b"],
    "Q6_K": ["97415e7036953e7b", "16e6f88fad95c080", "6ec0f178e24f55f7"],
    "Q8_0": ["9af95124374826f0", "41a9613f672944fa", "41a9613f672944fa"],
    "Q5_0": ["d7c6dafaa5719ba0", "5d40f65ab8efc559", "e2cd3891b1fd3bdb"],
}


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_equal_ggml_at_the_extremes(kind, golden_inputs, as_ggml):
    assert extreme_digests(quantize, kind, golden_inputs) == EXTREMES[kind]


def extreme_digests(quantizer, kind, golden_inputs) -> list[str]:
    ordinary = np.concatenate([golden_inputs[name][:16] for name in golden_inputs])
    wild = [quantizer(ordinary, kind, wild_importance(seed)) for seed in range(20, 40, 2)]
    sizes = extreme_sizes(golden_inputs)
    packed = [np.concatenate(wild), quantizer(sizes, kind), quantizer(sizes, kind, uniform(9, 1024))]
    return [hashlib.sha256(p.tobytes()).hexdigest()[:16] for p in packed]


# The same bytes from torch -------------------------------------------------------------------------------------------

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]  # without a GPU the lines run, the chip is untested


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", GOLDEN)
def test_bytes_of_torch_equal_ggml(case, device, golden_inputs):
    name, kind = case.split("/")
    importance = uniform(9, 1024) if kind.endswith("+imat") else None
    packed = quantize(golden_inputs[name], kind.removesuffix("+imat"), importance, device)
    assert hashlib.sha256(packed.tobytes()).hexdigest() == GOLDEN[case]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_of_torch_equal_ggml_at_the_extremes(kind, device, golden_inputs, as_ggml):
    def by_torch(array, kind, importance=None):
        return quantize(array, kind, importance, device)

    assert extreme_digests(by_torch, kind, golden_inputs) == EXTREMES[kind]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_of_torch_equal_numpy_for_odd_weights(kind, device, as_ggml):
    rng = np.random.default_rng(0)
    families = hard_inputs(rng, rows=6, cols=256)
    x = np.concatenate(list(families.values()))  # in one call: rows are independent, see below
    for weighting, importance in {"none": None, **importances(rng, cols=256)}.items():
        other = (quantize(x, kind, importance, device) != quantize(x, kind, importance)).any(axis=1)
        names = [name for name, differs in zip(families, other.reshape(-1, 6).any(axis=1)) if differs]
        assert not names, f"{names}, importance {weighting}"


@pytest.mark.parametrize("device", DEVICES)
def test_torch_sums_in_index_order_too(device):
    rng = np.random.default_rng(1)
    for groups in (1, 2, 8, 1000):
        t = (rng.standard_normal((32, groups)) * np.exp(rng.uniform(-9, 9, (32, groups)))).astype(F32)
        ours = kquant_search.column_sum(torch.tensor(t, device=device)).cpu().numpy()
        assert (ours == kquant_search.column_sum(t)).all(), groups


@pytest.mark.parametrize("device", DEVICES)
def test_a_number_over_an_array_is_rounded_once(device):
    x = np.random.default_rng(2).random(1000, F32) + F32(1)
    ours = kquant_search._over(F32(15), torch.tensor(x, device=device)).cpu().numpy()
    assert ours.dtype == F32 and (ours == F32(15) / x).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_search_runs_where_it_is_told_to(kind, monkeypatch):
    """Q8_0 does not search at all, and Q5_0 only with importance."""
    x, importance = np.random.default_rng(3).standard_normal((2, 256), F32), np.ones(256, F32)
    places = []

    def column_sum(t, original=kquant_search.column_sum):
        places.append(t.device.type if isinstance(t, torch.Tensor) else "numpy")
        return original(t)

    monkeypatch.setattr(kquant, "column_sum", column_sum)
    monkeypatch.setattr(kquant_search, "column_sum", column_sum)
    quantize(x, kind)
    quantize(x, kind, importance)
    assert "cpu" not in places
    for weights in (None, importance):
        places.clear()
        quantize(x, kind, weights, "cpu")
        assert ("cpu" in places) == (kind not in ("Q8_0", "Q5_0") or (kind == "Q5_0" and weights is not None))


def test_a_gpu_gets_more_at_a_time(monkeypatch):
    sizes = []

    def search(device, fit, x, w, *args):
        sizes.append(x.size)
        return fit(x, w, *args)

    monkeypatch.setattr(kquant, "search", search)
    x = np.random.default_rng(4).standard_normal((3 * kquant.MOST_VALUES // 256, 256), F32)
    expected = quantize(x, "Q6_K", device="cpu")
    assert sizes == 3 * [kquant.MOST_VALUES]
    sizes.clear()
    monkeypatch.setattr(kquant, "_check_device", lambda device: SimpleNamespace(type="cuda"))
    assert (quantize(x, "Q6_K", device="cuda") == expected).all() and sizes == [x.size]


def test_a_nan_with_the_bits_of_a_gpu_is_like_any_other():
    """0 / 0 is 0xffc00000 on x86-64 and 0x7fffffff on CUDA; rounding by bits would see a large number in the latter."""
    nan = np.array([[0x7FFFFFFF], [0xFFC00000]], np.uint32).view(F32)
    one, ends = np.ones(1, F32), np.full((2, 1), np.inf, F32)
    assert kquant_search.round_to_levels(nan, 0 * one, one, 15, ends).tolist() == [[0], [0]]
    by_torch = [torch.tensor(t) for t in (nan, 0 * one, one)]
    assert kquant_search.round_to_levels(*by_torch, 15, torch.tensor(ends)).tolist() == [[0], [0]]
    (found,) = kquant_search.search("cpu", lambda x, w: [x], nan, nan)
    assert found.view(np.uint32).tolist() == [[0xFFC00000], [0xFFC00000]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", FORMATS)
def test_torch_leaves_inputs_alone(kind):
    """Also those that may not be written to, such as a mapped file."""
    x, importance = np.random.default_rng(5).standard_normal((4, 256), F32), np.linspace(0, 1, 256, dtype=F32)
    before = x.copy(), importance.copy()
    quantize(x, kind, importance, "cpu")
    assert (x == before[0]).all() and (importance == before[1]).all()
    x.flags.writeable = importance.flags.writeable = False
    one_block = x[:1, : FORMATS[kind].weights]
    assert quantize(one_block, kind, importance[: one_block.size], "cpu").shape == (1, FORMATS[kind].bytes)


def test_without_a_device_torch_is_not_imported():
    code = """
import sys
import numpy as np
from minicpmv_ref.deploy.kquant import FORMATS, quantize
x, importance = np.eye(2, 256, dtype=np.float32), np.ones(256, np.float32)
for kind in FORMATS:
    quantize(x, kind), quantize(x, kind, importance)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("device", [torch.device("cpu"), "cpu", "cpu:0"])
def test_a_device_may_be_named_or_given(device):
    x = np.random.default_rng(6).standard_normal((2, 256), F32)
    assert (quantize(x, "Q4_K", device=device) == quantize(x, "Q4_K")).all()


@pytest.mark.parametrize("device", ["gpu", "", "cuda:99", "mps", "meta", 3.5, True, np.float32])
def test_a_device_that_is_not_there_is_refused(device):
    for kind in FORMATS:
        with pytest.raises(ValueError, match="device must be a CPU or a CUDA device") as refusal:
            quantize(np.ones((1, 256), F32), kind, device=device)
        assert repr(device) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_cuda_is_refused():
    with pytest.raises(ValueError, match=r"must be a CPU or a CUDA device that is there, got 'cuda': .*CUDA"):
        quantize(np.ones((1, 256), F32), "Q4_K", device="cuda")


# Decoding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_dequantize_equals_gguf(kind):
    rng = np.random.default_rng(2)
    cols = 1024
    noise = rng.integers(0, 256, (64, cols // FORMATS[kind].weights * FORMATS[kind].bytes), np.uint8)
    own = quantize(rng.standard_normal((64, cols), F32), kind)
    for packed in (own, noise, np.asfortranarray(own), own[::2]):
        ours = dequantize(packed, kind, cols)
        with np.errstate(all="ignore"):
            theirs = gguf.quants.dequantize(np.ascontiguousarray(packed), gguf.GGMLQuantizationType[kind])
        assert ours.dtype == F32 and ours.flags.c_contiguous
        assert (np.isnan(ours) == np.isnan(theirs)).all()
        there = ~np.isnan(ours)  # random bytes hold infinite scales; which NaN comes of them is the CPU's choice
        assert (ours.view(np.uint32) == theirs.view(np.uint32))[there].all()


@pytest.mark.parametrize("kind", FORMATS)
def test_sizes(kind):
    block, size = FORMATS[kind].weights, FORMATS[kind].bytes
    assert (block, size) == tuple(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]])
    assert quantize(np.ones((3, 2 * block), F32), kind).shape == (3, 2 * size)


def test_bits_per_weight():
    bits = {kind: 8 * form.bytes / form.weights for kind, form in FORMATS.items()}
    assert bits == {"Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "Q8_0": 8.5, "Q5_0": 5.5}


# What must hold for every block --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_no_weight_is_far_off(kind):
    """Half a step would be exact rounding to a grid over the range of the block. The search may clip a few weights,
    and scales are rounded too: allow one step and a half."""
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.standard_normal((64, 1024)), rng.uniform(-1, 1, (64, 1024))]).astype(F32)
    blocks = x.reshape(-1, FORMATS[kind].weights)
    step = 2 * np.abs(blocks).max(axis=1) / (2 ** BITS[kind] - 1)
    error = np.abs(dequantize(quantize(blocks, kind), kind, blocks.shape[1]) - blocks).max(axis=1)
    assert (error <= 1.5 * step).all()


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0"])
def test_exact_levels_are_a_fixed_point(kind):
    """Where d is a power of two and the largest level is used, quantize after dequantize changes nothing."""
    rng = np.random.default_rng(4)
    least, most = (-127, 127) if kind == "Q8_0" else (-16, 15)
    levels = rng.integers(least, most + 1, (64, 32))
    levels[:, 7] = least
    x = (levels * 2.0 ** rng.integers(-9, 5, (64, 1))).astype(F32)
    again = dequantize(quantize(x, kind), kind, 32)
    assert (again == x).all()
    assert (quantize(again, kind) == quantize(x, kind)).all()


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K"])
def test_a_grid_of_levels_is_kept(kind):
    """Weights that are levels of one power-of-two scale, all levels in use, come back exactly."""
    top = 2 ** BITS[kind] - 1
    rng = np.random.default_rng(5)
    levels = np.stack([rng.permutation(np.r_[0:32] % (top + 1)) for _ in range(8 * 16)])
    x = (63 * levels * 2.0**-6).reshape(16, 256).astype(F32)  # 63: the largest 6-bit scale, so d is 2^-6 exactly
    assert (dequantize(quantize(x, kind), kind, 256) == x).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_more_bits_mean_less_error(kind):
    x = np.random.default_rng(6).standard_normal((64, 1024), F32)
    rms = {k: np.sqrt(np.square(dequantize(quantize(x, k), k, 1024) - x).mean()) for k in (kind, "Q4_K", "Q8_0")}
    assert rms["Q8_0"] <= rms[kind] <= rms["Q4_K"]
    assert 0.070 < rms["Q4_K"] < 0.0725


@pytest.mark.parametrize("kind", WITH_IMPORTANCE)
def test_importance_lowers_the_weighted_error(kind):
    rng = np.random.default_rng(7)
    x, importance = rng.standard_normal((64, 512), F32), np.exp(2 * rng.standard_normal(512)).astype(F32)

    def weighted_error(packed):
        return (importance * np.square(dequantize(packed, kind, 512) - x)).sum()

    assert weighted_error(quantize(x, kind, importance)) < weighted_error(quantize(x, kind))


def test_q8_0_ignores_importance():
    x = np.random.default_rng(8).standard_normal((4, 64), F32)
    assert (quantize(x, "Q8_0", np.arange(64, dtype=F32)) == quantize(x, "Q8_0")).all()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_are_independent(kind, weighted):
    """Also across the pieces that are worked on at a time, and for a single block."""
    rng = np.random.default_rng(9)
    x = rng.standard_normal((kquant.MOST_VALUES // 256 + 9, 256), F32)
    importance = rng.random(256, F32) if weighted else None
    whole = quantize(x, kind, importance)
    for row in (0, 5, len(x) - 10, len(x) - 9, len(x) - 1):
        assert (quantize(x[row : row + 1], kind, importance) == whole[row]).all()
    assert (quantize(x[::-1], kind, importance) == whole[::-1]).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_importance_belongs_to_columns(kind):
    rng = np.random.default_rng(10)
    x, importance = rng.standard_normal((6, 512), F32), rng.random(512, F32)
    whole = quantize(x, kind, importance)
    if kind == "Q5_0":  # its weights depend on the whole row
        x[:, 256:] = x[:, :256]
        whole = quantize(x, kind, importance)
    halves = [quantize(x[:, part], kind, importance[part]) for part in (slice(0, 256), slice(256, 512))]
    if kind != "Q5_0":
        assert (np.concatenate(halves, axis=1) == whole).all()
    else:
        assert (np.concatenate(halves, axis=1) == whole).mean() > 0.99


@pytest.mark.parametrize("kind", FORMATS)
def test_layout_and_float16_do_not_matter(kind):
    x = np.random.default_rng(11).standard_normal((8, 512)).astype(np.float16)
    expected = quantize(x.astype(F32), kind)
    assert (quantize(x, kind) == expected).all()
    assert (quantize(np.asfortranarray(x.astype(F32)), kind) == expected).all()
    assert (quantize(x.astype(F32)[::2], kind) == expected[::2]).all()
    wide = np.zeros((8, 1024), F32)
    wide[:, ::2] = x
    assert (quantize(wide[:, ::2], kind) == expected).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_inputs_are_left_alone(kind):
    x, importance = np.random.default_rng(12).standard_normal((4, 256), F32), np.linspace(0, 1, 256, dtype=F32)
    before, buffer = (x.copy(), importance.copy()), np.getbufsize()
    packed = quantize(x, kind, importance)
    assert np.getbufsize() == buffer  # numpy's setting, which the search changes while it lasts
    kept = packed.copy()
    dequantize(packed, kind, 256)
    assert (x == before[0]).all() and (importance == before[1]).all() and (packed == kept).all()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", [(0, 256), (3, 0), (0, 0)])
def test_empty(kind, shape):
    packed = quantize(np.zeros(shape, F32), kind)
    assert packed.shape == (shape[0], shape[1] // FORMATS[kind].weights * FORMATS[kind].bytes)
    assert packed.dtype == np.uint8
    assert dequantize(packed, kind, np.int64(shape[1])).shape == shape
    assert quantize(np.zeros(shape, F32), kind, np.ones(shape[1], F32)).shape == packed.shape


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(kind, bad):
    x = np.ones((2000, 256), F32)
    x[1999, 255] = bad
    with pytest.raises(ValueError, match="weights must be finite, got"):
        quantize(x, kind)
    with pytest.raises(ValueError, match="weights must be finite, got"):
        quantize(x.astype(np.float16), kind, np.ones(256, F32))


# The largest weight of each kind: its levels, times 63 or 128 for the scales of a K-quant, times 65504. Below zero,
# Q4_K and Q5_K end at their lows, which have no levels.
LARGEST = {"Q4_K": 15 * 63, "Q5_K": 31 * 63, "Q6_K": 32 * 128, "Q8_0": 127, "Q5_0": 16}
LOWEST = LARGEST | {"Q4_K": 63, "Q5_K": 63}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("sign", [1, -1])
def test_weights_whose_scale_is_beyond_float16_are_refused(kind, sign):
    """ggml would write them, and they would be read back as infinity, not-a-number, or (Q6_K, 1e20) as zero."""
    x = np.random.default_rng(3).standard_normal((600, 256), F32)
    end = 65504 * (LARGEST if sign > 0 else LOWEST)[kind]
    x[599, 255] = sign * 0.9 * end
    back = dequantize(quantize(x, kind), kind, 256)
    assert np.isfinite(back).all() and abs(back[599, 255] / x[599, 255] - 1) < 0.1
    for value in (2.2 * end, 1e10, 1e18, 1e20, 3e38):
        x[599, 255] = sign * value
        with pytest.raises(ValueError, match=rf"weights as large as .* do not fit {kind}: its scales are float16"):
            quantize(x, kind)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K"])
def test_a_low_beyond_float16_is_refused_too(kind):
    """Many weights far below zero, close together: an ordinary scale, an infinite low."""
    x = np.random.default_rng(3).standard_normal((2, 256), F32) - F32(2**24)
    with pytest.raises(ValueError, match="do not fit"):
        quantize(x, kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_wrong_type_is_a_type_error(kind):
    for call, name in (
        (lambda: quantize([[1.0] * 256], kind), "array"),
        (lambda: quantize(np.ones((1, 256), F32), kind, [1.0] * 256), "importance"),
        (lambda: dequantize(b"", kind, 256), "blocks"),
        (lambda: dequantize(np.zeros((1, FORMATS[kind].bytes), np.uint8), kind, "256"), "cols"),
    ):
        with pytest.raises(TypeError, match=name):
            call()


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_must_fill_blocks(kind):
    cols = FORMATS[kind].weights + 16
    with pytest.raises(
        ValueError, match=f"columns of {kind} must be a multiple of {FORMATS[kind].weights}, got {cols}"
    ):
        quantize(np.ones((2, cols), F32), kind)
    with pytest.raises(ValueError, match="must be a multiple"):
        dequantize(np.zeros((2, FORMATS[kind].bytes), np.uint8), kind, cols)


@pytest.mark.parametrize(
    "array",
    [
        np.ones(256, F32),
        np.ones((1, 1, 256), F32),
        np.ones((1, 256)),
        np.ones((1, 256), np.int32),
        np.ones((1, 256), ">f4"),
        [[1.0] * 256],
        None,
    ],
    ids=["1-D", "3-D", "float64", "int32", "big endian", "list", "None"],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ValueError, match="array must be a 2-D numpy array of float32 or float16"):
        quantize(array, "Q4_K")


def test_a_torch_tensor_is_refused_by_name():
    with pytest.raises(ValueError, match="array must be a 2-D numpy array of float32 or float16, got Tensor"):
        quantize(torch.ones(1, 256, dtype=torch.bfloat16), "Q4_K")


@pytest.mark.parametrize("kind", ["Q4_0", "q4_k", "", None, 12, ["Q4_K"]])
def test_other_kinds_are_refused(kind):
    with pytest.raises(ValueError, match="kind must be one of Q4_K, Q5_K, Q6_K, Q8_0, Q5_0, got"):
        quantize(np.ones((1, 256), F32), kind)
    with pytest.raises(ValueError, match="kind must be one of"):
        dequantize(np.zeros((1, 144), np.uint8), kind, 256)


@pytest.mark.parametrize(
    "importance",
    [np.ones(255, F32), np.ones((1, 256), F32), np.ones(256, np.int64), [1.0] * 256, 1.0],
    ids=["short", "2-D", "int", "list", "number"],
)
def test_other_importances_are_refused(importance):
    with pytest.raises(ValueError, match=r"importance must be a float array of shape \(256,\), got"):
        quantize(np.ones((1, 256), F32), "Q4_K", importance)


@pytest.mark.parametrize("bad", [-1e-9, np.nan, np.inf, 1e300])
def test_importance_must_be_finite_and_not_negative(bad):
    importance = np.ones(256)
    importance[17] = bad
    for kind in FORMATS:
        with pytest.raises(ValueError, match="importance must be finite and not negative, got"):
            quantize(np.ones((1, 256), F32), kind, importance)


def test_dequantize_refuses_other_bytes():
    for blocks in (np.zeros(144, np.uint8), np.zeros((1, 144), np.int8), b"\0" * 144, None):
        with pytest.raises(ValueError, match="blocks must be a 2-D numpy array of uint8"):
            dequantize(blocks, "Q4_K", 256)
    with pytest.raises(ValueError, match="512 columns of Q4_K take 288 bytes a row, got 144"):
        dequantize(np.zeros((1, 144), np.uint8), "Q4_K", 512)
    for cols in (-256, 256.0, "256", True):
        with pytest.raises(ValueError, match="cols must be an integer of at least 0"):
            dequantize(np.zeros((1, 144), np.uint8), "Q4_K", cols)


def test_examples():
    results = doctest.testmod(kquant)
    assert results.attempted >= 5 and results.failed == 0
