"""Every public door against odd arguments: a right answer or one clear error. See lib/doors.py for what that means.

A function whose docstring has a `Raises` section promises clear errors, so it is a door and has an entry here, or a
reason why not. `pytest --fuzz 100000` tries so many inputs at each door; the usual number takes a minute for all.
"""

import copy
import inspect
import math
import pkgutil
import random
import zlib
from functools import cache
from importlib import import_module

import numpy as np
import pytest
import torch
from doors import Door, knock
from places import ROOT
from tiny import ask, picture, tiny_config, tiny_model, tiny_processor

import minicpmv_ref
from minicpmv_ref import ResamplerConfig, SliceConfig, VisionConfig, config, counts, fold, plan_slices, v2_6
from minicpmv_ref.deploy import gguf, kquant, memory
from minicpmv_ref.inputs.boxes import parse_boxes
from minicpmv_ref.inputs.clips import load_clip
from minicpmv_ref.inputs.messages import reserved_in, reserved_tokens
from minicpmv_ref.inputs.pictures import load_image, to_rgb
from minicpmv_ref.inputs.tokenizer import marker_ids
from minicpmv_ref.learn import dpo, packing, rlaif, stages, statistics
from minicpmv_ref.learn.evaluate import answers, evaluate, share_of_words
from minicpmv_ref.model import decode_answer, decode_stream
from minicpmv_ref.peers import cambrian, canvas, cogvlm, internvl, later, llava, qllama, sizes, video, vila
from minicpmv_ref.peers.nano import cut, swap
from minicpmv_ref.prompt import answer_labels, image_bounds, image_layout, render_chat
from minicpmv_ref.scale import lora
from minicpmv_ref.scale.finetune import in_order, sample_at
from minicpmv_ref.scale.records import Record
from minicpmv_ref.toy import claims, cv_bench, data

IMAGES = ROOT / "data_samples" / "images"
ROUNDS = 60  # odd calls of each door in the usual run

# Functions with `Raises` that are no doors, by the beginning of their names, and why.
INSIDE = {
    "inputs.checks.": "these are the checks themselves; test_checks.py",
    "inputs.files.": "test_checks.py",
    "inputs.jsonl.": "test_jsonl.py; test_damaged_files.py damages its file",
    "inputs.checkpoint.": "doors for folders are below: MiniCPMV.from_pretrained reads through them",
    "inputs.published.base_folder": "the same",
    "inputs.published.read_config": "the same",
    "inputs.published.find_folder": "the same",
    "inputs.tokenizer.": "the same; test_tokenizer_files.py",
    "model.MiniCPMV.save_pretrained": "test_checkpoint.py",
    "processor.Processor.save_pretrained": "test_api_edges.py",
    "deploy.gguf_reader.": "test_fuzz.py damages its files",
    "deploy.llamacpp.": "needs llama.cpp; test_llamacpp.py",
    "deploy.runtime.": "a decoder for experts, called with what `plan_mixture` and the model say; test_runtime.py",
    "deploy.sequence.": "starts processes; test_sequence.py",
    "deploy.tune.": "arithmetic of one experiment; test_tune.py",
    "ports.": "test_ports.py damages its files",
    "scale.budget.": "the engine: called with what `train` checked",
    "learn.contrast.": "an objective, called by `train`",
    "scale.lora.lora_optimizer": "takes a model with adapters; test_lora.py",
    "scale.lora.merge_lora": "the same",
    "scale.lora.save_lora": "the same",
    "scale.lora.restore_lora": "the same",
    "scale.loader.": "the engine: called by `train` with what that checked",
    "scale.parallel.": "the engine",
    "scale.training_checkpoints.": "the engine; test_saves.py damages its files",
    "scale.metrics.": "the engine; test_saves.py damages its file",
    "scale.stage_run.": "the engine; test_saves.py",
    "scale.steps.": "the engine; test_train.py",
    "learn.train.": "trains; test_train.py",
    "scale.run.": "the engine; test_train.py, test_saves.py",
    "scale.finetune.": "trains; test_finetune.py",
    "scale.records.": "test_records.py damages its files",
    "scale.entries.": "the same",
    "scale.shards.": "test_shards.py damages its files",
    "learn.packing.packed_attention": "called by transformers, never by a user",
    "peers.connectors.": "a layer of a network; test_swap.py",
    "peers.expert.": "layers of a network and their optimizer; test_swap.py",
    "peers.nano.load": "test_swap.py; other folders go to MiniCPMV.from_pretrained",
    "peers.shapes.": "these are the checks themselves",
    "peers.later.Resampler3D.forward": "checked as the resampler's; test_later.py",
    "peers.later.WindowMerger.forward": "a layer of a network; test_later.py",
    "peers.cambrian.SVA.forward": "a layer of a network; test_mechanisms.py",
}


@cache
def tiny():
    positions = 384  # an answer with odd options may go on to the last one
    return tiny_model("2.6", positions=positions).eval(), tiny_processor("2.6", positions=positions)


