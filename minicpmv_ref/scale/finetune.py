"""Fine-tuning on records of your own: all parts of a model, or LoRA; whole files, or shards.

A StageRun trains, as in the toy world. What is different is here: which record comes when, the loss on held-out
records, and `train_on`, which does it all.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch

from ..config import MiniCPMVConfig
from ..inputs.checkpoint import INDEX, WEIGHTS, fingerprint
from ..inputs.checks import LIMITS, check_int, check_number, check_type
from ..inputs.published import CONFIG, read_config
from ..learn.evaluate import answers, share_of_words
from ..learn.objectives import objective_for
from ..learn.stages import Stage, stage_named
from ..model import MiniCPMV
from ..processor import Processor
from ..toy.data import check_seed
from .machine import DEFAULT, Machine
from .metrics import METRICS
from .parallel import Processes, unshard
from .records import Record, check_records, picture_bytes, read_records
from .run import alone_in
from .stage_run import Output, StageData, StageRun, settings_of
from .training_checkpoints import FOLDER, HEADER, best_checkpoint, clean_up, finish, finished, training_checkpoints

ADAPTER = "adapter"  # the folder of a LoRA adapter, in that of the merged checkpoint
LORA_SCALE = 30  # the learning rate of adapters is so many times that of the LLM
ASKED = 100  # answers that `words_right` compares: a share of so many is known to some 5 points


def sample_at(index: int, n: int, seed: int | str = 0) -> int:
    """Say which of n records is the sample number `index` of a training, counted over all of its epochs.

    The order depends on these three numbers alone, so a training that resumes at sample 1000 sees what comes next.

    Args:
        index: from 0, without end.
        n: records.
        seed: of the order.

    Returns:
        The index of a record. Each epoch shows every record once, in an order of its own.

    Raises:
        TypeError: not whole numbers; a seed that is neither an int nor text.
        ValueError: n below 1 or above 100 million, or a negative index.

    Example:
        >>> [sample_at(i, 3) for i in range(6)]
        [1, 2, 0, 2, 1, 0]
    """
    check_seed(check_type("seed", seed, int, str))
    n = check_int("there must be a record, and index counts from 0: n", n, most=LIMITS["records"])
    index = check_int("index counts from 0: index", index, least=0)
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
        TypeError: no list of Record and no shards; a seed that is neither an int nor text.
        ValueError: no records.

    Example:
        >>> from minicpmv_ref.config import BUNDLED
        >>> from minicpmv_ref.learn.train import train
        >>> from minicpmv_ref.learn.stages import start
        >>> records, _ = read_records(BUNDLED.parent / "records" / "train.json")
        >>> stage = Stage("mine", "answer", {"resampler": 1e-3}, data_mix={}, steps=2, batch=2)
        >>> steps = train(start(), Processor.from_pretrained("nano"), stage, samples=in_order(records))
        >>> [step.step for step in steps]
        [1, 2]
    """
    check_records(records)
    check_seed(check_type("seed", seed, int, str))
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
        TypeError: no list of Record and no shards; a batch that is no whole number.
        ValueError: no records, a batch below 1, a record that is too long for the model, or none with an answer.
    """
    check_records(records)
    batch = check_int("batch", batch)
    objective = objective_for(model, processor, Stage("loss", "answer", {"llm": 0.0}, {}, steps=1))
    total, count = 0.0, 0
    with torch.no_grad():
        for begin in range(0, len(records), batch):
            loss, _, _, supervised = objective(records[begin : begin + batch], step=0)
            if supervised:
                total += loss.item() * supervised  # batches do not have equally many supervised tokens
                count += supervised
    if not count:
        raise ValueError("there must be an answer in the records: none of their tokens is supervised")
    return total / count


def words_right(
    model: MiniCPMV, processor: Processor, records: Sequence[Record], n: int = ASKED, seed: int | str = 0
) -> float:
    """Let a model answer, and compare words: what a falling loss may or may not mean.

    Args:
        model, processor: they belong together.
        records: each of their questions may be asked, after the true answers before it.
        n: how many are asked, drawn from all of them; if there are no more than that, all are.
        seed: of the draw.

    Returns:
        The share of the wanted words that are said in their right place, 0 to 1.

    Raises:
        TypeError: no list of Record and no shards; n that is no whole number.
        ValueError: no records, or none with an answer; n below 1.
    """
    places = _answers_in(check_records(records))
    check_seed(check_type("seed", seed, int, str))
    if len(places) > check_int("n", n):
        places = sorted(random.Random(seed).sample(places, n))  # sorted: each shard is read once
    prompts, wanted = [], []
    for number, turns in groupby(places, key=itemgetter(0)):
        talk = records[number].messages
        for _, turn in turns:
            prompts.append(talk[:turn])
            wanted.append(talk[turn]["content"])
    if not prompts:
        raise ValueError("there must be at least one record with an answer")
    # An answer that is cut off would lack words that the model knows. A token has a byte or more.
    long = [len(processor.tokenizer(text)["input_ids"]) + 1 for text in wanted if len(text.encode()) > 100]
    return share_of_words(answers(model, processor, prompts, max_new_tokens=max([128, *long])), wanted)


def _answers_in(records: Sequence[Record]) -> list[tuple[int, int]]:
    """(number of the record, number of the turn) of all answers."""
    return [(i, k) for i, record in enumerate(records) for k, turn in enumerate(record.turns) if turn[0] == "assistant"]


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Args:
        steps, batch: optimizer steps, and records of each.
        lr_scale: factor on the learning rates of the stage "sft-2", which itself ended at 0.02. A larger one makes a
            trained model learn more and forget more: data_samples/records/README.md has an example at 0.3. For random
            weights use 1. Adapters learn LORA_SCALE times as fast as the LLM.
        lora: the rank of adapters in the attention of the LLM, which learn alone; None: all parts learn in full.
        seed: of the order of the records, and of fresh adapters.
        strict: True refuses data with any problem; False skips bad records and says how many.

    Raises:
        TypeError, ValueError: a field that cannot be; the message names it.
    """

    steps: int = 40
    batch: int = 8
    lr_scale: float = 0.03
    lora: int | None = None
    seed: int = 0
    strict: bool = False

    def __post_init__(self):
        steps, batch = (check_int(name, getattr(self, name), least=0) for name in ("steps", "batch"))
        if min(steps, batch) < 1:
            raise ValueError(f"there must be at least one step and one record in it, got {steps=}, {batch=}")
        check_number("lr_scale", self.lr_scale, above=0)
        if self.lora is not None and check_int("lora", self.lora, least=0) < 1:
            raise ValueError(f"lora is the rank of the adapters, 1 or more, got {self.lora}")
        check_int("seed", self.seed, least=0)

    @property
    def stage(self) -> Stage:
        """The learning rates of the last stage of the schedule, scaled, for your records."""
        rates = {part: self.lr_scale * highest for part, highest in stage_named("sft-2").learning_rates.items()}
        if self.lora is not None:
            rates = {"llm": LORA_SCALE * rates["llm"]}
        return Stage("records", "answer", rates, data_mix={}, steps=self.steps, batch=self.batch)


