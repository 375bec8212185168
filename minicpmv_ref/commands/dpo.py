"""`dpo`: the experiment on alignment."""

from pathlib import Path

from .common import ROOT, THREADS, CommandError, Stopwatch, add_number, find_experiments, need, say


def options(parser):
    parser.add_argument(
        "--profile", choices=("fast", "cpu", "gpu"), default="fast", help="how much (default: fast, seconds)"
    )
    parser.add_argument(
        "--model", default="nano", help='a checkpoint folder (default: "nano", the model of the course)'
    )
    parser.add_argument(
        "--run", default="main", metavar="NAME", help='a control, or "all" (default: "main", without controls)'
    )
    parser.add_argument(
        "--labeler", metavar="FOLDER", help="a model that checks claims (default: one is trained for it)"
    )
    parser.add_argument("--folder", help="where to write (default: runs/dpo-PROFILE); what was cut off is continued")
    add_number(parser, "--threads", within=THREADS, type=int, metavar="N", help="CPU threads")


def run(args):
    for module in ("torch", "transformers", "matplotlib"):
        need(module, "the alignment")
    import torch

    find_experiments()
    from experiments.alignment import SEEDS, SETTINGS, SUMMARY, experiment, measured_on, outcome

    from ..inputs.files import only_one
    from ..model import MiniCPMV
    from ..processor import Processor

    device = "cuda" if args.profile == "gpu" and torch.cuda.is_available() else "cpu"
    folder = Path(args.folder) if args.folder else ROOT / "runs" / f"dpo-{args.profile}"
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    watch = Stopwatch()
    try:
        model, processor = (
            MiniCPMV.from_pretrained(args.model).float().to(device),
            Processor.from_pretrained(args.model),
        )
        judge = None
        if args.labeler:
            judge = MiniCPMV.from_pretrained(args.labeler).float().to(device), Processor.from_pretrained(args.labeler)
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder / ".dpo.lock", f"another alignment writes to {folder}"):
            summary = experiment(
                model,
                processor,
                SETTINGS[args.profile],
                folder,
                only=None if args.run == "all" else args.run,
                seeds=SEEDS if args.profile != "fast" else SEEDS[:1],
                judge=judge,
                base="nano" if args.model == "nano" else None,
                report=say,
            )
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    except KeyboardInterrupt:
        print("\nstopped; finished runs are kept, and the same command goes on from there")
        return 130
    watch.lap("alignment")
    say(f"\n{outcome(summary)}\n{measured_on(summary)}\n\n{watch}\nall figures are in {folder / SUMMARY}")