@cache
def batch():
    return tiny()[1](ask(picture(130, 90), "What is this?"))


@cache
def prepared():
    return dpo.prepare(*tiny(), [dpo.Pair(ask(picture(50, 60), "What?"), "a star", "two stars")])


def sample(text="What?"):
    made = tiny()[1](ask(picture(50, 60), text))
    return dict(
        ids=made.input_ids[0].tolist(),
        labels=made.labels[0].tolist(),
        images=made.images[0],
        patch_grids=made.patch_grids[0],
        bounds=made.image_bounds[0],
        plans=made.plans[0],
    )


def messages():
    return [
        {"role": "user", "content": [picture(130, 90), "What is this?"]},
        {"role": "assistant", "content": "A star."},
        {"role": "user", "content": "Which color?"},
    ]


def finite(*tensors) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def size_of(**more):
    return lambda: {"size": (640, 480), "cfg": SliceConfig(), **more}


def is_partition(rows, lengths, capacity) -> bool:
    indices = sorted(i for row in rows for i in row)
    return indices == list(range(len(lengths))) and all(sum(lengths[i] for i in row) <= capacity for row in rows)


def matrix(rows=2, cols=256):
    return np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32)


def with_model(function, *names):
    """A method or function of the tiny model: the model itself is not made odd."""
    return lambda **arguments: function(*(tiny()[("model", "processor").index(name)] for name in names), **arguments)