RECIPE = Recipe()


def train_on(
    data: str | os.PathLike,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    held_out: str | os.PathLike | None = None,
    *,
    root: str | os.PathLike | None = None,
    recipe: Recipe = RECIPE,
    machine: Machine = DEFAULT,
    report=print,
    progress: bool = True,
) -> dict:
    """Fine-tune a checkpoint on your own records; an interrupted training resumes, a finished one stays as it is.

    Args:
        data: a JSON file of records, or a folder of shards; all of it is checked before anything else happens.
        checkpoint: a folder, or "nano".
        out: where to write: the checkpoint, metrics.jsonl, and training checkpoints while it trains. With LoRA the
            checkpoint is the merged one, and out/adapter is the adapter alone.
        held_out: a JSON file, or shards, only measured: before, after, and at each training checkpoint.
        root: where the picture paths of a JSON file start, as for `read_records`.
        recipe: how to fine-tune.
        machine: how to use the machine.
        report, progress: as for `run`.

    Returns:
        {"stage": "records", "held_out_before": loss, "held_out_after": loss, "seconds": of its steps}; with `held_out`
        in the first process also "words_before" and "words_after", from `words_right`: the same 100 answers at most.

    Raises:
        ValueError: no good record; with `strict`, any problem; LoRA together with sharding; sharding with records that
            have no picture; a training checkpoint in `out` that is of another training.
        OSError: a file cannot be read or written; `out` holds a checkpoint or an adapter already, but not the one that
            this call has written before; another training writes there.
        FloatingPointError, Stopped: as for `StageRun.train`.

    Source: finetune/finetune.py of OpenBMB/MiniCPM-V. Three differences: its script for full fine-tuning leaves the LLM
    frozen (tune_llm is false in it); it cuts long conversations, which may take away all answers or half a picture;
    and its learning rates are those of a large model. For those of the data see `records.messages`, for LoRA
    `lora.add_lora`.
    """
    if check_type("recipe", recipe, Recipe).lora is not None and check_type("machine", machine, Machine).shard:
        raise ValueError("LoRA and sharding do not go together here: adapters are small, so let every process hold all")
    out, first = Path(out), machine.processes.rank == 0
    if _holds_checkpoint(out) and not (out / HEADER).is_file():
        raise FileExistsError(f"{out} {TAKEN}")
    if (out / ADAPTER).is_dir() and not (out / WEIGHTS).is_file() and not training_checkpoints(out / FOLDER):
        raise FileExistsError(f"{out / ADAPTER} is all that is left of another training; write somewhere else")
    with _claimed(out, machine.processes):
        processor = Processor.from_pretrained(checkpoint)
        options = {"root": root, "processor": processor, "strict": recipe.strict}
        records, tests, marks = _read_both(data, held_out, report, **options)
        model, optimizer = MiniCPMV.from_pretrained(checkpoint), None
        base = {"from": os.fspath(checkpoint), "weights": fingerprint(dict(model.named_parameters()))}
        settings = base | marks | ({} if recipe.lora is None else {"lora": recipe.lora})
        if result := _result_of(out, settings_of(recipe.stage, recipe.seed, settings), model.config, first, report):
            return result
        model = model.float().to(machine.device)
        words = words_right(model, processor, tests) if tests and first else None
        if recipe.lora is not None:
            from .lora import add_lora, lora_optimizer  # peft takes seconds to import

            adapted = add_lora(model, recipe.lora, modules_to_save=(), seed=recipe.seed)
            optimizer = lora_optimizer(adapted, recipe.stage.learning_rates["llm"])
        training = StageData(
            samples=in_order(records, recipe.seed),
            held_out=(lambda objective: loss_on(objective.model, processor, tests)) if tests else None,
            sparse=not all(record.images for record in records),
            settings=settings,
        )
        output = Output(out / FOLDER, out / METRICS, report=report, progress=progress)
        given = {"optimizer": optimizer, "seed": recipe.seed, "machine": machine}
        result = StageRun(model, processor, recipe.stage, output, training, **given).train()
        model = unshard(model)
        # The other processes have nothing to write.
        return _end(out, model, processor, tests, words, result, report) if first else result


