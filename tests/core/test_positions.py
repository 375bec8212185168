"""positions.py against the released code's outputs, transformers' two formulas, Pillow's resampler and golden sines."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from places import ROOT
from transformers import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings
from transformers.vision_utils import get_vision_nearest_position_ids

from minicpmv_ref.positions import bucket_position_ids, interpolate_position_table, sincos_2d

GOLDEN = json.loads((ROOT / "tests/golden/position_ids.json").read_text())
MODULES = np.load(ROOT / "tests/golden/modules.npz")
MISMATCH = {int(n): rows for n, rows in GOLDEN["mismatch_vs_exact_floor"].items()}


# --- bucketed ids, as released ---


def test_released_ids_along_one_axis():
    assert len(GOLDEN["axis_buckets"]) == 83
    for n, ids in GOLDEN["axis_buckets"].items():
        assert bucket_position_ids(1, int(n)).tolist() == ids, n
        assert bucket_position_ids(int(n), 1).tolist() == [70 * i for i in ids], n


@pytest.mark.parametrize("grid", GOLDEN["full_examples"])
def test_released_ids_of_whole_grids(grid):
    ids = bucket_position_ids(*map(int, grid.split("x")))
    assert ids.dtype == torch.int64
    assert ids.tolist() == GOLDEN["full_examples"][grid]


def test_where_released_and_exact_ids_differ():
    """All 160 lengths: both agree except where the golden table says so, and there the released id is one lower."""
    assert len(MISMATCH) == 17
    for n in range(1, 161):
        released, exact = bucket_position_ids(1, n).tolist(), bucket_position_ids(1, n, exact=True).tolist()
        differ = [[i, r, e] for i, (r, e) in enumerate(zip(released, exact, strict=True)) if r != e]
        assert differ == MISMATCH.get(n, [])
        assert all(r == e - 1 for _, r, e in differ)


def test_long_rows_have_one_id_per_patch():
    """The released range 0, 1/n, 2/n, ... < 1 must have n members, although 1/n is rounded."""
    for n in (161, 714, 1000, 2857, 3200):
        ids = bucket_position_ids(1, n)
        assert len(ids) == n
        assert (ids.diff() >= 0).all() and ids[0] == 0 and ids[-1] == 69


def test_released_ids_do_not_depend_on_the_default_dtype():
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert bucket_position_ids(1, 25).tolist() == GOLDEN["axis_buckets"]["25"]
    finally:
        torch.set_default_dtype(before)


# --- bucketed ids, exact ---


def test_exact_ids_are_floor_division():
    for rows, cols, side in ((1, 1, 70), (25, 50, 70), (58, 3, 70), (161, 2, 70), (5, 7, 27), (30, 40, 27), (3, 2, 1)):
        wanted = [side * math.floor(side * r / rows) + side * c // cols for r in range(rows) for c in range(cols)]
        assert bucket_position_ids(rows, cols, side, exact=True).tolist() == wanted


def test_exact_ids_equal_transformers():
    grids = [(r, c) for r in range(1, 161, 9) for c in range(1, 161, 11)]
    grids += [(n, 1) for n in range(1, 161)] + [(1, n) for n in range(1, 161)] + [(10, 101), (1, 714), (70, 70)]
    peer = get_vision_nearest_position_ids(torch.tensor(grids), 70)
    ours = torch.cat([bucket_position_ids(r, c, exact=True) for r, c in grids])
    assert torch.equal(ours, peer)


def test_every_table_cell_is_used_once_at_full_size():
    for exact in (True, False):
        assert torch.equal(bucket_position_ids(70, 70, exact=exact), torch.arange(4900))
        assert torch.equal(bucket_position_ids(27, 27, side=27, exact=exact), torch.arange(729))


@pytest.fixture(scope="module")
def idefics2_ids():
    """Idefics2's embeddings with a zero convolution and a table that holds its own row numbers."""
    peer = Idefics2VisionEmbeddings(Idefics2VisionConfig(hidden_size=1, image_size=70, patch_size=1))
    with torch.no_grad():
        peer.patch_embedding.weight.zero_()
        peer.patch_embedding.bias.zero_()
        peer.position_embedding.weight.copy_(torch.arange(4900)[:, None])

    @torch.no_grad()
    def ids(rows, cols):
        mask = torch.ones(1, rows, cols, dtype=torch.bool)
        return peer(torch.zeros(1, 3, rows, cols), mask)[0, :, 0].long()

    return ids


