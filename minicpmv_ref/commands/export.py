"""`export`: a checkpoint as two GGUF files."""

import sys
import time

from .common import CommandError, need, say

# As in deploy/gguf_plan.py, which --help must not import.
MIXTURES = ("Q4_K_M", "Q8_0", "F16", "F32")


def options(parser):
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help='a checkpoint folder, or "nano"')
    parser.add_argument("folder", metavar="OUT", help="the folder for the files; made if it is missing")
    parser.add_argument("--mixture", choices=MIXTURES, default="Q4_K_M", help="of the language model (default: Q4_K_M)")
    parser.add_argument("--force", action="store_true", help="replace files that are there")


def run(args):
    for module in ("torch", "transformers", "gguf"):
        need(module, "the export")
    from ..deploy.gguf import export as write
    from ..model import MiniCPMV
    from ..processor import Processor

    def show(name, done, total):
        print(f"\r{done / 1e6:,.1f} of {total / 1e6:,.1f} MB  {name:<40}", end="", flush=True)

    start = time.monotonic()
    try:
        processor, model = Processor.from_pretrained(args.checkpoint), MiniCPMV.from_pretrained(args.checkpoint)
        progress = show if sys.stdout.isatty() else None
        paths = write(model, processor, args.folder, args.mixture, args.force, progress)
    except FileExistsError as error:
        raise CommandError(str(error).replace("force=True", "--force")) from error
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    if progress:
        print(f"\r{'':<78}\r", end="")
    for what, path in zip(("language model", "ViT and resampler"), paths):
        say(f"{what:<17}  {path.stat().st_size / 1e6:10,.2f} MB  {path}")
    print(f"in {time.monotonic() - start:.1f} s")
