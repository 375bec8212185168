"""4.5's 3-D resampler against golden vectors of its published code, and 4.6's mergers against transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from minicpmv_ref import Resampler, ResamplerConfig
from minicpmv_ref.peers.later import Merger, Resampler3D, WindowMerger, time_embedding

with np.load(Path(__file__).parent / "golden" / "minicpmv45_resampler3d.npz") as file:
    GOLDEN = {key: torch.from_numpy(np.array(file[key])) for key in file.files}
CASES = sorted({key.split("/")[0] for key in GOLDEN if key.endswith("/patches")})


def resampler3d() -> Resampler3D:
    resampler = Resampler3D(ResamplerConfig(num_queries=4, width=16, kv_width=12, heads=2))
    weights = {key.removeprefix("weights/"): value for key, value in GOLDEN.items() if key.startswith("weights/")}
    resampler.load_state_dict(weights, strict=True)
    return resampler


def inputs(name: str):
    case = {key.split("/")[1]: value for key, value in GOLDEN.items() if key.startswith(f"{name}/")}
    grids = [tuple(grid) for grid in case["sizes"].tolist()]
    features = list(case["patches"].split([rows * cols for rows, cols in grids]))
    lengths = case["group_lengths"].tolist()
    ids = [part.tolist() for part in case["temporal_flat"].split(lengths)] if lengths else None
    return features, grids, ids, case


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_published_resampler(name):
    features, grids, ids, case = inputs(name)
    torch.testing.assert_close(resampler3d()(features, grids, ids), case["out_batch"], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("version", ["2.0", "2.5"])
def test_only_the_resampler_of_2_6_is_extended(version):
    with pytest.raises(ValueError, match=r"cfg\.version must be.*2\.6"):
        Resampler3D(ResamplerConfig(num_queries=4, width=16, kv_width=12, heads=2, version=version))


def test_times():
    for time, row in zip(GOLDEN["pos_temporal_ids"].tolist(), GOLDEN["pos_temporal_0_199"]):
        assert torch.equal(time_embedding(16, time), row)
    assert time_embedding(16, 71_999).shape == (16,)  # the last of 72,000, as 4.5 is published
    with pytest.raises(ValueError, match="time must be an integer of at least 0 and at most 71,999"):
        time_embedding(16, 72_000)


@torch.no_grad()
def test_a_group_of_one_frame_cannot_know_its_time():
    """A time adds one constant to all keys of a frame; softmax over one frame cancels it."""
    features, grids, _, _ = inputs("one_video_3_frames")
    alone = [resampler3d()(features, grids, [[t] for t in times]) for times in ((2, 6, 9), (20, 60, 900))]
    torch.testing.assert_close(*alone, atol=2e-6, rtol=0)
    together = [resampler3d()(features, grids, [list(times)]) for times in ((2, 6, 9), (20, 60, 900))]
    assert (together[0] - together[1]).abs().max() > 0.1


@torch.no_grad()
def test_without_times_it_is_the_resampler_of_2_6():
    features, grids, _, _ = inputs("images_no_ids")
    ours = resampler3d()
    plain = Resampler(ours.cfg)
    plain.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(ours(features, grids), plain(features, grids))
    torch.testing.assert_close(ours(features, grids, [[-1]] * 3), plain(features, grids), atol=2e-6, rtol=1e-5)


def test_bad_times():
    features, grids, _, _ = inputs("one_video_3_frames")
    for ids, message in (([[2, 6]], "2 times"), ([[2, 6, 72000]], "temporal id"), ([[2, 6, 9], []], "group")):
        with pytest.raises(ValueError, match=message):
            resampler3d()(features, grids, ids)


def parts_of_4_6():
    from transformers.models.minicpmv4_6.configuration_minicpmv4_6 import MiniCPMV4_6Config, MiniCPMV4_6VisionConfig
    from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import (
        MiniCPMV4_6Merger,
        MiniCPMV4_6ViTWindowAttentionMerger,
    )

    vision = MiniCPMV4_6VisionConfig(hidden_size=16, num_attention_heads=2, intermediate_size=24, num_hidden_layers=2)
    vision._attn_implementation = "sdpa"
    config = MiniCPMV4_6Config(vision_config=vision)
    config.text_config.hidden_size = 20
    torch.manual_seed(0)
    return MiniCPMV4_6ViTWindowAttentionMerger(vision).eval(), MiniCPMV4_6Merger(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 1e-3])  # in faint features, the norms' eps counts
def test_mergers_are_transformers(size):
    window, final = parts_of_4_6()
    grids = [(4, 8), (8, 4), (12, 4)]
    features = [size * torch.randn(rows * cols, 16) for rows, cols in grids]
    ours = WindowMerger(width=16, heads=2, mlp_width=24)
    ours.load_state_dict(window.state_dict(), strict=True)
    merged = ours(features, grids)
    theirs = window(torch.cat(features)[None], torch.tensor(grids))[0]
    last, halves = Merger(width=16, out_width=20), [(rows // 2, cols // 2) for rows, cols in grids]
    last.load_state_dict(final.state_dict(), strict=True)
    tokens = final(size * theirs[None], torch.tensor(halves))
    for a, b in zip(last((size * theirs).split([len(each) for each in merged]), halves), tokens):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(merged), theirs, atol=1e-5, rtol=1e-5)


def test_an_odd_grid_is_refused():
    for rows, cols in ((3, 5), (4, 5), (3, 4)):
        with pytest.raises(ValueError, match="even rows and cols"):
            Merger(8, 16)([torch.zeros(rows * cols, 8)], [(rows, cols)])


@pytest.mark.parametrize("merger", [Merger(8, 16), WindowMerger(8, heads=2, mlp_width=12)], ids=["last", "window"])
def test_features_and_grids_that_do_not_fit_are_said(merger):
    view, grid = torch.zeros(24, 8), (4, 6)
    for features, grids, words in (
        ([view, view], [grid], "2 slices of features but 1 patch grids"),
        ([view], [grid, grid], "1 slices of features but 2 patch grids"),
        ([view, view[:, :7]], [grid, grid], r"slice 1: features must be .*rows \* cols, 8.*got \(24, 7\)"),
        ([view[:20]], [grid], r"got \(20, 8\)"),
    ):
        with pytest.raises(ValueError, match=words):
            merger(features, grids)
