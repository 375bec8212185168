"""Lesson 02: a vision transformer for any shape."""

from .cases import Case, exercise


@exercise
def readers():
    for n, bucket in [(5, 0), (5, 56), (32, 1), (32, 67), (90, 0), (90, 69), (70, 69), (69, 69)]:
        yield Case((n, bucket), [i for i in range(n) if 70 * i // n == bucket])


@exercise
def view_mask():
    import torch

    for lengths in ([1], [2, 3], [4, 1, 2], [2, 2]):
        owner = torch.tensor([view for view, length in enumerate(lengths) for _ in range(length)])
        yield Case((lengths,), owner[:, None] == owner[None, :])


@exercise
def padding():
    for lengths, batch in [([7], 16), ([10, 10], 16), ([5, 10], 16), ([5, 10], 1), ([10, 5, 5, 5], 2), ([3, 4, 8], 2)]:
        groups = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
        yield Case((lengths, batch), 1 - sum(lengths) / sum(len(group) * max(group) for group in groups))


@exercise
def fixed_ids():
    for rows, cols in [(1, 1), (70, 70), (2, 3), (28, 37), (4, 227), (227, 4)]:
        yield Case((rows, cols), [70 * (70 * r // rows) + 70 * c // cols for r in range(rows) for c in range(cols)])
