"""`ask`: one question about pictures and clips, with the plan and the timings; boxes of the answer can be drawn."""

import os
import re
from pathlib import Path

from ..inputs.checks import LIMITS, printable
from .common import FACTORS, SEEDS, CommandError, Stopwatch, add_answer_length, add_number, add_question, need, say

MANY = "nano-many"  # the model of the course for several pictures, clips and boxes
PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: <ref>the cat</ref>"


def options(parser):
    parser.add_argument("files", metavar="FILE", nargs="+", help="pictures, animated pictures (GIF, WebP) or videos")
    add_question(parser)
    parser.add_argument("--draw", metavar="FILE", help="save the picture with the boxes that the answer names")
    add_number(
        parser,
        "--frames",
        within=(1, LIMITS["frames"]),
        type=int,
        metavar="N",
        help="so many frames of each clip, evenly (default: one a second, at least 8, at most 64)",
    )
    add_number(
        parser,
        "--max-slice-nums",
        within=(1, LIMITS["max_slice_nums"]),
        type=int,
        metavar="N",
        help="at most so many slices of a picture (default: the model's own) or frame (never more than 2)",
    )
    add_answer_length(parser)
    add_number(
        parser,
        "--temperature",
        within=FACTORS,
        type=float,
        default=0.0,
        help="0: the likeliest token (default); above 0: sampled",
    )
    add_number(parser, "--seed", within=SEEDS, type=int, default=0, help="of the sampling")


def run(args):
    for module in ("torch", "transformers"):
        need(module, "the model")
    if 0 < args.temperature < LIMITS["temperature"]:
        raise CommandError(f"--temperature must be 0 or at least {LIMITS['temperature']}, got {args.temperature}")
    from ..inputs.clips import read_clip

    watch = Stopwatch()
    try:
        check_files(args)
        clips = [read_clip(file, args.frames) for file in args.files]
        if args.frames and all(clip.count == 1 for clip in clips):
            raise CommandError("--frames is for animated pictures and videos, and none is given")
        if args.draw and clips[0].count > 1:
            raise CommandError("--draw takes one picture, got a clip: a box does not say which frame it is in")
        watch.lap("read the picture")
        name = args.model or choose_model(clips, args.question, boxes=bool(args.draw))
        model, processor = load(name)
        watch.lap("load the model")
        question, slices = args.question, args.max_slice_nums
        if Path(name).name == MANY and (args.draw or asks_for_boxes(question)):
            question, slices = box_question(question) if args.draw else question, slices or 1
        parts = [clip.frames if clip.count > 1 else clip.frames[0] for clip in clips]
        batch = processor([{"role": "user", "content": [*parts, question]}], max_slice_nums=slices)
        watch.lap("slice and normalize")
        say(f"model     {name}")
        print(describe_plan(batch, clips, processor.config))
        if slices != args.max_slice_nums or question != args.question:
            say(f"asked     {question}" + " (in one view, as it has learned boxes)" * (slices != args.max_slice_nums))
        if outside(clips, name, processor.config):
            print(OUTSIDE)
        text, cut = answer(model, processor, batch, args, watch)
        print("\n")
        if args.draw:
            draw(text, clips[0].frames[0], args.draw)
    except (ValueError, OSError) as error:
        raise CommandError(error) from error
    print(watch)
    if cut:
        print(f"\n{cut}")


def choose_model(clips, question, boxes=False):
    """The model of the course that knows what is asked for."""
    from ..inputs.published import BUNDLED

    several = len(clips) > 1 or clips[0].count > 1
    return MANY if (several or boxes or asks_for_boxes(question)) and (BUNDLED / MANY).is_dir() else "nano"


def load(name):
    """A model and its processor; one of the course as a Runtime, which is ready two seconds sooner."""
    from .. import peers
    from ..deploy.runtime import Runtime
    from ..inputs.published import BUNDLED, find_folder
    from ..processor import Processor

    if find_folder(name).parent != BUNDLED:
        return peers.load(name)
    return Runtime(name), Processor.from_pretrained(name)


def asks_for_boxes(question):
    return bool(re.search(r"\bbox(es)?\b|<(ref|box|quad|point)>", question, re.I))


def answer(model, processor, batch, args, watch):
    """Print the answer as it comes; return it, and what there is to say if it did not end by itself."""
    import torch

    from ..model import decode_stream

    with torch.inference_mode():
        # As in encode_images, in two steps; the parts of a checkpoint may have different dtypes.
        features = model.vpm([view.to(model.vpm.post_layernorm.weight) for view in batch.images[0]])
        watch.lap("ViT")
        dtype = next(model.resampler.parameters()).dtype
        visual = model.resampler([f.to(dtype) for f in features], batch.patch_grids[0])
        watch.lap("resampler")
    tokens = model.stream(batch, args.max_new_tokens, temperature=args.temperature, seed=args.seed, visual=visual)
    print("\nanswer: ", end="", flush=True)
    count, text, last = 0, "", None

    def watched():
        nonlocal count, last
        for token in tokens:
            if count == 0:
                watch.lap("LLM, prompt and first token")
            count, last = count + 1, int(token)
            yield last

    for piece in decode_stream(watched(), processor.tokenizer, batch.stop_ids):
        print(printable(piece), end="", flush=True)
        text += piece
    watch.lap(f"LLM, {count - 1} more tokens")
    return text, "" if last in batch.stop_ids else cut_off(count, args.max_new_tokens)


def cut_off(count, most):
    """What to say about an answer without its end."""
    why = f"--max-new-tokens {most} allows no more" if count >= most else "the model has no position left"
    return f"The answer may go on: {why}."


# ---- the plan


