"""`reset`: one lesson as it was before you worked on it."""

from .common import CommandError, add_language, notebooks_folder, say
from .course import COPIES, copy_of, lessons, say_if_changed, without_outputs, write_copy


def options(parser):
    parser.add_argument("lesson", metavar="LESSON", help="its number, such as 03 or 07b")
    add_language(parser)


def run(args):
    originals = lessons(notebooks_folder())
    if args.lesson not in originals:
        say_if_changed()
        raise CommandError(f"there is no lesson {args.lesson!r:.40}: choose one of {', '.join(originals)}")
    original = originals[args.lesson]
    fresh, copy = without_outputs(original, args.language), copy_of(original, args.language)
    if copy.exists():
        number = 1
        while (kept := copy.with_name(f"{copy.stem}.old{number}.ipynb")).exists():
            number += 1
        try:
            copy.rename(kept)
        except OSError as error:
            raise CommandError(f"{copy} cannot be renamed: {error.strerror}") from error
        say(f"Your file is now {COPIES.name}/{kept.name}.")
    write_copy(copy, fresh)
    say_if_changed([original])
    say(
        f"{COPIES.name}/{copy.name} is as new. Where it is open in JupyterLab: File > Reload Notebook from Disk, then "
        "Kernel > Restart Kernel."
    )