# Idefics2 computes i * (1/n), a third formula with its own rounding; it misses floor(70 i / n) at these n.
IDEFICS2_MISSES = {25, 49, 50, 55, 82, 94, 98, 100, 110, 115, 122, 135, 147, 155}


def test_idefics2_agrees_outside_its_own_rounding(idefics2_ids):
    misses = {n for n in range(1, 161) if not torch.equal(idefics2_ids(1, n), bucket_position_ids(1, n, exact=True))}
    assert misses == IDEFICS2_MISSES
    for rows, cols in ((32, 32), (23, 45), (45, 23), (28, 37), (76, 14), (10, 101), (1, 714), (70, 70)):
        assert torch.equal(idefics2_ids(rows, cols), bucket_position_ids(rows, cols)), (rows, cols)
        assert torch.equal(idefics2_ids(rows, cols), bucket_position_ids(rows, cols, exact=True)), (rows, cols)


@pytest.mark.parametrize("bad", [(0, 3, 70), (3, 0, 70), (3, 3, 0), (-1, 3, 70), (2.5, 3, 70), (3, None, 70)])
@pytest.mark.parametrize("exact", [True, False])
def test_bad_grids_of_ids(bad, exact):
    with pytest.raises(ValueError, match=f"rows={bad[0]}, cols={bad[1]}, side={bad[2]}"):
        bucket_position_ids(*bad, exact=exact)


# --- the interpolated table of 2.0 ---

GRIDS = [(32, 32), (28, 37), (37, 28), (10, 101), (5, 7), (1, 40), (76, 14), (27, 30), (27, 26)]


