"""`records`: checks your own training data."""

from pathlib import Path

from .common import COUNTS, CommandError, add_number, need, say


def options(parser):
    parser.add_argument(
        "file", metavar="DATA", help="a JSON list of records with id, image and conversations; or shards"
    )
    parser.add_argument(
        "--root", metavar="FOLDER", help="where picture paths start and stay (default: the file's folder)"
    )
    parser.add_argument("--model", metavar="CHECKPOINT", help="also find records that are too long for this model")
    parser.add_argument(
        "--quick", action="store_true", help="read only the pictures' headers; truncated ones are not found"
    )
    add_number(
        parser,
        "--most",
        within=COUNTS,
        type=int,
        default=20,
        metavar="N",
        help="print at most so many problems (default: 20)",
    )


def run(args):
    for module in ("torch", "transformers"):
        need(module, "the check")
    from ..processor import Processor
    from ..scale.records import read_records
    from ..scale.shards import open_shards

    try:
        processor = Processor.from_pretrained(args.model) if args.model else None
        if Path(args.file).is_dir():
            _, report = open_shards(args.file, processor)
        else:
            pictures = "header" if args.quick else "decode"
            _, report = read_records(args.file, args.root, pictures=pictures, processor=processor)
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    say(report.text(args.most))
    return 1 if report.problems else 0
