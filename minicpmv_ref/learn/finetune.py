"""Fine-tuning on records of your own: all parts of a model, or LoRA; whole files, or shards.

The loop is `train`, as for the small world; what is different stands here: which record comes when, the loss on records
that are held out, and the command.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from ..checkpoint import WEIGHTS
from ..model import MiniCPMV
from ..processor import Processor
from .evaluate import answers, share_of_words
from .parallel import ALONE, unshard
from .records import Record, read_records
from .saves import best_in, finish, saves_in
from .stages import Stage, stage_named
from .train import SAVES, objective_for, train_stage

ADAPTER = "adapter"  # the folder of a LoRA adapter, in that of the merged checkpoint
LORA_RATE = 30  # the adapters learn so many times as fast as the LLM would


def sample_at(index: int, n: int, seed: int | str = 0) -> int:
    """Say which of n records is the sample number `index` of a training, counted over all of its epochs.

    The order depends on nothing but these three numbers: whoever resumes at sample 1000 sees what comes next.

    Args:
        index: from 0, without end.
        n: records.
        seed: of the order.

    Returns:
        The index of a record. Each epoch shows every record once, in an order of its own.

    Raises:
        ValueError: n below 1, or a negative index.

    Example:
        >>> [sample_at(i, 3) for i in range(6)]
        [1, 2, 0, 2, 1, 0]
    """
    if n < 1 or index < 0:
        raise ValueError(f"there must be a record, and index counts from 0; got {n=}, {index=}")
    epoch, place = divmod(index, n)
    return _shuffled(n, f"{seed}/{epoch}")[place]


@lru_cache(maxsize=2)  # a batch may reach into the next epoch
def _shuffled(n: int, seed: str) -> list[int]:
    return random.Random(seed).sample(range(n), n)


def in_order(records: Sequence[Record], seed: int = 0) -> Callable[[int], Record]:
    """Put records into the order of a training, endless over epochs: the `samples` that `train` asks for.

    Args:
        records: from `read_records`, or from `open_shards`, whose order reads one shard after the other.
        seed: of the order.

    Returns:
        A function from the number of a sample, counted from 0, to its record.

    Raises:
        ValueError: no records.

    Example:
        >>> from minicpmv_ref.config import BUNDLED
        >>> from minicpmv_ref.learn.train import train
        >>> from minicpmv_ref.learn.stages import start
        >>> records, _ = read_records(BUNDLED.parent / "records" / "train.json")
        >>> stage = Stage("mine", "answer", {"resampler": 1e-3}, mixture={}, steps=2, batch=2)
        >>> steps = train(start(), Processor.from_pretrained("nano"), stage, samples=in_order(records))
        >>> [step.step for step in steps]
        [1, 2]
    """
    if not records:
        raise ValueError("there must be at least one record")
    if hasattr(records, "sample"):
        return lambda number: records.sample(number, seed)
    return lambda number: records[sample_at(number, len(records), seed)]


def loss_on(model: MiniCPMV, processor: Processor, records: Sequence[Record], batch: int = 8) -> float:
    """Compute the loss on records, such as those that the training does not see.

    Args:
        model, processor: they belong together.
        records: at least one.
        batch: records at a time; it changes memory and speed, not the result.

    Returns:
        Mean negative log-likelihood per supervised token of all records together, in nats.

    Raises:
        ValueError: no records, or a record that is too long for the model.
    """
    if not records or batch < 1:
        raise ValueError(f"there must be at least one record, and one in a batch; got {len(records)} and {batch=}")
    objective = objective_for(model, processor, Stage("loss", "answer", {"llm": 0.0}, {}, steps=1))
    total, count = 0.0, 0
    with torch.no_grad():
        for begin in range(0, len(records), batch):
            loss, _, _, judged = objective(records[begin : begin + batch], step=0)
            total += loss.item() * judged  # batches do not have equally many supervised tokens
            count += judged
    return total / count


def words_right(model: MiniCPMV, processor: Processor, records: Sequence[Record], n: int = 100) -> float:
    """Let a model answer, and compare words: what a falling loss may or may not mean.

    Args:
        model, processor: they belong together.
        records: each of their questions is asked, after the true answers before it.
        n: stop after so many answers.

    Returns:
        The share of the wanted words that are said in their right place, 0 to 1.

    Raises:
        ValueError: no records.
    """
    asked = []
    for record in records:
        talk = record.messages
        asked += [(talk[:i], turn["content"]) for i, turn in enumerate(talk) if turn["role"] == "assistant"]
        if len(asked) >= n:
            break
    if not asked:
        raise ValueError("there must be at least one record")
    prompts, wanted = zip(*asked[:n])
    return share_of_words(answers(model, processor, prompts, max_new_tokens=128), wanted)


def train_on(
    data: str | os.PathLike,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    held_out: str | os.PathLike | None = None,
    *,
    lora: int | None = None,
    steps: int = 40,
    batch: int = 8,
    rate: float = 0.03,
    root: str | os.PathLike | None = None,
    strict: bool = False,
    seed: int = 0,
    device: str = "cpu",
    report=print,
    progress: bool = True,
    **how,
) -> dict:
    """Fine-tune a checkpoint on your own records; what was cut off goes on from its last save.

    Args:
        data: a JSON file of records, or a folder of shards; all of it is checked before anything else happens.
        checkpoint: a folder, or "nano".
        out: where to write: the checkpoint, metrics.jsonl, and saves while it trains. With `lora` the checkpoint is the
            merged one, and out/adapter is the adapter alone.
        held_out: a JSON file, or shards, only measured: before, after, and at each save.
        lora: the rank of adapters in the attention of the LLM, which learn alone; None: all parts learn in full.
        steps, batch: optimizer steps, and records of each.
        rate: factor on the learning rates of the stage "sft-2", which itself ended at 0.02. The more you take, the more
            a trained model learns and forgets: data_samples/records/README.md has an example at 0.3. Random weights
            want 1. Adapters learn LORA_RATE times as fast as the LLM.
        root: where the picture paths of a JSON file start, as for `read_records`.
        strict: True refuses data with any problem; False skips bad records and says how many.
        seed: of the order of the records, and of fresh adapters.
        device: "cpu" or "cuda".
        report, progress: as for `run`.
        how: `world`, `shard`, `pieces`, `workers`, `checkpointing` and `compiled`, as for `train_stage`.

    Returns:
        {"stage": "records", "held_out_before": loss, "held_out_after": loss, "seconds": of its steps}; with `held_out`
        in the first process also "words_before" and "words_after", from `words_right`.

    Raises:
        ValueError: no good record; with `strict`, any problem; fewer than one step or record, or a rate that is not
            above 0; `lora` below 1, or together with `shard`; `shard` with records that have no picture; a save in
            `out` that is of another training.
        OSError: a file cannot be read or written; `out` holds a checkpoint already.
        FloatingPointError, Stopped: as for `train_stage`.

    Source: finetune/finetune.py of OpenBMB/MiniCPM-V. Three differences: its script for full fine-tuning leaves the LLM
    frozen (tune_llm is false in it); it cuts long conversations, which may take away all answers or half a picture;
    and its rates are those of a large model. For those of the data see `records.messages`, for LoRA `lora.add_lora`.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"there must be at least one step and one record in it, got {steps=}, {batch=}")
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be a number above 0, got {rate}")
    if lora is not None and lora < 1:
        raise ValueError(f"lora is the rank of the adapters, 1 or more, got {lora}")
    if lora is not None and how.get("shard"):
        raise ValueError("LoRA and sharding do not go together here: adapters are small, so let every process hold all")
    out = Path(out)
    if (out / WEIGHTS).is_file():
        raise FileExistsError(f"{out} holds a checkpoint already; write somewhere else, and start from it to train on")
    processor = Processor.from_pretrained(checkpoint)
    options = {"root": root, "processor": processor, "strict": strict}
    records = read_any(data, report, **options)
    tests = read_any(held_out, report, **options) if held_out else []
    contents, test_contents = ([digest(record) for record in some] for some in (records, tests))
    if known := set(contents) & set(test_contents):
        report(f"{len(known)} of the held-out records are in the training data, too: their loss says little")
    sparse = not all(record.images for record in records)

    model = MiniCPMV.from_pretrained(checkpoint).float().to(device)
    first = how.get("world", ALONE).rank == 0
    words = words_right(model, processor, tests) if tests and first else None
    rates = {part: rate * highest for part, highest in stage_named("sft-2").rates.items()}
    settings = {"from": os.fspath(checkpoint), "data": _mark(contents), "held_out": _mark(test_contents)}
    optimizer = None
    if lora is not None:
        from .lora import add_lora, lora_optimizer, merge_lora, save_lora  # peft takes seconds to import

        rates = {"llm": LORA_RATE * rates["llm"]}
        optimizer = lora_optimizer(add_lora(model, lora, whole=(), seed=seed), rates["llm"])
        settings["lora"] = lora
    stage = Stage("records", "answer", rates, mixture={}, steps=steps, batch=batch)
    result = train_stage(
        model,
        processor,
        stage,
        out / SAVES,
        out / "metrics.jsonl",
        held_out=(lambda objective: loss_on(objective.model, processor, tests)) if tests else None,
        samples=in_order(records, seed),
        optimizer=optimizer,
        sparse=sparse,
        seed=seed,
        settings=settings,
        report=report,
        progress=progress,
        **how,
    )
    model = unshard(model)
    if not first:
        return result  # the others have nothing to write
    last, best = saves_in(out / SAVES)[-1], best_in(out / SAVES)
    better = best is not None and best != last
    if better:
        kind = "a checkpoint" if lora is None else "an adapter"
        place = out if lora is None else out / ADAPTER
        report(f"the held-out loss was lowest in {best}, which is kept: {kind} like the one in {place}")
    if lora is not None:
        save_lora(model, out / ADAPTER)
        merge_lora(model)
    if tests:
        result |= {"words_before": words, "words_after": words_right(model, processor, tests)}
        report(f"records: {words:.0%} of the held-out words right -> {result['words_after']:.0%}")
    finish(out, model, processor, out / SAVES, best=better)
    return result


