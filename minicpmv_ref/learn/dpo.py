"""Direct preference optimization: make the better of two answers more likely than it was, relative to the worse one.

A pair is one prompt with two answers. The model reads the prompt once, and both answers after it, in one row:

    prompt  chosen  rejected        both answers continue the prompt's positions, and neither sees the other

Vision tower and resampler stay frozen, so pictures are encoded once for all epochs. The reference is no second model:
it is the log-probabilities of the model before training.
Adapters of LoRA learn alone, if the model has some. Left out: averaged or weighted log-probabilities, other losses.
n pairs, B pairs of a batch, T tokens of a row, P of its prompt, A of an answer, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ..inputs.checks import WrongType, check_int, check_list, check_number, check_precision, check_type, placed, shown
from ..model import MiniCPMV
from ..processor import Batch, Processor
from .evaluate import check_model

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# ---- 1. The loss, from logits


def token_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities of the supervised tokens, (B, T - 1) in float32 or more; 0 where nothing is supervised."""
    _check_floats("logits", logits), check_type("labels", labels, Tensor)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise WrongType(f"labels must be integers, got {labels.dtype}")
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(f"logits must be (B, T, V) and labels (B, T), got {(*logits.shape,)} and {(*labels.shape,)}")
    labels, size = labels.long(), logits.shape[-1]
    if len(odd := labels[(labels != -100) & ((labels < 0) | (labels >= size))]):
        raise ValueError(f"labels must be -100 or a token from 0 to {size - 1}, got {odd[0].item()}")
    return _logps(logits[:, :-1], labels[:, 1:])


def _check_floats(name: str, tensor: Tensor) -> Tensor:
    if check_type(name, tensor, Tensor).dtype not in FLOATS:
        raise WrongType(f"{name} must be a tensor of floats, got {tensor.dtype}")
    return tensor