def rows(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


MARKERS = canvas.Markers(1, 2, 3, 4, 5)
GRID = dict(right=lambda answer, **_: answer is None or all(n >= 1 for n in answer), words="size grid")
DOORS = {
    # the way of an image
    "slicing.candidate_grids": Door(minicpmv_ref.candidate_grids, size_of(), lambda answer, **_: len(answer) < 100),
    "slicing.partition_score": Door(
        minicpmv_ref.partition_score, lambda: {"size": (640, 480), "grid": (2, 1)}, lambda answer, **_: answer <= 0
    ),
    "slicing.best_grid": Door(minicpmv_ref.best_grid, size_of(), **GRID),
    "slicing.paper_grid": Door(minicpmv_ref.paper_grid, size_of(), **GRID),
    "slicing.plan_slices": Door(
        plan_slices, size_of(), lambda plan, **_: all(rows >= 1 and cols >= 1 for rows, cols in plan.patch_grids)
    ),
    "slicing.slice_image": Door(
        minicpmv_ref.slice_image,
        lambda: {"image": picture(130, 90), "cfg": SliceConfig(56)},
        lambda views, **_: all(view.mode == "RGB" for view in views),
        words="size picture",
    ),
    "inputs.boxes.parse_boxes": Door(
        parse_boxes,
        lambda: {"answer": "<ref>cup</ref><box>1 2 3 4</box>", "size": (640, 480)},
        lambda made, **_: all(left <= right and top <= bottom for _, (left, top, right, bottom) in made),
    ),
    "inputs.clips.load_clip": Door(
        load_clip,
        lambda: {"source": IMAGES / "cat.jpg", "frames": None},
        lambda made, **_: all(image.mode == "RGB" for image in made),
        words="image picture file",
    ),
    "inputs.pictures.load_image": Door(
        load_image, lambda: {"source": picture(4, 3)}, lambda made, **_: made.mode == "RGB", "image picture file"
    ),
    "inputs.pictures.to_rgb": Door(
        to_rgb, lambda: {"image": picture(4, 3).convert("P")}, lambda made, **_: made.mode == "RGB", "picture"
    ),
    "peers.sizes.best_resolution": Door(
        sizes.best_resolution,
        lambda: {"size": (640, 480), "ties": "public", "canvases": [(336, 672), (672, 672)]},
        lambda canvas, canvases, **_: sorted(canvas) in [sorted(map(int, each)) for each in canvases],
    ),
    "peers.sizes.fit_inside": Door(
        sizes.fit_inside,
        lambda: {"size": (640, 480), "canvas": (672, 672)},
        lambda inside, canvas, **_: all(1 <= side <= most for side, most in zip(inside, canvas)),
    ),
    "peers.sizes.unpad": Door(
        sizes.unpad,
        lambda: {"grid": (48, 48), "size": (640, 480)},
        lambda left, grid, **_: all(0 <= part <= whole for part, whole in zip(left, grid)),
    ),
    "peers.sizes.cap_grid": Door(
        sizes.cap_grid,
        lambda: {"grid": (108, 108), "most": 9, "side": 27},
        lambda left, most, side, **_: left[0] * left[1] <= 1.21001 * most * side**2,
    ),
    "peers.sizes.tile_grid": Door(
        sizes.tile_grid,
        lambda: {"size": (640, 480), "max_num": 12},
        lambda grid, max_num, **_: 1 <= grid[0] * grid[1] <= max_num,
    ),
    "peers.sizes.frame_groups": Door(
        sizes.frame_groups, lambda: {"frames": 200}, lambda made, frames: made[0] * made[1] >= frames
    ),
    "peers.sizes.clip_frames": Door(
        sizes.clip_frames,
        lambda: {"system": "minicpm-v-4.5", "seconds": 61, "rate": 3, "most": 540},
        lambda made, system, seconds, rate, most: made >= 1,
    ),
    "peers.sizes.plan": Door(
        sizes.plan,
        lambda: dict(system="llava-onevision", size=(640, 480), pictures=1, frames=0, max_tiles=None, ties="public"),
        lambda made, **_: made.views >= 1 and made.visual_tokens > 0 and 0 <= made.padding < 1 <= made.bend,
    ),
    "peers.llava.pad_to_square": Door(
        llava.pad_to_square, lambda: {"image": picture(4, 3)}, lambda made, **_: made.width == made.height, "picture"
    ),
    "peers.llava.anyres_views": Door(
        llava.anyres_views,
        lambda: {"image": picture(40, 30), "side": 28, "ties": "public"},
        lambda views, side, **_: {view.size for view in views} == {(side, side)},
        "picture",
        share=0.3,
    ),
    "peers.llava.cut_padding": Door(
        llava.cut_padding,
        lambda: {"features": rows(4, 4, 2), "size": (200, 100)},
        lambda made, features, **_: len(made) <= len(features),
    ),
    "peers.llava.merge": Door(
        llava.merge,
        lambda: dict(base=rows(9, 2), tiles=rows(2, 9, 2), grid=(2, 1), size=(60, 30), newline=rows(2), max_tiles=None),
        lambda made, base, **_: len(made) >= len(base),
        "features size",
    ),
    "peers.video.pool_frames": Door(
        video.pool_frames, lambda: {"features": rows(2, 16, 3), "stride": 2}, lambda made, **_: made.ndim == 3
    ),
    "peers.video.rope_factor": Door(
        video.rope_factor,
        lambda: dict(frames=32, tokens_a_frame=144, trained=4096, text=1000),
        lambda factor, **_: factor >= 1,
    ),
    "peers.video.scaled_frequencies": Door(
        video.scaled_frequencies,
        lambda: dict(head_width=8, base=10000.0, factor=2.0),
        lambda made, **_: finite(made) and made.max() <= 1,
    ),
    "peers.video.place_pictures": Door(
        video.place_pictures,
        lambda: {"parts": ["a", 1, "b"], "order": "in_front"},
        lambda made, parts, **_: len(made) == len(parts),
    ),
    "peers.internvl.tile": Door(
        internvl.tile,
        lambda: {"image": picture(40, 30), "max_num": 6, "side": 14},
        lambda tiles, side, **_: {tile.size for tile in tiles} == {(side, side)},
        "picture",
        share=0.3,
    ),
    "peers.internvl.pixel_shuffle": Door(
        internvl.pixel_shuffle,
        lambda: {"x": rows(1, 4, 6, 2), "version": "v2"},
        lambda made, x, **_: made.numel() == x.numel(),
    ),
    "peers.qllama.stage2_mask": Door(
        qllama.stage2_mask,
        lambda: dict(task="itc", num_queries=3, text=torch.ones(2, 4, dtype=torch.long)),
        lambda made, **_: made.dtype == torch.bool,
    ),
    "peers.vila.downsample": Door(
        vila.downsample, lambda: dict(x=rows(1, 25, 2), order="rows", factor=2), lambda made, **_: made.ndim == 3
    ),
    "peers.vila.interleaved_sample": Door(
        vila.interleaved_sample,
        lambda: dict(sentences=["a", "b"], pictures=[(1, 0), (2, 1)], pairs=False),
        lambda made, sentences, **_: len(made) >= len(sentences),
        "picture sentence",
    ),
    "peers.cogvlm.expert_mask": Door(
        cogvlm.expert_mask,
        lambda: {"types": torch.tensor([[0, 1, 1, 0]])},
        lambda made, types: made.shape == types.shape,
    ),
    "peers.cogvlm.expert_position_ids": Door(
        cogvlm.expert_position_ids,
        lambda: {"types": torch.tensor([[0, 1, 1, 1, 0]])},
        lambda made, types: bool((made >= 0).all()),
    ),
    "peers.cambrian.regions": Door(
        cambrian.regions, lambda: {"features": rows(1, 16, 2), "queries": 2}, lambda made, **_: made.ndim == 3
    ),
    "peers.cambrian.seen_regions": Door(
        cambrian.seen_regions,
        lambda: dict(sizes=[(40, 20)], side=4, queries=2),
        lambda made, **_: bool(made.any(dim=1).all()),
        "size",
    ),
    "peers.cambrian.tokens_with_newlines": Door(
        cambrian.tokens_with_newlines,
        lambda: dict(tokens=rows(16, 2), size=(40, 20), newline=rows(2)),
        lambda made, **_: made.ndim == 2,
        "features",
    ),
    "peers.later.time_embedding": Door(
        later.time_embedding, lambda: {"width": 8, "time": 3}, lambda made, width, **_: len(made) == width
    ),
    "peers.nano.cut": Door(
        cut,
        lambda: dict(size=(300, 100), cfg=SliceConfig(112), cutting="tiles"),
        lambda made, **_: len(made.patch_grids) >= 1,
    ),
    "peers.nano.swap": Door(
        with_model(swap, "model", "processor"),
        lambda: dict(connector="resampler", cutting="square", seed=0),
        lambda made, **_: made[0].peer["cutting"] == made[1].cutting,
        share=0.5,
    ),
    "peers.canvas.canvas_position_ids": Door(
        canvas.canvas_position_ids,
        lambda: dict(
            ids=[9, 1, 0, 0, 0, 0, 2, 9], visual=[0, 0, 1, 1, 1, 1, 0, 0], grids=[(8, 8)], markers=MARKERS, merge=4
        ),
        lambda made, ids, **_: made[0].shape == (3, len(ids)),
        "view prompt",
    ),
    "positions.bucket_position_ids": Door(
        minicpmv_ref.bucket_position_ids,
        lambda: {"rows": 3, "cols": 4, "side": 70, "exact": False},
        lambda ids, rows, cols, side, **_: len(ids) == rows * cols and ids.min() >= 0 and ids.max() < side * side,
        "grid",
    ),
    "positions.interpolate_position_table": Door(
        minicpmv_ref.interpolate_position_table,
        lambda: {"table": rows(25, 8), "rows": 3, "cols": 4},
        lambda made, table, rows, cols: made.shape == (rows * cols, table.shape[1]),
        "grid",
    ),
    "positions.sincos_2d": Door(
        minicpmv_ref.sincos_2d,
        lambda: {"dim": 8, "rows": 3, "cols": 4},
        lambda made, dim, rows, cols: made.shape == (rows, cols, dim) and finite(made),
        "grid",
    ),
    "vision.VisionTransformer.forward": Door(
        lambda images: tiny()[0].vpm(images), lambda: {"images": [rows(3, 28, 42), rows(3, 14, 14)]}, words="slice"
    ),
    "resampler.Resampler.forward": Door(
        lambda features, patch_grids: tiny()[0].resampler(features, patch_grids),
        lambda: {"features": [rows(6, 32), rows(1, 32)], "patch_grids": [(2, 3), (1, 1)]},
        lambda tokens, features, **_: tokens.shape == (len(features), 4, 64),
        "slice grid",
    ),
    "resampler.Resampler.attend": Door(
        lambda features, patch_grids: tiny()[0].resampler.attend(features, patch_grids),
        lambda: {"features": [rows(6, 32), rows(1, 32)], "patch_grids": [(2, 3), (1, 1)]},
        words="slice grid",
    ),
    "deploy.fold.fold": Door(
        lambda features, patch_grids: fold(tiny()[0].resampler)(features, patch_grids),
        lambda: {"features": [rows(6, 32)], "patch_grids": [(2, 3)]},
        words="slice grid",
    ),
    # text
    "prompt.image_layout": Door(
        image_layout,
        lambda: {"plan": plan_slices((640, 480)), "num_queries": 4, "version": "2.6", "image_id": 0},
        lambda text, plan, num_queries, **_: text.count("<unk>") == plan.visual_tokens(num_queries),
    ),
    "prompt.image_bounds": Door(
        image_bounds,
        lambda: {
            "input_ids": [9, 1, 0, 0, 2, 3, 0, 0, 4, 9],
            "tokens": {"<image>": 1, "</image>": 2, "<slice>": 3, "</slice>": 4},
            "version": "2.6",
        },
        lambda bounds, **_: bool((bounds[:, 0] <= bounds[:, 1]).all()),
        "prompt marker",
    ),
    "inputs.tokenizer.marker_ids": Door(lambda: marker_ids(tiny()[1].tokenizer), dict),
    "prompt.render_chat": Door(
        render_chat,
        lambda: {"messages": [{"role": "user", "content": "Hi"}], "version": "2.6", "bos": "", "eos": ""},
        lambda made, **_: isinstance(made[0], str),
        "message conversation",
    ),
    "prompt.answer_labels": Door(
        answer_labels,
        lambda: {"input_ids": [7, 8, 9], "offsets": [(0, 3), (3, 5), (5, 6)], "answers": [(3, 6)]},
        lambda labels, input_ids, **_: len(labels) == len(input_ids),
    ),
    "processor.Processor.__call__": Door(
        with_model(lambda processor, **given: processor(**given), "processor"),
        lambda: {"messages": messages(), "images": None, "max_slice_nums": None, "use_image_id": True},
        lambda made, **_: bool((made.input_ids < 1024).all()),
        "message conversation image content role picture prompt video",
    ),
    "processor.Processor.collate": Door(
        with_model(lambda processor, samples: processor.collate(samples), "processor"),
        lambda: {"samples": [sample(), sample("What is this?")]},
        lambda made, samples: len(made.input_ids) == len(samples),
        "sample",
    ),
    "processor.Processor.from_pretrained": Door(
        minicpmv_ref.Processor.from_pretrained, lambda: {"path": "nano"}, words="folder config.json"
    ),
    "processor.check_slots": Door(
        minicpmv_ref.processor.check_slots,
        lambda: {"bounds": torch.tensor([[2, 6]]), "plans": [plan_slices((40, 40), SliceConfig(56))], "num_queries": 4},
        words="image slots",
    ),
    "processor.Batch.to": Door(lambda **given: batch().to(**given), lambda: {"device": "cpu", "dtype": torch.float32}),
    "processor.normalize_views": Door(
        minicpmv_ref.processor.normalize_views,
        lambda: {"image": picture(130, 90), "plan": plan_slices((130, 90), SliceConfig(56))},
        lambda views, **_: finite(*views),
    ),
    "inputs.messages.sample_frames": Door(
        minicpmv_ref.processor.sample_frames,
        lambda: {"frames": list(range(10)), "most": 4},
        lambda made, most, **_: len(made) <= most,
    ),
    "inputs.messages.reserved_tokens": Door(lambda: reserved_tokens(tiny()[1].tokenizer), dict),
    "inputs.messages.reserved_in": Door(reserved_in, lambda: {"text": "Hi", "tokens": ("<a>", "<b>")}),
    # the model
    "model.MiniCPMV.from_pretrained": Door(
        minicpmv_ref.MiniCPMV.from_pretrained, lambda: {"path": "nano"}, words="folder config.json"
    ),
    "model.MiniCPMV.encode_images": Door(
        with_model(lambda model, **given: model.encode_images(**given), "model"),
        lambda: {"images": [rows(3, 28, 42)], "patch_grids": [(2, 3)]},
        words="view slice",
    ),
    "model.MiniCPMV.embed": Door(
        with_model(lambda model, visual: model.embed(batch(), visual), "model"),
        lambda: {"visual": rows(len(batch().images[0]), 4, 64)},
    ),
    "model.MiniCPMV.forward": Door(with_model(lambda model, batch: model(batch), "model"), lambda: {"batch": batch()}),
    "model.MiniCPMV.stream": Door(
        with_model(lambda model, **given: list(model.stream(batch(), **given)), "model"),
        lambda: dict(
            max_new_tokens=2, temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.1, seed=0, visual=None
        ),
        lambda tokens, **_: 1 <= len(tokens) < 1024,
    ),
    "model.MiniCPMV.generate": Door(
        with_model(lambda model, **given: model.generate(batch(), **given), "model"),
        lambda: {"max_new_tokens": 2, "temperature": 0.0, "seed": 1},
        lambda tokens, **_: bool(((tokens >= 0) & (tokens < 1024)).all()),
    ),
    "model.MiniCPMV.chat": Door(
        with_model(
            lambda model, processor, **given: model.chat(given.pop("messages"), processor, **given),
            "model",
            "processor",
        ),
        lambda: {
            "messages": messages(),
            "images": None,
            "max_new_tokens": 2,
            "max_slice_nums": 2,
            "use_image_id": True,
        },
        words="message conversation image content role picture prompt video",
    ),
    "decoding.decode_stream": Door(
        lambda tokens, stop_ids: list(decode_stream(tokens, tiny()[1].tokenizer, stop_ids)),
        lambda: {"tokens": [300, 301, 302], "stop_ids": (5,)},
        lambda pieces, **_: all(isinstance(piece, str) for piece in pieces),
    ),
    "decoding.decode_answer": Door(
        lambda tokens, stop_ids: decode_answer(tokens, tiny()[1].tokenizer, stop_ids),
        lambda: {"tokens": [300, 301, 302], "stop_ids": (5,)},
        lambda text, **_: isinstance(text, str),
    ),
    "model.MiniCPMV.seeded": Door(
        lambda seed: minicpmv_ref.MiniCPMV.seeded(tiny_config("2.6"), seed),
        lambda: {"seed": 0},
        lambda model, **_: finite(*model.parameters()),
    ),
    "config.MiniCPMVConfig.from_dict": Door(
        config.MiniCPMVConfig.from_dict, lambda: {"data": tiny_config("2.6").to_dict()}, words="config Config"
    ),
    "inputs.published.config_from_published": Door(
        config.config_from_published,
        lambda: {"data": published()},
        words="config field Config version slice",
    ),
    "config.SliceConfig": Door(
        lambda **given: plan_slices((3000, 700), SliceConfig(**given)),
        lambda: {"scale_resolution": 448, "patch_size": 14, "max_slice_nums": 9},
        lambda plan, max_slice_nums, **_: plan.num_slices <= max_slice_nums,
    ),
    "config.VisionConfig": Door(
        VisionConfig, lambda: dict(width=32, layers=1, heads=2, mlp_width=48, patch_size=14, position="bucket")
    ),
    "config.ResamplerConfig": Door(
        ResamplerConfig, lambda: dict(num_queries=4, width=32, kv_width=24, heads=None, version="2.6")
    ),
    "config.LLMConfig": Door(config.LLMConfig, lambda: tiny_config("2.6").to_dict()["llm"]),
    # training
    "learn.packing.pack": Door(packing.pack, lambda: {"lengths": [3, 5, 2, 7], "capacity": 8}, is_partition, "sample"),
    "learn.packing.first_fit": Door(
        packing.first_fit, lambda: {"lengths": [3, 5, 2, 7], "capacity": 8}, is_partition, "sample"
    ),
    "learn.packing.pack_truncate": Door(
        packing.pack_truncate, lambda: {"lengths": [3, 5, 2, 7], "capacity": 8}, words="sample"
    ),
    "learn.packing.shortest_cuts": Door(packing.shortest_cuts, lambda: {"batch": batch()}),
    "learn.packing.sample_lengths": Door(
        with_model(lambda processor, batch: packing.sample_lengths(batch), "processor"), lambda: {"batch": batch()}
    ),
    "learn.packing.pack_batch": Door(
        lambda rows: packing.pack_batch(batch(), rows), lambda: {"rows": [[0]]}, words="sample"
    ),
    "learn.packing.packed_loss": Door(
        with_model(lambda model, packed: packing.packed_loss(model, packed), "model"),
        lambda: {"packed": packing.pack_batch(batch(), [[0]])},
        words="batch labels",
    ),
    "learn.packing.score": Door(
        with_model(lambda model, packed: packing.score(model, packed), "model"),
        lambda: {"packed": packing.pack_batch(batch(), [[0]])},
        words="batch labels",
    ),
    "learn.dpo.token_logps": Door(
        dpo.token_logps, lambda: {"logits": rows(2, 4, 9), "labels": torch.ones(2, 4, dtype=torch.long)}
    ),
    "learn.dpo.sequence_logps": Door(
        dpo.sequence_logps,
        lambda: {"logits": rows(2, 4, 9), "labels": torch.ones(2, 4, dtype=torch.long)},
        lambda logps, labels, **_: logps.shape == (len(labels),),
    ),
    "learn.dpo.dpo_loss": Door(
        dpo.dpo_loss,
        lambda: dict(
            policy_chosen=rows(3),
            policy_rejected=rows(3) - 1,
            reference_chosen=rows(3),
            reference_rejected=rows(3),
            beta=0.1,
        ),
        lambda made, **_: finite(*made) and made[0] >= 0,
        "loss log-probabilities",
    ),
    "learn.dpo.prepare": Door(
        with_model(dpo.prepare, "model", "processor"),
        lambda: {"pairs": [dpo.Pair(ask(picture(50, 60), "What?"), "a star", "two stars")]},
        words="pair message conversation",
    ),
    "learn.dpo.pair_batch": Door(dpo.pair_batch, lambda: {"pairs": prepared(), "pad_id": 0}),
    "learn.dpo.pair_logps": Door(with_model(dpo.pair_logps, "model"), lambda: {"batch": dpo.pair_batch(prepared())}),
    "learn.dpo.reference_logps": Door(
        with_model(dpo.reference_logps, "model"), lambda: {"pairs": prepared(), "batch_size": 4}
    ),
    "learn.dpo.train_dpo": Door(
        lambda **given: dpo.train_dpo(copy.deepcopy(tiny()[0]), **given),
        lambda: {
            "pairs": prepared(),
            "steps": 1,
            "batch_size": 1,
            "lr": 1e-4,
            "beta": 0.1,
            "seed": 0,
            "reference": None,
        },
        lambda history, steps, **_: len(history) == steps and math.isfinite(history[-1]["loss"]),
    ),
    "learn.dpo.dpo_step": Door(
        lambda **given: dpo.dpo_step(
            model := copy.deepcopy(tiny()[0]), torch.optim.AdamW(model.llm.parameters()), **given
        ),
        lambda: {"batch": dpo.pair_batch(prepared()), "reference": rows(2, 1), "beta": 0.1, "sft": False},
        words="log-probabilities loss",
    ),
    "learn.rlaif.split_claims": Door(
        rlaif.split_claims, lambda: {"text": "a red circle and a star"}, lambda claims, **_: all(claims)
    ),
    "toy.claims.read_claim": Door(claims.read_claim, lambda: {"claim": "a red circle"}),
    "learn.rlaif.ask_claim": Door(rlaif.ask_claim, lambda: {"claim": "a red circle", "language": "en"}),
    "learn.rlaif.count_words": Door(rlaif.count_words, lambda: {"text": "a red circle"}, lambda n, **_: n >= 0),
    "learn.rlaif.label_by_truth": Door(
        rlaif.label_by_truth, lambda: {"samples": [data.draw(0)], "claims": [["a red circle"]]}
    ),
    "learn.rlaif.label_by_model": Door(
        with_model(rlaif.label_by_model, "model", "processor"),
        lambda: {"samples": [data.draw(0)], "claims": [["a red circle"]]},
    ),
    "learn.statistics.bootstrap_ratio": Door(
        statistics.bootstrap_ratio, lambda: {"tops": [1, 2], "bottoms": [2, 3], "seed": 0, "rounds": 9}
    ),
    "learn.rlaif.is_valid": Door(rlaif.is_valid, lambda: {"p_yes": torch.rand(2), "p_no": torch.rand(2)}),
    "learn.rlaif.score_response": Door(
        rlaif.score_response, lambda: {"verdicts": [True, False]}, lambda score, verdicts: -len(verdicts) <= score <= 0
    ),
    "learn.rlaif.build_pairs": Door(
        rlaif.build_pairs,
        lambda: {"scores": [-1, 0, -1, None], "min_difference": 1, "max_pairs": 2, "seed": 0},
        lambda pairs, scores, **_: all(scores[a] > scores[b] for a, b in pairs),
    ),
    "learn.rlaif.balance_lengths": Door(
        rlaif.balance_lengths,
        lambda: {"pairs": [dpo.Pair([], "a b", "a c"), dpo.Pair([], "a", "b c d e")]},
        words="pair",
    ),
    "learn.rlaif.ask_yes_no": Door(
        with_model(rlaif.ask_yes_no, "model", "processor"),
        lambda: {"image": picture(50, 60), "questions": ["Is it red?"], "language": "en"},
        lambda made, **_: finite(*made),
        "message picture content",
    ),
    "learn.rlaif.sample_answers": Door(
        with_model(rlaif.sample_answers, "model", "processor"),
        lambda: {"prompts": [data.draw(0).prompt], "n": 1, "seed": 0, "max_new_tokens": 2},
    ),
    "learn.statistics.wilson": Door(
        statistics.wilson,
        lambda: {"hits": 3, "n": 4},
        lambda made, **_: made[0] is None or 0 <= made[1] <= made[0] <= made[2] <= 1,
    ),
    "learn.rlaif.hallucination": Door(
        rlaif.hallucination, lambda: {"answers": ["a red circle"], "scenes": [data.draw(0).facts]}
    ),
    "learn.evaluate.evaluate": Door(
        with_model(evaluate, "model", "processor"),
        lambda: {"seed": 0, "n": 1},
        lambda figures, **_: len(figures) > 0,
        share=0.2,
    ),
    "learn.evaluate.answers": Door(
        with_model(answers, "model", "processor"),
        lambda: {"prompts": [ask("Hi")], "max_new_tokens": 2},
        lambda texts, prompts, **_: len(texts) == len(prompts),
        "message conversation",
    ),
    "learn.evaluate.share_of_words": Door(
        share_of_words, lambda: {"said": ["a star"], "wanted": ["a star"]}, lambda share, **_: 0 <= share <= 1
    ),
    "toy.data.stream": Door(
        lambda **given: next(data.stream(**given)), lambda: {"seed": 0, "data_mix": {"caption": 1}, "split": "train"}
    ),
    "toy.data.numbered": Door(
        lambda number, **given: data.numbered(**given)(number),
        lambda: {"number": 3, "seed": 0, "data_mix": {"caption": 1}, "split": "train"},
    ),
    "toy.data.blind": Door(data.blind, lambda: {"messages": messages(), "instead": None}, words="message"),
    "toy.data.draw": Door(data.draw, lambda: {"seed": 0}, words="kind"),
    "toy.data.draw_more": Door(data.draw_more, lambda: {"seed": 0, "kind": "box"}, words="kind"),
    "toy.cv_bench.cv_samples": Door(cv_bench.cv_samples, lambda: {"task": "depth", "n": 2, "seed": 0}, words="task"),
    "toy.cv_bench.cv_bench": Door(
        lambda n, seed: cv_bench.cv_bench(lambda prompts: ["2"] * len(prompts), n, seed), lambda: {"n": 2, "seed": 0}
    ),
    "toy.data.spell": Door(data.spell, lambda: {"sample": data.draw(0), "view": 112}),
    "scale.finetune.sample_at": Door(sample_at, lambda: {"index": 5, "n": 3, "seed": 0}, lambda i, n, **_: 0 <= i < n),
    "scale.finetune.in_order": Door(
        lambda records, seed: in_order(records, seed)(0),
        lambda: {"records": [Record(str(i), {}, (("user", "Hi"), ("assistant", "Yo"))) for i in range(2)], "seed": 0},
    ),
    "learn.stages.stage_named": Door(stages.stage_named, lambda: {"name": "sft-2"}, words="stage"),
    "toy.start.start": Door(
        lambda seed: stages.start(tiny_config("2.6"), seed), lambda: {"seed": 0}, lambda m, **_: finite(*m.parameters())
    ),
    "learn.stages.freeze": Door(
        lambda stage: stages.freeze(copy.deepcopy(tiny()[0]), stage),
        lambda: {"stage": stages.stage_named("sft-2")},
        words="part",
    ),
    "scale.lora.add_lora": Door(
        lambda **given: lora.add_lora(copy.deepcopy(tiny()[0]), **given),
        lambda: {"rank": 4, "modules_to_save": (), "seed": 0},
        words="adapter",
    ),
    "scale.lora.load_lora": Door(
        lambda folder: lora.load_lora(copy.deepcopy(tiny()[0]), folder),
        lambda: {"folder": "nowhere"},
        words="adapter file",
    ),
    # deployment
    "deploy.kquant.quantize": Door(
        kquant.quantize,
        lambda: {"array": matrix(), "kind": "Q4_K", "importance": None},
        lambda blocks, array, kind, **_: np.isfinite(kquant.dequantize(blocks, kind, array.shape[1])).all(),
    ),
    "deploy.kquant.dequantize": Door(
        kquant.dequantize,
        lambda: {"blocks": kquant.quantize(matrix(), "Q8_0"), "kind": "Q8_0", "cols": 256},
        lambda array, blocks, cols, **_: array.shape == (len(blocks), cols),
    ),
    "deploy.gguf_plan.plan_mixture": Door(
        gguf.plan_mixture, lambda: {"config": v2_6, "mixture": "Q4_K_M"}, lambda plan, **_: plan.total_bytes > 0
    ),
    "deploy.gguf_plan.plan_vision": Door(gguf.plan_vision, lambda: {"config": v2_6, "kind": "F16"}),
    "counts.parameters": Door(counts.parameters, lambda: {"config": v2_6}),
    "counts.flops_by_part": Door(
        counts.flops_by_part,
        lambda: {"config": v2_6, "workload": counts.Workload(9, 3, 81, 1, 64, 4096), "learning": ("llm",)},
        lambda parts, **_: min(parts.values()) >= 0,
    ),
    "counts.kv_cache_numbers": Door(counts.kv_cache_numbers, lambda: {"llm": v2_6.llm}),
    "deploy.memory.estimate": Door(
        memory.estimate,
        lambda: dict(
            config=v2_6, training=False, dtype="bfloat16", batch=1, images=1, slices=9, tokens=None, mixture=None
        ),
        lambda need, **_: need.total >= need.weights > 0,
    ),
    "deploy.memory.fits": Door(
        memory.fits, lambda: {"need": 10**9, "device": "8 GB phone"}, lambda answer, **_: isinstance(answer, bool)
    ),
}
NOT_ODD = {"deploy.gguf.export": "needs a folder to write to; test_export.py"}


def published() -> dict:
    return dict(
        version=2.6,
        query_num=64,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=151666,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        drop_vision_last_layer=False,
    )


def promised() -> list[str]:
    """The names of all functions that say what they raise, and of all public ones."""
    found = []
    for info in pkgutil.walk_packages(minicpmv_ref.__path__, "minicpmv_ref."):
        home = info.name.removeprefix("minicpmv_ref.")
        if home.startswith(("course", "__main__")):
            continue
        for name, thing in vars(import_module(info.name)).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != info.name:
                continue
            methods = vars(thing).items() if inspect.isclass(thing) else ()
            inside = [(f"{name}.{key}", value) for key, value in methods if key[0] != "_" or key == "__call__"]
            for full, each in [(name, thing)] * (not inspect.isclass(thing)) + inside:
                text = inspect.getdoc(getattr(each, "__func__", each)) if callable(each) or inside else ""
                if text and "Raises:" in text:
                    found.append(f"{home}.{full}")
    return found


def test_every_door_has_an_entry():
    inside = (*INSIDE, *NOT_ODD)
    public = {
        f"{home}.{name}" for name, home in minicpmv_ref._MODULE_OF.items() if callable(getattr(minicpmv_ref, name))
    }
    classes = {"config.MiniCPMVConfig", "slicing.SlicePlan", "vision.VisionTransformer", "resampler.Resampler"}
    classes |= {"processor.Batch", "processor.Processor", "model.MiniCPMV"}  # their methods are doors
    names = promised()
    assert len(names) > 100
    assert [name for name in names if name not in DOORS and not name.startswith(inside)] == []
    assert public - DOORS.keys() - classes == set()
    assert [start for start in inside if not any(name.startswith(start) for name in names)] == []  # no stale reason


@pytest.mark.parametrize("name", DOORS)
def test_odd_arguments(name, request, one_thread):
    door, rng = DOORS[name], random.Random(zlib.crc32(name.encode()))
    arguments = door.sound()
    if name != "scale.lora.load_lora":  # sound arguments are answered, and rightly
        assert door.right(door.call(**arguments), **arguments)
    if arguments:
        rounds = request.config.getoption("--fuzz") or ROUNDS
        outcomes = [knock(door, rng) for _ in range(round(rounds * door.share))]
        assert outcomes.count("refused") > len(outcomes) / 10
