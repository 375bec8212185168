"""Every exercise of every notebook: its stub, its solution, and wrong answers that learners really give.

To add an exercise, write a checker in the lesson's file of course/check, the cells in the notebook (the task; the
stub, which raises NotImplementedError; `check.name(stub)`; the solution in <details>), and at least two wrong answers
below.
"""

import ast
import itertools
import math
import re
from dataclasses import dataclass
from itertools import pairwise

import nbformat
import numpy as np
import pytest
import torch
from einops import rearrange
from places import ROOT

from minicpmv_ref import SliceConfig, best_grid, plan_slices
from minicpmv_ref.course import check
from minicpmv_ref.course.check import Case, same, verdict
from minicpmv_ref.deploy.memory import estimate

NOTEBOOKS = ROOT / "notebooks"


def vit_work(size, config, of_views):
    v, views = config.vision, [rows * cols for rows, cols in plan_slices(size, config.slicing).patch_grids]
    per_patch = 2 * v.layers * (4 * v.width**2 + 2 * v.width * v.mlp_width)
    whole = round(size[0] / 14) * round(size[1] / 14)
    return (per_patch * whole + 4 * v.layers * v.width * whole**2) / of_views(views, per_patch, 4 * v.layers * v.width)


def squares_the_sum(size, config):
    return vit_work(size, config, lambda views, each, pair: each * sum(views) + pair * sum(views) ** 2)


def forgets_the_overview_too(size, config):
    return vit_work(size, config, lambda views, each, pair: sum(each * n + pair * n * n for n in views[1:] or views))


def forgets_the_attention(size, config):
    views = [rows * cols for rows, cols in plan_slices(size, config.slicing).patch_grids]
    return round(size[0] / 14) * round(size[1] / 14) / sum(views)


def forgets_the_overview(grid, num_queries):
    return (grid[0] * grid[1] if grid else 1) * num_queries


def forgets_the_uncut_picture(grid, num_queries):
    return (1 + grid[0] * grid[1]) * num_queries


def column_by_column(refined_size, grid):
    (cols, rows), (width, height) = grid, refined_size
    w, h = width // cols, height // rows
    return [(c * w, r * h, (c + 1) * w, (r + 1) * h) for c in range(cols) for r in range(rows)]


def left_top_width_height(refined_size, grid):
    (cols, rows), (width, height) = grid, refined_size
    w, h = width // cols, height // rows
    return [(c * w, r * h, w, h) for r in range(rows) for c in range(cols)]


def halves(width, height, budget):
    while plan_slices((width, height)).visual_tokens(64) > budget:
        width, height = width // 2, height // 2
    return width, height