def _logps(logits: Tensor, targets: Tensor) -> Tensor:
    """`logits[..., t, :]` predicts `targets[..., t]`."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Cross-entropy is the negative log-probability, and 0 where it ignores; the (B, T, V) log-softmax is not kept.
    return -F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)


def sequence_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each answer: the sum over its tokens, so a longer answer is less likely. Nothing is averaged.

    Args:
        logits: (B, T, V).
        labels: (B, T), -100 where unsupervised, not shifted: `logits[:, t]` predicts `labels[:, t + 1]`.

    Returns:
        Tensor (B,), at least float32.

    Raises:
        TypeError, ValueError: other types or shapes; a label that is no token; a row without a supervised token.

    Example:
        >>> logits = torch.zeros(1, 4, 10)
        >>> bool(torch.isclose(sequence_logps(logits, torch.tensor([[-100, -100, 3, 5]])), torch.tensor(0.01).log()))
        True

    Source: RLHF-V/RLAIF-V, muffin/eval/muffin_inference_logp.py, get_batch_logps with dpo_use_average False.
    """
    logps = token_logps(logits, labels)
    if empty := (labels[:, 1:] == -100).all(dim=1).nonzero()[:, 0].tolist():
        raise ValueError(f"rows {empty} have no supervised token, so there is no answer to score")
    return logps.sum(dim=1)


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare how far the policy has moved from the reference on both answers: -log sigmoid(margin of the rewards).

    Args:
        policy_chosen, policy_rejected: (B,) log-probabilities of the answers under the model that learns.
        reference_chosen, reference_rejected: (B,) those under the model before training.
        beta: how much moving away from the reference counts; a small one lets the policy move far.

    Returns:
        (mean loss, chosen rewards (B,), rejected rewards (B,)), in the widest dtype of the four, at least float32; the
        rewards carry no gradient.

    Raises:
        TypeError, ValueError: other types or shapes; a beta that is not above 0; a loss or reward that is not finite.

    Example:
        >>> logps = torch.tensor([-5.0, -9.0])
        >>> loss, chosen, rejected = dpo_loss(logps, logps - 1, logps, logps - 1)  # policy and reference agree
        >>> round(loss.item(), 4), chosen.tolist()
        (0.6931, [0.0, 0.0])

    Source: Rafailov et al., Direct Preference Optimization (2023), equation 7; RLHF-V/RLAIF-V, trainers.py.
    """
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    logps = dict(zip(names, (policy_chosen, policy_rejected, reference_chosen, reference_rejected)))
    shapes = {tuple(_check_floats(name, x).shape) for name, x in logps.items()}
    if len(shapes) != 1 or len(policy_chosen.shape) != 1:
        raise ValueError(f"all four log-probabilities must have one shape (B,), got {sorted(shapes)}")
    check_number("beta", beta, above=0)
    # Before any arithmetic: a difference of narrow numbers may overflow where a wide one does not.
    dtype = reduce(torch.promote_types, (x.dtype for x in logps.values()), torch.float32)
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = (x.to(dtype) for x in logps.values())
    chosen = beta * (policy_chosen - reference_chosen)
    rejected = beta * (policy_rejected - reference_rejected)
    loss = -F.logsigmoid(chosen - rejected).mean()
    if not torch.isfinite(torch.cat([loss[None], chosen, rejected])).all():
        reason = "a log-probability (or beta) is infinite, not a number or too large, or B is 0"
        raise ValueError(f"the loss is {loss.item()}: {reason}")
    return loss, chosen.detach(), rejected.detach()


# ---- 2. Pairs as the model reads them


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    prompt: list[dict]  # a conversation that ends with the user, pictures included
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Prepared:
    """A Pair in numbers."""

    prompt: Tensor  # (P,) token ids
    chosen: Tensor  # (A,) token ids, the end token included
    rejected: Tensor
    bounds: Tensor  # (views, 2): where the slots of each view stand in the prompt
    plans: list  # a SlicePlan for each image
    visual: Tensor  # (views, Q, D)
    views: tuple = ()  # (pictures and slices, their patch grids): what `visual` was made of


@torch.no_grad()
def prepare(model: MiniCPMV, processor: Processor, pairs: Iterable[Pair]) -> list[Prepared]:
    """Tokenize pairs (any iterable) and encode their pictures. Prompts with equal pictures are encoded once.

    Returns:
        A list of Prepared, in the order of the pairs, on the model's device.

    Raises:
        TypeError, ValueError: no Pairs; a prompt that does not end with the user; answers that are equal, empty or not
            stripped; what the Processor refuses.

    Example:
        >>> model, processor = MiniCPMV.from_pretrained("nano"), Processor.from_pretrained("nano")
        >>> pair = Pair([{"role": "user", "content": "Is there a star?"}], "yes", "no")
        >>> [prepared] = prepare(model, processor, [pair])
        >>> processor.tokenizer.decode(prepared.chosen)
        'yes<|im_end|>'
    """
    check_model(model, processor)
    prepared, encoded = [], {}
    for number, pair in enumerate(check_type("pairs", pairs, Iterable)):
        _check_pair(number, pair)
        chats = [[*pair.prompt, {"role": "assistant", "content": text}] for text in (pair.chosen, pair.rejected)]
        with placed(f"pair {number}, "):
            batch = processor(chats)
        views = batch.images[0], batch.patch_grids[0]
        key = _content(*views)  # not the prompt object: the caller may change and reuse it
        batch = batch.to(model.llm.device)
        (prompt, chosen), (again, rejected) = (_split(batch, row) for row in range(2))
        if not torch.equal(prompt, again):
            raise ValueError(f"pair {number}: its answers change the tokens of the prompt before them")
        if key not in encoded:
            encoded[key] = model.encode_images(*views), views
        bounds = batch.image_bounds[0] - (batch.attention_mask[0] == 0).sum().cpu()  # without the padding
        prepared.append(Prepared(prompt, chosen, rejected, bounds, batch.plans[0], *encoded[key]))
    return prepared


def _check_pair(number: int, pair: Pair) -> None:
    check_type(f"pair {number}", pair, Pair)
    check_list(f"pair {number}: prompt", pair.prompt, dict, what="a message")
    if not pair.prompt or pair.prompt[-1].get("role") != "user":
        raise ValueError(f"pair {number}: the prompt must end with the user, got {shown(pair.prompt[-1:])}")
    for name in ("chosen", "rejected"):
        answer = check_type(f"pair {number}: {name}", getattr(pair, name), str)
        if not answer or answer != answer.strip():
            raise ValueError(f"pair {number}: the {name} answer is empty or not stripped: {shown(answer)}")
    if pair.chosen == pair.rejected:
        raise ValueError(f"pair {number}: both answers are {shown(pair.chosen)}, so there is nothing to prefer")


def _content(images: Sequence[Tensor], grids: Sequence[tuple[int, int]]) -> tuple:
    """A key for the pictures of a prompt: their grids, and a hash of all pixels."""
    pixels = hashlib.blake2b()
    for image in images:
        pixels.update(image.contiguous().numpy())
    return *map(tuple, grids), pixels.digest()


def _split(batch: Batch, row: int) -> tuple[Tensor, Tensor]:
    """Token ids of the prompt, and of the last answer after it."""
    supervised = (batch.labels[row] != -100).nonzero()[:, 0].tolist()
    start = end = supervised[-1]
    while start - 1 in supervised:  # earlier answers of the conversation belong to the prompt
        start -= 1
    begin = int((batch.attention_mask[row] == 0).sum())
    return batch.input_ids[row, begin:start], batch.input_ids[row, start : end + 1]


@dataclass
class PairBatch:
    """Rows of prompt, chosen, rejected, padding; see `pair_batch`."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # bool (B, 1, T, T): True where a token may look
    position_ids: Tensor  # (B, T)
    labels: Tensor  # (2, B, A), chosen first: the answers' tokens, then -100; not aligned with input_ids
    predictors: Tensor  # for each label that is not -100 the token that predicts it, an index into all B * T
    image_bounds: list[Tensor]  # as in a Batch
    plans: list[list]
    visual: Tensor  # (views of all prompts, Q, D)

    def to(self, device=None, dtype: torch.dtype | None = None) -> PairBatch:
        """Move all tensors to a device; `dtype` changes the visual tokens only."""
        names = "input_ids attention_mask position_ids labels predictors".split()
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved, visual=self.visual.to(device=device, dtype=dtype))


