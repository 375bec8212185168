"""`train`: the toy stages from random weights, or any model on your own data."""

import argparse
import os
from pathlib import Path

from ..inputs.checks import LIMITS, quoted
from .common import COUNTS, FACTORS, SEEDS, THREADS, CommandError, add_number, need, refuse, report_line, say


def options(parser):
    parser.add_argument("--profile", choices=("fast", "cpu", "gpu"), help="how long (default: fast, a minute)")
    parser.add_argument("--stage", metavar="NAME", help="this stage alone, from the one before it in the folder")
    data_options(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", help="where to write (default: runs/PROFILE, or runs/ and the data's name)"
    )
    add_number(parser, "--seed", within=SEEDS, type=int, default=0, help="of weights and samples")
    machine_options(parser)


def data_options(parser):
    parser.add_argument(
        "--data", metavar="DATA", help="your own data: a JSON file as for records, or a folder of shards"
    )
    parser.add_argument(
        "--from", dest="checkpoint", metavar="CHECKPOINT", help='with --data or --stage: where to start, or "nano"'
    )
    parser.add_argument("--held-out", metavar="DATA", help="with --data: records that are only measured")
    add_number(
        parser,
        "--lora",
        within=(0, LIMITS["hidden_size"]),
        type=int,
        metavar="RANK",
        help="with --data: adapters learn, and are merged at the end",
    )
    add_number(
        parser, "--steps", within=COUNTS, type=int, metavar="N", help="with --data: optimizer steps (default: 40)"
    )
    add_number(
        parser,
        "--batch",
        within=COUNTS,
        type=int,
        metavar="N",
        help="with --data: records of a step, of all processes (default: 8)",
    )
    add_number(
        parser,
        "--lr-scale",
        within=FACTORS,
        type=float,
        metavar="X",
        help="with --data: factor on the learning rates of nano's last stage (default: 0.03)",
    )
    # The earlier name of --lr-scale, which still works.
    add_number(parser, "--rate", within=FACTORS, dest="lr_scale", type=float, help=argparse.SUPPRESS)
    parser.add_argument(
        "--root", metavar="FOLDER", help="with --data: where picture paths start (default: the file's folder)"
    )
    parser.add_argument(
        "--strict", action="store_true", help="with --data: stop at bad records instead of skipping them"
    )


def machine_options(parser):
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    add_number(parser, "--threads", within=THREADS, type=int, metavar="N", help="CPU threads")
    parser.add_argument(
        "--shard", action="store_true", help="under torchrun: each process holds a part of each tensor (FSDP)"
    )
    add_number(
        parser,
        "--workers",
        within=(0, 1024),
        type=int,
        metavar="N",
        help="processes that prepare samples (default: up to 8 for a GPU)",
    )
    add_number(
        parser,
        "--micro-batches",
        within=COUNTS,
        type=int,
        default=1,
        metavar="N",
        help="compute each step in N parts: less memory",
    )
    # The earlier name of --micro-batches, which still works.
    add_number(parser, "--pieces", within=COUNTS, dest="micro_batches", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help="compute each layer twice: far less memory")
    parser.add_argument("--compile", action="store_true", help="let torch.compile fuse what it can")


def run(args):
    for module in ("torch", "transformers", "matplotlib"):
        need(module, "training")
    import torch

    if args.data:
        refuse(args, "profile", "stage", why="belong to the toy world, not to --data")
        if not args.checkpoint:
            raise CommandError("--data needs --from CHECKPOINT, the model to start from")
    else:
        own = ("checkpoint",) * (not args.stage) + ("held_out", "lora", "steps", "batch", "lr_scale", "root", "strict")
        refuse(args, *own, why="belong to --data, your own data; --from to --stage, too")
    from ..scale.parallel import join_processes
    from ..scale.signals import Stopped

    args.profile = args.profile or "fast"
    folder = Path(args.out or Path("runs") / (Path(args.data).resolve().stem if args.data else args.profile))
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("there is no GPU that this torch can use; --device cpu works everywhere")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        with join_processes(args.device) as processes:
            train_in(processes, folder, args)
    except (ValueError, OSError, FloatingPointError) as error:
        raise CommandError(error) from error
    except RuntimeError as error:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        how = "the same command goes on from the newest training checkpoint"
        raise CommandError(f"another process has died: {error}; {how}") from error
    except Stopped as stop:
        say(f"\n{stop}; the same command goes on from there")
        return stop.code
    except KeyboardInterrupt:
        say(f"\nstopped; the same command goes on with what is saved in {folder}")
        return 130


def train_in(processes, folder, args):
    """Train in one of several processes; the first one prints and draws the curves."""
    import torch

    from ..scale.loader import usual_workers
    from ..scale.machine import Machine
    from ..scale.metrics import plot

    first = processes.rank == 0
    report = report_line if first else lambda text: None
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    name = name if processes.size == 1 else f"{processes.size} processes of {name}"
    what = args.data or f"profile {args.profile}"
    report(f"{what}, seed {args.seed}, {name}; everything is written to {folder}")
    workers = usual_workers(args.device, processes.size) if args.workers is None else args.workers
    parts = {name: getattr(args, name) for name in ("device", "shard", "micro_batches", "checkpointing", "compile")}
    how = {"machine": Machine(processes=processes, workers=workers, **parts), "report": report, "progress": first}
    if args.data:
        from ..scale.finetune import Recipe, train_on

        given = {name: getattr(args, name) for name in ("steps", "batch", "lr_scale", "lora", "seed", "strict")}
        recipe = Recipe(**{name: value for name, value in given.items() if value is not None})
        train_on(args.data, args.checkpoint, folder, args.held_out, root=args.root, recipe=recipe, **how)
        report(f'ask it: lab.py ask IMAGE "QUESTION" --model {quoted(str(folder))}')
    else:
        from ..processor import Processor
        from ..scale.profiles import PROFILES
        from ..scale.run import run as run_stages

        profile = PROFILES[args.profile]
        processor = Processor(Processor.from_pretrained("nano").tokenizer, profile.config)
        run_stages(folder, profile, processor, args.stage, args.seed, checkpoint=args.checkpoint, **how)
    if first:
        report(f"curves: {plot(folder)}")