def searches_by_halving(width, height, budget):  # as if the price rose with every pixel
    low, high = 1, 100
    while low < high:
        percent = (low + high + 1) // 2
        fits = plan_slices((width * percent // 100, height * percent // 100)).visual_tokens(64) <= budget
        low, high = (percent, high) if fits else (low, percent - 1)
    return width * low // 100, height * low // 100


def as_areas(width, height, budget):
    for percent in range(100, 0, -1):
        size = int(width * (percent / 100) ** 0.5), int(height * (percent / 100) ** 0.5)
        if plan_slices(size).visual_tokens(64) <= budget:
            return size


def equal_grids(port, sizes, what=lambda grid: grid):
    return all(what(port((height, width, 3))) == what(best_grid((width, height))) for width, height in sizes)


MANY_SIZES = [(width, height) for width in range(50, 3000, 97) for height in range(50, 3000, 89)]


def looks_at_squares_only(port):
    return equal_grids(port, [(side, side) for side in range(1, 2000)])


def compares_numbers_of_slices(port):
    return equal_grids(port, MANY_SIZES, lambda grid: grid and grid[0] * grid[1])


def misses_the_last_bit(port):
    return equal_grids(port, MANY_SIZES)


def knows_one_size(port):
    return equal_grids(port, [(1280, 720)])


# lesson 02


def asks_with_the_end_of_the_patch(n, bucket):
    return [i for i in range(n) if (70 * (i + 1) - 1) // n == bucket]


def rounds_the_fraction(n, bucket):
    return [i for i in range(n) if round(70 * i / n) == bucket]


def multiplies_the_fraction(n, bucket):  # 47 / 70 * 70 is just below 47
    return [i for i in range(n) if int(i / n * 70) == bucket]


def may_look_back_only(lengths):
    view = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return torch.tril(view[:, None] == view[None, :])


def one_square_for_all(lengths):
    return torch.ones(sum(lengths), sum(lengths), dtype=torch.bool)


def adds_to_the_scores(lengths):  # a mask of floats is added to the scores: something else than attending or not
    view = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return (view[:, None] == view[None, :]).float()


def pads_to_the_longest_of_all(lengths, batch):
    return 1 - sum(lengths) / (len(lengths) * max(lengths))


def sorts_first(lengths, batch):
    groups = [sorted(lengths)[start : start + batch] for start in range(0, len(lengths), batch)]
    return 1 - sum(lengths) / sum(len(group) * max(group) for group in groups)


def averages_the_batches(lengths, batch):
    groups = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    return sum(1 - sum(group) / (len(group) * max(group)) for group in groups) / len(groups)


def clamps_the_address(rows, cols):
    return [70 * min(r, 69) + min(c, 69) for r in range(rows) for c in range(cols)]


def numbers_by_the_columns_of_the_view(rows, cols):
    return [cols * (70 * r // rows) + 70 * c // cols for r in range(rows) for c in range(cols)]


def counts_in_integers(rows, cols):
    return [70 * (70 * r // rows) + 70 * c // cols for r in range(rows) for c in range(cols)]


def forgets_to_take_exp(weights):
    return -sum(w * math.log(w) for w in weights if w)


def mixes_two_bases(weights):
    return 2 ** -sum(w * math.log(w) for w in weights if w)


def counts_what_is_above_zero(weights):
    return float(sum(w > 0 for w in weights))


def takes_the_log_of_zero(weights):
    return math.exp(-sum(w * math.log(w) for w in weights))


def masks_after_softmax(scores, lengths):
    weights = scores.softmax(dim=-1)
    for row, length in enumerate(lengths):
        weights[row, length:] = 0
    return weights


def gives_padding_a_score_of_zero(scores, lengths):
    for row, length in enumerate(lengths):
        scores[row, length:] = 0
    return scores.softmax(dim=-1)


def forgets_the_biases(queries, width, kv_width, version):
    return queries * width + width * kv_width + 5 * width**2 + 6 * width + queries * width * (version == "2.0")


def forgets_the_frozen_positions(queries, width, kv_width, version):
    return queries * width + width * kv_width + 5 * width**2 + 10 * width


def thinks_that_squares_hide_it(view):
    return view.shape[0] == view.shape[1]


def knows_white_walls_only(view):
    return bool((view == view[0, 0]).all())


def wants_one_number_everywhere(view):
    return view.unique().numel() == 1 or torch.equal(view, view.transpose(0, 1))


def wants_rows_of_one_patch(view):
    return bool((view == view[:, :1]).all()) or torch.equal(view, view.transpose(0, 1))


def forgets_white_walls(view):
    return torch.equal(view, view.transpose(0, 1))


def compares_sums_only(view):
    return view.shape[0] == view.shape[1] and torch.allclose(view.sum(dim=0), view.sum(dim=1))


def forgets_the_markers(grid, num_queries, version):
    return (1 + (grid[0] * grid[1] if grid else 0)) * num_queries


def newline_after_every_row(grid, num_queries, version):
    cols, rows = grid or (0, 0)
    return 3 + (1 + cols * rows) * (num_queries + 2) + rows


def numbers_every_version(grid, num_queries, version):
    cols, rows = grid or (0, 0)
    return 3 + (1 + cols * rows) * (num_queries + 2) + max(rows - 1, 0)


def always_writes_the_block(grid, num_queries, version):
    return numbers_every_version(grid, num_queries, version) - {"2.0": 0, "2.5": 1, "2.6": 0}[version]


def keeps_the_last_newline(cols, rows, queries):
    slots = "<unk>" * queries
    return f"<image>{slots}</image>" + (f"<slice>{slots}</slice>" * cols + "\n") * rows


def as_in_2_5(cols, rows, queries):
    one = f"<image>{'<unk>' * queries}</image>"
    return one + "<slice>" + "\n".join([one * cols] * rows) + "</slice>"


def forgets_the_closing_marker(bounds, most):
    return next((start - 1 for start, end in bounds if start - 1 < most < end), most)


def keeps_the_opening_marker(bounds, most):
    return next((start for start, end in bounds if start - 1 < most <= end), most)


def decodes_one_by_one(ids, decode):
    return [decode([token]) for token in ids]


def drops_what_is_broken(ids, decode):
    return [piece for piece in decodes_one_by_one(ids, decode) if piece != "\ufffd"]


def forgets_what_is_left(ids, decode):
    texts = [text for text in (decode(ids[: n + 1]) for n in range(len(ids))) if not text.endswith("\ufffd")]
    return [text[len(before) :] for before, text in zip(["", *texts], texts)]


def shows_all_at_the_end(ids, decode):
    return [decode(ids)]


# lesson 05


def takes_the_length_where_they_are_equal(light, heavy):
    return -(-(heavy[0] - light[0]) // (light[1] - heavy[1])) if light[1] > heavy[1] else None


def forgets_that_lines_may_never_cross(light, heavy):
    return (heavy[0] - light[0]) // (light[1] - heavy[1]) + 1


def gives_the_crossing_as_a_float(light, heavy):
    return (heavy[0] - light[0]) / (light[1] - heavy[1]) if light[1] > heavy[1] else None


def forgets_the_float16_numbers(weights, level, small, small_bits, floats):
    return level + small * small_bits / weights


def takes_small_numbers_per_weight(weights, level, small, small_bits, floats):
    return level + small_bits + 16 * floats / weights


def counts_what_is_just_freed(lives):
    held = {step: sum(size for born, freed, size in lives if born <= step <= freed) for step, _, _ in lives}
    return max(sorted(held), key=held.get, default=0), max(held.values(), default=0)


def adds_all_sizes(lives):
    return max((born for born, _, _ in lives), default=0), sum(size for _, _, size in lives)


def takes_the_last_of_equal_steps(lives):
    held = {step: sum(size for born, freed, size in lives if born <= step < freed) for step, _, _ in lives}
    return max(sorted(held, reverse=True), key=held.get, default=0), max(held.values(), default=0)


def counts_the_parameters_only(config, memory):
    return int(memory // (4 * estimate(config).weights))


def takes_the_first_that_does_not_fit(config, memory):
    batch = 1
    while estimate(config, training=True, batch=batch).total <= memory:
        batch += 1
    return batch


# lesson 06


def cuts_into_pictures(lengths, capacity, shortest):
    return in_order_by(lengths, capacity, shortest=[1] * len(lengths))


def never_cuts(lengths, capacity, shortest):
    return in_order_by(lengths, capacity, shortest=lengths)


def wants_more_than_it_needs(lengths, capacity, shortest):
    return in_order_by(lengths, capacity, shortest=[least + 1 for least in shortest])


def in_order_by(lengths, capacity, shortest):
    rows, room = [], 0
    for i, length in enumerate(lengths):
        if shortest[i] > room:
            rows.append([])
            room = capacity
        kept = min(length, room)
        rows[-1].append((i, kept))
        room -= kept
    return rows


def only_joins(samples):
    return [label for labels in samples for label in labels]


def drops_the_last_label(samples):
    return [label for labels in samples for label in [*labels[:-1], -100]]


def drops_the_first_of_the_row_only(samples):
    return [-100, *[label for labels in samples for label in labels][1:]]


def weighs_all_tokens_alike(labels, borders):
    places = [t for t, label in enumerate(labels) if label != -100 and t not in borders]
    return [1 / len(places) if t in places else 0.0 for t in range(len(labels))]


def weights_by_sample(labels, borders, first, count):
    weights = [0.0] * len(labels)
    samples = [[t for t in range(a + first, b) if labels[t] != -100] for a, b in itertools.pairwise(borders)]
    for places in samples:
        for t in places:
            weights[t] = 1 / len(places) / count(samples)
    return weights


def supervises_first_tokens(labels, borders):
    return weights_by_sample(labels, borders, 0, lambda samples: sum(map(bool, samples)))


def counts_samples_without_a_loss(labels, borders):
    return weights_by_sample(labels, borders, 1, len)


def waits_for_a_fall(positions):
    starts = [0, *(i for i in range(1, len(positions)) if positions[i] < positions[i - 1])]
    return [end - start for start, end in zip(starts, [*starts[1:], len(positions)])]


def forgets_the_last_sample(positions):
    starts = [i for i, position in enumerate(positions) if position == 0]
    return [starts[n + 1] - starts[n] for n in range(len(starts) - 1)]


def forgets_the_second_float(weights, group, level_bits, scale_bits, has_low):
    return (weights * level_bits + (1 + has_low) * weights // group * scale_bits + 16) / weights


def forgets_the_lows(weights, group, level_bits, scale_bits, has_low):
    return (weights * level_bits + weights // group * scale_bits + 16) / weights


def fits_unweighted(x, w, levels):
    scale, low = np.polyfit(levels, x, 1)
    return (scale, low) if low <= 0 else (np.dot(levels, x) / np.dot(levels, levels), 0.0)


def weighs_twice(x, w, levels):  # polyfit squares its weights
    scale, low = np.polyfit(levels, x, 1, w=w)
    return (scale, low) if low <= 0 else (np.dot(np.square(w) * levels, x) / np.dot(np.square(w) * levels, levels), 0.0)


def allows_a_low_above_zero(x, w, levels):
    return tuple(np.polyfit(levels, x, 1, w=np.sqrt(w)))


def clips_the_low_only(x, w, levels):
    scale, low = np.polyfit(levels, x, 1, w=np.sqrt(w))
    return scale, min(low, 0.0)


def ignores_the_corners(packed):
    low, high = [byte & 15 for byte in packed[8:]], [byte >> 4 for byte in packed[8:]]
    return [byte & 63 for byte in packed[:4]] + low, [byte & 63 for byte in packed[4:8]] + high


def swaps_scales_and_lows(packed):
    low = [packed[8 + j] & 15 | packed[j] >> 6 << 4 for j in range(4)]
    high = [packed[8 + j] >> 4 | packed[4 + j] >> 6 << 4 for j in range(4)]
    return [byte & 63 for byte in packed[:4]] + high, [byte & 63 for byte in packed[4:8]] + low


def puts_the_corners_below(packed):
    low = [(packed[8 + j] & 15) << 2 | packed[j] >> 6 for j in range(4)]
    high = [packed[8 + j] >> 4 << 2 | packed[4 + j] >> 6 for j in range(4)]
    return [byte & 63 for byte in packed[:4]] + low, [byte & 63 for byte in packed[4:8]] + high


def swaps_the_two_sums(sc, m, levels, x):
    return tuple(reversed(sums_of_a_block(sc, m, levels, x)))


def sums_of_a_block(sc, m, levels, x, group=lambda i: i // 32):
    a = sum(sc[group(i)] * levels[i] * x[i] for i in range(256))
    return a, sum(m[group(i)] * x[i] for i in range(256))


def takes_every_eighth_weight_as_a_group(sc, m, levels, x):
    return sums_of_a_block(sc, m, levels, x, lambda i: i % 8)


def forgets_the_inputs_of_the_lows(sc, m, levels, x):
    return sums_of_a_block(sc, m, levels, x)[0], 32 * sum(m)


def sums_as_floats(sc, m, levels, x):
    return tuple(map(float, sums_of_a_block(sc, m, levels, x)))


# lesson 07


def averages_over_all_pairs(logits, match):
    return -torch.nn.functional.logsigmoid(torch.where(match, logits, -logits)).mean().item()


def looks_at_the_pairs_that_match(logits, match):
    return -torch.nn.functional.logsigmoid(logits[match]).sum().item() / len(logits)


def believes_in_the_diagonal(logits, match):
    signed = torch.where(torch.eye(len(logits)) == 1, logits, -logits)
    return -torch.nn.functional.logsigmoid(signed).sum().item() / len(logits)


def lists_what_learns(inputs, learning):
    return [part for part in inputs if part in learning]


def looks_one_part_back(inputs, learning):
    return [part for part in inputs if part in learning or any(each in learning for each in inputs[part])]


def takes_all_after_the_first(inputs, learning):
    parts = list(inputs)
    return parts[min(map(parts.index, learning), default=len(parts)) :]


def starts_at_zero(step, steps):
    return min(1, step / (0.03 * steps)) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


def ends_at_zero(step, steps):
    return min(1, (step + 1) / (0.03 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def warms_up_in_whole_steps(step, steps):
    return min(1, (step + 1) / int(0.03 * steps)) * never_warms_up(step, steps)


def never_warms_up(step, steps):
    return 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))


# lesson 07b


def forgets_that_twice_is_too_often(names, texts):
    return [name for name in names if not any(name in text for text in texts)]


def looks_at_the_first_question_only(names, texts):
    return [name for name in names if texts[0].count(name) != 1]


def counts_texts_that_have_it(names, texts):
    return [name for name in names if sum(name in text for text in texts) != 1]


def forgets_grouped_heads(config, rank):
    return config.llm.num_hidden_layers * rank * 8 * config.llm.hidden_size


def counts_corrections_in_full(config, rank):
    llm = config.llm
    keys = llm.num_key_value_heads * llm.head_width
    return llm.num_hidden_layers * 2 * llm.hidden_size * (llm.hidden_size + keys)


def forgets_the_output_projection(config, rank):
    llm = config.llm
    keys = llm.num_key_value_heads * llm.head_width
    return llm.num_hidden_layers * rank * (2 * llm.hidden_size + 2 * (llm.hidden_size + keys))


def with_svd(left, right):
    """An answer from the three parts of the difference."""

    def extracted(W, merged, rank, alpha):
        U, S, V = torch.linalg.svd(merged - W, full_matrices=False)
        return right(V, S, rank, alpha), left(U, S, rank, alpha)

    return extracted


forgets_the_scale = with_svd(lambda U, S, r, alpha: U[:, :r] * S[:r], lambda V, S, r, alpha: V[:r])
forgets_the_sizes = with_svd(lambda U, S, r, alpha: U[:, :r] * r / alpha, lambda V, S, r, alpha: V[:r])
puts_the_sizes_on_both_sides = with_svd(
    lambda U, S, r, alpha: U[:, :r] * S[:r] * r / alpha, lambda V, S, r, alpha: S[:r, None] * V[:r]
)


# lesson 07c


def phrases(raw):
    return re.findall(r"\w+ \w+ (?:top|bottom) (?:left|right)", raw)


def keeps_their_order(raw):
    return ", ".join(phrases(raw)) + "."


def sorts_by_the_alphabet(raw):
    return ", ".join(sorted(phrases(raw), key=lambda phrase: phrase.split()[2:])) + "."


def keeps_the_and(raw):
    places = ["top left", "top right", "bottom left", "bottom right"]
    return " and ".join(sorted(phrases(raw), key=lambda phrase: places.index(" ".join(phrase.split()[2:])))) + "."


def looks_at_the_overview(size, max_slice_nums, least):
    shown = plan_slices(size, SliceConfig(max_slice_nums=max_slice_nums)).overview_size
    return math.ceil(least * size[1] / shown[1])


def forgets_the_limit(size, max_slice_nums, least):
    plan = plan_slices(size)
    return math.ceil(least * size[1] / (plan.refined_size or plan.overview_size)[1])


def rounds_text_down(size, max_slice_nums, least):
    plan = plan_slices(size, SliceConfig(max_slice_nums=max_slice_nums))
    return least * size[1] // (plan.refined_size or plan.overview_size)[1]


def divides_by_the_scale(size, max_slice_nums, least):
    plan = plan_slices(size, SliceConfig(max_slice_nums=max_slice_nums))
    return math.ceil(least / ((plan.refined_size or plan.overview_size)[1] / size[1]))


def compares_widths(size, max_slice_nums, least):
    plan = plan_slices(size, SliceConfig(max_slice_nums=max_slice_nums))
    return math.ceil(least * size[0] / (plan.refined_size or plan.overview_size)[0])


def means(losses):
    return [sum(losses[at : at + 10]) / len(losses[at : at + 10]) for at in range(0, len(losses), 10)]


def looks_at_every_step(losses, limits):
    for place, loss in enumerate(losses):
        if place // 10 < len(limits) and not limits[place // 10][0] <= loss <= limits[place // 10][1]:
            return place + 1
    return None


def looks_for_high_losses_only(losses, limits):
    whole = zip(means(losses[: len(losses) // 10 * 10]), limits)
    return next((10 * number for number, (mean, (_, high)) in enumerate(whole, 1) if not mean <= high), None)


def counts_an_unfinished_ten(losses, limits):
    whole = zip(means(losses), limits)
    return next((10 * number for number, (mean, (low, high)) in enumerate(whole, 1) if not low <= mean <= high), None)


def leaves_the_limits_out(losses, limits):
    whole = zip(means(losses[: len(losses) // 10 * 10]), limits)
    return next((10 * number for number, (mean, (low, high)) in enumerate(whole, 1) if not low < mean < high), None)


def lets_nan_pass(losses, limits):
    whole = zip(means(losses[: len(losses) // 10 * 10]), limits)
    return next((10 * number for number, (mean, (low, high)) in enumerate(whole, 1) if mean < low or mean > high), None)


def factors_of_the_merged_matrix(W, merged, rank, alpha):
    return forgets_the_scale(torch.zeros_like(W), merged, rank, alpha)


# lesson 08


def forgets_to_shift(logits, labels):
    wanted = labels != -100
    return logits.log_softmax(dim=-1)[wanted].gather(1, labels[wanted, None]).sum().item()


def takes_the_average(logits, labels):
    wanted = labels[1:] != -100
    return logits[:-1].log_softmax(dim=-1)[wanted].gather(1, labels[1:][wanted, None]).mean().item()


def scores_the_prompt_too(logits, labels):
    targets = labels[1:].clamp(min=0)
    return logits[:-1].log_softmax(dim=-1).gather(1, targets[:, None]).sum().item()


def sums_logits(logits, labels):
    wanted = labels[1:] != -100
    return logits[:-1][wanted].gather(1, labels[1:][wanted, None]).sum().item()


def forgets_the_half(differences):
    n = len(differences)
    return -sum(differences) / n, sum(max(0, -d) for d in differences) / n


def takes_the_right_order_for_the_wrong_one(differences):
    n = len(differences)
    return -sum(differences) / n / 2, sum(max(0, d) for d in differences) / n


def means_first(differences):
    mean = sum(differences) / len(differences)
    return -mean / 2, max(0, -mean)


def keeps_by(shortening, difference):
    def kept_pairs(lengths):
        best = None
        for rho in (0.02 * i for i in range(50)):
            stay = [(c, r) for c, r in lengths if shortening(c, r) <= rho]
            if stay and (best is None or difference(stay) < best[0]):
                best = difference(stay), stay
        return best[1] if best else []

    return kept_pairs


def apart(stay):
    chosen, rejected = (sum(side) for side in zip(*stay))
    return abs(chosen - rejected) / rejected


drops_the_long_ones = keeps_by(lambda c, r: (c - r) / r, apart)
drops_both = keeps_by(lambda c, r: abs(c - r) / r, apart)
divides_by_the_chosen = keeps_by(lambda c, r: (r - c) / c, apart)
likes_short_ones = keeps_by(lambda c, r: (r - c) / r, lambda stay: sum(c - r for c, r in stay))
divides_by_the_pairs = keeps_by(lambda c, r: (r - c) / r, lambda stay: abs(sum(c - r for c, r in stay)) / len(stay))
stays_below_rho = keeps_by(lambda c, r: (r - c) / r + 1e-9, apart)


def takes_the_last_rho(lengths):
    best = None
    for rho in (0.02 * i for i in range(50)):
        stay = [(c, r) for c, r in lengths if (r - c) / r <= rho]
        if stay and (best is None or apart(stay) <= best[0]):
            best = apart(stay), stay
    return best[1] if best else []


# lesson 10


def reads_the_highest_byte_first(data):
    if data[:4] != b"GGUF" or len(data) < 24:
        return None
    return tuple(int.from_bytes(data[a:b], "big") for a, b in ((4, 8), (8, 16), (16, 24)))


def takes_four_bytes_each(data):
    if data[:4] != b"GGUF" or len(data) < 24:
        return None
    return tuple(int.from_bytes(data[a : a + 4], "little") for a in (4, 8, 12))


def trusts_every_file(data):
    return tuple(int.from_bytes(data[a:b], "little") for a, b in ((4, 8), (8, 16), (16, 24)))


def reads_both_for_every_question(vision, language, memory, pictures):
    return (vision + language) * (len(pictures) if vision + language > memory else bool(pictures))


def reads_both_for_every_picture(vision, language, memory, pictures):
    return (vision + language) * (sum(pictures) if vision + language > memory else any(pictures))


def needs_more_room_than_both(vision, language, memory, pictures):
    if vision + language < memory:
        return vision * any(pictures) + language * bool(pictures)
    return (vision + language) * sum(pictures) + language * (pictures[:1] == [False])


def forgets_the_caches(flops, bandwidth, parameters, weights, cache):
    return -(-weights * flops // (2 * parameters * bandwidth))


def believes_in_one_cache(flops, bandwidth, parameters, weights, cache):
    return -(-(weights + cache) * flops // (2 * parameters * bandwidth))


def rounds_down(flops, bandwidth, parameters, weights, cache):
    gain = 2 * parameters * bandwidth - cache * flops
    return weights * flops // gain if gain > 0 else None


def counts_one_operation(flops, bandwidth, parameters, weights, cache):
    gain = parameters * bandwidth - cache * flops
    return -(-weights * flops // gain) if gain > 0 else None


# lesson 11


CANVASES = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


def takes_the_nearest_shape(size):
    return min(CANVASES, key=lambda canvas: abs(canvas[0] / canvas[1] - size[0] / size[1]))


def kept_pixels(size, canvas):
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    return int(size[0] * scale) * int(size[1] * scale)


def counts_enlarged_pixels(size):
    return max(CANVASES, key=lambda canvas: (kept_pixels(size, canvas), -canvas[0] * canvas[1]))


def takes_the_last_of_equals(size):
    kept = {canvas: (min(kept_pixels(size, canvas), size[0] * size[1]), -canvas[0] * canvas[1]) for canvas in CANVASES}
    return max(reversed(CANVASES), key=kept.get)


def rounds_the_sides(size):
    def kept(canvas):
        scale = min(canvas[0] / size[0], canvas[1] / size[1])
        return min(round(size[0] * scale) * round(size[1] * scale), size[0] * size[1]), -canvas[0] * canvas[1]

    return max(CANVASES, key=kept)


def answers_height_first(size):
    return counts_enlarged_pixels(size)[::-1]


def keeps_just_what_is_needed(grid, size):
    (rows, cols), (width, height) = grid, size
    return (height * cols // width, cols) if width / height > cols / rows else (rows, width * rows // height)


def takes_the_size_as_height_and_width(grid, size):
    (rows, cols), (height, width) = grid, size
    if width / height > cols / rows:
        return rows - 2 * ((rows - int(height * cols / width)) // 2), cols
    return rows, cols - 2 * ((cols - int(width * rows / height)) // 2)


def compares_with_a_square(grid, size):
    (rows, cols), (width, height) = grid, size
    if width > height:
        return rows - 2 * ((rows - int(height * cols / width)) // 2), cols
    return rows, cols - 2 * ((cols - int(width * rows / height)) // 2)


def rounds_up(grid, size):
    (rows, cols), (width, height) = grid, size
    if width / height > cols / rows:
        return rows - 2 * ((rows - math.ceil(height * cols / width)) // 2), cols
    return rows, cols - 2 * ((cols - math.ceil(width * rows / height)) // 2)


def shuffles_column_by_column(x):
    return rearrange(x, "(r p) (c q) d -> (c r) (p q d)", p=2, q=2)


def puts_columns_first_inside(x):
    return rearrange(x, "(r p) (c q) d -> (r c) (q p d)", p=2, q=2)


def interleaves_the_features(x):
    return rearrange(x, "(r p) (c q) d -> (r c) (d p q)", p=2, q=2)


def takes_patches_far_apart(x):
    return rearrange(x, "(p r) (q c) d -> (r c) (p q d)", p=2, q=2)


def turns_the_row_around(tokens):
    return tokens.flip(0)


def exchanges_the_features_inside(tokens):
    return rearrange(tokens, "n (p q d) -> n (q p d)", p=2, q=2)


def leaves_them(tokens):
    return tokens


def takes_all_of_the_image(types):
    return [kind == 1 for kind in types]


def leaves_out_boi_and_eoi(types):
    return [run == (1, 1, 1) for run in zip([0, *types], types, [*types[1:], 0])]


def looks_at_the_token_before(types):
    return [a == 1 and b == 1 for a, b in zip(types, [0, *types])]


def wraps_around(types):
    return [a == 1 and b == 1 for a, b in zip(types, [*types[1:], types[0]])]


def has_no_last(types):
    return [a == 1 and b == 1 for a, b in pairwise(types)]


# lesson 12


def counts_ids(tokens):
    found, number = [], -1
    for token in tokens:
        number += token == "<image_id>"
        found += [number] * (token == "<unk>")
    return found


def counts_views(tokens):
    found, number = [], -1
    for token in tokens:
        number += token in ("<image>", "<slice>")
        found += [number] * (token == "<unk>")
    return found


def counts_newlines(tokens):
    found, number = [], 0
    for token in tokens:
        number += token == "\n"
        found += [number] * (token == "<unk>")
    return found


def takes_the_first(count, rate):
    return list(range(0, count, round(rate)))[:64]


def cuts_the_rate(count, rate):
    every = list(range(0, count, int(rate)))
    gap = len(every) / 64
    return every if len(every) <= 64 else [every[int(i * gap + gap / 2)] for i in range(64)]


def takes_the_start_of_each_part(count, rate):
    every = list(range(0, count, round(rate)))
    gap = len(every) / 64
    return every if len(every) <= 64 else [every[int(i * gap)] for i in range(64)]


def steps_over_whole_frames(count, rate):
    every = list(range(0, count, round(rate)))
    return every[:: -(-len(every) // 64)]


def cuts_the_tenth(seconds):
    return int(seconds / 0.1)


def divides_downward(seconds):
    return int(seconds // 0.1)


def multiplies_and_cuts(seconds):
    return int(seconds * 10)


def multiplies_negatives(a, b):
    both = (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def takes_the_distance(a, b):
    both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * abs(min(a[3], b[3]) - max(a[1], b[1]))
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def covered(divide):
    def iou(a, b):
        both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        return both / divide(*((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)))

    return iou


# lesson 13


def rounds_groups_down(seconds):
    frames = min(3 * seconds, 540)
    return 64 * (frames // -(-frames // 180))


def samples_without_a_limit(seconds):
    each = min(3, -(-3 * seconds // 180))
    return 64 * -(-3 * seconds // each)


def always_packs_three(seconds):
    return 64 * -(-min(3 * seconds, 540) // 3)


def forgets_the_scores(scores, constants):
    parts = [math.exp(c) for c in constants]
    return [part / sum(parts) for part in parts]


def averages_the_scores(scores, constants):
    parts = [math.exp(sum(frame) / len(frame) + c) for frame, c in zip(scores, constants)]
    return [part / sum(parts) for part in parts]


def takes_exp_of_large_numbers(scores, constants):
    parts = [sum(math.exp(s + c) for s in frame) for frame, c in zip(scores, constants)]
    return [part / sum(parts) for part in parts]


def patch_by_patch(keys):
    return keys.reshape(-1, keys.shape[-1])


def channel_by_channel(keys):
    return keys.permute(1, 2, 0).reshape(-1, keys.shape[-1])


def keeps_three_axes(keys):
    return keys.transpose(0, 1)


def takes_four_in_a_row(rows, cols):
    return [list(range(n, n + 4)) for n in range(0, rows * cols, 4)]


def swaps_rows_and_columns(rows, cols):
    corners = [c * rows + r for r in range(0, rows, 2) for c in range(0, cols, 2)]
    return [[n, n + 1, n + rows, n + rows + 1] for n in corners]


def walks_down_the_columns(rows, cols):
    corners = [r * cols + c for c in range(0, cols, 2) for r in range(0, rows, 2)]
    return [[n, n + 1, n + cols, n + cols + 1] for n in corners]


def steps(columns_first=False, markers=2, always_overview=False):
    def picture_steps(grid, tile, overview):
        in_a_row, (rows, cols) = overview[0] * overview[1] + markers, overview
        if grid:
            in_a_row += grid[0] * grid[1] * (tile[0] * tile[1] + markers) + (grid[1] - 1) * (markers > 0)
        if grid and not always_overview:
            down, across = grid if columns_first else grid[::-1]
            rows, cols = tile[0] * down, tile[1] * across
        return in_a_row, max(rows, cols) + 1

    return picture_steps


def takes_all_that_reach_it(models, level):
    return [billions for billions, score in models if score >= level]


def compares_with_the_one_before(models, level):
    reached = [billions for billions, score in models if score >= level]
    return [size for place, size in enumerate(reached) if place == 0 or size < reached[place - 1]]


def forgets_the_level(models, level):
    return [size for place, (size, _) in enumerate(models) if all(size < before for before, _ in models[:place])]


def reaches_only_above(models, level):
    found = []
    for billions, score in models:
        if score > level and (not found or billions < found[-1]):
            found.append(billions)
    return found


def turns_the_ratio_around(steps, cost, other):
    return max(1, round(steps * other / cost))


def cuts_decimals_off(steps, cost, other):
    return max(1, int(steps * cost / other))


def may_give_none(steps, cost, other):
    return round(steps * cost / other)


def forgets_the_square(spread, half):
    return math.ceil(1.96 * spread / half)


def rounds_the_count_down(spread, half):
    return math.floor((1.96 * spread / half) ** 2)


def forgets_the_95_percent(spread, half):
    return math.ceil((spread / half) ** 2)


def compares_with_zero(seeds, interval, number):
    if interval[0] > 0 and min(seeds) > 0:
        return "confirmed"
    return "refuted" if interval[1] < 0 and max(seeds) < 0 else "not confirmed"


def trusts_the_interval_alone(seeds, interval, number):
    return "confirmed" if interval[0] > number else "refuted" if interval[1] < number else "not confirmed"


def calls_the_rest_refuted(seeds, interval, number):
    return "confirmed" if interval[0] > number and min(seeds) > number else "refuted"


def trusts_the_mean_of_the_seeds(seeds, interval, number):
    mean = sum(seeds) / len(seeds)
    return trusts_the_interval_alone(seeds, (min(interval[0], mean), max(interval[1], mean)), number)


def reviewed(old, new, changes=1, cost="step_cost", leak=True, items=set):
    trained = set(old["trained"] if leak else ()) | set(new["trained"])
    differ = sum(old["settings"][name] != new["settings"][name] for name in old["settings"])
    costs = [arm["steps"] * (arm[cost] if cost else 1) for arm in (old, new)]
    wrong = {
        "changes": differ != changes,
        "cost": abs(costs[1] / costs[0] - 1) > 0.05,
        "leak": bool(trained & {*old["graded"], *new["graded"]}),
        "items": items(old["graded"]) != items(new["graded"]),
    }
    return [name for name, found in wrong.items() if found]


def arm_by_arm(old, new):
    leak = any(set(arm["trained"]) & set(arm["graded"]) for arm in (old, new))
    found = [name for name in reviewed(old, new) if name != "leak"] + ["leak"] * leak
    return [name for name in ("changes", "cost", "leak", "items") if name in found]


def counts_steps_only(old, new):
    return reviewed(old, new, cost=None)


def looks_for_leaks_in_the_new_arm(old, new):
    return reviewed(old, new, leak=False)


def one_sided(old, new):
    cheaper = new["steps"] * new["step_cost"] < old["steps"] * old["step_cost"]
    return [name for name in reviewed(old, new) if name != "cost" or not cheaper]


def minds_the_order(old, new):
    return reviewed(old, new, items=list)


def allows_no_change(old, new):
    return reviewed(old, new, changes=0)


WRONG = {  # checker: wrong answers
    "times_the_work": [squares_the_sum, forgets_the_overview_too, forgets_the_attention],
    "visual_tokens": [forgets_the_overview, forgets_the_uncut_picture],
    "boxes": [column_by_column, left_top_width_height],
    "shrink": [halves, searches_by_halving, as_areas],
    "is_right": [looks_at_squares_only, compares_numbers_of_slices, misses_the_last_bit, knows_one_size],
    "readers": [asks_with_the_end_of_the_patch, rounds_the_fraction, multiplies_the_fraction],
    "view_mask": [may_look_back_only, one_square_for_all, adds_to_the_scores],
    "padding": [pads_to_the_longest_of_all, averages_the_batches, sorts_first],
    "fixed_ids": [clamps_the_address, numbers_by_the_columns_of_the_view, counts_in_integers],
    "spread": [forgets_to_take_exp, mixes_two_bases, counts_what_is_above_zero, takes_the_log_of_zero],
    "masked_weights": [masks_after_softmax, gives_padding_a_score_of_zero],
    "resampler_parameters": [forgets_the_biases, forgets_the_frozen_positions],
    "hides": [
        *(thinks_that_squares_hide_it, knows_white_walls_only, forgets_white_walls, compares_sums_only),
        *(wants_one_number_everywhere, wants_rows_of_one_patch),
    ],
    "image_tokens": [forgets_the_markers, newline_after_every_row, numbers_every_version, always_writes_the_block],
    "pieces": [decodes_one_by_one, drops_what_is_broken, forgets_what_is_left, shows_all_at_the_end],
    "fixed_layout": [keeps_the_last_newline, as_in_2_5],
    "safe_length": [forgets_the_closing_marker, keeps_the_opening_marker],
    "overtakes": [
        takes_the_length_where_they_are_equal,
        forgets_that_lines_may_never_cross,
        gives_the_crossing_as_a_float,
    ],
    "block_bits": [forgets_the_float16_numbers, takes_small_numbers_per_weight],
    "fullest": [counts_what_is_just_freed, adds_all_sizes, takes_the_last_of_equal_steps],
    "largest_batch": [counts_the_parameters_only, takes_the_first_that_does_not_fit],
    "in_order": [cuts_into_pictures, never_cuts, wants_more_than_it_needs],
    "packed_labels": [only_joins, drops_the_last_label, drops_the_first_of_the_row_only],
    "token_weights": [weighs_all_tokens_alike, supervises_first_tokens, counts_samples_without_a_loss],
    "samples_of": [waits_for_a_fall, forgets_the_last_sample],
    "bits_per_weight": [forgets_the_second_float, forgets_the_lows],
    "best_line": [fits_unweighted, weighs_twice, allows_a_low_above_zero, clips_the_low_only],
    "six_bits": [ignores_the_corners, swaps_scales_and_lows, puts_the_corners_below],
    "two_sums": [
        swaps_the_two_sums,
        takes_every_eighth_weight_as_a_group,
        forgets_the_inputs_of_the_lows,
        sums_as_floats,
    ],
    "sigmoid_loss": [averages_over_all_pairs, looks_at_the_pairs_that_match, believes_in_the_diagonal],
    "backward_parts": [lists_what_learns, looks_one_part_back, takes_all_after_the_first],
    "rate": [starts_at_zero, ends_at_zero, never_warms_up, warms_up_in_whole_steps],
    "misplaced": [forgets_that_twice_is_too_often, looks_at_the_first_question_only, counts_texts_that_have_it],
    "lora_parameters": [forgets_grouped_heads, counts_corrections_in_full, forgets_the_output_projection],
    "extracted": [
        forgets_the_scale,
        forgets_the_sizes,
        puts_the_sizes_on_both_sides,
        factors_of_the_merged_matrix,
    ],
    "rewritten": [keeps_their_order, sorts_by_the_alphabet, keeps_the_and],
    "smallest_text": [
        *(looks_at_the_overview, forgets_the_limit, rounds_text_down, compares_widths, divides_by_the_scale),
    ],
    "outside": [
        *(looks_at_every_step, looks_for_high_losses_only, counts_an_unfinished_ten, lets_nan_pass),
        leaves_the_limits_out,
    ],
    "answer_logp": [forgets_to_shift, takes_the_average, scores_the_prompt_too, sums_logits],
    "beta_limits": [forgets_the_half, takes_the_right_order_for_the_wrong_one, means_first],
    "kept_pairs": [drops_the_long_ones, drops_both, divides_by_the_chosen, likes_short_ones]
    + [divides_by_the_pairs, stays_below_rho, takes_the_last_rho],
    "read_header": [reads_the_highest_byte_first, takes_four_bytes_each, trusts_every_file],
    "from_storage": [reads_both_for_every_question, reads_both_for_every_picture, needs_more_room_than_both],
    "full_batch": [forgets_the_caches, believes_in_one_cache, rounds_down, counts_one_operation],
    "picture_of": [counts_ids, counts_views, counts_newlines],
    "sampled": [takes_the_first, cuts_the_rate, takes_the_start_of_each_part, steps_over_whole_frames],
    "time_id": [cuts_the_tenth, divides_downward, multiplies_and_cuts],
    "iou": [multiplies_negatives, takes_the_distance, covered(lambda a, b: a + b), covered(min), covered(max)],
    "clip_tokens": [rounds_groups_down, samples_without_a_limit, always_packs_three],
    "frame_shares": [forgets_the_scores, averages_the_scores, takes_exp_of_large_numbers],
    "fixed_rows": [patch_by_patch, channel_by_channel, keeps_three_axes],
    "windows": [takes_four_in_a_row, swaps_rows_and_columns, walks_down_the_columns],
    "picture_steps": [steps(columns_first=True), steps(markers=0), steps(always_overview=True)],
    "smallest_so_far": [takes_all_that_reach_it, compares_with_the_one_before, forgets_the_level, reaches_only_above],
    "steps_for": [turns_the_ratio_around, cuts_decimals_off, may_give_none],
    "samples_needed": [forgets_the_square, rounds_the_count_down, forgets_the_95_percent],
    "decide": [compares_with_zero, trusts_the_interval_alone, calls_the_rest_refuted, trusts_the_mean_of_the_seeds],
    "faults": [
        *(counts_steps_only, looks_for_leaks_in_the_new_arm, arm_by_arm),
        *(minds_the_order, allows_no_change, one_sided),
    ],
    "best_canvas": [
        *(takes_the_nearest_shape, counts_enlarged_pixels, takes_the_last_of_equals, answers_height_first),
        rounds_the_sides,
    ],
    "without_padding": [
        *(keeps_just_what_is_needed, takes_the_size_as_height_and_width, compares_with_a_square, rounds_up),
    ],
    "shuffle": [
        *(shuffles_column_by_column, puts_columns_first_inside, interleaves_the_features, takes_patches_far_apart),
    ],
    "repaired": [turns_the_row_around, exchanges_the_features_inside, leaves_them],
    "uses_vision": [
        *(takes_all_of_the_image, leaves_out_boi_and_eoi, looks_at_the_token_before, wraps_around, has_no_last),
    ],
}


# lessons whose checkers say it before the first try
SAY_WHAT_THEY_TEST = (
    "00",
    "01",
    "02",
    "03",
    "04",
    "05",
    "06",
    "07",
    "07b",
    "07c",
    "08",
    "09",
    "10",
    "11",
    "12",
    "13",
    "14",
)


@dataclass
class Exercise:
    notebook: str
    name: str  # of the learner's function
    checker: str
    stub: str
    call: str
    solution: str | None
    imports: str  # of the cells above: all that a solution may use besides its arguments

    def run(self, source, capsys):
        """Run the imports, this source and the call of the checker; returns what the checker prints."""
        namespace = {"__name__": "lesson"}
        exec(self.imports, namespace)
        exec(source, namespace)
        capsys.readouterr()
        exec(self.call, namespace)
        return capsys.readouterr().out.strip()


def exercises():
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        solutions = re.findall(r"<summary>Solution</summary>\s*```python\n(.*?)```", prose, re.DOTALL)
        for place, cell in enumerate(cells):
            if cell.cell_type != "code" or "raise NotImplementedError" not in cell.source:
                continue
            name = re.search(r"^def (\w+)", cell.source, re.MULTILINE)[1]
            checks = (re.search(r"^check\.(\w+)\((\w+)\)$", cell.source, re.MULTILINE) for cell in cells[place:])
            call = next(filter(None, checks), None)
            assert call and call[2] == name, f"{path.name}: no check.something({name}) after the stub"
            stub = cell.source.replace(call[0], "")
            solution = next((text for text in solutions if f"def {name}(" in text), None)
            yield Exercise(path.stem, name, call[1], stub, call[0], solution, imports(cells[:place]))


def imports(cells):
    """What code cells import, without the rest of their work."""
    trees = (ast.parse(cell.source) for cell in cells if cell.cell_type == "code")
    found = [node for tree in trees for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "\n".join(map(ast.unparse, found))


EXERCISES = list(exercises())
IDS = [f"{exercise.notebook}-{exercise.name}" for exercise in EXERCISES]


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_stub(exercise, capsys):
    said, *tested = exercise.run(exercise.stub, capsys).splitlines()
    assert said == "not attempted yet"
    if exercise.notebook.split("_")[0] in SAY_WHAT_THEY_TEST:
        assert len(tested) == 1 and tested[0].startswith("tested: "), f"{exercise.checker} needs a docstring of a line"


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_stub_and_check_are_one_cell(exercise):
    """A check in a cell of its own would still say "correct" after the answer was changed."""
    cells = nbformat.read(NOTEBOOKS / f"{exercise.notebook}.ipynb", as_version=4).cells
    assert exercise.notebook.split("_")[0] not in SAY_WHAT_THEY_TEST or any(
        exercise.stub.strip() in cell.source and exercise.call in cell.source for cell in cells
    )


@pytest.mark.parametrize("lesson", SAY_WHAT_THEY_TEST)
def test_one_exercise_is_hard(lesson):
    (path,) = NOTEBOOKS.glob(f"{lesson}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    assert any(re.search(r"^##+ Exercise.*\(hard, \d+ minutes\)", cell.source, re.MULTILINE) for cell in cells)


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_solution(exercise, capsys):
    assert exercise.solution, "no cell has <details><summary>Solution</summary> and ```python with this function"
    assert exercise.run(exercise.solution, capsys) == "correct"


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_wrong_answers(exercise, capsys):
    wrong = WRONG.get(exercise.checker, [])
    assert len(wrong) >= 2, f"plant at least two wrong answers for {exercise.checker}"
    for answer in wrong:
        getattr(check, exercise.checker)(answer)
        (said,) = capsys.readouterr().out.splitlines()
        assert said.startswith(f"{answer.__name__}("), said
        assert re.search(r" (gave|has|raised) .*expected ", said), said
        assert said.endswith((".", "?"))
        assert len(said) < 300


def other_types(value):
    """The right value in wrong types, each with the words that the checker's sentence must have."""
    if hasattr(value, "detach"):
        yield value.tolist(), "gave a list, expected a torch tensor of shape"
        yield value.numpy(), "gave a numpy array of shape"
        yield value.to("meta"), "on meta, expected one on cpu"
        yield (value.half(), "float16, expected float32") if value.is_floating_point() else (value.float(), "float32, ")
    elif isinstance(value, bool):
        yield int(value), f"gave {int(value)}, expected {value}"
        yield torch.tensor(value), "as a plain value"
    elif isinstance(value, int):
        yield float(value), f"gave {float(value)}, expected {value}"
        yield torch.tensor(value), "expected"
    elif isinstance(value, float):
        yield torch.tensor([value]), "as a plain value"
        yield str(value), f"gave {str(value)!r}"
    elif isinstance(value, str):
        yield [value], "expected"
    elif isinstance(value, (list, tuple)) and value and all(isinstance(each, (int, float)) for each in value):
        yield torch.tensor(value), f"gave a torch tensor of shape ({len(value)},), expected a {type(value).__name__}"
        yield [str(each) for each in value], "expected"


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_a_right_value_of_a_wrong_type_is_named(exercise, capsys):
    """The solution's results in other types: no checker takes them, and its sentence says what is wrong."""
    namespace = {"__name__": "lesson"}
    exec(exercise.imports + "\n" + exercise.solution, namespace)
    solve, planted = namespace[exercise.name], []

    def first_result(*args):
        planted.extend(planted or other_types(solve(*args)))
        raise NotImplementedError

    getattr(check, exercise.checker)(first_result)
    for number, (_, words) in enumerate(planted):

        def answer(*args, number=number):
            wrong = list(other_types(solve(*args)))
            return wrong[number][0] if number < len(wrong) else solve(*args)

        capsys.readouterr()
        getattr(check, exercise.checker)(answer)
        assert words in capsys.readouterr().out


@pytest.mark.parametrize("checker", ["frame_shares", "iou", "token_weights"])
def test_float32_is_enough(checker, capsys):
    """A right answer may come from torch or numpy, whose numbers have seven digits."""
    (exercise,) = (each for each in EXERCISES if each.checker == checker)
    namespace = {"__name__": "lesson"}
    exec(exercise.imports + "\n" + exercise.solution, namespace)

    def rounded(value):
        return [rounded(each) for each in value] if isinstance(value, list) else torch.tensor(float(value)).item()

    getattr(check, checker)(lambda *args: rounded(namespace[exercise.name](*args)))
    assert capsys.readouterr().out == "correct\n"


def test_every_checker_is_used():
    assert {exercise.checker for exercise in EXERCISES} == set(check.EXERCISES) == set(WRONG)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_lessons_have_exercises(path):
    assert path.stem[:2] in ("00", "14") or sum(exercise.notebook == path.stem for exercise in EXERCISES) >= 3


# ---- the machinery


def double(number):
    return 2 * number


@pytest.mark.parametrize(
    ("answer", "case", "said"),
    [
        (double, Case((2,), 4), "correct"),
        (double, Case((2,), 5), "double(2) gave 4, expected 5."),
        (double, Case((None,), 4), "double(None) raised TypeError: unsupported operand type(s) for *: 'int' and "
         "'NoneType'; expected 4."),
        (print, Case((), 4), "print() gave None, expected 4. Is there a return?"),
        (4, Case((2,), 4), "Give the checker your function itself, without calling it; it got 4."),
        (double, Case((2,), "a prime", lambda got: got in (2, 3, 5)), "double(2) gave 4, expected a prime."),
        (double, Case((2,), "an even number", lambda got: got % 2 == 0), "correct"),
        (double, Case((np.ones(3),), np.full(3, 2.0)), "correct"),
        (double, Case((np.ones(3),), np.ones((3, 1))), "double([1, 1, 1]) gave shape (3,), expected shape (3, 1)."),
        (double, Case((np.ones((2, 5)),), np.ones(2)), "double(an array of shape (2, 5)) gave shape (2, 5), expected "
         "shape (2,)."),
        (double, Case((np.ones(2),), np.array([2.0, 3.0])), "double([1, 1]) has 1 of 2 numbers wrong, "
         "the first at [1]: 2.0, expected 3.0."),
        (double, Case((1,), np.ones(2)), "double(1) gave 2, expected [1, 1]."),
        (double, Case((torch.tensor(1.5),), 3.0), "double(tensor(1.5000)) gave tensor(3.), expected 3.0 as a plain "
         "value; `.item()` makes one."),
        (double, Case((np.float32(1.5),), 3.0), "correct"),
        (double, Case((torch.ones(2),), torch.full((2,), 2.0, dtype=torch.float64)), "correct"),
        (double, Case((np.ones(2),), torch.full((2,), 2.0)), "double([1, 1]) gave a numpy array of shape (2,), "
         "expected a torch tensor of shape (2,)."),
        (double, Case(([1],), torch.ones(2)), "double([1]) gave a list, expected a torch tensor of shape (2,)."),
        (double, Case((torch.ones(2).half(),), torch.full((2,), 2.0)), "double([1, 1]) gave numbers of dtype float16, "
         "expected float32."),
        (double, Case((torch.ones(2, device="meta"),), torch.full((2,), 2.0)), "double(an array of shape (2,)) gave a "
         "tensor on meta, expected one on cpu."),
        (double, Case((torch.ones(1),), [2.0]), "double([1]) gave a torch tensor of shape (1,), expected a list; "
         "`.tolist()` makes a list."),
        (double, Case((1.0,), 2), "double(1.0) gave 2.0, expected 2."),
        (double, Case(([7] * 60,), [7] * 60 + [8] + [7] * 59), f"double([{'7, ' * 32}...) has 1 of 120 entries "
         "wrong, the first at [60]: 7, expected 8."),
        (double, Case((double,), 2), "double(double) raised TypeError: unsupported operand type(s) for *: 'int' and "
         "'function'; expected 2."),
        (double, Case((torch.tensor([[0.12345], [2.0]]) > 1,), 1), "double([[False], [True]]) gave [[0], [2]], "
         "expected 1 as a plain value; `.item()` makes one."),
    ],
)  # fmt: skip
def test_verdict(answer, case, said):
    assert verdict(answer, [case]) == said


def test_a_checker_forgives_an_answer_that_changes_its_argument():
    cases = [Case(([3, 1],), [1, 3])] * 2

    def sort(numbers):
        numbers.sort()
        return numbers

    assert verdict(sort, cases) == "correct"
    assert cases[0].args == ([3, 1],)


def test_tensors_are_compared_like_arrays():
    torch = pytest.importorskip("torch")
    case = Case((torch.ones(2, requires_grad=True),), torch.tensor([2.0, 2.0]))
    assert verdict(double, [case]) == "correct"
    assert "1 of 2 numbers wrong" in verdict(double, [Case(case.args, torch.tensor([2.0, 3.0]))])


@pytest.mark.parametrize(
    ("got", "want", "equal"),
    [
        ([1, (2, 3)], (1, [2, 3]), True),
        ((1, 2), (1, 2, 3), False),
        (0.1 + 0.2, 0.3, True),
        (64.0, 64, False),
        (np.int64(64), 64, True),
        (64, 64.0, True),
        (True, 1, False),
        (None, None, True),
        ("a", "a", True),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"b": 1}, False),
        ("1", 1, False),
    ],
)
def test_same(got, want, equal):
    assert same(got, want) is equal
    assert not same(1.0, 1.1, 0.01)
    assert same(1.0, 1.1, 0.2)