def pair_batch(pairs: Sequence[Prepared], pad_id: int = 0) -> PairBatch:
    """Put each pair of a list from `prepare` into one row, as wide as the longest pair.

    Raises:
        TypeError, ValueError: no pairs; one without tokens of prompt or answers; visual tokens of different models.

    Example:
        >>> none = torch.zeros(0, 2, dtype=torch.long), [], torch.zeros(0, 16, 256)
        >>> batch = pair_batch([Prepared(torch.tensor([7, 8]), torch.tensor([3]), torch.tensor([4, 5]), *none)])
        >>> batch.input_ids.tolist(), batch.position_ids.tolist()
        ([[7, 8, 3, 4, 5]], [[0, 1, 2, 2, 3]])
        >>> batch.attention_mask[0, 0].int()[3].tolist()  # the first rejected token: the prompt and itself
        [1, 1, 0, 1, 0]
        >>> batch.predictors.tolist()  # 8 predicts 3 and 4; 4 predicts 5
        [1, 1, 3]
    """
    _check_prepared(pairs), check_int("pad_id", pad_id, 0)
    device = pairs[0].prompt.device
    width = max(len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs)
    longest = max(len(answer) for pair in pairs for answer in (pair.chosen, pair.rejected))
    ids = torch.full((len(pairs), width), pad_id, device=device)
    positions, part = torch.zeros_like(ids), torch.full_like(ids, 3)  # parts: 0 prompt, 1 chosen, 2 rejected, 3 padding
    labels = torch.full((2, len(pairs), longest), -100, device=device)
    predictors = [], []
    for row, pair in enumerate(pairs):
        p, c, r = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        ids[row, : p + c + r] = torch.cat([pair.prompt, pair.chosen, pair.rejected])
        for number, (start, end) in enumerate([(0, p), (p, p + c), (p + c, p + c + r)]):
            part[row, start:end] = number
            begin = p if number else 0  # both answers continue the prompt
            positions[row, start:end] = torch.arange(begin, begin + end - start, device=device)
        labels[0, row, :c], labels[1, row, :r] = pair.chosen, pair.rejected
        last = row * width + p - 1  # the prompt's last token predicts the first token of both answers
        predictors[0].extend(range(last, last + c))
        predictors[1].extend([last, *range(last + c + 1, last + c + r)])
    seen = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])  # the prompt, and one's own answer
    predictors = torch.tensor(predictors[0] + predictors[1], device=device)
    bounds, plans, visual = zip(*((pair.bounds, pair.plans, pair.visual) for pair in pairs))
    mask = seen.tril()[:, None]
    return PairBatch(ids, mask, positions, labels, predictors, list(bounds), list(plans), torch.cat(visual))