def describe_plan(batch, clips, config):
    """What the pictures and clips of a batch cost, in words and numbers."""
    plans, total, queries = batch.plans[0], batch.input_ids.shape[1], config.resampler.num_queries
    patches = sum(rows * cols for plan in plans for rows, cols in plan.patch_grids)
    visual = sum(plan.visual_tokens(queries) for plan in plans)
    lines = describe_picture(plans[0], config.slicing.scale_resolution) if len(plans) == 1 else []
    rest, number = list(plans), 0
    for clip in clips if len(plans) > 1 else ():
        own, rest = rest[: len(clip.frames)], rest[len(clip.frames) :]
        cost = f"{sum(plan.visual_tokens(queries) for plan in own)} visual tokens"
        if clip.count == 1:
            number += 1
            lines.append(f"{f'picture {number}':<9} {' x '.join(map(str, own[0].image_size))} pixels, {cost}")
        else:
            sizes = sorted({plan.image_size for plan in own})
            size = " and ".join(f"{width} x {height}" for width, height in sizes)
            lines.append(f"clip      {len(own)} frames of {clip.seconds:.1f} s, {size} pixels, {cost}")
    lines.append(f"tokens    {patches} patches -> {visual} visual tokens, {total} tokens with the text")
    return "\n".join(lines)


def describe_picture(plan, side):
    lines = [
        f"picture   {plan.image_size[0]} x {plan.image_size[1]} pixels",
        f"overview  {plan.overview_size[0]} x {plan.overview_size[1]} pixels",
    ]
    if not plan.grid:
        few = plan.image_size[0] * plan.image_size[1] <= side * side
        return [*lines, f"slices    none{': the overview is enough for so few pixels' if few else ', as asked'}"]
    (cols, rows), (width, height) = plan.grid, plan.slice_size
    return [*lines, f"slices    {cols} x {rows} (columns x rows), {width} x {height} pixels each"]


# ---- what the model of the course knows

OUTSIDE = (
    "note      nano knows drawn shapes and short lines of text, not pictures like this; "
    "--model FOLDER asks a published model (see README.md)"
)


def outside(clips, name, config):
    """Whether the course's model is asked about something that it never saw."""
    from ..inputs.published import BUNDLED, find_folder

    if find_folder(name).parent != BUNDLED:
        return False
    most = 4 * config.slicing.max_slice_nums * config.slicing.scale_resolution**2
    return not all(looks_drawn(clip.frames[0], most) for clip in clips)


def looks_drawn(picture, most_pixels):
    """Whether a picture could be of the small world: not large, mostly background, areas of one color.

    In the small world the background fills 65 % and more, and 83 % of the pixels or more equal their neighbors to the
    right and below; 54 % and 28 % after JPEG. Photographs seldom have both.
    """
    import numpy as np

    if picture.width * picture.height > most_pixels:
        return False
    pixels = np.asarray(picture, dtype=np.int16)
    background = np.abs(pixels - np.median(pixels, axis=(0, 1))).max(axis=-1) <= 8
    here, right, below = pixels[:-1, :-1], pixels[:-1, 1:], pixels[1:, :-1]
    flat = ((here == right) & (here == below)).all(axis=-1)
    return background.mean() > 0.5 and flat.mean() > 0.25


# ---- boxes


def check_files(args):
    """Refuse what cannot be asked, drawn or saved, before a model is loaded."""
    check_question(args.question)
    if not args.draw:
        return
    from PIL import Image

    target = Path(args.draw)
    if len(args.files) > 1:
        raise CommandError(f"--draw takes one picture: a box does not say which it is in; got {len(args.files)} files")
    if Image.registered_extensions().get(target.suffix.lower()) not in ("PNG", "JPEG", "WEBP"):
        raise CommandError(f"--draw: save it as .png, .jpg or .webp, got {args.draw}")
    if not os.path.isdir(target.parent):
        raise CommandError(f"--draw: there is no folder {target.parent}")
    if target.exists() and target.samefile(args.files[0]):
        raise CommandError("--draw would overwrite the picture itself")


def check_question(question):
    if not question.strip():
        raise CommandError("the question, the last argument, is empty")
    if os.path.isfile(question):
        raise CommandError(f"the question is missing: {question}, the last argument, is a file")


def box_question(question):
    """What nano-many was trained to answer with a box; "Where is ...?" it answers with a corner."""
    asked = re.fullmatch(r"where(?: is|'s| are) (.+?)[?. ]*", question.strip(), re.I)
    return f"Give the box of {asked[1]}." if asked else question


def draw(text, picture, file):
    """Draw the boxes of an answer on the picture, and save it; small pictures are enlarged."""
    from PIL import Image, ImageDraw, ImageFont

    from ..inputs.boxes import parse_boxes
    from ..inputs.files import replacing

    boxes = parse_boxes(text, picture.size)
    if not boxes:
        raise CommandError(f'the answer has no box: nothing is drawn. Published models are asked like this: "{PROMPT}"')
    times = -(-448 // max(picture.size))
    drawing = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    pen, thick = ImageDraw.Draw(drawing), max(2, max(drawing.size) // 200)
    for label, edges in boxes:
        numbers = ", ".join(f"{edge:.0f}" for edge in edges)
        say(f"box       {label or '(no name)'}: {numbers} (left, top, right, bottom in pixels)")
        left, top, right, bottom = (times * edge for edge in edges)
        pen.rectangle((left, top, max(right, left + thick), max(bottom, top + thick)), outline="magenta", width=thick)
        style = dict(font=ImageFont.load_default(8 * thick), stroke_width=2, stroke_fill="white")
        pen.text((left, bottom + thick), printable(label), fill="black", **style)
    file = Path(file)
    with replacing(file) as (draft,):
        drawing.save(draft, Image.registered_extensions()[file.suffix.lower()])
    say(f"drawn     {file}\n")
