"""Lesson 02: a vision transformer for any shape."""

from .cases import Case, exercise


@exercise
def readers():
    """eight pairs of n and bucket: buckets with one, several and no reader; a list of ints."""
    for n, bucket in [(5, 0), (5, 56), (32, 1), (32, 67), (90, 0), (90, 69), (70, 47), (69, 69)]:
        yield Case((n, bucket), [i for i in range(n) if 70 * i // n == bucket])


@exercise
def view_mask():
    """four lists of lengths; a torch tensor (N, N) of dtype bool, as `attn_mask` needs it."""
    import torch

    for lengths in ([1], [2, 3], [4, 1, 2], [2, 2]):
        owner = torch.tensor([view for view, length in enumerate(lengths) for _ in range(length)])
        yield Case((lengths,), owner[:, None] == owner[None, :])


@exercise
def padding():
    """six lists with batches of 1, 2 and 16, also a last batch that is not full; nine digits must agree."""
    for lengths, batch in [([7], 16), ([5, 5], 16), ([5, 10], 16), ([5, 10], 1), ([8, 3, 7, 2, 6], 2), ([3, 4, 8], 2)]:
        groups = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
        yield Case((lengths, batch), 1 - sum(lengths) / sum(len(group) * max(group) for group in groups))


@exercise
def fixed_ids():
    """eight grids, tall, wide and square, also 25 x 40, where the last bit counts; a list of ints."""
    from minicpmv_ref.positions import bucket_position_ids

    for rows, cols in [(1, 1), (70, 70), (2, 3), (28, 37), (4, 227), (227, 4), (25, 40), (18, 58)]:
        yield Case((rows, cols), bucket_position_ids(rows, cols).tolist())