def _check_prepared(pairs: Sequence[Prepared]) -> None:
    for number, pair in enumerate(check_list("pairs", pairs, Prepared, empty=False)):
        for name in ("prompt", "chosen", "rejected"):
            tokens = check_type(f"pairs[{number}].{name}", getattr(pair, name), Tensor)
            # Without a prompt, the first token of an answer would be predicted by the pair before.
            if tokens.ndim != 1 or not len(tokens):
                raise ValueError(f"pairs[{number}].{name} must be (tokens,), at least one, got {tuple(tokens.shape)}")
        shape, first = check_type(f"pairs[{number}].visual", pair.visual, Tensor).shape, tuple(pairs[0].visual.shape)
        if len(shape) != 3 or shape[1:] != first[1:]:
            raise ValueError(f"pairs[{number}].visual must be (views, Q, D), {first} in pairs[0], got {tuple(shape)}")


def pair_logps(model: MiniCPMV, batch: PairBatch) -> Tensor:
    """Log-probabilities of both answers of every pair, in one pass. The LM head runs on the predictors only.

    Returns:
        Tensor (2, B, A): chosen, rejected; 0 after the end of an answer. Sum over the last axis for `dpo_loss`.
    """
    check_type("model", model, MiniCPMV), check_type("batch", batch, PairBatch)
    taken = {name: getattr(batch, name) for name in ("input_ids", "position_ids", "image_bounds", "plans")}
    rows = Batch(**taken, attention_mask=None, labels=None, images=[], patch_grids=[], stop_ids=(), pad_id=0)
    hidden = model.llm.model(
        inputs_embeds=model.embed(rows, batch.visual),
        attention_mask=batch.attention_mask,  # transformers passes a 4-D mask on as it is
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    logits = model.llm.lm_head(rearrange(hidden, "b t d -> (b t) d")[batch.predictors])
    answered = batch.labels != -100
    logps = _logps(logits / model.config.llm.logits_divisor, batch.labels[answered])
    return logps.new_zeros(batch.labels.shape).masked_scatter(answered, logps)


# ---- 3. Training


@torch.no_grad()
def reference_logps(model: MiniCPMV, pairs: Sequence[Prepared], batch_size: int = 32) -> Tensor:
    """(2, n) log-probabilities of all pairs, computed once: what `train_dpo` compares with."""
    check_int("batch_size", batch_size), check_list("pairs", pairs, Prepared, empty=False)
    batches = (pair_batch(pairs[i : i + batch_size]) for i in range(0, len(pairs), batch_size))
    return torch.cat([pair_logps(model, batch).sum(dim=2) for batch in batches], dim=1)


def train_dpo(
    model: MiniCPMV,
    pairs: Sequence[Prepared],
    *,
    steps: int,
    batch_size: int = 16,
    lr: float = 3e-5,
    beta: float = 0.1,
    seed: int = 0,
    reference: Tensor | None = None,
    watch: Callable[[int], object] = lambda step: None,
) -> list[dict[str, float]]:
    """Train the language model on pairs, in place. The vision tower and the resampler are not touched.

    AdamW with weight decay 0.01, 5 % warm-up, then a cosine to 0, gradients clipped to norm 1, as in the public recipe.

    Args:
        model: a MiniCPMV.
        pairs: what `prepare` made with this model.
        steps: of the optimizer, each of `batch_size` pairs; epochs follow each other, shuffled by the `seed`.
        lr: the highest learning rate; `beta` is that of `dpo_loss`.
        reference: (2, n) from `reference_logps`; None takes the model before the first step.
        watch: called with the number of steps taken: 0 before the first, then after each.

    Returns:
        For each step loss, margin (mean of chosen minus rejected reward), accuracy (share of positive margins), and
        chosen and rejected (mean log-probabilities).

    Raises:
        TypeError, ValueError: an impossible argument; no pairs, or another model's; a frozen LLM; as `dpo_step`.

    Example:
        >>> from minicpmv_ref import nano
        >>> model, processor = MiniCPMV.seeded(nano), Processor.from_pretrained("nano")
        >>> question = [{"role": "user", "content": "Is there a star?"}]
        >>> history = train_dpo(model, prepare(model, processor, [Pair(question, "yes", "no")]), steps=5, lr=1e-3)
        >>> round(history[0]["loss"], 3), history[-1]["loss"] < 0.6
        (0.693, True)

    Source: RLHF-V/RLAIF-V, script/train/llava15_train.sh, which trains all parameters with lr 5e-7. What was trained
        for MiniCPM-V itself, and how, is not published.
    """
    check_type("model", model, MiniCPMV), _check_prepared(pairs)
    check_int("steps", steps), check_int("batch_size", batch_size)
    check_number("lr", lr, above=0), check_number("beta", beta, above=0)
    check_type("seed", seed, int, str)
    _check_visual(model, next((pair for pair in pairs if pair.views and len(pair.visual)), pairs[0]))
    reference = reference_logps(model, pairs) if reference is None else _check_floats("reference", reference)
    if tuple(reference.shape) != (2, len(pairs)):
        raise ValueError(f"the reference of {len(pairs)} pairs is (2, {len(pairs)}), got {tuple(reference.shape)}")
    optimizer, history = optimizer_for_dpo(model.llm), []
    watch(0)
    for step, chosen in enumerate(shuffled_batches(len(pairs), batch_size, steps, seed)):
        set_learning_rate(optimizer, step, steps, lr)
        history.append(dpo_step(model, optimizer, pair_batch([pairs[i] for i in chosen]), reference[:, chosen], beta))
        watch(step + 1)
    return history


@torch.no_grad()
def _check_visual(model: MiniCPMV, pair: Prepared) -> None:
    """Refuse visual tokens of another vision tower or resampler; 5 % are far more than dtypes differ."""
    visual = model.encode_images(*pair.views).to(pair.visual) if pair.views else pair.visual
    if visual.shape != pair.visual.shape or (visual - pair.visual).norm() > 0.05 * visual.norm():
        raise ValueError("the visual tokens of the pairs are not those of this model; prepare the pairs with it")


def optimizer_for_dpo(module: nn.Module) -> AdamW:
    """AdamW for all parameters that require a gradient; see `set_learning_rate`."""
    if not (learning := check_precision(p for p in module.parameters() if p.requires_grad)):
        raise ValueError("nothing would learn: all parameters are frozen; model.llm.requires_grad_(True) changes that")
    return AdamW(learning, weight_decay=0.01)


def set_learning_rate(optimizer: Optimizer, step: int, steps: int, lr: float) -> None:
    """5 % warm-up, then a cosine to 0; `step` counts from 0."""
    warmup = max(1, round(0.05 * steps))
    rising = lr * (step + 1) / warmup
    for group in optimizer.param_groups:
        group["lr"] = rising if step < warmup else lr * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def shuffled_batches(n: int, batch_size: int, steps: int, seed: int | str) -> Iterator[list[int]]:
    """Indices of the pairs of each step: every epoch has all pairs, in a new order."""
    rng, queue = random.Random(seed), []
    for _ in range(steps):
        while len(queue) < min(batch_size, n):
            queue += rng.sample(range(n), n)
        yield queue[:batch_size]
        del queue[:batch_size]


def dpo_step(
    model: MiniCPMV, optimizer: Optimizer, batch: PairBatch, reference: Tensor, beta: float = 0.1, sft: bool = False
) -> dict[str, float]:
    """Take one step, and return its figures, see `train_dpo`. An error leaves the weights as they were.

    `sft` is a control: imitate the chosen answers with the usual loss per token. The other figures remain those of DPO.
    """
    policy = pair_logps(model, batch).sum(dim=2)
    if _check_floats("reference", reference).shape != policy.shape:
        raise ValueError(f"the reference of this batch is {tuple(policy.shape)}, got {tuple(reference.shape)}")
    loss, chosen, rejected = dpo_loss(*policy, *reference, beta)
    if sft:
        loss = -policy[0].sum() / (batch.labels[0] != -100).sum()
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    if not norm.isfinite():
        raise ValueError(f"the gradient of this step is {norm.item()}: a weight or an activation is too large")
    optimizer.step()
    margin, accuracy = (chosen - rejected).mean(), (chosen > rejected).to(loss).mean()
    figures = torch.stack([loss.detach(), margin, accuracy, *policy.mean(1)])
    return dict(zip(("loss", "margin", "accuracy", "chosen", "rejected"), figures.tolist()))