def read_any(path: str | os.PathLike, report=print, *, root=None, processor=None, strict=False) -> Sequence[Record]:
    """Read and check records, wherever they are.

    Args:
        path: a JSON file for `read_records`, or a folder for `open_shards`.
        report: takes one text.
        root: for a JSON file only: where its picture paths start.
        processor: of the model that must be able to take them.
        strict: True refuses data with any problem.

    Returns:
        The good records.

    Raises:
        ValueError: no good record; with `strict`, any problem; a `root` for shards, which hold their pictures.
        OSError: a file cannot be read.
    """
    if Path(path).is_dir():
        from .shards import open_shards  # webdataset is needed for nothing else

        if root is not None:
            raise ValueError(f"{path} holds its pictures; a root belongs to a JSON file")
        records, found = open_shards(path, processor)
        if strict and found.problems:
            raise ValueError(found.text(5))
    else:
        records, found = read_records(path, root, processor=processor, strict=strict)
    report(found.text())
    if not records:
        raise ValueError(f"{path} holds no good record")
    return records


def digest(record: Record) -> bytes:
    """Tell records apart by what they show and say. Names do not matter, nor where the pictures are.

    Example:
        >>> digest(Record("0", {}, (("user", "Hi"),))) == digest(Record("1", {}, (("user", "Hi"),)))
        True
    """
    total = hashlib.sha256(repr((sorted(record.images), record.turns)).encode())
    for name in sorted(record.images):
        file = record.images[name]
        picture = file.getvalue() if isinstance(file, io.BytesIO) else Path(file).read_bytes()
        total.update(hashlib.sha256(picture).digest())
    return total.digest()


def _mark(contents: list[bytes]) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()