def table_of(side, width, seed=0):
    return torch.randn(side * side, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", GRIDS)
def test_interpolation_equals_pillow(grid):
    """Pillow's bicubic on a float picture is antialiased, has its own code, and calls a size (width, height)."""
    rows, cols = grid
    table = table_of(27, 3)
    resized = interpolate_position_table(table, rows, cols)
    assert resized.shape == (rows * cols, 3)
    for channel in range(3):
        picture = Image.fromarray(table[:, channel].reshape(27, 27).numpy())
        wanted = np.asarray(picture.resize((cols, rows), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(resized[:, channel].reshape(rows, cols), wanted, atol=2e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_interpolation_is_a_matrix_on_each_axis(grid):
    """new = A table B^T. A and B hold the weights of one axis, which an identity matrix shows when it is resized."""

    def axis_weights(n):
        identity = torch.eye(27, dtype=torch.float64)[None, None]
        return F.interpolate(identity, size=(n, 27), mode="bicubic", antialias=True)[0, 0]

    table = table_of(27, 4)
    a, b = (axis_weights(n) for n in grid)
    wanted = torch.einsum("rs,std,ct->rcd", a, table.double().reshape(27, 27, 4), b)
    found = interpolate_position_table(table, *grid).double()
    torch.testing.assert_close(found, wanted.reshape(-1, 4), atol=2e-5, rtol=0)


def test_interpolation_to_the_own_size_is_the_table():
    for dtype in (torch.float32, torch.bfloat16):
        table = table_of(27, 8).to(dtype)
        assert torch.equal(interpolate_position_table(table, 27, 27), table)


def test_interpolation_keeps_a_constant():
    table = torch.tensor([[2.0, -3.0]]).repeat(49, 1)
    for grid in ((3, 5), (7, 9), (20, 1), (7, 8)):
        resized = interpolate_position_table(table, *grid)
        torch.testing.assert_close(resized, table[:1].repeat(grid[0] * grid[1], 1), atol=1e-5, rtol=0)


def test_interpolation_keeps_rows_and_columns_apart():
    row, col = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    resized = interpolate_position_table(torch.stack([row, col], dim=-1).reshape(81, 2), 4, 18).reshape(4, 18, 2)
    assert (resized[:, :, 0].std(dim=1) < 1e-5).all() and (resized[:, 0, 0].diff() > 1.5).all()
    assert (resized[:, :, 1].std(dim=0) < 1e-5).all() and (resized[0, :, 1].diff() > 0.2).all()


def test_shrinking_is_antialiased():
    """A checkerboard averages out to gray; without antialiasing single cells would survive."""
    row, col = torch.meshgrid(torch.arange(28), torch.arange(28), indexing="ij")
    board = ((row + col) % 2).float().reshape(-1, 1)
    assert (interpolate_position_table(board, 7, 7) - 0.5).abs().max() < 0.05


def test_half_precision_tables_are_resized_in_float32():
    table = table_of(27, 16).bfloat16()
    resized = interpolate_position_table(table, 28, 37)
    assert resized.dtype == torch.bfloat16
    assert torch.equal(resized, interpolate_position_table(table.float(), 28, 37).bfloat16())


def test_interpolation_trains_the_table():
    table = table_of(5, 2).requires_grad_()
    interpolate_position_table(table, 7, 3).sum().backward()
    assert table.grad.shape == (25, 2) and table.grad.sum() == pytest.approx(42, abs=1e-3)


@pytest.mark.parametrize("shape", [(5, 3), (9,), (), (1, 9, 3), (0, 3)], ids=str)
def test_bad_tables(shape):
    with pytest.raises(ValueError, match=r"table must be|side=0"):
        interpolate_position_table(torch.zeros(shape), 2, 2)


@pytest.mark.parametrize("grid", [(0, 3), (3, 0), (3, -1), (1.5, 2)])
def test_bad_grids_of_interpolation(grid):
    with pytest.raises(ValueError, match=f"rows={grid[0]}, cols={grid[1]}"):
        interpolate_position_table(torch.zeros(9, 2), *grid)


# --- fixed sines of the resampler ---


@pytest.mark.parametrize(
    "key, shape",
    [
        ("pos_embed_D8_2x3", (8, 2, 3)),
        ("r26.pos_embed_70x70x32_first_3x5", (32, 3, 5)),
        ("r20.w.pos_embed", (32, 3, 3)),
    ],
)
def test_sines_equal_the_released_ones(key, shape):
    """Equal to the bit with one numpy; another CPU's sine may differ by one unit in the last place (6e-8 below 1)."""
    wanted = MODULES[key].reshape(*shape[1:], shape[0])
    np.testing.assert_allclose(sincos_2d(*shape).numpy(), wanted, atol=6e-8, rtol=0)


@pytest.mark.parametrize("dim", [4, 16])
def test_sines_follow_the_formula(dim):
    """Channel by channel in float64: [sin | cos] of the column, then [sin | cos] of the row, at rates 10000^(-i/q)."""
    rows, cols = 4, 6
    table, quarter = sincos_2d(dim, rows, cols), dim // 4
    for r in range(rows):
        for c in range(cols):
            for channel in range(dim):
                position = c if channel < dim // 2 else r
                wave = math.sin if channel % (dim // 2) < quarter else math.cos
                wanted = wave(position * 10000 ** (-(channel % quarter) / quarter))
                assert table[r, c, channel].item() == pytest.approx(wanted, abs=1e-6)


def test_the_first_half_is_the_column():
    table = sincos_2d(32, 5, 7)
    assert table.shape == (5, 7, 32) and table.dtype == torch.float32
    column, row = table[..., :16], table[..., 16:]
    assert torch.equal(column, column[:1].expand(5, -1, -1))  # the same in every row
    assert torch.equal(row, row[:, :1].expand(-1, 7, -1))
    assert len(column[0].unique(dim=0)) == 7 and len(row[:, 0].unique(dim=0)) == 5


def test_a_larger_table_contains_the_smaller_one_to_the_bit():
    """Positions are integers and not normalized. The released code relies on it: it cuts views from one cache."""
    cache = sincos_2d(64, 70, 101)
    for rows, cols in ((1, 1), (10, 101), (70, 70), (28, 37)):
        assert torch.equal(sincos_2d(64, rows, cols), cache[:rows, :cols])
    assert torch.equal(sincos_2d(64, 9, 5), torch.cat(sincos_2d(64, 5, 9).transpose(0, 1).chunk(2, -1)[::-1], -1))


@pytest.mark.parametrize("dim", [0, 2, 6, 30, -4, 7])
def test_bad_widths_of_sines(dim):
    with pytest.raises(ValueError, match=f"multiple of 4, got {dim}"):
        sincos_2d(dim, 2, 2)


@pytest.mark.parametrize("grid", [(0, 3), (3, 0), (-2, 2), (2.5, 2)])
def test_bad_grids_of_sines(grid):
    with pytest.raises(ValueError, match=f"rows={grid[0]}, cols={grid[1]}"):
        sincos_2d(8, *grid)


# --- what is refused before any work ---


def calls(rows, cols):
    return (
        lambda: bucket_position_ids(rows, cols),
        lambda: bucket_position_ids(rows, cols, exact=True),
        lambda: interpolate_position_table(torch.zeros(9, 2), rows, cols),
        lambda: sincos_2d(8, rows, cols),
    )


@pytest.mark.parametrize("bad", [None, "3", 2.0, True, [3], torch.tensor(1.5)], ids=repr)
def test_counts_of_another_type(bad):
    for call in (*calls(bad, 2), *calls(2, bad), lambda: bucket_position_ids(2, 2, side=bad)):
        with pytest.raises(TypeError, match="a grid has a whole number of patches"):
            call()
    with pytest.raises(TypeError, match="dim must be an integer"):
        sincos_2d(bad, 2, 2)


@pytest.mark.parametrize("grid", [(10**9, 10**9), (1, 2**19 + 1), (2**31, 1), (10**5000, 1), (1000, 1000)])
def test_grids_that_take_all_memory(grid):
    for call in calls(*grid):
        with pytest.raises(ValueError, match=r"(is not computed|a grid has a whole number)"):
            call()


def test_tables_that_take_all_memory():
    with pytest.raises(ValueError, match="a table at most 1,024, got rows=2, cols=2, side=100000"):
        bucket_position_ids(2, 2, side=100_000)
    with pytest.raises(ValueError, match="dim must be an integer at most 65,536"):
        sincos_2d(4 * 10**9, 1, 1)
    with pytest.raises(ValueError, match="of 65536 channels each, is not computed"):
        sincos_2d(2**16, 100, 100)
    with pytest.raises(ValueError, match="of 50000 channels each, is not computed"):
        interpolate_position_table(torch.zeros(1, 50_000), 100, 100)


def test_the_longest_row_that_is_computed_has_one_id_per_patch():
    """From 950,177 patches on, the released float32 steps give fewer."""
    ids = bucket_position_ids(1, 2**19)
    assert len(ids) == 2**19
    assert ids[0] == 0 and ids[-1] == 69


@pytest.mark.parametrize("bad", [None, [[1.0]], np.zeros((9, 2)), torch.zeros(9, 2, dtype=torch.long)])
def test_tables_of_another_type(bad):
    with pytest.raises(TypeError, match="table must"):
        interpolate_position_table(bad, 2, 2)


@pytest.mark.parametrize("bad", [None, "no", 1, 0.0])
def test_exact_is_true_or_false(bad):
    with pytest.raises(TypeError, match="exact must be True or False"):
        bucket_position_ids(2, 2, exact=bad)
