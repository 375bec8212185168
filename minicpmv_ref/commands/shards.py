"""`shards`: writes your own training data as tar files."""

from .common import COUNTS, CommandError, add_number, need, say


def options(parser):
    parser.add_argument("file", metavar="FILE.json", help="a list of records with id, image and conversations")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where to write")
    parser.add_argument(
        "--root", metavar="FOLDER", help="where picture paths start and stay (default: the file's folder)"
    )
    add_number(
        parser,
        "--per-shard",
        within=COUNTS,
        type=int,
        default=1000,
        metavar="N",
        help="records of a shard (default: 1000)",
    )


def run(args):
    for module in ("torch", "transformers", "webdataset"):
        need(module, "the writing")
    from ..scale.records import read_records
    from ..scale.shards import write_shards

    if args.per_shard < 1:
        raise CommandError(f"--per-shard: there must be one or more in a shard, got {args.per_shard}")
    try:
        good, report = read_records(args.file, args.root, pictures="decode")
        if not good:
            raise CommandError(f"no good record. {report.text(3)}")
        paths = write_shards(good, args.out, args.per_shard)
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    say(report.text())
    size = sum(path.stat().st_size for path in paths)
    say(f"{args.out}: {len(good)} records, {len(paths)} tar files, {size / 1e6:,.1f} MB")
