"""`compare`: finds where a port to another language differs."""

from .common import CommandError, need, refuse, say


def options(parser):
    parser.add_argument("action", choices=("make", "check"), help="write a kit, or check what a port has computed")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="the kit's folder; to check, then a .npz, .safetensors or .json"
    )
    parser.add_argument("--version", choices=("2.0", "2.5", "2.6"), help="make: of the tiny model (default: 2.6)")
    parser.add_argument("--model", metavar="CHECKPOINT", help="make: a checkpoint folder in place of the tiny model")


def run(args):
    for module in ("torch", "transformers"):
        need(module, "the comparison")
    from ..ports.check import check
    from ..ports.kit import KIT, make

    if len(args.paths) != (2 if args.action == "check" else 1):
        raise CommandError("it is `compare make FOLDER`, or `compare check FOLDER THEIRS`")
    if args.action == "check" or args.model:
        refuse(args, "version", why="belong to `compare make` with the tiny model")
    try:
        if args.action == "make":
            files = make(args.paths[0], args.version or "2.6", args.model)
            say(f"{len(files)} files, {sum(files.values()) / 1e6:.1f} MB, in {args.paths[0]}; {KIT} says what is what")
            return 0
        refuse(args, "model", why="belong to `compare make`")
        verdicts = check(*args.paths)
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    for verdict in verdicts:
        say(str(verdict))
    wrong = [verdict.stage for verdict in verdicts if verdict.different]
    say(f"Begin with {wrong[0]}: later stages are computed from it." if wrong else "No difference was found.")
    return int(bool(wrong))
