"""`experiment`: tests the paper's claims."""

from .common import CommandError, find_experiments, need, say


def options(parser):
    parser.add_argument("name", metavar="NAME", help='a file of experiments/ without its .py, or "all"')
    parser.add_argument(
        "--profile", choices=("fast", "cpu", "gpu"), default="fast", help="how much (default: fast, seconds)"
    )
    parser.add_argument("--again", action="store_true", help="measure anew what an earlier run has kept")


def run(args):
    for module in ("torch", "transformers"):
        need(module, "the experiments")
    find_experiments()
    from experiments import _frame as frame

    try:
        for name in frame.NAMES if args.name == "all" else [args.name]:
            result = frame.run(name, args.profile, args.again)
            say(f"{name}: {result['verdict']}, {result['seconds']} s\n    {result['found']}")
        if args.profile != "fast":
            frame.write(frame.PAGE, frame.page())
            say(f"all figures: {frame.PAGE}")
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    except KeyboardInterrupt:
        print("\nstopped; what was measured is kept, and the same command goes on from there")
        return 130