TAKEN = "holds a checkpoint already; write somewhere else, and start from it to train on"


def _holds_checkpoint(out: Path) -> bool:
    """Without config.json it is half of one, as a process may have left it that was killed."""
    return (out / CONFIG).is_file() and ((out / WEIGHTS).is_file() or (out / INDEX).is_file())


@contextmanager
def _claimed(out: Path, processes: Processes) -> Iterator[None]:
    """Make the folder if it is missing, let no second training in, and leave no empty folder behind."""
    missing = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with alone_in(out, processes):
            yield
    finally:
        if missing and processes.rank == 0:
            with suppress(OSError):  # it is not empty
                out.rmdir()


def _read_both(data, held_out, report, **options) -> tuple[Sequence[Record], Sequence[Record], dict]:
    """Records to train on, records to measure on, and marks that tell when either has changed."""
    records = read_any(data, report, **options)
    tests = read_any(held_out, report, **options) if held_out else []
    contents, test_contents = ([digest(record) for record in some] for some in (records, tests))
    seen = set(contents)
    if known := sum(content in seen for content in test_contents):
        rest = f"(there are {len(tests)}): their loss says little"
        report(f"{known} of the held-out records are in the training data, too {rest}")
    return records, tests, {"data": _mark(contents), "held_out": _mark(test_contents)}


def _result_of(out: Path, settings: dict, config: MiniCPMVConfig, first: bool, report) -> dict | None:
    """The result of a training that has ended here before; None if there is none. `first`: this process cleans up."""
    try:
        notes = finished(out, settings)
        if notes is not None and read_config(out) != config:
            raise ValueError("the config has changed")
    except ValueError as error:
        raise FileExistsError(f"{out} {TAKEN}. It is not what this command would write: {error}") from error
    if notes is None:
        return None
    if first:
        kept = notes.get("kept")
        clean_up(out, but=out / FOLDER / str(kept) if kept else None)
    report(f"records: done before, {out} is its end")
    return notes.get("result")


def _end(out: Path, model: MiniCPMV, processor: Processor, tests: Sequence[Record], words, result: dict, report):
    """Measure the trained model and write it; the result with what was measured."""
    newest, best = training_checkpoints(out / FOLDER)[-1], best_checkpoint(out / FOLDER, report)
    better = best is not None and best != newest
    lora = model.has_adapters
    if better:
        kind, place = ("an adapter", out / ADAPTER) if lora else ("a checkpoint", out)
        report(f"the held-out loss was lowest in {best}, which is kept: {kind} like the one in {place}")
    if lora:
        from .lora import merge_lora, save_lora

        save_lora(model, out / ADAPTER)
        merge_lora(model)
    if tests:
        result |= {"words_before": words, "words_after": words_right(model, processor, tests)}
        n = len(_answers_in(tests))
        where = f"in {min(n, ASKED)} of {n} answers"
        report(f"records: {words:.0%} of the held-out words right -> {result['words_after']:.0%}, {where}")
    finish(out, model, processor, best=better, notes={"result": result, "kept": best.name if better else None})
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
        TypeError: a path, a root or a processor of another type.
        ValueError: no good record; with `strict`, any problem; a `root` for shards, which hold their pictures.
        OSError: a file cannot be read.
    """
    if Path(check_type("path", path, str, os.PathLike)).is_dir():
        from .shards import open_shards

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

    Raises:
        TypeError: no Record.
        OSError, ValueError: a picture file is gone, or too large.

    Example:
        >>> digest(Record("0", {}, (("user", "Hi"),))) == digest(Record("1", {}, (("user", "Hi"),)))
        True
    """
    check_type("record", record, Record)
    total = hashlib.sha256(repr((sorted(record.images), record.turns)).encode())
    for name in sorted(record.images):
        total.update(hashlib.sha256(picture_bytes(record.images[name])).digest())
    return total.digest()


def _mark(contents: list[bytes]) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()
